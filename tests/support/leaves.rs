//! Whether an event says everything that its callback says. The tests and the fuzz targets include this file.
//!
//! Every leaf of the callback must be a leaf of the event: the same text, or one of the changes that normalizing is
//! allowed to make, which [`is_found`] lists. The only leaves that may be missing are the values of [`NO_ERROR`] in the
//! fields of [`ERROR_FIELDS`], a `null` in those of [`ERROR_VALUES`], and blank texts.

use std::collections::HashSet;

use apsara_bridge::event::json::Json;
use apsara_bridge::event::{Attribute, Event};
use bumpalo::Bump;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Fields of an error, in small letters without separators.
const ERROR_FIELDS: [&str; 2] = ["errorcode", "errormessage"];

/// Members of an error. They may be missing if they are `null`.
const ERROR_VALUES: [&str; 2] = ["code", "message"];

/// What says in such a field that there is no error, in small letters.
const NO_ERROR: [&str; 5] = ["", "0", "success", "ok", "null"];

/// The first leaf of a callback that its event does not have. `type_prefix` is the prefix of the event's type.
pub fn lost(callback: &Json<'_>, event: &Event, type_prefix: &str) -> Option<String> {
    let mut found = Vec::new();
    let arena = Bump::new();
    leaves(&Json::parse_within(event.data(), usize::MAX, &arena).expect("the data is JSON"), &mut found);
    // The attributes that values move to. The others are copies.
    found.extend(event.get(Attribute::Type).and_then(|text| text.strip_prefix(type_prefix)).map(str::to_owned));
    found.extend([Attribute::Time, Attribute::AccountId].into_iter().filter_map(|to| event.get(to)).map(str::to_owned));
    let found = Found {
        times: found.iter().filter(|text| is_rfc3339(text)).cloned().collect(),
        numbers: found.iter().filter_map(|text| text.parse().ok()).collect(),
        texts: found.into_iter().collect(),
    };
    let mut wanted = Vec::new();
    leaves_of_callback(callback, &mut wanted);
    wanted.into_iter().find(|leaf| !is_found(leaf, &found))
}

/// The leaves of an event.
struct Found {
    texts: HashSet<String>,
    /// Those that are times.
    times: Vec<String>,
    /// Those that are numbers.
    numbers: Vec<f64>,
}

impl Found {
    fn has(&self, text: &str) -> bool {
        self.texts.contains(text)
    }
}

fn leaves(json: &Json<'_>, out: &mut Vec<String>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| leaves(item, out)),
        Json::Object(members) => members.iter().for_each(|(_, value)| leaves(value, out)),
        Json::String(text) => out.push(text.to_string()),
        scalar => out.push(scalar.to_string()),
    }
}

/// The leaves of a callback, except those that say that there is no error.
fn leaves_of_callback(json: &Json<'_>, out: &mut Vec<String>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| leaves_of_callback(item, out)),
        Json::Object(members) => {
            for (key, value) in *members {
                let name = key.to_lowercase().replace(['_', '-', ' '], "");
                let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let is_silent = NO_ERROR.contains(&text.trim().to_lowercase().as_str());
                let is_error_without_value = ERROR_VALUES.contains(&name.trim()) && *value == Json::Null;
                if !(is_error_without_value || ERROR_FIELDS.contains(&name.trim()) && is_silent) {
                    leaves_of_callback(value, out);
                }
            }
        }
        leaf => leaves(leaf, out),
    }
}

/// Whether a leaf of a callback is in its event: unchanged, without the blanks around it, as a boolean, as a time, in
/// seconds instead of milliseconds, split at its commas, or decoded. Blank leaves may be missing.
fn is_found(leaf: &str, found: &Found) -> bool {
    let trimmed = leaf.trim();
    if trimmed.is_empty() || found.has(leaf) || found.has(trimmed) {
        return true;
    }
    let boolean = match trimmed {
        "0" => "false".to_owned(),
        "1" => "true".to_owned(),
        text => text.to_ascii_lowercase(),
    };
    if matches!(boolean.as_str(), "true" | "false") && found.has(&boolean) {
        return true;
    }
    if found.times.iter().any(|time| is_time(trimmed, time)) {
        return true;
    }
    if trimmed.parse::<f64>().is_ok_and(|number| found.numbers.iter().any(|other| is_thousandth(*other, number))) {
        return true;
    }
    if leaf.contains(',') && is_split(&leaf.split(',').collect::<Vec<_>>(), found) {
        return true;
    }
    match Json::parse(trimmed.as_bytes(), &Bump::new()) {
        Ok(json @ (Json::Object(_) | Json::Array(_))) => {
            let mut inner = Vec::new();
            leaves_of_callback(&json, &mut inner);
            inner.iter().all(|leaf| is_found(leaf, found))
        }
        _ => false,
    }
}

fn is_thousandth(other: f64, number: f64) -> bool {
    (other * 1000.0 - number).abs() <= number.abs() * 1e-12
}

/// Whether all parts of a list are found. A comma in an address does not split it, so that neighbours can be one part.
fn is_split(parts: &[&str], found: &Found) -> bool {
    // From the end: whether the parts from here on are found.
    let mut rest = vec![false; parts.len() + 1];
    rest[parts.len()] = true;
    for start in (0..parts.len()).rev() {
        let ends = start + 1..=if parts[start].contains("://") { parts.len() } else { start + 1 };
        rest[start] = ends.rev().any(|end| rest[end] && found.has(parts[start..end].join(",").trim()));
    }
    rest[0]
}

fn is_rfc3339(text: &str) -> bool {
    text.len() >= 20 && text.as_bytes()[4] == b'-' && OffsetDateTime::parse(text, &Rfc3339).is_ok()
}

/// Digits and signs of a time up to its minute: those of `2026-01-02T03:04`.
const DIGITS_TO_MINUTE: usize = 14;

/// Whether a text says the same time: with the same digits and signs, or as Unix seconds or milliseconds.
fn is_time(text: &str, time: &str) -> bool {
    let digits = |text: &str| text.chars().filter(|c| c.is_ascii_digit() || matches!(c, '+' | '-')).collect::<String>();
    if text.len() >= 16 {
        // Seconds and the minutes of an offset can be missing.
        let own = digits(text);
        let with_seconds = own.split_at_checked(DIGITS_TO_MINUTE).map(|(date, rest)| format!("{date}00{rest}"));
        let all = [Some(own), with_seconds].into_iter().flatten();
        let wanted = digits(time);
        if all.flat_map(|own| [format!("{own}00"), own]).any(|own| own == wanted) {
            return true;
        }
    }
    let (Ok(number), Ok(time)) = (text.parse::<f64>(), OffsetDateTime::parse(time, &Rfc3339)) else { return false };
    let seconds = time.unix_timestamp_nanos() as f64 / 1e9;
    [number, number / 1000.0].iter().any(|number| (number - seconds).abs() < 0.001)
}
