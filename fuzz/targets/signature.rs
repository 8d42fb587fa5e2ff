//! Requests with any headers at an endpoint with any keys and URLs.
//!
//! What must hold: nothing panics. A request is accepted if and only if its headers are those of [`sign`] for one of
//! the keys, one of the URLs and a time that is near enough, or if the endpoint accepts requests without a signature and
//! it has none.

#![no_main]

use std::sync::Arc;
use std::time::Duration;

use apsara_bridge::common::secret::{Secret, SecretSource};
use apsara_bridge::dialect::Dialect;
use apsara_bridge::input::http::signature::{HEADERS, Verifier, sign, signed_headers};
use hyper::HeaderMap;
use hyper::header::HeaderValue;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Debug, Arbitrary)]
struct Case {
    urls: Vec<String>,
    keys: Vec<String>,
    max_age: u32,
    allow_unsigned: bool,
    now: i64,
    signed: Option<Signed>,
    headers: Vec<(Header, Vec<u8>)>,
    other_urls: Vec<String>,
}

/// Headers that are computed, because a fuzzer does not find a hash.
#[derive(Debug, Arbitrary)]
struct Signed {
    is_ims: bool,
    url: u8,
    key: u8,
    age: i32,
    is_upper_case: bool,
    /// Changes one bit of the signature.
    damage: Option<u8>,
    has_blanks: bool,
}

#[derive(Clone, Copy, Debug, Arbitrary)]
enum Header {
    VodTimestamp,
    VodSignature,
    ImsTimestamp,
    ImsSignature,
}

impl Header {
    fn name(self) -> &'static str {
        match self {
            Header::VodTimestamp => HEADERS[0].0,
            Header::VodSignature => HEADERS[0].1,
            Header::ImsTimestamp => HEADERS[1].0,
            Header::ImsSignature => HEADERS[1].1,
        }
    }
}

fn headers(case: &Case) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let picked = |list: &[String], index: u8| list.get(usize::from(index) % list.len().max(1)).cloned();
    if let Some(signed) = &case.signed
        && let (Some(url), Some(key)) = (picked(&case.urls, signed.url), picked(&case.keys, signed.key))
    {
        let dialect = if signed.is_ims { Dialect::Ims } else { Dialect::Vod };
        let time = case.now.saturating_sub(signed.age.into());
        let [(timestamp, time), (signature, mut text)] = signed_headers(dialect, &url, time, &key);
        if signed.is_upper_case {
            text = text.to_uppercase();
        }
        let mut bytes = text.into_bytes();
        if let Some(damage) = signed.damage {
            bytes[usize::from(damage / 8) % 32] ^= 1 << (damage % 8);
        }
        if signed.has_blanks {
            bytes = [b" \t", bytes.as_slice(), b" "].concat();
        }
        for (name, value) in [(timestamp, time.as_bytes()), (signature, &bytes)] {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(name, value);
            }
        }
    }
    for (header, value) in &case.headers {
        if let Ok(value) = HeaderValue::from_bytes(value) {
            headers.append(header.name(), value);
        }
    }
    headers
}

/// What the documentation of the endpoint promises, written down a second time.
fn is_accepted(case: &Case, headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let family = HEADERS.iter().find(|names| headers.contains_key(names.0) || headers.contains_key(names.1));
    let Some((timestamp, signature)) = family else { return case.allow_unsigned || case.keys.is_empty() };
    if case.keys.is_empty() {
        return true;
    }
    let (Some(timestamp), Some(signature)) = (text(timestamp), text(signature)) else { return false };
    let is_time = (1..=12).contains(&timestamp.len()) && timestamp.bytes().all(|byte| byte.is_ascii_digit());
    let Some(seconds) = timestamp.parse::<i128>().ok().filter(|_| is_time) else { return false };
    let is_signed = case
        .urls
        .iter()
        .any(|url| case.keys.iter().any(|key| sign(url, timestamp, key).eq_ignore_ascii_case(signature)));
    is_signed && (i128::from(case.now) - seconds).unsigned_abs() <= u128::from(case.max_age)
}

fuzz_target!(|case: Case| {
    let mut case = case;
    // An empty key is refused when it is read.
    case.keys.retain(|key| !key.is_empty());
    let read = |key: &String| Arc::new(Secret::read(&SecretSource::Inline(key.clone())).expect("it is not empty"));
    let verifier = Verifier {
        urls: case.urls.clone(),
        keys: case.keys.iter().map(read).collect(),
        max_age: Duration::from_secs(case.max_age.into()),
        allow_unsigned: case.allow_unsigned,
    };
    let headers = headers(&case);
    let verified = verifier.verify(&headers, case.now, case.other_urls.iter().cloned());
    assert_eq!(verified.is_ok(), is_accepted(&case, &headers), "{verified:?}");
});
