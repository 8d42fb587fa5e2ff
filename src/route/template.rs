//! Names of topics and keys made from attributes: `media.{status}`, `{partitionkey}`.
//!
//! What a callback brings is sanitized and cut before it becomes part of a topic, and a topic starts with a text
//! that the operator wrote, so that no callback chooses a topic of its own.

use std::fmt;

use crate::event::{Attribute, Event, cut};

/// The longest a value gets inside a topic, in bytes. Kafka allows 249 for the whole name.
pub const MAX_TOPIC_VALUE_BYTES: usize = 64;

/// The longest a key gets, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;

/// What stands in a topic for an attribute that the event doesn't have.
pub const ABSENT: &str = "none";

/// A text with places for attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: String,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    Attribute(Attribute),
}

/// Why a text is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{` without its `}`, or the other way round.
    #[error("unbalanced braces in `{0}`; an attribute stands as {{name}}")]
    Braces(String),
    /// A name that no event has.
    #[error("`{name}` in `{template}` is no attribute{hint}")]
    UnknownAttribute {
        /// What was written between the braces.
        name: String,
        /// The whole template.
        template: String,
        /// The nearest known name, as a phrase, or nothing.
        hint: String,
    },
    /// A topic that starts with an attribute.
    #[error("`{0}` starts with an attribute; a topic needs a literal prefix, as in `media.{{status}}`")]
    NoLiteralPrefix(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`] for braces that don't match and names outside the table of attributes.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (literal, from_brace) = rest.split_at(open);
            let close = from_brace.find('}').filter(|close| *close > 0);
            let (true, Some(close)) = (from_brace.starts_with('{'), close) else {
                return Err(TemplateError::Braces(text.to_owned()));
            };
            let name = &from_brace[1..close];
            let known = Attribute::from_name(name).ok_or_else(|| TemplateError::UnknownAttribute {
                name: name.to_owned(),
                template: text.to_owned(),
                hint: super::attribute_hint(name),
            })?;
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            }
            parts.push(Part::Attribute(known));
            rest = &from_brace[close + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Literal(rest.to_owned()));
        }
        Ok(Template { text: text.to_owned(), parts })
    }

    /// Reads the template of a topic.
    ///
    /// # Errors
    /// As [`Template::parse`], and when it does not start with a literal text.
    pub fn parse_topic(text: &str) -> Result<Template, TemplateError> {
        let template = Template::parse(text)?;
        match template.parts.first() {
            Some(Part::Literal(_)) => Ok(template),
            _ => Err(TemplateError::NoLiteralPrefix(text.to_owned())),
        }
    }

    /// The texts between the attributes.
    pub fn literals(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(text) => Some(text.as_str()),
            Part::Attribute(_) => None,
        })
    }

    /// The longest topic it can make, in bytes.
    pub fn longest_topic(&self, type_prefix: &str) -> usize {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Literal(text) => text.len(),
                Part::Attribute(Attribute::Type) => type_prefix.len() + MAX_TOPIC_VALUE_BYTES,
                Part::Attribute(_) => MAX_TOPIC_VALUE_BYTES,
            })
            .sum()
    }

    /// The topic for an event. What comes from the callback keeps its letters, digits, `-` and `_`; all else,
    /// dots too, becomes `_`. The type keeps the configured prefix as it is.
    pub fn topic(&self, event: &Event, type_prefix: &str) -> String {
        let mut topic = String::with_capacity(self.text.len() + 32);
        for part in &self.parts {
            match part {
                Part::Literal(text) => topic.push_str(text),
                Part::Attribute(name) => {
                    let mut value = event.get(*name).unwrap_or(ABSENT);
                    if *name == Attribute::Type
                        && let Some(event_type) = value.strip_prefix(type_prefix)
                    {
                        topic.push_str(type_prefix);
                        value = event_type;
                    }
                    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
                    topic.extend(value.chars().take(MAX_TOPIC_VALUE_BYTES).map(safe));
                }
            }
        }
        topic
    }

    /// The key for an event, or none where all its attributes are absent.
    pub fn key(&self, event: &Event) -> Option<String> {
        let mut key = String::new();
        let mut found = self.parts.iter().all(|part| matches!(part, Part::Literal(_)));
        for part in &self.parts {
            match part {
                Part::Literal(text) => key.push_str(text),
                Part::Attribute(name) => {
                    let value = event.get(*name);
                    found |= value.is_some();
                    key.push_str(value.unwrap_or_default());
                }
            }
        }
        found.then(|| cut(&key, MAX_KEY_BYTES).to_owned())
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Attribute, DEFAULT_TYPE_PREFIX};

    fn event(r#type: &str, media: &str) -> Event {
        let mut event = Event::new("{}");
        event.set(Attribute::Type, format!("{DEFAULT_TYPE_PREFIX}{type}"));
        event.set(Attribute::Status, "success");
        event.set(Attribute::MediaId, media);
        event
    }

    fn topic(template: &str, event: &Event) -> String {
        Template::parse_topic(template).expect("valid").topic(event, DEFAULT_TYPE_PREFIX)
    }

    #[test]
    fn a_callback_cannot_choose_a_topic() {
        let hostile = event("../../x y", "a.b.*.>\u{0}");
        assert_eq!(topic("media.{type}", &hostile), "media.com.aliyun.media.______x_y");
        assert_eq!(topic("media.{mediaid}.x", &hostile), "media.a_b_____.x");
        assert_eq!(topic("media.{jobid}", &hostile), "media.none");
        let long = event(&"é".repeat(10_000), &"x".repeat(10_000));
        assert_eq!(topic("m.{type}", &long).len(), "m.com.aliyun.media.".len() + MAX_TOPIC_VALUE_BYTES);
        assert_eq!(topic("m.{mediaid}", &long).len(), 2 + MAX_TOPIC_VALUE_BYTES);
        let template = Template::parse_topic("m.{type}.{mediaid}").expect("valid");
        assert!(template.topic(&long, DEFAULT_TYPE_PREFIX).len() <= template.longest_topic(DEFAULT_TYPE_PREFIX));
    }

    #[test]
    fn keys_are_taken_as_they_are_or_not_at_all() {
        let key = |template: &str| Template::parse(template).expect("valid").key(&event("X", "video 1"));
        assert_eq!(key("{mediaid}").as_deref(), Some("video 1"));
        assert_eq!(key("{jobid}"), None);
        assert_eq!(key("{mediaid}/{jobid}").as_deref(), Some("video 1/"));
        assert_eq!(key("all").as_deref(), Some("all"));
    }

    #[test]
    fn mistakes_are_told() {
        let error = |text: &str| Template::parse_topic(text).expect_err("must be refused").to_string();
        assert_eq!(
            error("{status}.x"),
            "`{status}.x` starts with an attribute; a topic needs a literal prefix, as in `media.{status}`"
        );
        assert_eq!(error("m.{stauts}"), "`stauts` in `m.{stauts}` is no attribute; did you mean `status`?");
        assert_eq!(error("m.{status"), "unbalanced braces in `m.{status`; an attribute stands as {name}");
        assert_eq!(error("m.}x{"), "unbalanced braces in `m.}x{`; an attribute stands as {name}");
        assert_eq!(error(""), "`` starts with an attribute; a topic needs a literal prefix, as in `media.{status}`");
    }
}
