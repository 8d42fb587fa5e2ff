//! Any answer of the queue, and any body of a message. The first line says what it is: a status with an answer, or the
//! word `body`.
//!
//! What must hold: nothing panics. What is kept of an answer is not larger than the answer. A body that is encoded in
//! Base64 gives the same callback as the body itself. A callback goes on to the normalizer, which must not panic
//! either.

#![no_main]

use std::sync::LazyLock;

use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
use apsara_bridge::event::DEFAULT_TYPE_PREFIX;
use apsara_bridge::input::mns::fuzzing;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use time::macros::datetime;

static NORMALIZER: LazyLock<Normalizer> =
    LazyLock::new(|| Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX));

fn callback(body: &[u8]) {
    let _ = NORMALIZER.normalize(body, &Origin::at(datetime!(2026-01-02 03:04:05.678 UTC)));
}

fn body(text: &str) {
    let decoded = fuzzing::body(text);
    assert!(decoded.len() <= text.len());
    callback(&decoded);
    let plain = text.trim_ascii();
    if plain.starts_with('{') && plain == text.trim() {
        assert_eq!(fuzzing::body(&STANDARD.encode(plain)), decoded);
    }
}

fn answer(status: u16, text: &str) {
    if !(200..300).contains(&status) {
        let error = fuzzing::error(status, text);
        assert!(error.message.len() + error.code.len() <= 2 * text.len() + 100, "{error:?}");
        if let Some(handles) = fuzzing::not_deleted(text) {
            assert!(handles.iter().map(|(handle, code)| handle.len() + code.len()).sum::<usize>() <= text.len());
        }
        return;
    }
    let messages = fuzzing::received(text).unwrap_or_default();
    let kept: usize = messages.iter().map(|(body, rest)| body.len() + rest.len()).sum();
    assert!(kept <= text.len(), "{kept} bytes of {}", text.len());
    messages.iter().for_each(|(body, _)| callback(body));
    let _ = fuzzing::counts(text);
}

fuzz_target!(|bytes: &[u8]| {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return };
    // The client replaces what is not UTF-8.
    let text = String::from_utf8_lossy(&bytes[end + 1..]);
    match str::from_utf8(&bytes[..end]) {
        Ok("body") => body(&text),
        Ok(line) => answer(line.parse().unwrap_or(200), &text),
        Err(_) => {}
    }
});
