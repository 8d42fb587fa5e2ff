//! The outcome of the work that a callback reports, and the verdict of a review.

use crate::common::text::trim;
use crate::common::words::words;
use crate::event::json::{Json, Member, find};

words! {
    /// The outcome of the job: the value of the attribute `status`.
    ///
    /// Ordered from best to worst, so that the worst of several outcomes is their maximum.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Status {
        /// All of it worked.
        Success = "success",
        /// It was skipped on purpose.
        Skipped = "skipped",
        /// It has not ended yet.
        Progress = "progress",
        /// The callback has an unknown word, or none.
        Unknown = "unknown",
        /// Some of its parts failed.
        Partial = "partial",
        /// Somebody stopped it.
        Canceled = "canceled",
        /// It failed.
        Failure = "failure",
    }
}

words! {
    /// The result of a review of the content: the value of the attribute `verdict`. It says nothing about the outcome of
    /// the job.
    ///
    /// Ordered from best to worst.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
    pub enum Verdict {
        /// Nothing was found.
        Pass = "pass",
        /// A person should look at it.
        Review = "review",
        /// The content breaks the rules.
        Block = "block",
    }
}

/// Where the outcome of an event type is found.
#[derive(Clone, Debug)]
pub struct StatusRule {
    /// Field that holds the word.
    pub field: String,
    /// The words that Alibaba sends in it, for readers.
    pub sent: Vec<String>,
    /// Words of this field only, tried before the common ones.
    pub words: Vec<(String, Status)>,
    /// Fields with a further outcome. The worst outcome counts.
    pub also: Vec<String>,
    /// Whether the outcomes of the parts count too.
    pub parts: bool,
    /// The outcome if there is no word.
    pub default: Option<Status>,
}

impl Default for StatusRule {
    fn default() -> Self {
        StatusRule {
            field: "status".to_owned(),
            sent: Vec::new(),
            words: Vec::new(),
            also: Vec::new(),
            parts: false,
            default: None,
        }
    }
}

impl StatusRule {
    /// The rule as a text for people.
    pub fn describe(&self) -> String {
        let mut text = format!("from data.{}", self.field);
        if !self.sent.is_empty() {
            text.push_str(&format!(" ({})", self.sent.join(", ")));
        }
        if !self.also.is_empty() {
            text.push_str(&format!(" and data.{}, the worst of them", self.also.join(", data.")));
        }
        if self.parts {
            text.push_str(", together with the status of its parts");
        }
        if let Some(default) = self.default {
            text.push_str(&format!(", else {}", default.as_str()));
        }
        text
    }
}

/// Which members of a top-level field are parts of the job.
pub(super) enum Parts {
    /// None: the customer's own data says nothing about the outcome.
    None,
    /// The field itself, or the items of an array.
    Items,
    /// The values of an object: steps of one work.
    Steps,
}

/// Reads the outcome from normalized data by the rule of its event type. `common` knows the words of all types, and
/// `parts_of` the parts in each field.
pub(super) fn status<'a>(
    data: &[Member<'a>],
    rule: &StatusRule,
    common: impl Fn(&str) -> Option<Status>,
    parts_of: impl Fn(&'a str) -> Parts,
) -> Status {
    let own_word =
        |word: &str| rule.words.iter().find(|(own, _)| own.eq_ignore_ascii_case(trim(word))).map(|(_, status)| *status);
    let outcome = |name: &str| match find(data, name).and_then(Json::as_text) {
        Some(word) if !trim(word).is_empty() => {
            Some(own_word(word).or_else(|| common(word)).unwrap_or(Status::Unknown))
        }
        _ => None,
    };
    let failed = find(data, "error").is_some();
    let mut status = match outcome(&rule.field) {
        // An error means failure if there is no word, or if the word is about something else than the outcome.
        None if failed => Status::Failure,
        Some(_) if failed && rule.field != "status" => Status::Failure,
        Some(word) => word,
        None => rule.default.unwrap_or(Status::Unknown),
    };
    for other in rule.also.iter().filter_map(|name| outcome(name)) {
        status = status.max(other);
    }
    if rule.parts {
        let (items, steps) = parts(data, common, parts_of);
        status = with_steps(with_parts(status, items), &steps);
    }
    status
}

/// The outcomes of the parts and of the steps that have a status.
fn parts<'a>(
    data: &[Member<'a>],
    common: impl Fn(&str) -> Option<Status>,
    parts_of: impl Fn(&'a str) -> Parts,
) -> (Vec<Status>, Vec<Status>) {
    let word_of =
        |json: Json<'_>| json.get("status").and_then(Json::as_str).map(|word| common(word).unwrap_or(Status::Unknown));
    let outcome = |part: &Json<'_>| -> Option<Status> {
        let own = word_of(*part)?;
        // A node of a workflow has a result with a status of its own.
        let inner = part.get("result").and_then(word_of).filter(|inner| *inner != Status::Unknown);
        Some(inner.map_or(own, |inner| own.max(inner)))
    };
    let (mut outcomes, mut steps) = (Vec::new(), Vec::new());
    for (name, value) in data {
        match (value, parts_of(name)) {
            (_, Parts::None) => {}
            (Json::Object(members), Parts::Steps) => {
                steps.extend(members.iter().filter_map(|(_, part)| outcome(part)));
            }
            (Json::Array(items), _) => outcomes.extend(items.iter().filter_map(outcome)),
            (object, _) => outcomes.extend(outcome(object)),
        }
    }
    (outcomes, steps)
}

/// Combines the word of the whole with its steps. A success with a failed step is partial. A failure stays one: steps
/// that succeeded before do not make it better.
fn with_steps(whole: Status, steps: &[Status]) -> Status {
    let failed = steps.iter().any(|step| matches!(step, Status::Failure | Status::Canceled | Status::Partial));
    match whole {
        Status::Success if failed => Status::Partial,
        whole => whole,
    }
}

/// Combines the word of the whole with its parts. A success with failed parts is partial, or a failure if no part
/// succeeded. An unknown or missing word is replaced by the outcome of the parts.
fn with_parts(whole: Status, parts: Vec<Status>) -> Status {
    let any = |wanted: Status| parts.contains(&wanted);
    let failed = any(Status::Failure) || any(Status::Canceled) || any(Status::Partial);
    let worked = any(Status::Success) || any(Status::Partial);
    match whole {
        Status::Success | Status::Unknown | Status::Failure if failed && worked => Status::Partial,
        Status::Success | Status::Unknown if failed => parts.into_iter().max().unwrap_or(whole),
        Status::Unknown if worked => Status::Success,
        _ => whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_change_the_outcome_of_the_whole() {
        use Status::*;
        for (whole, parts, expected) in [
            (Success, vec![], Success),
            (Success, vec![Success, Success], Success),
            (Success, vec![Success, Failure], Partial),
            (Success, vec![Failure, Failure], Failure),
            (Success, vec![Success, Canceled], Partial),
            (Success, vec![Canceled], Canceled),
            (Success, vec![Success, Skipped], Success),
            (Success, vec![Success, Unknown], Success),
            (Failure, vec![Failure], Failure),
            (Failure, vec![Success, Failure], Partial),
            (Failure, vec![Success], Failure),
            (Unknown, vec![Success], Success),
            (Unknown, vec![], Unknown),
            (Progress, vec![Success, Failure], Progress),
        ] {
            assert_eq!(with_parts(whole, parts.clone()), expected, "{whole:?} with {parts:?}");
        }
    }
}
