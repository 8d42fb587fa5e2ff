//! What is on the bus, and what the examples have to print about it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::support::kafka::Received;
use crate::support::repository;
use crate::support::sender::Dialect;

/// The types that the examples handle.
const TRANSCODED: &str = "com.aliyun.media.TranscodeComplete";
const REVIEWS: [&str; 2] = ["com.aliyun.media.AIMediaAuditComplete", "com.aliyun.media.CreateAuditComplete"];

/// The content type of a structured event.
pub const STRUCTURED: &str = "application/cloudevents+json";

/// Bodies that are not CloudEvents, with their content types. Kafka has records without a value.
pub const FOREIGN: [(&str, Option<&str>); 6] = [
    ("text/plain", Some("not an event")),
    ("application/json", Some(r#"{"EventType":"TranscodeComplete"}"#)),
    (STRUCTURED, Some("{")),
    (STRUCTURED, Some("[]")),
    (STRUCTURED, Some(r#"{"specversion":"1.0","id":"1","source":"acs:vod"}"#)),
    (STRUCTURED, None),
];

/// Events about reviews with each verdict, one that the examples do not know, and none.
pub const REVIEWED: [Review; 5] =
    [Review(Some("pass")), Review(Some("review")), Review(Some("block")), Review(Some("a later one")), Review(None)];

/// The beginning of the ids of [`REVIEWED`].
const OWN: &str = "review-";

/// An event about a review, with this verdict.
#[derive(Clone, Copy, Debug)]
pub struct Review(Option<&'static str>);

impl Review {
    /// Its data.
    pub fn data(self) -> Value {
        json!({ "reason": format!("because of {}", self.0.unwrap_or("nothing")), "a later field": [] })
    }

    /// Its attributes.
    pub fn attributes(self) -> Vec<(&'static str, String)> {
        let name = self.0.unwrap_or("none");
        let mut attributes = vec![
            ("specversion", "1.0".to_owned()),
            ("id", format!("{OWN}{name}")),
            ("source", "acs:vod".to_owned()),
            ("type", REVIEWS[0].to_owned()),
            ("subject", format!("reviewed-{name}")),
            ("dialect", "vod".to_owned()),
            ("status", "success".to_owned()),
        ];
        attributes.extend(self.0.map(|verdict| ("verdict", verdict.to_owned())));
        attributes
    }
}

/// A callback.
#[derive(Clone, Debug)]
pub struct Callback {
    pub dialect: Dialect,
    pub body: Vec<u8>,
}

/// Alibaba's samples, and others: more that the examples handle, of both dialects and with different results; one
/// without a time; and types that nobody knows.
pub fn callbacks() -> Vec<Callback> {
    let files = std::fs::read_dir(repository("src/dialect/samples")).expect("the samples");
    let mut callbacks: Vec<Callback> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let is_vod = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vod-"));
            let dialect = if is_vod { Dialect::Vod } else { Dialect::Ims };
            Callback { dialect, body: std::fs::read(path).expect("readable") }
        })
        .collect();
    for status in ["success", "fail", "a new word"] {
        callbacks.extend(new_callbacks(status));
    }
    callbacks.push(vod(json!({
        "EventType": "TranscodeComplete", "EventTime": "not a time", "VideoId": "timeless", "Status": "success",
    })));
    callbacks.push(vod(json!({
        "EventType": "TranscodeComplete", "EventTime": "2026-01-01T00:00:00Z", "VideoId": "partial",
        "Status": "success", "StreamInfos": [{ "Status": "success", "JobId": "1" }, { "Status": "fail", "JobId": "2" }],
    })));
    callbacks
        .push(vod(json!({ "EventType": "InventedComplete", "EventTime": "2026-01-01T00:00:00Z", "VideoId": "v" })));
    callbacks.push(ims("InventedComplete", json!({ "MediaId": "m" })));
    callbacks
}

/// A callback of each dialect that the examples handle. They differ for each text, which is their status.
pub fn new_callbacks(status: &str) -> Vec<Callback> {
    vec![
        vod(json!({
            "EventType": "TranscodeComplete", "EventTime": "2026-01-01T00:00:00Z", "VideoId": format!("video {status}"),
            "Status": status,
        })),
        ims(
            "TranscodeComplete",
            json!({ "JobId": format!("job {status}"), "ParentJobId": "parent", "Status": status }),
        ),
    ]
}

fn vod(body: Value) -> Callback {
    Callback { dialect: Dialect::Vod, body: body.to_string().into_bytes() }
}

fn ims(event_type: &str, body: Value) -> Callback {
    let body = json!({
        "EventType": event_type, "EventTime": "2026-01-01T00:00:00Z", "UserId": 1, "MessageBody": body,
    });
    Callback { dialect: Dialect::Ims, body: body.to_string().into_bytes() }
}

/// What the tests need of an event.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: String,
    source: String,
    event_type: String,
    subject: String,
    status: String,
    verdict: Option<String>,
    reason: String,
}

impl Event {
    /// An event with these attributes and data, unless a required attribute is missing.
    fn new(attribute: impl Fn(&str) -> Option<String>, data: &Value) -> Option<Event> {
        Some(Event {
            id: attribute("id")?,
            source: attribute("source")?,
            event_type: attribute("type")?,
            subject: attribute("subject").expect("all samples have a subject"),
            status: attribute("status").expect("the bridge always writes it"),
            verdict: attribute("verdict"),
            reason: data["reason"].as_str().unwrap_or("no reason").to_owned(),
        })
    }

    /// From a record. Its headers have the attributes in both modes.
    pub fn from_kafka(record: &Received) -> Option<Event> {
        let body: Value = serde_json::from_slice(record.payload.as_ref()?).ok()?;
        let is_structured = record.header("content-type").is_some_and(|value| value.starts_with(STRUCTURED));
        let data = if is_structured { &body["data"] } else { &body };
        Event::new(|name| record.header(&format!("ce_{name}")).map(str::to_owned), data)
    }

    /// From an event in the JSON format.
    pub fn from_json(body: &[u8]) -> Option<Event> {
        let envelope: Value = serde_json::from_slice(body).ok()?;
        Event::new(|name| envelope[name].as_str().map(str::to_owned), &envelope["data"])
    }

    /// Whether the tests published it without a bridge.
    pub fn is_own(&self) -> bool {
        self.id.starts_with(OWN)
    }

    fn line(&self) -> String {
        format!("{} {} {}", self.event_type, self.subject, self.status)
    }

    /// What the examples do; nothing if they do not know the type.
    fn result(&self) -> Option<String> {
        if self.event_type == TRANSCODED {
            return Some(if self.status == "success" { "ready" } else { "not ready" }.to_owned());
        }
        let result = match self.verdict.as_deref() {
            Some("pass") => "show",
            Some("block") => "hide",
            _ => "ask a person",
        };
        REVIEWS.contains(&self.event_type.as_str()).then(|| format!("{result} ({})", self.reason))
    }
}

/// How often each line was printed.
pub type Lines = BTreeMap<String, usize>;

/// What an example printed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What it handled.
    pub handled: Lines,
    /// The events of types that it does not know.
    unknown: Lines,
    /// How many events it had handled before.
    pub repeats: usize,
    /// How many messages are not CloudEvents.
    foreign: usize,
}

impl Report {
    /// What an example has to print about these events.
    pub fn expected(events: &[Event], foreign: usize) -> Report {
        let mut report = Report { foreign, ..Report::default() };
        let mut seen = BTreeSet::new();
        for event in events {
            match event.result() {
                None => *report.unknown.entry(event.line()).or_default() += 1,
                Some(result) if seen.insert((&event.source, &event.id)) => {
                    *report.handled.entry(format!("{}: {result}", event.line())).or_default() += 1;
                }
                Some(_) => report.repeats += 1,
            }
        }
        report
    }

    /// Reads the output of an example. Other lines are from its libraries.
    pub fn read(output: &str) -> Report {
        let mut report = Report::default();
        for line in output.lines() {
            if let Some(line) = line.strip_prefix("handled ") {
                *report.handled.entry(line.to_owned()).or_default() += 1;
            } else if let Some(line) = line.strip_prefix("unknown type ") {
                *report.unknown.entry(line.to_owned()).or_default() += 1;
            } else if line.starts_with("repeat ") {
                report.repeats += 1;
            } else if line.starts_with("not a CloudEvent ") {
                report.foreign += 1;
            }
        }
        report
    }

    /// How many messages it is about.
    pub fn total(&self) -> usize {
        self.handled.values().chain(self.unknown.values()).sum::<usize>() + self.repeats + self.foreign
    }

    /// What this has more than another.
    pub fn without(&self, other: &Report) -> Report {
        let less = |lines: &Lines, others: &Lines| -> Lines {
            let rest = lines.iter().map(|(line, times)| (line.clone(), times - others.get(line).unwrap_or(&0)));
            rest.filter(|(_, times)| *times > 0).collect()
        };
        Report {
            handled: less(&self.handled, &other.handled),
            unknown: less(&self.unknown, &other.unknown),
            repeats: self.repeats - other.repeats,
            foreign: self.foreign - other.foreign,
        }
    }

    /// What two runs printed.
    pub fn and(mut self, other: Report) -> Report {
        other.handled.into_iter().for_each(|(line, times)| *self.handled.entry(line).or_default() += times);
        other.unknown.into_iter().for_each(|(line, times)| *self.unknown.entry(line).or_default() += times);
        self.repeats += other.repeats;
        self.foreign += other.foreign;
        self
    }

    /// What was printed less often than expected. An example that was killed may print a line again.
    pub fn lacks(&self, expected: &Report) -> Vec<String> {
        let mut lacking = more(&expected.handled, &self.handled);
        lacking.extend(more(&expected.unknown, &self.unknown));
        if self.foreign < expected.foreign {
            lacking.push(format!("{} of {} messages that are not CloudEvents", self.foreign, expected.foreign));
        }
        lacking
    }

    /// What was handled more often than expected.
    pub fn handled_again(&self, expected: &Report) -> Vec<String> {
        more(&self.handled, &expected.handled)
    }
}

/// The lines that are more often in `lines` than in `others`.
fn more(lines: &Lines, others: &Lines) -> Vec<String> {
    let more = lines.iter().filter(|(line, times)| *times > others.get(*line).unwrap_or(&0));
    more.map(|(line, _)| line.clone()).collect()
}
