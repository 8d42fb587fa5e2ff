//! The signature of a callback: MD5 over the configured URL text, the timestamp and the key, with `|` between them
//! (Alibaba's pages on callback authentication of VOD and IMS; only the names of their headers differ).
//!
//! The body is not signed, so captured headers are valid for any body. The age of the timestamp is therefore checked
//! too.

use std::sync::Arc;
use std::time::Duration;

use hyper::HeaderMap;
use hyper::header::HeaderValue;
use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

use super::problem::Problem;
use crate::bridge::Signature;
use crate::common::secret::Secret;
use crate::dialect::Dialect;

/// Header names of the two products: timestamp and signature.
pub const HEADERS: [(&str, &str); 2] = [("x-vod-timestamp", "x-vod-signature"), ("x-ice-timestamp", "x-ice-signature")];

/// The signature of a request: 32 lower-case hex digits.
pub fn sign(url: &str, timestamp: &str, key: &str) -> String {
    digest(url, timestamp, key).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The headers of a signed request, as the product of a dialect sends them. `time` is in Unix seconds.
pub fn signed_headers(dialect: Dialect, url: &str, time: i64, key: &str) -> [(&'static str, String); 2] {
    let [vod, ims] = HEADERS;
    let (timestamp, signature) = match dialect {
        Dialect::Vod => vod,
        Dialect::Ims => ims,
    };
    let time = time.to_string();
    let signed = sign(url, &time, key);
    [(timestamp, time), (signature, signed)]
}

fn digest(url: &str, timestamp: &str, key: &str) -> [u8; 16] {
    let mut hash = Md5::new();
    for part in [url, "|", timestamp, "|", key] {
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// Checks signatures by the URLs and keys of an endpoint.
#[derive(Debug)]
pub struct Verifier {
    /// The URLs as they are configured at Alibaba.
    pub urls: Vec<String>,
    /// The keys that are accepted.
    pub keys: Vec<Arc<Secret>>,
    /// Longest distance between a timestamp and now, in the past or in the future.
    pub max_age: Duration,
    /// Whether a request without signature headers passes.
    pub allow_unsigned: bool,
}

/// What is wrong with a signature: the answer and its detail.
pub type Unauthorized = (Problem, String);

impl Verifier {
    /// Checks the headers of a request at the given Unix time. `other_urls` are texts that the sender may have
    /// signed instead of the configured ones: they only make the answer clearer.
    ///
    /// # Errors
    /// The problem to answer with.
    pub fn verify<'u>(
        &self,
        headers: &HeaderMap,
        now: i64,
        other_urls: impl Iterator<Item = String> + 'u,
    ) -> Result<Signature, Unauthorized> {
        let both = |names: (&'static str, &'static str)| (names, (headers.get(names.0), headers.get(names.1)));
        let mut signed = HEADERS.into_iter().map(both);
        let present = signed.find(|(_, (timestamp, signature))| timestamp.is_some() || signature.is_some());
        let Some(((timestamp_name, signature_name), (timestamp, signature))) = present else {
            if self.keys.is_empty() {
                return Ok(Signature::NotChecked);
            }
            if self.allow_unsigned {
                return Ok(Signature::Missing);
            }
            let expected = "expected the headers X-VOD-TIMESTAMP and X-VOD-SIGNATURE, or X-ICE-TIMESTAMP and \
                            X-ICE-SIGNATURE; is authentication switched on at Alibaba?";
            return Err((Problem::NotSigned, expected.to_owned()));
        };
        if self.keys.is_empty() {
            return Ok(Signature::NotChecked);
        }
        let malformed = |name: &str, expected: &str| {
            Err((Problem::SignatureMalformed, format!("{}: expected {expected}", name.to_uppercase())))
        };
        let Some((timestamp, seconds)) = text(timestamp)
            .filter(|text| text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|text| Some((text, text.parse::<i64>().ok()?)))
        else {
            return malformed(timestamp_name, "Unix seconds");
        };
        let Some(signature) = text(signature).and_then(from_hex) else {
            return malformed(signature_name, "32 hex digits");
        };
        // All combinations are computed, so the time that this takes does not reveal which one matches.
        let fits = |url: &str| {
            let fits = |key: &Arc<Secret>| digest(url, timestamp, &key.value()).ct_eq(&signature);
            self.keys.iter().fold(subtle::Choice::from(0), |any, key| any | fits(key))
        };
        let known = self.urls.iter().fold(subtle::Choice::from(0), |any, url| any | fits(url));
        if !bool::from(known) {
            let mut others = other_urls;
            return Err(if others.any(|url| bool::from(fits(&url))) {
                let detail = "the key matches, but the signed url is not among the endpoint's `urls`; they must \
                              be exactly the text that is configured at Alibaba";
                (Problem::SignedForAnotherUrl, detail.to_owned())
            } else {
                let detail = "it matches no combination of the endpoint's `urls` and `keys`";
                (Problem::SignatureWrong, detail.to_owned())
            });
        }
        let age = now.saturating_sub(seconds);
        if age.unsigned_abs() <= self.max_age.as_secs() {
            return Ok(Signature::Valid);
        }
        let limit = humantime::format_duration(self.max_age);
        if age > 0 {
            Err((Problem::SignatureStale, format!("its timestamp is {age} s old; at most {limit} is accepted")))
        } else {
            let ahead = age.unsigned_abs();
            Err((
                Problem::SignatureFromFuture,
                format!("its timestamp is {ahead} s ahead; at most {limit} is accepted"),
            ))
        }
    }
}

fn text(value: Option<&HeaderValue>) -> Option<&str> {
    value?.to_str().ok().map(str::trim)
}

fn from_hex(text: &str) -> Option<[u8; 16]> {
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let digits: &[u8; 32] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 16];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::secret::SecretSource;

    const URL: &str = "https://www.example.com/your/callback";
    const TIME: i64 = 1_519_375_990;

    fn verifier(keys: &[&str]) -> Verifier {
        let secret = |key: &&str| Arc::new(Secret::read(&SecretSource::Inline((*key).to_owned())).expect("given"));
        Verifier {
            urls: vec!["http://other.example.com/".to_owned(), URL.to_owned()],
            keys: keys.iter().map(secret).collect(),
            max_age: Duration::from_secs(300),
            allow_unsigned: false,
        }
    }

    fn headers(family: usize, timestamp: &str, signature: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HEADERS[family].0, timestamp.parse().expect("a header value"));
        headers.insert(HEADERS[family].1, signature.parse().expect("a header value"));
        headers
    }

    fn problem(headers: &HeaderMap, now: i64) -> Option<Problem> {
        let others = ["http://www.example.com/your/callback".to_owned()].into_iter();
        verifier(&["new", "test123"]).verify(headers, now, others).err().map(|(problem, _)| problem)
    }

    #[test]
    fn signatures_match_the_published_vectors() {
        let text = include_str!("../../../tests/fixtures/signature-vectors.json");
        let vectors: serde_json::Value = serde_json::from_str(text).expect("JSON");
        let vectors = vectors["callback_md5"].as_array().expect("an array");
        assert!(!vectors.is_empty());
        for vector in vectors {
            let field = |name: &str| vector[name].as_str().expect("a string");
            assert_eq!(sign(field("url"), field("timestamp"), field("key")), field("md5"));
        }
    }

    #[test]
    fn both_families_and_every_key_and_url_are_accepted() {
        let time = TIME.to_string();
        for family in 0..HEADERS.len() {
            for key in ["new", "test123"] {
                assert_eq!(problem(&headers(family, &time, &sign(URL, &time, key)), TIME), None);
            }
        }
        let upper = sign(URL, &time, "test123").to_uppercase();
        assert_eq!(problem(&headers(0, &time, &upper), TIME + 300), None);
    }

    #[test]
    fn each_defect_gets_its_own_problem() {
        let time = TIME.to_string();
        let good = sign(URL, &time, "test123");
        assert_eq!(problem(&HeaderMap::new(), TIME), Some(Problem::NotSigned));
        assert_eq!(problem(&headers(0, &time, &good), TIME + 301), Some(Problem::SignatureStale));
        assert_eq!(problem(&headers(0, &time, &good), TIME - 301), Some(Problem::SignatureFromFuture));
        assert_eq!(problem(&headers(0, &time, &sign(URL, &time, "Test123")), TIME), Some(Problem::SignatureWrong));
        assert_eq!(problem(&headers(0, &time, &good[..31]), TIME), Some(Problem::SignatureMalformed));
        assert_eq!(problem(&headers(0, "soon", &good), TIME), Some(Problem::SignatureMalformed));
        let other = sign("http://www.example.com/your/callback", &time, "test123");
        assert_eq!(problem(&headers(0, &time, &other), TIME), Some(Problem::SignedForAnotherUrl));
        let mut half = headers(1, &time, &good);
        half.remove(HEADERS[1].1);
        assert_eq!(problem(&half, TIME), Some(Problem::SignatureMalformed));
    }
}
