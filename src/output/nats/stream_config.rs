//! Settings of the stream that messages should end in.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::units::{Size, Span, one_or_many, one_or_many_schema};
use crate::common::validation::Validation;

/// The most replicas that a stream can have.
const MAX_REPLICAS: usize = 5;

/// The shortest times that a server accepts for a stream.
const SHORTEST_TIME: Duration = Duration::from_millis(100);

/// Where a stream stores its messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StreamStorage {
    /// In files.
    #[default]
    File,
    /// In memory. A restart of the servers loses the messages.
    Memory,
}

/// The stream that messages should end in.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StreamConfig {
    /// The name of the stream.
    #[schemars(regex(pattern = r"^[^.*>/\\\s]+$"))]
    pub name: String,
    /// The subjects of the stream. They are needed if the bridge creates it.
    #[serde(default, deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<String>")]
    pub subjects: Vec<String>,
    /// Create the stream if it is missing. An existing stream is never changed. A warning in the log says what of it
    /// protects events less than these settings.
    #[serde(default)]
    pub create: bool,
    /// How many servers store each message: 1 to 5, for a cluster usually 3. Default: 1, with a warning if the bridge
    /// creates the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MAX_REPLICAS))]
    pub replicas: Option<usize>,
    /// Where the stream stores its messages.
    #[serde(default)]
    pub storage: StreamStorage,
    /// How long the stream recognizes repeats by their `Nats-Msg-Id`: at least 100ms, at most `max_age`. It should be longer
    /// than the outages that the spool bridges. It uses memory of the servers. Default: that of the server, 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duplicate_window: Option<Span>,
    /// How long the stream keeps a message, whether it was read or not: at least 100ms. Default: forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_age: Option<Span>,
    /// The size at which the stream refuses more messages: more than 0B. Old messages are not deleted. Further events wait
    /// in the spool. Default: only the limits of the account and the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<Size>,
}

impl StreamConfig {
    /// Checks the settings by themselves.
    pub(super) fn check(&self, validation: &mut Validation) {
        if self.name.is_empty()
            || self.name.contains(['.', '*', '>', '/', '\\'])
            || self.name.contains(char::is_whitespace)
        {
            validation.wrong(
                "stream.name",
                format!("invalid name `{}`: expected one without blanks and . * > / \\", self.name),
            );
        }
        if self.create && self.subjects.is_empty() {
            validation.wrong("stream.subjects", "needed to create the stream, for example [\"media.>\"]");
        }
        for subject in self.subjects.iter().filter(|subject| !is_pattern(subject)) {
            validation.wrong(
                "stream.subjects",
                format!("invalid subject `{subject}`: expected tokens between dots, as in media.>"),
            );
        }
        if let Some(replicas) = self.replicas.filter(|replicas| !(1..=MAX_REPLICAS).contains(replicas)) {
            validation.wrong("stream.replicas", format!("{replicas} is out of range: expected 1 to {MAX_REPLICAS}"));
        }
        for (key, time) in [("stream.duplicate_window", self.duplicate_window), ("stream.max_age", self.max_age)] {
            if let Some(time) = time.filter(|time| time.0 < SHORTEST_TIME) {
                validation.wrong(key, format!("{time} is too short: expected at least 100ms"));
            }
        }
        if let (Some(window), Some(age)) = (self.duplicate_window, self.max_age)
            && window > age
        {
            let message =
                format!("{window} is longer than stream.max_age, {age}: a message that is gone is not compared");
            validation.wrong("stream.duplicate_window", message);
        }
        if let Some(bytes) = self.max_bytes.filter(|bytes| bytes.0 == 0 || i64::try_from(bytes.0).is_err()) {
            validation.wrong(
                "stream.max_bytes",
                format!("{bytes} is out of range: expected more than 0B, for example \"10GiB\""),
            );
        }
    }

    /// What is valid but looks like a mistake.
    pub(super) fn warning(&self, output: &str) -> Option<String> {
        (self.create && self.replicas.is_none()).then(|| {
            format!(
                "output `{output}` creates stream `{}` with one replica, because stream.replicas is not set: losing that \
                 server loses its events; set 3 for a cluster, or 1 to confirm",
                self.name
            )
        })
    }

    /// Whether the stream may take messages of a destination; true where attributes decide.
    pub(super) fn may_take(&self, topic: &str) -> bool {
        // A value of an attribute can be more than one token, so that nothing is known from the first one on.
        let (literal, is_whole) = match topic.split_once('{') {
            Some((literal, _)) => (literal.rsplit_once('.').map_or("", |(tokens, _)| tokens), false),
            None => (topic, true),
        };
        self.subjects.iter().any(|pattern| {
            if is_whole {
                return covers(pattern, literal);
            }
            let mut wanted = pattern.split('.');
            let mut tokens = literal.split('.').filter(|token| !token.is_empty());
            loop {
                match (wanted.next(), tokens.next()) {
                    (Some(">"), _) | (Some(_), None) => return true,
                    (Some(wanted), Some(token)) if wanted == "*" || wanted == token => {}
                    _ => return false,
                }
            }
        })
    }
}

/// Whether a subject with or without wildcards is well formed.
pub(super) fn is_pattern(subject: &str) -> bool {
    let count = subject.split('.').count();
    subject.split('.').enumerate().all(|(index, token)| match token {
        ">" => index + 1 == count,
        "*" => true,
        token => !token.is_empty() && !token.contains(['*', '>']) && token.chars().all(|c| c.is_ascii_graphic()),
    })
}

/// Whether every subject that `inner` stands for is one that `outer` stands for.
pub(super) fn covers(outer: &str, inner: &str) -> bool {
    let (mut outer, mut inner) = (outer.split('.'), inner.split('.'));
    loop {
        match (outer.next(), inner.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(token)) if token != ">" => {}
            (Some(wanted), Some(token)) if wanted == token => {}
            _ => return false,
        }
    }
}

/// Whether some subject is one that both stand for.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_overlap_by_their_wildcards() {
        for (one, other) in [("a.>", "*.b"), ("a.*.c", "a.b.*"), (">", "a"), ("a", "a"), ("a.>", "a.b.>")] {
            assert!(overlap(one, other) && overlap(other, one), "{one} {other}");
        }
        for (one, other) in [("a.>", "a"), ("a.*", "a.b.c"), ("a.b", "a.c"), ("a.b.*", "a.*")] {
            assert!(!overlap(one, other) && !overlap(other, one), "{one} {other}");
        }
    }

    #[test]
    fn a_subject_covers_others_by_its_wildcards() {
        for (outer, inner) in [(">", "a.b"), ("a.>", "a.*"), ("a.*", "a.b"), ("a.b", "a.b"), ("a.>", "a.b.>")] {
            assert!(covers(outer, inner), "{outer} {inner}");
        }
        for (outer, inner) in [("a.*", "a.>"), ("a.>", "a"), ("a.b", "a.*"), ("a.*", "a.b.c"), ("a", "b")] {
            assert!(!covers(outer, inner), "{outer} {inner}");
        }
    }
}
