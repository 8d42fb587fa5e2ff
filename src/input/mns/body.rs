//! The callback in a message: plain or in Base64, bare or in the wrapper of a topic that pushes into the queue.
//!
//! The message does not say which form it has. SDKs encode by default, and setups differ. A JSON object begins with
//! `{`, which is not in the Base64 alphabet, so the two cannot be confused.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use serde::Deserialize;

use super::answer::Element;

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The callback's bytes. What cannot be decoded is returned unchanged.
pub(super) fn decode(body: &str) -> Bytes {
    let plain = decoded(body.trim());
    let Some(message) = std::str::from_utf8(&plain).ok().and_then(unwrapped) else { return plain };
    decoded(message.trim())
}

/// Decodes Base64 if JSON or XML is inside.
fn decoded(text: &str) -> Bytes {
    if !text.starts_with(['{', '<']) {
        let letters: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        if let Ok(bytes) = BASE64.decode(letters)
            && bytes.trim_ascii_start().starts_with(b"{") | bytes.trim_ascii_start().starts_with(b"<")
        {
            return bytes.trim_ascii().to_vec().into();
        }
    }
    Bytes::copy_from_slice(text.as_bytes())
}

/// The message inside of the wrapper that a topic puts around it.
fn unwrapped(text: &str) -> Option<String> {
    /// The wrapper as JSON; a callback has none of these keys.
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Notification {
        #[serde(rename = "TopicName")]
        _topic_name: String,
        #[serde(rename = "SubscriptionName")]
        _subscription_name: String,
        message: String,
    }
    if text.starts_with('<') {
        let root = Element::parse(text).filter(|root| root.name == "Notification")?;
        return root.text_of("Message").map(str::to_owned);
    }
    if !text.contains("\"TopicName\"") {
        return None;
    }
    serde_json::from_str::<Notification>(text).ok().map(|notification| notification.message)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD as ENCODER;

    use super::*;

    #[test]
    fn a_callback_is_found_in_every_shape() {
        let callback = r#"{"EventType":"FileUploadComplete","Title":"测试 <&>"}"#;
        let encoded = ENCODER.encode(callback);
        let (head, tail) = encoded.split_at(20);
        let quoted = serde_json::to_string(callback).expect("JSON");
        let escaped = callback.replace('&', "&amp;").replace('<', "&lt;");
        for shape in [
            callback.to_owned(),
            format!("\n {callback}\n"),
            encoded.clone(),
            encoded.trim_end_matches('=').to_owned(),
            format!("{head}\r\n{tail}\n"),
            format!(r#"{{"TopicOwner":"1","TopicName":"t","SubscriptionName":"s","Message":{quoted}}}"#),
            format!(r#"{{"TopicName":"t","SubscriptionName":"s","Message":"{encoded}"}}"#),
            format!("<Notification xmlns='u'><TopicName>t</TopicName><Message>{escaped}</Message></Notification>"),
            ENCODER.encode(format!("<Notification><Message>{encoded}</Message></Notification>")),
        ] {
            assert_eq!(decode(&shape), callback.as_bytes(), "{shape}");
        }
    }

    #[test]
    fn other_bodies_are_returned_unchanged() {
        for odd in ["", "I am no callback.", "aGVsbG8=", "<html></html>", "<Notification/>", "[1]", "\"TopicName\""] {
            assert_eq!(decode(odd), odd.as_bytes(), "{odd}");
        }
        let own = r#"{"EventType":"x","UserData":"\"TopicName\""}"#;
        assert_eq!(decode(own), own.as_bytes());
    }
}
