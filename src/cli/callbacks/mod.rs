//! Callbacks to post: samples by their event type, dialect and outcome, and any number of different copies of one.

mod outcome;

use std::borrow::Cow;

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
    /// Post a sample with this outcome. If there is none, one is built with the words of the catalogue. An event type has
    /// only the outcomes that Alibaba sends in it.
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
    pub(super) fn body(&self) -> Result<Cow<'static, [u8]>, String> {
        if let Some(name) = &self.fixture {
            let found = SAMPLES.iter().find(|(known, _)| known == name);
            let names = || SAMPLES.iter().map(|(name, _)| *name);
            return found.map(|(_, body)| Cow::Borrowed(*body)).ok_or_else(|| match did_you_mean(name, names()) {
                hint if hint.is_empty() => {
                    format!("there is no sample `{name}`; expected one of {}", names().collect::<Vec<_>>().join(", "))
                }
                hint => format!("there is no sample `{name}`{hint}"),
            });
        }
        if !self.is_given() {
            return Ok(Cow::Borrowed(UPLOAD));
        }
        let normalizer = normalizer()?;
        let mut samples = samples(&normalizer)?;
        samples.retain(|sample| self.dialect.is_none_or(|dialect| sample.dialect == dialect));
        let name = self.event_type.as_deref().map(|name| event_type(name, &normalizer));
        if let Some(name) = name {
            let catalogue = normalizer.catalogue();
            let meant = catalogue.named(name, self.dialect)?;
            let is_meant = |index| meant.iter().any(|event| std::ptr::eq(*event, &catalogue.events()[index]));
            samples.retain(|sample| sample.event_type.is_some_and(is_meant));
            if samples.is_empty() {
                return Err(format!("there is no sample of {name}; post a file with a callback of your own"));
            }
        }
        // VOD before IMS, and an upload before the others.
        let is_upload = |sample: &Sample| sample.name.contains("-FileUploadComplete");
        samples.sort_by_key(|sample| (!is_upload(sample), sample.dialect != Dialect::Vod));
        let Some(status) = self.status else {
            return samples.first().map(|sample| Cow::Borrowed(sample.body)).ok_or_else(|| "no sample".to_owned());
        };
        if let Some(body) = self.with_status(&samples, status, &normalizer) {
            return Ok(body);
        }
        let has = |status: &&Status| self.with_status(&samples, **status, &normalizer).is_some();
        let known: Vec<&str> = Status::ALL.iter().filter(has).map(|status| status.as_str()).collect();
        let of = self.dialect.map_or_else(String::new, |dialect| format!(" of {dialect}"));
        let (status, known) = (status.as_str(), known.join(", "));
        Err(match name {
            Some(name) => format!("{name}{of} has no status {status}; it has {known}"),
            None => format!("no event type{of} has the status {status}; there are {known}"),
        })
    }

    /// The first sample with an outcome, or the first one that can be changed to it.
    fn with_status(&self, samples: &[Sample], status: Status, normalizer: &Normalizer) -> Option<Cow<'static, [u8]>> {
        // Among samples of one event type, the dialect matters more than whether the outcome is there already.
        let by_dialect = self.event_type.is_some();
        let groups = Dialect::ALL.iter().filter(|_| by_dialect).map(|dialect| Some(*dialect));
        for group in groups.chain((!by_dialect).then_some(None)) {
            let in_group = |sample: &&Sample| group.is_none_or(|dialect| sample.dialect == dialect);
            let mut of_group = samples.iter().filter(in_group);
            if let Some(sample) = of_group.clone().find(|sample| sample.status == status) {
                return Some(Cow::Borrowed(sample.body));
            }
            if let Some(built) = of_group.find_map(|sample| outcome::with_status(sample, status, normalizer)) {
                return Some(Cow::Owned(built));
            }
        }
        None
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
        let origin = Origin::at(now);
        let original = normalizer.normalize(body, &origin).ok()?;
        let body = std::str::from_utf8(body).ok()?;
        let (mut text, mut has_id) = (with_time(body)?, false);
        let ids = [(Attribute::Subject, String::from(ID)), (Attribute::MediaId, String::from(ID))];
        for (attribute, stand_in) in ids.into_iter().chain([(Attribute::JobId, format!("{ID}-job"))]) {
            let Some(id) = original.event.get(attribute) else { continue };
            // As a value, also inside JSON that a value contains as text.
            for quote in ["\"", "\\\""] {
                let changed = with_id(&text, quote, id, &stand_in);
                has_id |= changed != text;
                text = changed;
            }
        }
        let copies = Copies { text, run: now.unix_timestamp_nanos(), has_id };
        let copy = normalizer.normalize(&copies.copy(0, now), &origin).ok()?;
        // Whatever a callback contains, a copy is never another event.
        let is_same = |attribute| copy.event.get(attribute) == original.event.get(attribute);
        let kept = [Attribute::Type, Attribute::Status, Attribute::Verdict, Attribute::AccountId, Attribute::AppId];
        kept.into_iter().all(is_same).then_some(copies)
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

/// A callback with a stand-in for an id, wherever a key says that the value is one. Other values can be equal to it.
fn with_id(text: &str, quote: &str, id: &str, stand_in: &str) -> String {
    let value = format!("{quote}{id}{quote}");
    let mut changed = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(&value) {
        changed.push_str(&rest[..at]);
        if is_key_of_id(&changed, quote) {
            changed.push_str(&format!("{quote}{stand_in}{quote}"));
            rest = &rest[at + value.len()..];
        } else {
            // The quote at its end can be the first one of the next value.
            let end = at + value.len() - quote.len();
            changed.push_str(&rest[at..end]);
            rest = &rest[end..];
        }
    }
    changed + rest
}

/// Whether a text ends with a key whose value is the id of a media, a job or a task.
fn is_key_of_id(text: &str, quote: &str) -> bool {
    let key = text.trim_end().strip_suffix(':').and_then(|text| text.trim_end().strip_suffix(quote));
    let Some(key) = key.and_then(|text| text.rsplit(quote).next()) else { return false };
    let key = key.trim().replace('_', "").to_ascii_lowercase();
    (key.ends_with("id") || key == "media") && !matches!(key.as_str(), "userid" | "appid")
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
        let found = SAMPLES.iter().find(|(_, known)| *known == body.as_ref());
        Ok(found.map_or(if *body == *UPLOAD { "upload" } else { "built" }, |(name, _)| name).to_owned())
    }

    #[test]
    fn a_sample_is_chosen_by_type_dialect_and_outcome() {
        use Status::{Canceled, Failure, Partial, Success, Unknown};
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
        assert_eq!(chosen(Some("TranscodeComplete"), None, Some(Partial)), ok("built"));
        assert_eq!(chosen(None, None, Some(Partial)), ok("built"));
        let error = chosen(Some("TranscodeComplete"), None, Some(Canceled)).expect_err("no such outcome");
        assert_eq!(error, "TranscodeComplete has no status canceled; it has success, partial, failure");
        let error =
            chosen(Some("DeleteMediaComplete"), Some(Dialect::Ims), Some(Failure)).expect_err("no such outcome");
        assert_eq!(error, "DeleteMediaComplete of ims has no status failure; it has success");
        let error = chosen(None, None, Some(Unknown)).expect_err("no such outcome");
        let all = "success, skipped, progress, partial, canceled, failure";
        assert_eq!(error, format!("no event type has the status unknown; there are {all}"));
        let error = chosen(Some("TranscodComplete"), None, None).expect_err("mistyped");
        assert_eq!(error, "the catalogue has no event type TranscodComplete; did you mean TranscodeComplete?");
        let error = chosen(Some("RegisterMediaComplete"), Some(Dialect::Vod), None).expect_err("not of VOD");
        assert_eq!(error, "vod has no event type RegisterMediaComplete; ims has it");
    }

    /// The words of the catalogue say which outcomes a type can have, and each of them is built.
    #[test]
    fn every_outcome_of_every_type_is_built() {
        let normalizer = normalizer().expect("valid");
        let (catalogue, mut built) = (normalizer.catalogue(), 0);
        for event in catalogue.events() {
            let rule = &event.status;
            let own = |word: &str| rule.words.iter().find(|(own, _)| own == word).map(|(_, status)| *status);
            let words = rule.sent.iter().chain(rule.words.iter().map(|(word, _)| word));
            let mut allowed: HashSet<Status> =
                words.map(|word| own(word).or_else(|| catalogue.word(word)).expect("a known word")).collect();
            allowed.extend(rule.default);
            if allowed.is_empty() {
                allowed.extend([Status::Success, Status::Failure]);
            }
            if rule.parts {
                allowed.extend([Status::Partial, Status::Failure]);
            }
            for status in Status::ALL {
                let dialect = Some(event.dialect);
                let choice =
                    Choice { event_type: Some(event.name.clone()), dialect, status: Some(status), fixture: None };
                let (name, status_name) = (format!("{} {}", event.dialect, event.name), status.as_str());
                let body = match choice.body() {
                    Ok(body) => body,
                    Err(error) => {
                        assert!(!allowed.contains(&status), "{name}: {error}");
                        continue;
                    }
                };
                assert!(allowed.contains(&status), "{name} cannot have {status_name}");
                // What is posted is a copy.
                let copy = Copies::of(&body, &normalizer, NOW).unwrap_or_else(|| panic!("{name}")).copy(0, NOW);
                let found = normalizer.normalize(&copy, &Origin::at(NOW)).expect("a callback");
                assert_eq!((found.status, found.dialect), (status, event.dialect), "{name}");
                assert!(std::ptr::eq(&catalogue.events()[found.event_type.expect("known")], event), "{name}");
                built += 1;
            }
        }
        assert!(built > 2 * catalogue.events().len() - 10, "{built}");
    }

    #[test]
    fn a_sample_is_chosen_by_its_name() {
        let named = |name: &str| Choice { fixture: Some(name.to_owned()), ..Choice::default() }.body();
        assert_eq!(
            named("ims-SmartJobComplete").ok().as_deref(),
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

    #[test]
    fn a_value_that_equals_an_id_stays() {
        let normalizer = normalizer().expect("valid");
        let body = br#"{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","Status":"success",
            "VideoId" : "success","Extend":"{\"MediaId\":\"success\",\"Note\":\"success\"}","AppId":"success"}"#;
        let copies = Copies::of(body, &normalizer, NOW).expect("a callback");
        let copy: serde_json::Value = serde_json::from_slice(&copies.copy(3, NOW)).expect("JSON");
        let id = copy["VideoId"].as_str().expect("an id");
        assert!(id.starts_with(ID_PREFIX), "{copy}");
        assert_eq!((&copy["Status"], &copy["AppId"]), (&"success".into(), &"success".into()));
        assert_eq!(copy["Extend"], format!(r#"{{"MediaId":"{id}","Note":"success"}}"#));
    }
}
