//! Any bytes as the body of a callback, on the path that every input uses. If the first byte is 1, the others choose a
//! callback from the names of the catalogue: few mutations of a JSON text are JSON.
//!
//! What must hold: nothing panics. A callback has one id, however it is written. Every value of it is in its event. The
//! envelope is JSON that other readers accept, and reading it again gives the same event. No value of a callback can
//! break a header. The event is not much larger than the callback.

#![no_main]

#[path = "../../tests/support/leaves.rs"]
mod leaves;

use std::sync::LazyLock;

use apsara_bridge::dialect::{Catalogue, Dialect, Normalizer, Origin, Sender};
use apsara_bridge::event::json::Json;
use apsara_bridge::event::{Attribute, DEFAULT_TYPE_PREFIX, Event, percent_encode};
use bumpalo::Bump;
use hyper::header::HeaderValue;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use time::macros::datetime;

static NORMALIZER: LazyLock<Normalizer> =
    LazyLock::new(|| Normalizer::new(Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX));

static SENDER: LazyLock<Sender> = LazyLock::new(|| Sender {
    region: Some("cn-shanghai".to_owned()),
    account_id: Some("configured".to_owned()),
    dialects: Vec::new(),
});

fn normalize(body: &[u8]) -> Option<Event> {
    let received = datetime!(2026-01-02 03:04:05.678 UTC);
    let origin = Origin { received, sender: &SENDER, traceparent: None };
    NORMALIZER.normalize(body, &origin).ok().map(|normalized| normalized.event)
}

/// The names in the catalogue.
static NAMES: LazyLock<Vec<&str>> = LazyLock::new(|| {
    let text = include_str!("../../src/dialect/catalogue.toml");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let words = lines.flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric())).filter(|word| word.len() > 1);
    let mut words: Vec<&str> = words.chain(["EventType", "EventTime", "MessageBody", "UserId", "error_info"]).collect();
    words.sort_unstable();
    words.dedup();
    words
});

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn key(choices: &mut Unstructured<'_>) -> Result<String> {
    let name = *choices.choose(&NAMES)?;
    Ok(match choices.int_in_range(0..=7)? {
        0 => choices.arbitrary::<&str>()?.to_owned(),
        1 => format!("{name} "),
        2 => name.to_uppercase(),
        3 | 4 => name[..1].to_uppercase() + &name[1..],
        _ => name.to_owned(),
    })
}

fn object(choices: &mut Unstructured<'_>, depth: usize) -> Result<String> {
    let mut members = Vec::new();
    while members.len() < 12 && choices.ratio(5, 6)? {
        members.push(format!("{}:{}", string(&key(choices)?), value(choices, depth + 1)?));
    }
    Ok(format!("{{{}}}", members.join(",")))
}

fn value(choices: &mut Unstructured<'_>, depth: usize) -> Result<String> {
    let most = if depth < 8 { 13 } else { 9 };
    Ok(match choices.int_in_range(0..=most)? {
        0 => "null".to_owned(),
        1 => choices.arbitrary::<bool>()?.to_string(),
        2 => choices.arbitrary::<i64>()?.to_string(),
        3 => format!("{}.{}", choices.arbitrary::<i8>()?, choices.arbitrary::<u16>()?),
        4 => string(choices.arbitrary::<&str>()?),
        5 => string(&choices.arbitrary::<u32>()?.to_string()),
        6 => {
            string(choices.choose(&["", " ", "1", "0", "True", "a,b , c", "2026-01-01T00:00:00:123Z", "1e9", "007"])?)
        }
        7 | 8 => string(choices.choose(&NAMES)?),
        9 => string("2022-07-15 08:48:14"),
        // An array.
        10 => {
            let mut items = Vec::new();
            while items.len() < 6 && choices.ratio(3, 4)? {
                items.push(value(choices, depth + 1)?);
            }
            format!("[{}]", items.join(","))
        }
        // JSON in a string.
        11 => string(&value(choices, depth + 1)?),
        _ => object(choices, depth)?,
    })
}

fn callback(choices: &mut Unstructured<'_>) -> Result<String> {
    let catalogue = NORMALIZER.catalogue();
    let event_type = match choices.ratio(7, 8)? {
        true => string(&choices.choose(catalogue.events())?.name),
        false => value(choices, 1)?,
    };
    let time = if choices.ratio(7, 8)? { string("2026-01-01T00:00:00Z") } else { value(choices, 1)? };
    let payload = object(choices, 1)?;
    let head = format!(r#""EventType":{event_type},"EventTime":{time}"#);
    Ok(match choices.int_in_range(0..=3)? {
        0 => format!(r#"{{{head},"UserId":{},"MessageBody":{}}}"#, value(choices, 1)?, string(&payload)),
        1 => format!(r#"{{{head},"UserId":1833220977560785,"MessageBody":{payload}}}"#),
        _ => format!(r#"{{{head},{}"#, payload.trim_start_matches('{')).replace(",}", "}"),
    })
}

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((1, choices)) => {
            if let Ok(body) = callback(&mut Unstructured::new(choices)) {
                check(body.as_bytes());
            }
        }
        _ => check(bytes),
    }
});

fn check(body: &[u8]) {
    let Some(event) = normalize(body) else { return };
    let text = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body);
    assert!(Dialect::of(text).is_some());
    let arena = Bump::new();
    let callback = Json::parse(text, &arena).expect("it was read before");
    let written = callback.to_string();
    assert_eq!(normalize(written.as_bytes()).as_ref(), Some(&event), "the same callback in other bytes");
    if let Some(leaf) = leaves::lost(&callback, &event, DEFAULT_TYPE_PREFIX) {
        panic!("{leaf:?} is lost in {}", String::from_utf8_lossy(&event.to_json()));
    }

    let json = event.to_json();
    serde_json::from_slice::<&serde_json::value::RawValue>(&json).expect("other readers accept it");
    assert_eq!(Event::from_json(&json).expect("an envelope"), event);
    for (attribute, value) in event.attributes() {
        assert!(!value.is_empty() && !value.chars().any(char::is_control), "{attribute}: {value:?}");
        HeaderValue::from_str(&percent_encode(value)).expect("a header value");
    }
    for required in [Attribute::Id, Attribute::Source, Attribute::Type, Attribute::Status, Attribute::Dialect] {
        assert!(event.get(required).is_some(), "{required}");
    }
    assert!(event.data().len() <= 4 * body.len() + 64, "{} bytes became {}", body.len(), event.data().len());
}
