//! One type for each value: numbers, booleans, times and lists that arrive in other forms.
//!
//! Every function returns the value in the wanted type. A value that does not fit is returned as it came, so that nothing
//! is lost.

use std::borrow::Cow;

use bumpalo::Bump;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::common::text::trim;
use crate::event::json::{Json, is_number};

/// Smaller numbers are not Unix times, but for example positions in a media. As seconds, this is in the year 1973.
const FIRST_TIMESTAMP: i64 = 100_000_000;

/// Unix times from this value on are milliseconds. In seconds it is in the year 5138.
const FIRST_MILLISECOND_TIMESTAMP: i64 = 100_000_000_000;

/// Larger numbers are not Unix times either, but for example dates written as digits. As seconds, this is in the year 2100.
const LAST_TIMESTAMP: i64 = 4_102_444_800;

/// A number, also from a string.
pub(super) fn number(value: Json<'_>) -> Json<'_> {
    match value {
        Json::String(text) => match trim(text) {
            digits if is_number(digits) && is_finite(digits) => Json::Number(digits),
            _ => value,
        },
        other => other,
    }
}

/// Whether a 64-bit float can hold the number. Without an exponent, that takes at most 308 digits.
fn is_finite(number: &str) -> bool {
    let is_short = number.len() <= 308 && !number.contains(['e', 'E']);
    is_short || number.parse::<f64>().is_ok_and(f64::is_finite)
}

/// A number of seconds from one of milliseconds, also from a string. Only the decimal point moves, so that no digit is
/// lost.
pub(super) fn seconds_from_milliseconds<'a>(value: Json<'a>, arena: &'a Bump) -> Json<'a> {
    match number(value) {
        Json::Number(text) => match thousandth(text) {
            Some(seconds) => Json::Number(arena.alloc_str(&seconds)),
            None => Json::Number(text),
        },
        other => other,
    }
}

/// A thousandth of a number; none if its exponent is too large to be counted.
fn thousandth(number: &str) -> Option<String> {
    if let Some((mantissa, exponent)) = number.split_once(['e', 'E']) {
        let exponent = exponent.strip_prefix('+').unwrap_or(exponent).parse::<i64>().ok()?.checked_sub(3)?;
        return Some(format!("{mantissa}e{exponent}"));
    }
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("-", digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let whole = format!("{whole:0>4}");
    let (seconds, thousandths) = whole.split_at(whole.len() - 3);
    let fraction = format!("{thousandths}{fraction}");
    let fraction = fraction.trim_end_matches('0');
    Some(if fraction.is_empty() { format!("{sign}{seconds}") } else { format!("{sign}{seconds}.{fraction}") })
}

/// A boolean, also from `true` and `false` as text in any case, and from 0 and 1.
pub(super) fn boolean(value: Json<'_>) -> Json<'_> {
    match value.as_text().map(str::trim) {
        Some("1") => Json::Bool(true),
        Some("0") => Json::Bool(false),
        Some(text) if text.eq_ignore_ascii_case("true") => Json::Bool(true),
        Some(text) if text.eq_ignore_ascii_case("false") => Json::Bool(false),
        _ => value,
    }
}

/// A string, also from a number or a boolean.
pub(super) fn string(value: Json<'_>) -> Json<'_> {
    match value {
        Json::Number(text) => Json::String(text),
        Json::Bool(value) => Json::String(if value { "true" } else { "false" }),
        other => other,
    }
}

/// The trimmed parts of a comma-separated list, as strings. An empty text is an empty list. A comma in an address does not
/// split it: if the text starts with an address, the next part starts with the scheme of the next one.
pub(super) fn list<'a>(value: Json<'a>, arena: &'a Bump) -> Json<'a> {
    match value {
        Json::Array(items) => Json::Array(arena.alloc_slice_fill_iter(items.iter().map(|item| string(*item)))),
        Json::Number(text) => Json::Array(arena.alloc([Json::String(text)])),
        Json::String(text) if text.trim().is_empty() => Json::Array(&[]),
        Json::String(text) => {
            let of_addresses = starts_with_scheme(text);
            let mut parts = bumpalo::vec![in arena];
            let (mut start, mut next) = (0, 0);
            for part in text.split(',') {
                if next > 0 && (!of_addresses || starts_with_scheme(part)) {
                    parts.push(Json::String(text[start..next - 1].trim()));
                    start = next;
                }
                next += part.len() + 1;
            }
            parts.push(Json::String(text[start..].trim()));
            Json::Array(parts.into_bump_slice())
        }
        other => other,
    }
}

fn starts_with_scheme(text: &str) -> bool {
    text.trim_start().split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// A time in RFC 3339, from one of the forms of [`rfc3339`], or from Unix seconds or milliseconds.
pub(super) fn time<'a>(value: Json<'a>, arena: &'a Bump) -> Json<'a> {
    time_text(value, arena).map_or(value, Json::String)
}

/// The text of [`time`]; none if the value is not a time.
pub(super) fn time_text<'a>(value: Json<'a>, arena: &'a Bump) -> Option<&'a str> {
    let repaired = match value {
        Json::String(text) => rfc3339(text).or_else(|| unix_time(text.trim()).map(Cow::Owned)),
        Json::Number(text) => unix_time(text).map(Cow::Owned),
        _ => None,
    };
    match repaired? {
        Cow::Borrowed(same) => Some(same),
        Cow::Owned(text) => Some(arena.alloc_str(&text)),
    }
}

/// The time in RFC 3339, with its own digits and offset; none if the text is not a time.
///
/// Repairs milliseconds after a colon (`07:49:17:025Z`, AI events of VOD) or a comma, a blank instead of the `T`, blanks
/// around colons (MPS), missing seconds, a missing zone (Alibaba's pages say UTC), and offsets without a colon or minutes.
pub(super) fn rfc3339(text: &str) -> Option<Cow<'_, str>> {
    let text = trim(text);
    // The RFC allows the year 0 and leap seconds, but common readers do not.
    if text.starts_with("0000") || text.get(16..19) == Some(":60") {
        return None;
    }
    if is_plain_utc(text) || (text.contains('T') && OffsetDateTime::parse(text, &Rfc3339).is_ok()) {
        return Some(Cow::Borrowed(text));
    }
    let (date, clock) = text.split_at_checked(10)?;
    let mut clock: String = clock.strip_prefix(['T', 't', ' '])?.chars().filter(|c| *c != ' ').collect();
    clock.make_ascii_uppercase();
    let zone_start = clock.find(['Z', '+', '-']).unwrap_or(clock.len());
    let (time, zone) = clock.split_at(zone_start);
    let time = match time.match_indices([':', ',']).nth(2) {
        Some((third, _)) => format!("{}.{}", &time[..third], &time[third + 1..]),
        None if time.len() == 5 => format!("{time}:00"),
        None => time.to_owned(),
    };
    let zone = match zone {
        "" => "Z".to_owned(),
        zone if zone.len() == 5 && zone.is_ascii() => format!("{}:{}", &zone[..3], &zone[3..]),
        zone if zone.len() == 3 => format!("{zone}:00"),
        zone => zone.to_owned(),
    };
    let repaired = format!("{date}T{time}{zone}");
    OffsetDateTime::parse(&repaired, &Rfc3339).is_ok().then_some(Cow::Owned(repaired))
}

/// Recognizes `2017-03-20T07:49:17Z`, the common form, without building a date. Days after the 28th are parsed in full.
fn is_plain_utc(text: &str) -> bool {
    let bytes = text.as_bytes();
    let two = |at: usize, below: u8| {
        bytes[at].is_ascii_digit()
            && bytes[at + 1].is_ascii_digit()
            && (bytes[at] - b'0') * 10 + (bytes[at + 1] - b'0') < below
    };
    bytes.len() == 20
        && (bytes[4], bytes[7], bytes[10], bytes[13], bytes[16], bytes[19]) == (b'-', b'-', b'T', b':', b':', b'Z')
        && two(0, 100)
        && two(2, 100)
        && two(5, 13)
        && (bytes[5], bytes[6]) != (b'0', b'0')
        && two(8, 29)
        && (bytes[8], bytes[9]) != (b'0', b'0')
        && two(11, 24)
        && two(14, 60)
        && two(17, 60)
}

fn unix_time(digits: &str) -> Option<String> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole: i64 = whole.parse().ok().filter(|seconds| *seconds >= FIRST_TIMESTAMP)?;
    let milliseconds = whole >= FIRST_MILLISECOND_TIMESTAMP;
    let seconds = if milliseconds { whole / 1000 } else { whole };
    // A time has at most nine digits after the point.
    if seconds > LAST_TIMESTAMP || (milliseconds && fraction.len() > 6) {
        return None;
    }
    let scale: i128 = if milliseconds { 1_000_000 } else { 1_000_000_000 };
    let fraction: i128 = format!("{fraction:0<9}").parse::<i128>().ok()? * scale / 1_000_000_000;
    let moment = OffsetDateTime::from_unix_timestamp_nanos(i128::from(whole) * scale + fraction).ok()?;
    moment.format(&Rfc3339).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_times_are_repaired_and_other_texts_are_not_times() {
        for (text, expected) in [
            ("2017-03-20T07:49:17Z", Some("2017-03-20T07:49:17Z")),
            ("2022-06-29T01:35:31.716Z", Some("2022-06-29T01:35:31.716Z")),
            ("2017-03-20T07:49:17:025Z", Some("2017-03-20T07:49:17.025Z")),
            ("2020-11-19T21:04:41+08:00", Some("2020-11-19T21:04:41+08:00")),
            ("2020-11-19T21:04:41+0800", Some("2020-11-19T21:04:41+08:00")),
            ("2022-07-15 08:48:14", Some("2022-07-15T08:48:14Z")),
            ("2022-07-15T08: 48: 14Z", Some("2022-07-15T08:48:14Z")),
            ("2022-07-15t08:48:14z", Some("2022-07-15T08:48:14Z")),
            (" 2022-07-31T08:48:14Z ", Some("2022-07-31T08:48:14Z")),
            ("2024-04-10T01:37Z", Some("2024-04-10T01:37:00Z")),
            ("2024-04-10T01:37:14+08", Some("2024-04-10T01:37:14+08:00")),
            ("2024-04-10T01:37+0800", Some("2024-04-10T01:37:00+08:00")),
            ("2024-04-10 01:37:14,627Z", Some("2024-04-10T01:37:14.627Z")),
            ("2024-04-10T01:3Z", None),
            ("2024-04-10T01,37,14Z", None),
            ("2022-02-30T08:48:14Z", None),
            ("2022-13-01T08:48:14Z", None),
            ("2022-07-15", None),
            ("yesterday at noon", None),
            ("2016-12-31T23:59:60Z", None),
            ("0000-01-01T00:00:00Z", None),
            ("2022-07-15T", None),
            ("2022-07-1éT08:48:14Z", None),
            ("", None),
        ] {
            assert_eq!(rfc3339(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn values_get_the_declared_type_or_stay_as_they_are() {
        let arena = Bump::new();
        let (list, time) = (|value| list(value, &arena), |value| time(value, &arena));
        let text = Json::String;
        assert_eq!(number(text("100.0000000000")).to_string(), "100.0000000000");
        assert_eq!(number(text(" 5510872 ")).to_string(), "5510872");
        assert_eq!(number(text("100002****")).to_string(), r#""100002****""#);
        assert_eq!(number(text("1e999")).to_string(), r#""1e999""#);
        assert_eq!(number(text("007")).to_string(), r#""007""#);
        assert_eq!(boolean(text("False")).to_string(), "false");
        assert_eq!(boolean(Json::Number("1")).to_string(), "true");
        assert_eq!(boolean(Json::Number("2")).to_string(), "2");
        assert_eq!(string(Json::Number("1833220977560785")).to_string(), r#""1833220977560785""#);
        assert_eq!(list(text("a, b,c")).to_string(), r#"["a","b","c"]"#);
        assert_eq!(list(text("")).to_string(), "[]");
        assert_eq!(time(Json::Number("1656466420")).to_string(), r#""2022-06-29T01:33:40Z""#);
        assert_eq!(time(Json::Number("1656466420.5")).to_string(), r#""2022-06-29T01:33:40.5Z""#);
        assert_eq!(time(text("1656466420716")).to_string(), r#""2022-06-29T01:33:40.716Z""#);
        assert_eq!(time(text("soon")).to_string(), r#""soon""#);
        for position in ["0", "12.5", "99999999", "20240410013714", "1656466420716.1234567"] {
            assert_eq!(time(Json::Number(position)).to_string(), position);
        }
        for (text, expected) in [
            ("http://a/1,http://b/2", r#"["http://a/1","http://b/2"]"#),
            ("http://a/x,y.mp4?q=1,2, oss://b/2", r#"["http://a/x,y.mp4?q=1,2","oss://b/2"]"#),
            ("a,http://b", r#"["a","http://b"]"#),
            ("a://", r#"["a://"]"#),
        ] {
            assert_eq!(list(Json::String(text)).to_string(), expected);
        }
    }

    #[test]
    fn milliseconds_become_seconds_and_keep_every_digit() {
        let arena = Bump::new();
        for (milliseconds, seconds) in [
            ("1966.6666666666665", "1.9666666666666665"),
            ("3000", "3"),
            ("0", "0"),
            ("5", "0.005"),
            ("-20.50", "-0.0205"),
            ("123456789012345678901", "123456789012345678.901"),
            ("1e3", "1e0"),
            ("1.5E+9", "1.5e6"),
        ] {
            let value = Json::String(milliseconds);
            assert_eq!(seconds_from_milliseconds(value, &arena).to_string(), seconds, "{milliseconds}");
        }
        let text = Json::String("soon");
        assert_eq!(seconds_from_milliseconds(text, &arena).to_string(), r#""soon""#);
    }
}
