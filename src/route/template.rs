//! Templates of topics and keys: `media.{status}`, `{partitionkey}`.
//!
//! No callback can choose a topic of its own: a topic starts with a literal text, and values of attributes are sanitized
//! and cut before they are inserted.

use std::fmt;

use crate::event::{Attribute, Event, cut};

/// Most bytes of a value inside a topic. Kafka allows 249 bytes for the whole name.
pub const MAX_TOPIC_VALUE_BYTES: usize = 64;

/// Most bytes of a key.
pub const MAX_KEY_BYTES: usize = 1024;

/// Inserted in a topic for an attribute that the event does not have.
pub const ABSENT: &str = "none";

/// A text with placeholders for attributes.
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

/// Why a text is not a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// A `{` without its `}`, or a `}` without its `{`.
    #[error("unbalanced braces in `{0}`; write an attribute as {{name}}")]
    Braces(String),
    /// No event has an attribute of this name.
    #[error("unknown attribute `{name}` in `{template}`{hint}")]
    UnknownAttribute {
        /// The text between the braces.
        name: String,
        /// The whole template.
        template: String,
        /// The similar attribute, or the list of all, as the end of the sentence.
        hint: String,
    },
    /// A topic that starts with an attribute.
    #[error("`{0}` starts with an attribute; a topic needs a literal prefix, for example `media.{{status}}`")]
    NoLiteralPrefix(String),
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// [`TemplateError`] for unbalanced braces and unknown attributes.
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
    /// As [`Template::parse`], and [`TemplateError::NoLiteralPrefix`].
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

    /// The attributes.
    pub fn attributes(&self) -> impl Iterator<Item = Attribute> {
        self.parts.iter().filter_map(|part| match part {
            Part::Literal(_) => None,
            Part::Attribute(attribute) => Some(*attribute),
        })
    }

    /// Length in bytes of the longest topic that the template can produce.
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

    /// The topic for an event, with its attributes [`inserted`].
    pub fn topic(&self, event: &Event, type_prefix: &str) -> String {
        let mut topic = String::with_capacity(self.text.len() + 32);
        for part in &self.parts {
            match part {
                Part::Literal(text) => topic.push_str(text),
                Part::Attribute(name) => insert(*name, event.get(*name), type_prefix, &mut topic),
            }
        }
        topic
    }

    /// The key for an event, cut at [`MAX_KEY_BYTES`]. None if the event has none of the attributes.
    pub fn key(&self, event: &Event) -> Option<String> {
        let mut key = String::with_capacity(self.text.len() + 32);
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
        key.truncate(cut(&key, MAX_KEY_BYTES).len());
        found.then_some(key)
    }
}

/// An attribute as it is inserted in a topic. ASCII letters, digits, `-` and `_` of a value are kept; every other
/// character, dots included, becomes `_`. The configured prefix of the type is kept as it is. The value is cut at
/// [`MAX_TOPIC_VALUE_BYTES`].
pub fn inserted(attribute: Attribute, value: Option<&str>, type_prefix: &str) -> String {
    let mut text = String::new();
    insert(attribute, value, type_prefix, &mut text);
    text
}

fn insert(attribute: Attribute, value: Option<&str>, type_prefix: &str, topic: &mut String) {
    let mut value = value.unwrap_or(ABSENT);
    if attribute == Attribute::Type
        && let Some(event_type) = value.strip_prefix(type_prefix)
    {
        topic.push_str(type_prefix);
        value = event_type;
    }
    let safe = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '_' };
    topic.extend(value.chars().take(MAX_TOPIC_VALUE_BYTES).map(safe));
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
    fn a_key_keeps_the_value_as_it_is() {
        let key = |template: &str| Template::parse(template).expect("valid").key(&event("X", "video 1"));
        assert_eq!(key("{mediaid}").as_deref(), Some("video 1"));
        assert_eq!(key("{jobid}"), None);
        assert_eq!(key("{mediaid}/{jobid}").as_deref(), Some("video 1/"));
        assert_eq!(key("all").as_deref(), Some("all"));
    }

    #[test]
    fn mistakes_are_reported() {
        let error = |text: &str| Template::parse_topic(text).expect_err("must be rejected").to_string();
        assert_eq!(
            error("{status}.x"),
            "`{status}.x` starts with an attribute; a topic needs a literal prefix, for example `media.{status}`"
        );
        assert_eq!(error("m.{stauts}"), "unknown attribute `stauts` in `m.{stauts}`; did you mean `status`?");
        assert_eq!(error("m.{status"), "unbalanced braces in `m.{status`; write an attribute as {name}");
        assert_eq!(error("m.}x{"), "unbalanced braces in `m.}x{`; write an attribute as {name}");
        assert_eq!(
            error(""),
            "`` starts with an attribute; a topic needs a literal prefix, for example `media.{status}`"
        );
    }
}
