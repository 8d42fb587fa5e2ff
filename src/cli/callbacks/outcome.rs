//! Samples with another outcome: the words of a sample are changed as the catalogue says.

use bumpalo::Bump;

use super::Sample;
use crate::dialect::{Catalogue, Dialect, EventType, Field, Kind, Normalizer, Origin, Status, StatusRule};
use crate::event::json::{Json, Member};

/// The key of the outcome of a part.
const PART_STATUS: &str = "Status";

/// The object of IMS with the fields of an event.
const BODY: &str = "MessageBody";

/// Fields with the customer's own data.
const OWN_DATA: [&str; 2] = ["UserData", "Extend"];

/// The words for success and failure that most event types of a dialect have.
fn usual_words(dialect: Dialect) -> [&'static str; 2] {
    match dialect {
        Dialect::Vod => ["success", "fail"],
        Dialect::Ims => ["Success", "Fail"],
    }
}

/// The sample with another outcome. It normalizes to the wanted one. None if the catalogue has no words for it.
pub(super) fn with_status(sample: &Sample, wanted: Status, normalizer: &Normalizer) -> Option<Vec<u8>> {
    let catalogue = normalizer.catalogue();
    let entry = &catalogue.events()[sample.event_type?];
    let rule = &entry.status;
    let usual = usual_words(sample.dialect);
    let mut words: Vec<(&str, Status)> = Vec::new();
    for word in words_of(rule, &usual) {
        words.extend(outcome_of(word, rule, catalogue).map(|status| (word, status)));
    }
    let by_parts = rule.parts && matches!(wanted, Status::Failure | Status::Partial);
    words.retain(|(_, status)| *status == wanted || (by_parts && *status == Status::Success));
    words.sort_by_key(|(_, status)| *status != wanted);
    let word_for = |wanted| {
        let sent = rule.sent.iter().find(|word| outcome_of(word, rule, catalogue) == Some(wanted));
        sent.map_or(usual[usize::from(wanted == Status::Failure)], String::as_str)
    };
    // A field that the sample does not have is added only where its parts do not say it all.
    for is_added in [false, true] {
        for (word, _) in &words {
            let arena = Bump::new();
            let change = Change {
                catalogue,
                entry,
                wanted,
                word,
                is_added,
                part_words: [word_for(Status::Success), word_for(Status::Failure)],
                arena: &arena,
            };
            let changed = change.apply(sample.body)?;
            let built = normalizer.normalize(&changed, &Origin::at(time::OffsetDateTime::UNIX_EPOCH)).ok();
            if built.is_some_and(|built| built.status == wanted && built.event_type == sample.event_type) {
                return Some(changed);
            }
        }
    }
    None
}

/// The words that the catalogue has for the outcome of an event type: those that Alibaba sends first.
fn words_of<'r>(rule: &'r StatusRule, usual: &'r [&'static str; 2]) -> impl Iterator<Item = &'r str> {
    let own = rule.words.iter().map(|(word, _)| word.as_str());
    // An event type with a default and without words has no such field.
    let is_silent = rule.sent.is_empty() && rule.words.is_empty() && rule.default.is_none();
    let usual = usual.iter().copied().filter(move |_| is_silent);
    rule.sent.iter().map(String::as_str).chain(own).chain(usual)
}

fn outcome_of(word: &str, rule: &StatusRule, catalogue: &Catalogue) -> Option<Status> {
    let own = rule.words.iter().find(|(own, _)| own.eq_ignore_ascii_case(word)).map(|(_, status)| *status);
    own.or_else(|| catalogue.word(word))
}

/// A change of a sample.
struct Change<'a> {
    catalogue: &'a Catalogue,
    entry: &'a EventType,
    wanted: Status,
    /// The word of the whole.
    word: &'a str,
    /// Whether it is added to a sample without a word.
    is_added: bool,
    /// The words of a part: success and failure.
    part_words: [&'a str; 2],
    arena: &'a Bump,
}

impl<'a> Change<'a> {
    fn apply(&self, body: &'a [u8]) -> Option<Vec<u8>> {
        let Json::Object(members) = Json::parse(body, self.arena).ok()? else { return None };
        let changed = match members.iter().position(|(key, _)| key.trim() == BODY) {
            Some(index) => {
                let (key, Json::Object(inner)) = members[index] else { return None };
                let mut members = members.to_vec();
                members[index] = (key, self.object(self.payload(inner)));
                members
            }
            None => self.payload(members),
        };
        let mut text = Vec::new();
        self.object(changed).write(b"", &mut text);
        Some(text)
    }

    fn object(&self, members: Vec<Member<'a>>) -> Json<'a> {
        Json::Object(self.arena.alloc_slice_copy(&members))
    }

    fn array(&self, items: &[Json<'a>]) -> Json<'a> {
        Json::Array(self.arena.alloc_slice_copy(items))
    }

    /// The fields of an event.
    fn payload(&self, members: &[Member<'a>]) -> Vec<Member<'a>> {
        let mut members = members.to_vec();
        let field = &self.entry.status.field;
        let is_status = |key: &str| key.trim().eq_ignore_ascii_case(field);
        match members.iter_mut().find(|(key, _)| is_status(key)) {
            Some((_, value)) => *value = Json::String(self.word),
            None if self.is_added => members.push((self.arena.alloc_str(&pascal(field)), Json::String(self.word))),
            None => {}
        }
        if self.entry.status.parts && matches!(self.wanted, Status::Success | Status::Failure | Status::Partial) {
            let mut parts = Parts { count: 0 };
            for (key, value) in &mut members {
                if !is_status(key) && !OWN_DATA.contains(&key.trim()) {
                    *value = self.parts(*value, &mut parts).unwrap_or(*value);
                }
            }
            if parts.count == 0 && self.is_added {
                members.extend(self.new_parts(&mut parts));
            }
        }
        members
    }

    /// A value with the outcomes of its parts changed; none if it has none.
    fn parts(&self, value: Json<'a>, parts: &mut Parts) -> Option<Json<'a>> {
        match value {
            Json::Array(items) => {
                let mut changed: Vec<Json<'a>> = Vec::new();
                let before = parts.count;
                for item in items {
                    changed.push(self.part(*item, parts).unwrap_or(*item));
                }
                if self.wanted == Status::Partial && parts.count == 1 && before == 0 {
                    // One part alone cannot be partial.
                    changed.extend(items.iter().find_map(|item| self.part(*item, parts)));
                }
                (parts.count > before).then(|| self.array(&changed))
            }
            Json::Object(members) => {
                if let Some(part) = self.part(value, parts) {
                    let other = (self.wanted == Status::Partial && parts.count == 1).then(|| self.part(value, parts));
                    return Some(other.flatten().map_or(part, |other| self.array(&[part, other])));
                }
                // The steps of a work.
                let before = parts.count;
                let steps = members.iter().map(|(key, step)| (*key, self.part(*step, parts).unwrap_or(*step)));
                let steps: Vec<Member<'a>> = steps.collect();
                (parts.count > before).then(|| self.object(steps))
            }
            Json::String(text) if text.trim_start().starts_with(['{', '[']) => {
                let inner = self.parts(Json::parse(text.as_bytes(), self.arena).ok()?, parts)?;
                let mut text = Vec::new();
                inner.write(b"", &mut text);
                Some(Json::String(self.arena.alloc_str(std::str::from_utf8(&text).ok()?)))
            }
            _ => None,
        }
    }

    /// The next part with its outcome; none if it is not a part.
    fn part(&self, part: Json<'a>, parts: &mut Parts) -> Option<Json<'a>> {
        let Json::Object(members) = part else { return None };
        part.get(PART_STATUS)?.as_str()?;
        let word = Json::String(self.next_word(parts));
        let with_word = |members: &[Member<'a>]| -> Vec<Member<'a>> {
            members.iter().map(|&(key, value)| (key, if key == PART_STATUS { word } else { value })).collect()
        };
        let mut members = with_word(members);
        // A node of a workflow has a result with an outcome of its own.
        if let Some((_, result)) = members.iter_mut().find(|(key, _)| *key == "Result")
            && let Json::Object(inner) = result
        {
            *result = self.object(with_word(inner));
        }
        Some(self.object(members))
    }

    fn next_word(&self, parts: &mut Parts) -> &'a str {
        let fails = match self.wanted {
            Status::Failure => true,
            Status::Partial => parts.count == 0,
            _ => false,
        };
        parts.count += 1;
        self.part_words[usize::from(fails)]
    }

    /// Parts for a sample that has none, as the catalogue declares them.
    fn new_parts(&self, parts: &mut Parts) -> Option<Member<'a>> {
        let has_status = |field: &Field| match &field.kind {
            Kind::Array(item) => match **item {
                Kind::Object(shape) => self.catalogue.object(shape).fields.contains_key("status"),
                _ => false,
            },
            _ => false,
        };
        let (name, field) = self.entry.fields.iter().find(|(_, field)| has_status(field))?;
        let key = field.from.first().cloned().unwrap_or_else(|| pascal(name));
        let mut new = || self.object(vec![(PART_STATUS, Json::String(self.next_word(parts)))]);
        let items = [new(), new()];
        Some((self.arena.alloc_str(&key), self.array(&items)))
    }
}

/// The parts that were changed.
struct Parts {
    count: usize,
}

/// A name as Alibaba spells most of them.
fn pascal(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect()
}
