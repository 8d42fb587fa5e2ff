//! The two signatures of MNS: verified like the service does, and created for requests that a test writes itself.
//!
//! Promises: [`verify`] uses the request exactly as it came (the target byte for byte, and only the signed headers),
//! gets the time as an argument, and returns the MNS code of a refusal. V1 is HMAC-SHA1 over the raw target. V4 is
//! HMAC-SHA256 with a key derived from day and region, over the decoded and again encoded target: a client may send a
//! receipt handle with or without percent-encoding. SDKs call them V2 and V4.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use sha1::Sha1;
use sha2::Sha256;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

/// The largest allowed difference of a request's time.
pub const CLOCK_LIMIT: Duration = Duration::from_secs(15 * 60);

/// The first word of a V4 `Authorization`, and of the text that it signs.
const V4: &str = "MNS4-HMAC-SHA256";
/// The last part of a V4 scope.
const V4_END: &str = "aliyun_v4_request";

const HTTP_DATE: &[BorrowedFormatItem<'_>] =
    format_description!("[weekday repr:short], [day] [month repr:short] [year] [hour repr:24]:[minute]:[second] GMT");
const V4_TIME: &[BorrowedFormatItem<'_>] = format_description!("[year][month][day]T[hour][minute][second]Z");

/// All characters except those that RFC 3986 calls unreserved.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ENCODED_PATH: &AsciiSet = &ENCODED.remove(b'/');

/// The version of the signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SignatureVersion {
    /// `MNS id:signature`.
    V1,
    /// `MNS4-HMAC-SHA256 Credential=...,Signature=...`.
    V4,
}

/// An access key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id, which is sent.
    pub id: String,
    /// Its secret, which is not.
    pub secret: String,
    /// The token of temporary credentials. Every request must have it as `security-token`.
    pub token: Option<String>,
}

impl Key {
    /// A permanent key.
    pub fn new(id: &str, secret: &str) -> Self {
        Self { id: id.to_owned(), secret: secret.to_owned(), token: None }
    }

    /// Temporary credentials.
    pub fn with_token(id: &str, secret: &str, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..Self::new(id, secret) }
    }
}

/// The parts of a request that a signature may cover.
#[derive(Debug, Clone)]
pub struct Signable {
    /// The method.
    pub method: String,
    /// The path and query of the request line.
    pub target: String,
    /// The headers. Names are in any case, values without spaces around them.
    pub headers: Vec<(String, String)>,
}

impl Signable {
    /// The value of the first header with that name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The text of the signed time, from one of the two headers.
    fn date(&self) -> Option<&str> {
        self.header("x-mns-date").or_else(|| self.header("date"))
    }

    /// The `x-mns-*` headers by lower-case name, in order.
    fn mns_headers(&self) -> BTreeMap<String, &str> {
        let named = self.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str()));
        named.filter(|(name, _)| name.starts_with("x-mns-")).collect()
    }
}

/// Which signatures are accepted.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The known keys.
    pub keys: Vec<Key>,
    /// The region of V4 signatures.
    pub region: String,
    /// The accepted versions.
    pub versions: Vec<SignatureVersion>,
}

/// The key id and the version of a valid signature, or the MNS code of the refusal.
///
/// The order of the checks (form, key, signature, token, clock) is a guess: it decides which of several errors is
/// reported.
pub fn verify(
    request: &Signable,
    rules: &Rules,
    now: OffsetDateTime,
) -> Result<(String, SignatureVersion), &'static str> {
    let date = parse_date(request.date().ok_or("MissingDateHeader")?).ok_or("InvalidDateHeader")?;
    let authorization = request.header("authorization").ok_or("MissingAuthorizationHeader")?;
    let (version, claim) = Claim::parse(authorization).ok_or("InvalidAuthorizationHeader")?;
    if !rules.versions.contains(&version) {
        return Err("InvalidAuthorizationHeader");
    }
    let key = rules.keys.iter().find(|key| key.id == claim.id).ok_or("InvalidAccessKeyId")?;
    let expected = match version {
        SignatureVersion::V1 => signature_v1(request, &key.secret),
        SignatureVersion::V4 => {
            // A scope of another day or region cannot give the signature of this server.
            signature_v4(request, &key.secret, &rules.region, date)
        }
    };
    if claim.signature != expected || claim.scope.is_some_and(|scope| scope != v4_scope(date, &rules.region)) {
        return Err("SignatureDoesNotMatch");
    }
    if key.token.is_some() && request.header("security-token") != key.token.as_deref() {
        // The code of the service for this is not documented. Without its token, the key of temporary credentials has
        // no meaning, so the answer is that of an unknown key.
        return Err("InvalidAccessKeyId");
    }
    if (now - date).unsigned_abs() > CLOCK_LIMIT {
        return Err("TimeExpired");
    }
    Ok((key.id.clone(), version))
}

/// The `Authorization` that signs `request`, which must already have its `Date` (or `x-mns-date`). The caller sends the
/// token of the key.
pub fn authorization(request: &Signable, key: &Key, region: &str, version: SignatureVersion) -> String {
    let Key { id, secret, .. } = key;
    match version {
        SignatureVersion::V1 => format!("MNS {id}:{}", signature_v1(request, secret)),
        SignatureVersion::V4 => {
            let date = request.date().and_then(parse_date).expect("the request has a date");
            let scope = v4_scope(date, region);
            format!("{V4} Credential={id}/{scope},Signature={}", signature_v4(request, secret, region, date))
        }
    }
}

/// A time in the format of HTTP.
pub fn http_date(time: OffsetDateTime) -> String {
    time.to_offset(time::UtcOffset::UTC).format(HTTP_DATE).expect("a time has all parts of the format")
}

/// The time in an HTTP header.
pub fn parse_date(text: &str) -> Option<OffsetDateTime> {
    time::PrimitiveDateTime::parse(text, HTTP_DATE).ok().map(time::PrimitiveDateTime::assume_utc)
}

/// Bytes in lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Decodes percent-encoding and nothing else: `+` stays a plus.
pub fn decode(text: &str) -> String {
    percent_decode_str(text).decode_utf8_lossy().into_owned()
}

/// The parts of an `Authorization` header.
struct Claim<'a> {
    id: &'a str,
    scope: Option<&'a str>,
    signature: &'a str,
}

impl<'a> Claim<'a> {
    fn parse(text: &'a str) -> Option<(SignatureVersion, Self)> {
        let (scheme, rest) = text.split_once(' ')?;
        match scheme {
            "MNS" => {
                let (id, signature) = rest.split_once(':')?;
                Some((SignatureVersion::V1, Self { id, scope: None, signature }))
            }
            V4 => {
                let (credential, signature) = rest.split_once(',')?;
                let (id, scope) = credential.strip_prefix("Credential=")?.split_once('/')?;
                let signature = signature.trim_start().strip_prefix("Signature=")?;
                Some((SignatureVersion::V4, Self { id, scope: Some(scope), signature }))
            }
            _ => None,
        }
    }
}

fn signature_v1(request: &Signable, secret: &str) -> String {
    let header = |name| request.header(name).unwrap_or_default();
    let mut text = format!(
        "{}\n{}\n{}\n{}\n",
        request.method,
        header("content-md5"),
        header("content-type"),
        request.date().unwrap_or_default()
    );
    for (name, value) in request.mns_headers() {
        text += &format!("{name}:{value}\n");
    }
    text += &request.target;
    let mut hmac = Hmac::<Sha1>::new_from_slice(secret.as_bytes()).expect("HMAC accepts keys of any length");
    hmac.update(text.as_bytes());
    STANDARD.encode(hmac.finalize().into_bytes())
}

fn signature_v4(request: &Signable, secret: &str, region: &str, date: OffsetDateTime) -> String {
    let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
    let encode = |text: &str| utf8_percent_encode(decode(text).trim(), ENCODED).to_string();
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (encode(&decode(name).to_lowercase()), encode(value)))
        .collect();
    let query: Vec<String> = query
        .into_iter()
        .map(|(name, value)| if value.is_empty() { name } else { format!("{name}={value}") })
        .collect();
    let mut headers = request.mns_headers();
    for name in ["content-md5", "content-type"] {
        headers.extend(request.header(name).map(|value| (name.to_owned(), value)));
    }
    let headers: String = headers.into_iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
    let text = format!(
        "{V4}\n{}\n{}\n{}\n{}\n{}\n{headers}\n",
        v4_time(date),
        v4_scope(date, region),
        request.method,
        utf8_percent_encode(&decode(path), ENCODED_PATH),
        query.join("&"),
    );
    let key = ["mns", V4_END].into_iter().fold(
        hmac_sha256(&hmac_sha256(format!("aliyun_v4{secret}").as_bytes(), &v4_day(date)), region),
        |key, part| hmac_sha256(&key, part),
    );
    hex(&hmac_sha256(&key, &text))
}

fn v4_scope(date: OffsetDateTime, region: &str) -> String {
    format!("{}/{region}/mns/{V4_END}", v4_day(date))
}

fn v4_time(date: OffsetDateTime) -> String {
    date.format(V4_TIME).expect("a time has all parts of the format")
}

fn v4_day(date: OffsetDateTime) -> String {
    v4_time(date)[..8].to_owned()
}

fn hmac_sha256(key: &[u8], text: &str) -> Vec<u8> {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC accepts keys of any length");
    hmac.update(text.as_bytes());
    hmac.finalize().into_bytes().to_vec()
}
