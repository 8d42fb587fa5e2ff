//! Where callbacks go, and what one try and all tries of a callback are.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode, Uri};
use time::OffsetDateTime;
use tokio::time::Instant;

use crate::common::address::{authority, host, is_loopback, is_port_valid};
use crate::common::http::{HttpClient, HttpError};
use crate::common::secret::Secret;
use crate::dialect::Dialect;
use crate::event::cut;
use crate::input::http::signature::signed_headers;
use crate::input::mns::{MnsErrorKind, QueueSender};

/// How often Alibaba posts a callback that is not answered with 200 (its pages on the callbacks of VOD and IMS).
pub(in crate::cli) const TRIES: u32 = 3;

/// How long Alibaba waits between these tries.
const PAUSE: Duration = Duration::from_secs(1);

/// What the URL of a queue begins with.
const QUEUE: &str = "mns://";

/// Most bytes of an answer in a sentence.
const SHOWN: usize = 2048;

/// How long a product waits for an answer.
fn timeout(dialect: Dialect) -> Duration {
    match dialect {
        Dialect::Vod => Duration::from_secs(5),
        Dialect::Ims => Duration::from_secs(3),
    }
}

/// The answer to a callback.
#[derive(Debug)]
pub(in crate::cli) struct Answer {
    /// Whether Alibaba counts it as success.
    pub(in crate::cli) is_success: bool,
    /// What answers are counted by: the status, the code of a queue, or why there is none.
    pub(in crate::cli) label: String,
    /// A sentence. A sender of answers has chosen parts of it.
    pub(in crate::cli) words: String,
    /// From the request to the end of the answer.
    pub(in crate::cli) took: Duration,
}

/// An answer without the time that it took.
type Said = (bool, String, String);

/// Where callbacks go.
#[expect(clippy::large_enum_variant, reason = "a command has one target")]
pub(in crate::cli) enum Target {
    Url { url: String, http: HttpClient, signed_url: Option<String>, key: Option<Secret> },
    Queue { host: String, queue: QueueSender },
}

impl Target {
    /// Reads a target.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(in crate::cli) fn parse(text: &str, http: HttpClient) -> Result<Target, String> {
        let is_queue = text.get(..QUEUE.len()).is_some_and(|start| start.eq_ignore_ascii_case(QUEUE));
        if is_queue {
            let rest = &text[QUEUE.len()..];
            let expected = || format!("invalid target `{text}`: expected {QUEUE}HOST/QUEUE");
            let (authority, queue) = rest.trim_end_matches('/').split_once('/').ok_or_else(expected)?;
            check_port(authority, text)?;
            // As the service itself writes the URL of a queue.
            let queue = queue.strip_prefix("queues/").unwrap_or(queue);
            let scheme = if is_loopback(host(authority)) { "http" } else { "https" };
            let queue = QueueSender::new(&format!("{scheme}://{authority}"), queue, http)
                .map_err(|error| format!("{}: {error}", expected()))?;
            return Ok(Target::Queue { host: authority.to_owned(), queue });
        }
        let uri = text.parse::<Uri>().ok();
        let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some());
        if uri.is_none() {
            return Err(format!("invalid target `{text}`: expected http://, https:// or {QUEUE}"));
        }
        check_port(authority(text), text)?;
        Ok(Target::Url { url: text.to_owned(), http, signed_url: None, key: None })
    }

    /// Signs requests with a key, for a URL or for the target itself. A queue has a signature of its own.
    pub(in crate::cli) fn sign(&mut self, url: Option<String>, with: Option<Secret>) {
        if let Target::Url { signed_url, key, .. } = self {
            (*signed_url, *key) = (url, with);
        }
    }

    pub(in crate::cli) fn is_queue(&self) -> bool {
        matches!(self, Target::Queue { .. })
    }

    /// Host and port.
    pub(in crate::cli) fn host(&self) -> &str {
        match self {
            Target::Url { url, .. } => authority(url),
            Target::Queue { host, .. } => host,
        }
    }

    /// Whether it is this machine.
    pub(in crate::cli) fn is_loopback(&self) -> bool {
        is_loopback(host(self.host()))
    }

    /// Posts a callback, at most so many times. Each answer is reported with its number. Returns the last one.
    pub(in crate::cli) async fn post(&self, body: &[u8], tries: u32, report: impl Fn(u32, &Answer)) -> Answer {
        let mut number = 1;
        loop {
            let answer = self.try_once(body).await;
            report(number, &answer);
            if answer.is_success || number >= tries {
                return answer;
            }
            number += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn try_once(&self, body: &[u8]) -> Answer {
        let start = Instant::now();
        let (is_success, label, words) = self.ask(body).await;
        Answer { is_success, label, words, took: start.elapsed() }
    }

    async fn ask(&self, body: &[u8]) -> Said {
        match self {
            Target::Url { url, http, signed_url, key } => {
                let dialect = Dialect::of(body).unwrap_or(Dialect::Vod);
                let signed_url = signed_url.as_deref().unwrap_or(url);
                let said = exchange(http, url, signed_url, key.as_ref(), dialect, body).await;
                said.unwrap_or_else(|(label, words)| (false, label.to_owned(), format!("{url}: {words}")))
            }
            Target::Queue { queue, .. } => match queue.send(body).await {
                Ok(id) => (true, "in the queue".to_owned(), format!("put into the queue as message {}", shown(&id))),
                Err(error) => {
                    let label = match error.kind {
                        _ if !error.code.is_empty() => shown(&error.code),
                        MnsErrorKind::Unavailable => "unavailable".to_owned(),
                        kind => kind.as_str().to_owned(),
                    };
                    (false, label, format!("not put into the queue: {}", shown(&error.to_string())))
                }
            },
        }
    }
}

/// The start of what somebody has answered.
fn shown(text: &str) -> String {
    match cut(text, SHOWN) {
        start if start.len() < text.len() => format!("{start}… ({} bytes)", text.len()),
        _ => text.to_owned(),
    }
}

/// Whether `target` has a port that exists.
fn check_port(authority: &str, target: &str) -> Result<(), String> {
    if is_port_valid(authority) {
        return Ok(());
    }
    Err(format!("invalid target `{target}`: invalid port in `{authority}`: expected a number from 1 to 65535"))
}

/// Posts a callback once. An error is a label and a sentence.
async fn exchange(
    http: &HttpClient,
    url: &str,
    signed_url: &str,
    key: Option<&Secret>,
    dialect: Dialect,
    body: &[u8],
) -> Result<Said, (&'static str, String)> {
    let mut request = Request::post(url).header(CONTENT_TYPE, "application/json");
    if let Some(key) = key {
        let now = OffsetDateTime::now_utc().unix_timestamp();
        for (name, value) in signed_headers(dialect, signed_url, now, &key.value()) {
            request = request.header(name, value);
        }
    }
    let request = request.body(Full::new(Bytes::copy_from_slice(body)));
    let request = request.map_err(|error| ("not sent", error.to_string()))?;
    let answer = http.exchange(request, timeout(dialect)).await.map_err(|error| {
        let label = match &error {
            HttpError::NotConnected(_) => "no connection",
            HttpError::TimedOut => "no answer in time",
            HttpError::Tls(_) => "no TLS",
            HttpError::NoAnswer(_) | HttpError::Unreadable(_) => "no answer",
        };
        (label, error.to_string())
    })?;
    let status = answer.status();
    let text = String::from_utf8_lossy(answer.body());
    let words = match (status, text.trim()) {
        (StatusCode::OK, _) => "answered with 200".to_owned(),
        (status, "") => format!("answered with {status}"),
        (status, text) => format!("answered with {status}: {}", shown(text)),
    };
    Ok((status == StatusCode::OK, status.as_u16().to_string(), words))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_urls_and_queues() {
        let parsed = |text: &str| Target::parse(text, HttpClient::new().expect("a client"));
        let error = |text: &str| parsed(text).map(|_| ()).expect_err("refused");
        for (text, is_loopback) in [
            ("http://127.0.0.1:8080/callbacks", true),
            ("https://localhost", true),
            ("https://media.example.com/callbacks?a=b", false),
            ("http://bridge.localhost:8080/", false),
            ("mns://127.0.0.1.:9/q", false),
            ("mns://127.0.0.1:9/q", true),
            ("MNS://1833220977560000.mns.cn-shanghai.aliyuncs.com/queues/ice-callback-media", false),
        ] {
            let target = parsed(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(target.is_loopback(), is_loopback, "{text}");
        }
        for text in ["127.0.0.1:8080", "ftp://x/y", "/callbacks", "http://"] {
            assert_eq!(error(text), format!("invalid target `{text}`: expected http://, https:// or mns://"));
        }
        for text in ["http://127.0.0.1:99999/callbacks", "https://[::1]:65536", "mns://127.0.0.1:0/q"] {
            assert!(error(text).contains(": invalid port in `"), "{}", error(text));
        }
        assert_eq!(error("mns://host"), "invalid target `mns://host`: expected mns://HOST/QUEUE");
        let long = error("mns://host/a_b");
        assert!(
            long.starts_with("invalid target `mns://host/a_b`: expected mns://HOST/QUEUE: queue: invalid name `a_b`"),
            "{long}"
        );
    }

    #[test]
    fn a_long_answer_is_shortened() {
        assert_eq!(shown("short"), "short");
        let long = shown(&"ä".repeat(1_500));
        assert!(long.ends_with("ä… (3000 bytes)") && long.len() < SHOWN + 20, "{long}");
    }
}
