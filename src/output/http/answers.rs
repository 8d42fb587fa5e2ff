//! What each answer of a receiver means for an event, in one table.
//!
//! A status that is not in the table is transient: an answer that nobody knows must not cost an event.

use std::time::{Duration, SystemTime};

use hyper::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use hyper::{StatusCode, Uri};

use crate::event::cut;
use crate::output::ErrorKind::{self, *};
use crate::output::{ErrorClass, PublishError};

/// Most bytes of a body that are read to find out why an event was refused.
pub(super) const MAX_REASON: usize = 4096;

/// Most bytes of a body that a message shows.
const SHOWN: usize = 200;

/// A part of a header value that is at least this long can be a secret.
const SECRET_PART: usize = 4;

/// The longest time for which a receiver can ask to be left alone. It may have the time wrong.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

/// Statuses, the kind of error, and what they mean for the operator.
const STATUSES: &[(ErrorKind, &str, &[u16])] = &[
    (Rejected, "the receiver refuses the event for what it is", &[400, 422]),
    (TooLarge, "the event is too large for the receiver", &[413]),
    (
        Misconfigured,
        "the headers are too large for the receiver: check `request_headers`, or use mode = \"structured\"",
        &[431],
    ),
    (Unauthorized, "check `request_headers` and the rights of the bridge", &[401, 403, 407]),
    (NoSuchDestination, "check the path of `url`", &[404, 410]),
    (Misconfigured, "the receiver takes no POST there: check `url`", &[405]),
    (Misconfigured, "the receiver takes another content type: check `mode`", &[406, 415]),
    (Misconfigured, "receiver and bridge are set up for different things", &[411, 414, 417, 421, 426, 428]),
    (TimedOut, "the receiver says that the request came too slowly", &[408]),
    (Unavailable, "the receiver cannot take the event at the moment", &[409, 425, 429]),
];

/// What an answer without success means for the event.
pub(super) fn meaning(status: StatusCode) -> (ErrorKind, &'static str) {
    if status.is_redirection() {
        return (Misconfigured, "redirects are not followed: set `url` to where the receiver is");
    }
    let of_table = STATUSES.iter().find(|(_, _, statuses)| statuses.contains(&status.as_u16()));
    of_table.map_or((Unavailable, ""), |(kind, meaning, _)| (*kind, meaning))
}

/// Whether a gateway says that there is no receiver behind it, or the receiver says so itself.
pub(super) fn is_unavailable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 502..=504)
}

/// The error of an answer without success. A body that repeats one of the headers that were sent is not shown.
pub(super) fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8], sent: &HeaderMap) -> PublishError {
    let (kind, meaning) = meaning(status);
    let mut message = format!("the receiver answered {}", words(status));
    if let Some(target) = redirect(headers).filter(|_| status.is_redirection()) {
        message.push_str(", which points to ");
        message.push_str(&target);
    }
    if let Some(reason) = reason(headers, body, sent) {
        message.push_str(": ");
        message.push_str(&reason);
    }
    if !meaning.is_empty() {
        message.push_str(" (");
        message.push_str(meaning);
        message.push(')');
    }
    PublishError::new(kind, message)
}

/// A status with its usual words.
pub(super) fn words(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

/// For how long the receiver asks not to be sent anything, if it does.
pub(super) fn pause(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if status.is_success() || meaning(status).0.class() != ErrorClass::Transient {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(now).ok()?,
    };
    Some(pause.min(LONGEST_PAUSE)).filter(|pause| !pause.is_zero())
}

/// Where a redirect points, without its query, which may be a secret.
fn redirect(headers: &HeaderMap) -> Option<String> {
    let target: Uri = headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    let host = target.authority().map(|authority| authority.as_str().rsplit('@').next().unwrap_or_default());
    let text = match (target.scheme_str(), host) {
        (Some(scheme), Some(host)) => format!("{scheme}://{host}{}", target.path()),
        _ => target.path().to_owned(),
    };
    Some(cut(&text, SHOWN).to_owned())
}

/// The first words of a body that people can read.
fn reason(headers: &HeaderMap, body: &[u8], sent: &HeaderMap) -> Option<String> {
    let content_type = headers.get(CONTENT_TYPE)?.to_str().ok()?.to_ascii_lowercase();
    let essence = content_type.split(';').next()?.trim();
    let is_text = essence.starts_with("text/") || essence == "application/json" || essence.ends_with("+json");
    if !is_text {
        return None;
    }
    let text = String::from_utf8_lossy(body);
    // A value such as `Bearer abc` can be repeated in part, quoted or escaped.
    let values = sent.values().filter_map(|value| value.to_str().ok());
    let mut parts = values.flat_map(|value| value.split(|c: char| !c.is_ascii_alphanumeric()));
    if parts.any(|part| part.len() >= SECRET_PART && text.contains(part)) {
        return None;
    }
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words = plain.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown = cut(&words, SHOWN);
    (!shown.is_empty()).then(|| if shown.len() < words.len() { format!("{shown}…") } else { shown.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value"))).collect()
    }

    fn status(code: u16) -> StatusCode {
        StatusCode::from_u16(code).expect("a status")
    }

    fn message(code: u16, pairs: &[(&'static str, &str)], body: &str, secret: &str) -> String {
        refusal(status(code), &headers(pairs), body.as_bytes(), &headers(&[("authorization", secret)])).message
    }

    #[test]
    fn a_status_is_sorted_once_and_unknown_ones_are_transient() {
        let all: Vec<u16> = STATUSES.iter().flat_map(|(_, _, statuses)| *statuses).copied().collect();
        for (index, status) in all.iter().enumerate() {
            assert!(!all[..index].contains(status), "{status} is there twice");
        }
        let kind = |code| meaning(status(code)).0;
        for code in [402, 409, 418, 423, 425, 429, 451, 499, 500, 501, 502, 503, 504, 507, 599, 600, 999] {
            assert_eq!(kind(code).class(), ErrorClass::Transient, "{code}");
        }
        for code in [300, 301, 302, 303, 304, 307, 308, 399, 405, 415] {
            assert_eq!(kind(code), Misconfigured, "{code}");
        }
        let permanent: Vec<u16> = (300..1000).filter(|code| kind(*code).class() == ErrorClass::Permanent).collect();
        assert_eq!(permanent, [400, 413, 422]);
    }

    #[test]
    fn a_message_shows_the_first_words_of_a_text_and_no_secret() {
        let problem = [("content-type", "application/problem+json; charset=utf-8")];
        assert_eq!(
            message(422, &problem, "{\"title\":\r\n \"no\u{1b}[2J\"}", "x-secret"),
            "the receiver answered 422 Unprocessable Entity: {\"title\": \"no [2J\"} \
             (the receiver refuses the event for what it is)"
        );
        assert_eq!(
            message(500, &problem, "you sent Bearer hunter2", "Bearer hunter2"),
            "the receiver answered 500 Internal Server Error"
        );
        assert_eq!(
            message(500, &problem, "token hunter2 is wrong", "Bearer hunter2"),
            "the receiver answered 500 Internal Server Error"
        );
        assert_eq!(message(599, &[("content-type", "image/png")], "png", "x"), "the receiver answered 599");
        let long = message(500, &[("content-type", "text/plain")], &"é".repeat(3000), "x");
        assert!(long.len() < 300 && long.ends_with("é…"), "{long}");
    }

    #[test]
    fn a_redirect_is_shown_without_login_and_query() {
        let to = |location: &'static str| message(307, &[("location", location)], "", "x");
        assert!(to("https://u:p@other.example/in?token=1").starts_with(
            "the receiver answered 307 Temporary Redirect, which points to https://other.example/in (redirects"
        ));
        assert!(to("/in?token=1").contains(", which points to /in ("));
        assert!(to("::").contains("307 Temporary Redirect (redirects"));
    }

    #[test]
    fn a_pause_is_given_in_seconds_or_as_a_date_and_has_a_bound() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let date = |seconds| httpdate::fmt_http_date(now + Duration::from_secs(seconds));
        let pause_of = |code, value: &str| pause(status(code), &headers(&[("retry-after", value)]), now);
        assert_eq!(pause_of(429, "7"), Some(Duration::from_secs(7)));
        assert_eq!(pause_of(503, &date(90)), Some(Duration::from_secs(90)));
        assert_eq!(pause_of(503, "86400"), Some(LONGEST_PAUSE));
        assert_eq!(pause_of(429, &date(86_400)), Some(LONGEST_PAUSE));
        for (code, value) in
            [(429, "0"), (429, "-1"), (503, "soon"), (200, "7"), (404, "7"), (429, "99999999999999999999")]
        {
            assert_eq!(pause_of(code, value), None, "{code} {value}");
        }
        assert_eq!(pause(status(503), &headers(&[("retry-after", "Sun, 09 Sep 2001 01:46:39 GMT")]), now), None);
        assert_eq!(pause(status(503), &HeaderMap::new(), now), None);
    }
}
