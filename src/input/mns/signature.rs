//! The two signatures of MNS requests.
//!
//! V1 is HMAC-SHA1 over the request as it is sent. V4 is HMAC-SHA256 with a key derived from the day and the region.
//! Alibaba's SDKs have both; every service understands V1.
//!
//! Implementations differ in the receipt handle, because it contains characters with a meaning in a query. For V1 it is
//! percent-encoded and signed as sent. For V4 it is sent without encoding, as the only SDK with that signature does;
//! every interpretation of the rules then gives the same signature.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ring::hmac;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use time::{OffsetDateTime, UtcOffset};

/// All characters except those that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The same for a path.
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

const V4_SCHEME: &str = "MNS4-HMAC-SHA256";
const V4_END: &str = "aliyun_v4_request";

/// The version of the signature.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SignatureVersion {
    /// HMAC-SHA1, which every service accepts.
    #[default]
    V1,
    /// HMAC-SHA256. It needs `region`.
    V4,
}

/// The signed parts of a request. Names of headers are in lower case.
#[derive(Clone, Debug)]
pub struct Signable<'r> {
    /// The method.
    pub method: &'r str,
    /// The path, not encoded.
    pub path: &'r str,
    /// The query's parameters, not encoded.
    pub query: &'r [(&'r str, Cow<'r, str>)],
    /// `content-type`, `content-md5` and those that begin with `x-mns-`; others are not signed.
    pub headers: &'r [(&'r str, &'r str)],
    /// The time of the header `Date`.
    pub date: OffsetDateTime,
}

/// An access key.
#[derive(Clone, Copy)]
pub struct Key<'k> {
    /// Its id, which is sent.
    pub id: &'k str,
    /// Its secret, which is not.
    pub secret: &'k str,
}

impl fmt::Debug for Key<'_> {
    // Without the secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

impl SignatureVersion {
    /// Path and query as they are sent.
    pub fn target(self, path: &str, query: &[(&str, Cow<'_, str>)]) -> String {
        let mut target = path.to_owned();
        for (index, (name, value)) in query.iter().enumerate() {
            target.push(if index == 0 { '?' } else { '&' });
            target.push_str(name);
            target.push('=');
            // Characters that are not allowed in a query must be encoded.
            let is_bare = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/=:".contains(&byte);
            match self {
                SignatureVersion::V4 if value.bytes().all(is_bare) => target.push_str(value),
                _ => target.extend(utf8_percent_encode(value, ENCODED)),
            }
        }
        target
    }

    /// The header `Authorization` of a request. Only V4 signs the `region`.
    pub fn authorization(self, request: &Signable<'_>, key: Key<'_>, region: &str) -> String {
        match self {
            SignatureVersion::V1 => format!("MNS {}:{}", key.id, v1(request, key.secret)),
            SignatureVersion::V4 => {
                let scope = scope(request.date, region);
                format!("{V4_SCHEME} Credential={}/{scope},Signature={}", key.id, v4(request, key.secret, region))
            }
        }
    }
}

/// A time in the format of HTTP.
pub fn http_date(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let (weekday, month) = (time.weekday().to_string(), time.month().to_string());
    let (hour, minute, second) = time.to_hms();
    let date = format!("{weekday:.3}, {:02} {month:.3} {:04}", time.day(), time.year());
    format!("{date} {hour:02}:{minute:02}:{second:02} GMT")
}

/// A time in the format of the V4 signature: day, `T`, and time of day.
fn v4_time(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    let (hour, minute, second) = time.to_hms();
    format!("{}T{hour:02}{minute:02}{second:02}Z", v4_day(time))
}

fn v4_day(time: OffsetDateTime) -> String {
    let time = time.to_offset(UtcOffset::UTC);
    format!("{:04}{:02}{:02}", time.year(), u8::from(time.month()), time.day())
}

fn v1(request: &Signable<'_>, secret: &str) -> String {
    let header = |name| request.headers.iter().find(|(known, _)| *known == name).map_or("", |(_, value)| value);
    let mut text = format!(
        "{}\n{}\n{}\n{}\n",
        request.method,
        header("content-md5"),
        header("content-type"),
        http_date(request.date)
    );
    for (name, value) in sorted(request, |name| name.starts_with("x-mns-")) {
        text.push_str(&format!("{name}:{value}\n"));
    }
    text.push_str(&SignatureVersion::V1.target(request.path, request.query));
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    STANDARD.encode(hmac::sign(&key, text.as_bytes()))
}

fn v4(request: &Signable<'_>, secret: &str, region: &str) -> String {
    let mut query: Vec<(String, String)> = request
        .query
        .iter()
        .map(|(name, value)| {
            let encoded = |text: &str| utf8_percent_encode(text.trim(), ENCODED).to_string();
            (encoded(&name.to_lowercase()), encoded(value))
        })
        .collect();
    query.sort();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
        .collect();
    let is_signed = |name: &str| name.starts_with("x-mns-") || matches!(name, "content-type" | "content-md5");
    let headers: String =
        sorted(request, is_signed).into_iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let text = format!(
        "{V4_SCHEME}\n{}\n{}\n{}\n{}\n{}\n{headers}\n",
        v4_time(request.date),
        scope(request.date, region),
        request.method,
        utf8_percent_encode(request.path, ENCODED_PATH),
        query.join("&"),
    );
    let key = hmac_sha256(format!("aliyun_v4{secret}").as_bytes(), &v4_day(request.date));
    let key = [region, "mns", V4_END].into_iter().fold(key, |key, part| hmac_sha256(&key, part));
    hmac_sha256(&key, &text).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn scope(date: OffsetDateTime, region: &str) -> String {
    format!("{}/{region}/mns/{V4_END}", v4_day(date))
}

fn sorted<'r>(request: &Signable<'r>, is_signed: impl Fn(&str) -> bool) -> Vec<(&'r str, &'r str)> {
    let mut headers: Vec<_> = request.headers.iter().copied().filter(|(name, _)| is_signed(name)).collect();
    headers.sort_unstable();
    headers
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes()).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use time::format_description::BorrowedFormatItem;
    use time::macros::{datetime, format_description};

    use super::*;

    const HTTP_DATE: &[BorrowedFormatItem<'_>] = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour repr:24]:[minute]:[second] GMT"
    );
    const V4_TIME: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

    #[test]
    fn times_are_written_in_utc_with_all_their_digits() {
        let time = datetime!(2026-01-05 00:03:09 +08:00);
        assert_eq!(http_date(time), "Sun, 04 Jan 2026 16:03:09 GMT");
        assert_eq!(v4_time(time), "20260104T160309Z");
    }

    fn vectors(name: &str) -> Vec<Value> {
        let text = include_str!("../../../tests/fixtures/signature-vectors.json");
        serde_json::from_str::<Value>(text).expect("JSON")[name].as_array().expect("a list").clone()
    }

    fn text(value: &Value) -> &str {
        value.as_str().expect("a text")
    }

    fn headers(vector: &Value) -> Vec<(String, String)> {
        let headers = vector["headers"].as_object().expect("headers").iter();
        headers.map(|(name, value)| (name.to_lowercase(), text(value).to_owned())).collect()
    }

    #[test]
    fn v1_signatures_match_the_published_ones() {
        for vector in vectors("mns_v1_hmac_sha1") {
            let headers = headers(&vector);
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            let date = time::PrimitiveDateTime::parse(text(&vector["date"]), HTTP_DATE).expect("a date").assume_utc();
            // The resource is signed as it is sent, so the path may include the query.
            let request = Signable {
                method: text(&vector["method"]),
                path: text(&vector["resource"]),
                query: &[],
                headers: &headers,
                date,
            };
            let key = Key { id: text(&vector["ak"]), secret: text(&vector["sk"]) };
            let made = SignatureVersion::V1.authorization(&request, key, "");
            match vector["authorization"].as_str() {
                Some(whole) => assert_eq!(made, whole),
                None => assert!(made.ends_with(text(&vector["signature"])), "{made}"),
            }
        }
    }

    #[test]
    fn v4_signatures_match_the_published_ones() {
        for vector in vectors("mns_v4") {
            let headers = headers(&vector);
            let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (&**name, &**value)).collect();
            let (path, in_path) = text(&vector["path"]).split_once('?').unwrap_or((text(&vector["path"]), ""));
            let mut query: Vec<(&str, Cow<'_, str>)> = in_path
                .split('&')
                .filter_map(|pair| pair.split_once('='))
                .map(|(name, value)| (name, Cow::Borrowed(value)))
                .collect();
            let params = vector["params"].as_object().into_iter().flatten();
            query.extend(params.map(|(name, value)| (name.as_str(), Cow::Borrowed(text(value)))));
            let date = time::PrimitiveDateTime::parse(text(&vector["datetime"]), V4_TIME).expect("a date").assume_utc();
            let request = Signable { method: text(&vector["method"]), path, query: &query, headers: &headers, date };
            let key = Key { id: text(&vector["ak"]), secret: text(&vector["sk"]) };
            let made = SignatureVersion::V4.authorization(&request, key, text(&vector["region"]));
            assert!(made.ends_with(text(&vector["signature"])), "{made}");
        }
    }

    #[test]
    fn each_version_sends_a_receipt_handle_as_it_signs_it() {
        let query = [("ReceiptHandle", Cow::Borrowed("1-a+b/c=="))];
        assert_eq!(SignatureVersion::V1.target("/q", &query), "/q?ReceiptHandle=1-a%2Bb%2Fc%3D%3D");
        assert_eq!(SignatureVersion::V4.target("/q", &query), "/q?ReceiptHandle=1-a+b/c==");
    }
}
