//! The NATS protocol binding of CloudEvents, by the text that follows 1.0.2 (spec pull request 1016): 1.0.2 itself
//! knows structured messages without headers only.
//!
//! A structured message always says so in `Content-Type`; a binary one carries every attribute, `datacontenttype`
//! included, as a `ce-` header whose value is percent-encoded once.

use std::borrow::Cow;

use bytes::Bytes;

use super::{Event, Mode};

/// Content type of a structured message.
pub const STRUCTURED_CONTENT_TYPE: &str = "application/cloudevents+json";

/// The headers of a message, in order; values are printable ASCII.
pub fn headers(event: &Event, mode: Mode) -> Vec<(&'static str, Cow<'_, str>)> {
    match mode {
        Mode::Structured => vec![("Content-Type", Cow::Borrowed(STRUCTURED_CONTENT_TYPE))],
        Mode::Binary => {
            event.attributes().map(|(attribute, value)| (attribute.nats_header(), percent_encode(value))).collect()
        }
    }
}

/// The payload of a message.
pub fn payload(event: &Event, mode: Mode) -> Bytes {
    super::kafka::payload(event, mode)
}

/// Percent-encodes what may not stand in a header value: blank, `"`, `%` and all outside U+0021 to U+007E.
pub fn percent_encode(value: &str) -> Cow<'_, str> {
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"' && byte != b'%';
    if value.bytes().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut encoded = String::with_capacity(value.len() + 16);
    for byte in value.bytes() {
        if plain(byte) {
            encoded.push(char::from(byte));
        } else {
            const HEX: &[u8; 16] = b"0123456789ABCDEF";
            encoded.push('%');
            encoded.push(char::from(HEX[usize::from(byte >> 4)]));
            encoded.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    Cow::Owned(encoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_encoded_as_the_binding_shows() {
        assert_eq!(percent_encode("Euro € 😀"), "Euro%20%E2%82%AC%20%F0%9F%98%80");
        assert_eq!(percent_encode("100%\"\r\n"), "100%25%22%0D%0A");
        assert_eq!(percent_encode("com.aliyun.media.X"), "com.aliyun.media.X");
    }
}
