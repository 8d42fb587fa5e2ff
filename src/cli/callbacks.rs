//! Callbacks to post: samples by their event type, dialect and outcome, and any number of different copies of one.

use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser as _;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::catalogue::{dialect, event_type};
use crate::common::suggest::did_you_mean;
use crate::dialect::{Catalogue, Dialect, Normalizer, Origin, SAMPLES, Status};
use crate::event::{Attribute, DEFAULT_TYPE_PREFIX};

/// Stands for the id of a copy. No JSON contains this character as it is.
const ID: char = '\u{1}';

/// Stands for the time of a copy.
const TIME: char = '\u{2}';

/// What every id of a copy begins with. The README of the chart drops events by it.
const ID_PREFIX: &str = "apsara-bridge-send-";

/// An upload that never happened.
const UPLOAD: &[u8] = br#"{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","Status":"success","VideoId":"id","Size":"42"}"#;

/// Which sample to post.
#[derive(Debug, Default, clap::Args)]
pub(super) struct Choice {
    /// Post a sample of this event type. `apsara-bridge catalogue` lists them. Default: an upload.
    #[arg(long = "type", value_name = "EVENT_TYPE")]
    event_type: Option<String>,
    /// Post a sample of this dialect. Default: vod where both have one.
    #[arg(long, value_name = "DIALECT", value_parser = dialect())]
    dialect: Option<Dialect>,
    /// Post a sample with this outcome. Not every event type has samples of every outcome.
    #[arg(long, value_parser = PossibleValuesParser::new(Status::ALL.map(Status::as_str)).map(|word| word_of(&word)))]
    status: Option<Status>,
    /// Post this sample, for example vod-TranscodeComplete. A name that does not exist prints all of them.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["event_type", "dialect", "status"])]
    fixture: Option<String>,
}

/// The outcome of a word that the command line has checked.
fn word_of(word: &str) -> Status {
    Status::from_word(word).unwrap_or(Status::Unknown)
}

/// A sample and what it is.
struct Sample {
    name: &'static str,
    body: &'static [u8],
    dialect: Dialect,
    /// Position in the catalogue.
    event_type: Option<usize>,
    status: Status,
}

impl Choice {
    /// Whether anything is chosen.
    pub(super) fn is_given(&self) -> bool {
        self.event_type.is_some() || self.dialect.is_some() || self.status.is_some() || self.fixture.is_some()
    }

    /// The callback to post.
    ///
    /// # Errors
    /// That there is no such sample, and what there is.
    pub(super) fn body(&self) -> Result<&'static [u8], String> {
        if let Some(name) = &self.fixture {
            let found = SAMPLES.iter().find(|(known, _)| known == name);
            let names = || SAMPLES.iter().map(|(name, _)| *name);
            return found.map(|(_, body)| *body).ok_or_else(|| match did_you_mean(name, names()) {
                hint if hint.is_empty() => {
                    format!("there is no sample `{name}`; expected one of {}", names().collect::<Vec<_>>().join(", "))
                }
                hint => format!("there is no sample `{name}`{hint}"),
            });
        }
        if !self.is_given() {
            return Ok(UPLOAD);
        }
        let normalizer = normalizer()?;
        let mut samples = samples(&normalizer)?;
        samples.retain(|sample| self.dialect.is_none_or(|dialect| sample.dialect == dialect));
        let mut what = "sample".to_owned();
        if let Some(name) = &self.event_type {
            let name = event_type(name, &normalizer);
            let catalogue = normalizer.catalogue();
            let meant = catalogue.named(name, self.dialect)?;
            let is_meant = |index| meant.iter().any(|event| std::ptr::eq(*event, &catalogue.events()[index]));
            samples.retain(|sample| sample.event_type.is_some_and(is_meant));
            what = format!("sample of {name}");
            if samples.is_empty() {
                return Err(format!("there is no {what}; post a file with a callback of your own"));
            }
        }
        // VOD before IMS, and an upload before the others.
        let is_upload = |sample: &Sample| sample.name.contains("-FileUploadComplete");
        samples.sort_by_key(|sample| (!is_upload(sample), sample.dialect != Dialect::Vod));
        let wanted = samples.iter().find(|sample| self.status.is_none_or(|status| sample.status == status));
        wanted.map(|sample| sample.body).ok_or_else(|| {
            let status = self.status.map_or("", Status::as_str);
            let known: Vec<String> = if self.event_type.is_some() {
                samples.iter().map(|sample| format!("{} ({})", sample.name, sample.status.as_str())).collect()
            } else {
                let has = |status: &Status| samples.iter().any(|sample| sample.status == *status);
                Status::ALL.iter().filter(|status| has(status)).map(|status| status.as_str().to_owned()).collect()
            };
            format!("no {what} has the status {status}; there are {}", known.join(", "))
        })
    }
}

/// A normalizer for samples.
///
/// # Errors
/// The catalogue of the program is damaged.
pub(super) fn normalizer() -> Result<Normalizer, String> {
    let catalogue = Catalogue::built_in().map_err(|error| error.to_string())?;
    Ok(Normalizer::new(catalogue, DEFAULT_TYPE_PREFIX))
}

fn samples(normalizer: &Normalizer) -> Result<Vec<Sample>, String> {
    let origin = Origin::at(OffsetDateTime::UNIX_EPOCH);
    let samples = SAMPLES.iter().map(|&(name, body)| {
        let normalized = normalizer.normalize(body, &origin).map_err(|error| format!("{name}: {error}"))?;
        let (dialect, event_type, status) = (normalized.dialect, normalized.event_type, normalized.status);
        Ok(Sample { name, body, dialect, event_type, status })
    });
    samples.collect()
}

/// A callback of which copies are made, each with an id and a time of its own, so that the bridge takes none of them for a
/// repeat of another.
pub(super) struct Copies {
    /// The callback with the stand-ins.
    text: String,
    /// What the ids of these copies have in common.
    run: i128,
    has_id: bool,
}

impl Copies {
    /// Copies of a callback. None if it is not a callback, or has nothing that can be changed.
    pub(super) fn of(body: &[u8], normalizer: &Normalizer, now: OffsetDateTime) -> Option<Copies> {
        let event = normalizer.normalize(body, &Origin::at(now)).ok()?.event;
        let body = std::str::from_utf8(body).ok()?;
        let (mut text, mut has_id) = (with_time(body)?, false);
        let ids = [(Attribute::Subject, String::from(ID)), (Attribute::MediaId, String::from(ID))];
        for (attribute, stand_in) in ids.into_iter().chain([(Attribute::JobId, format!("{ID}-job"))]) {
            let Some(id) = event.get(attribute) else { continue };
            // As a value, also inside JSON that a value contains as text.
            for (quote, end) in [("\"", "\""), ("\\\"", "\\\"")] {
                let changed = text.replace(&format!("{quote}{id}{end}"), &format!("{quote}{stand_in}{end}"));
                has_id |= changed != text;
                text = changed;
            }
        }
        Some(Copies { text, run: now.unix_timestamp_nanos(), has_id })
    }

    /// The copy of a number, with a time.
    pub(super) fn copy(&self, number: u64, now: OffsetDateTime) -> Vec<u8> {
        let mut time = now.replace_nanosecond(0).unwrap_or(now);
        if !self.has_id {
            // The time alone has to differ. Two copies are never made in the same second with the same number.
            time += time::Duration::nanoseconds((number % 1_000_000_000) as i64);
        }
        let time = time.format(&Rfc3339).unwrap_or_default();
        let id = format!("{ID_PREFIX}{}-{number}", self.run);
        self.text.replace(ID, &id).replace(TIME, &time).into_bytes()
    }
}

/// A callback with the stand-in for its time; none if it has no time as text.
fn with_time(body: &str) -> Option<String> {
    const KEY: &str = "\"EventTime\"";
    let after_key = body.find(KEY)? + KEY.len();
    let open = after_key + body[after_key..].find('"')?;
    if body[after_key..open].trim() != ":" {
        return None;
    }
    let close = open + 1 + body[open + 1..].find('"')?;
    Some(format!("{}{TIME}{}", &body[..=open], &body[close..]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const NOW: OffsetDateTime = time::macros::datetime!(2026-11-26 13:30:46.5 UTC);

    fn chosen(event_type: Option<&str>, dialect: Option<Dialect>, status: Option<Status>) -> Result<String, String> {
        let choice = Choice { event_type: event_type.map(str::to_owned), dialect, status, fixture: None };
        let body = choice.body()?;
        let found = SAMPLES.iter().find(|(_, known)| *known == body);
        Ok(found.map_or("upload", |(name, _)| name).to_owned())
    }

    #[test]
    fn a_sample_is_chosen_by_type_dialect_and_outcome() {
        use Status::{Failure, Partial, Success};
        let ok = |found: &str| Ok::<_, String>(found.to_owned());
        assert_eq!(chosen(None, None, None), ok("upload"));
        assert_eq!(chosen(Some("TranscodeComplete"), None, None), ok("vod-TranscodeComplete"));
        assert_eq!(
            chosen(Some("com.aliyun.media.TranscodeComplete"), Some(Dialect::Ims), None),
            ok("ims-TranscodeComplete")
        );
        assert_eq!(chosen(Some("ProduceMediaComplete"), None, Some(Failure)), ok("vod-ProduceMediaComplete-fail"));
        assert_eq!(chosen(None, Some(Dialect::Ims), None), ok("ims-FileUploadComplete"));
        assert_eq!(chosen(None, None, Some(Success)), ok("vod-FileUploadComplete-docs2021"));
        assert!(chosen(None, None, Some(Failure)).is_ok_and(|name| name.contains("-fail")));
        let error = chosen(Some("TranscodeComplete"), None, Some(Failure)).expect_err("no such sample");
        let expected = "no sample of TranscodeComplete has the status failure; there are vod-TranscodeComplete (success), \
                        ims-TranscodeComplete (success)";
        assert_eq!(error, expected);
        let error = chosen(None, None, Some(Partial)).expect_err("no such sample");
        assert_eq!(error, "no sample has the status partial; there are success, progress, failure");
        let error = chosen(Some("TranscodComplete"), None, None).expect_err("mistyped");
        assert_eq!(error, "the catalogue has no event type TranscodComplete; did you mean TranscodeComplete?");
        let error = chosen(Some("RegisterMediaComplete"), Some(Dialect::Vod), None).expect_err("not of VOD");
        assert_eq!(error, "vod has no event type RegisterMediaComplete; ims has it");
    }

    #[test]
    fn a_sample_is_chosen_by_its_name() {
        let named = |name: &str| Choice { fixture: Some(name.to_owned()), ..Choice::default() }.body();
        assert_eq!(
            named("ims-SmartJobComplete").ok(),
            SAMPLES.iter().find(|(name, _)| *name == "ims-SmartJobComplete").map(|(_, body)| *body)
        );
        assert_eq!(
            named("ims-SmartJobComplet").expect_err("mistyped"),
            "there is no sample `ims-SmartJobComplet`; did you mean `ims-SmartJobComplete`?"
        );
        assert!(named("x").expect_err("unknown").contains("expected one of ims-AIMediaAuditComplete, "));
    }

    /// Copies keep everything but ids and time, so that routes treat them as they treat the sample.
    #[test]
    fn copies_of_every_sample_differ_in_id_and_time_only() {
        let normalizer = normalizer().expect("valid");
        let mut ids = HashSet::new();
        for (name, body) in SAMPLES.iter().chain(&[("upload", UPLOAD)]) {
            let origin = Origin::at(NOW);
            let sample = normalizer.normalize(body, &origin).expect("a callback").event;
            let copies = Copies::of(body, &normalizer, NOW).unwrap_or_else(|| panic!("{name}"));
            assert!(copies.has_id, "{name} has an id");
            for number in [0, 1] {
                let copy = copies.copy(number, NOW);
                let event =
                    normalizer.normalize(&copy, &origin).unwrap_or_else(|error| panic!("{name}: {error}")).event;
                assert!(ids.insert(event.id().to_owned()), "{name}");
                assert!(event.get(Attribute::Subject).is_some_and(|subject| subject.starts_with(ID_PREFIX)), "{name}");
                assert_eq!(event.get(Attribute::Time), Some("2026-11-26T13:30:46Z"), "{name}");
                for attribute in [Attribute::Type, Attribute::Status, Attribute::Dialect, Attribute::Verdict] {
                    assert_eq!(event.get(attribute), sample.get(attribute), "{name} {attribute}");
                }
            }
        }
    }

    #[test]
    fn copies_without_an_id_differ_in_their_time() {
        let normalizer = normalizer().expect("valid");
        let body = br#"{"EventType": "X", "EventTime" : "2026-01-01T00:00:00Z", "Status": "success"}"#;
        let copies = Copies::of(body, &normalizer, NOW).expect("a callback");
        let text = |number| String::from_utf8(copies.copy(number, NOW)).expect("UTF-8");
        assert_eq!(
            text(7),
            r#"{"EventType": "X", "EventTime" : "2026-11-26T13:30:46.000000007Z", "Status": "success"}"#
        );
        assert_ne!(text(1), text(2));
        for body in ["{}", "no JSON", r#"{"EventType": "X", "EventTime": 1}"#] {
            assert!(Copies::of(body.as_bytes(), &normalizer, NOW).is_none(), "{body}");
        }
    }
}
