//! The filter dialects of CloudEvents Subscriptions 0.1: exact, prefix, suffix, all, any, not.
//!
//! As the specification says, comparisons are case-sensitive, and all attributes under one dialect must hold. A
//! comparison with an attribute that the event does not have is false, and its `not` is true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::text::sentence;
use crate::event::{Attribute, Event};

/// A filter as the configuration writes it. All dialects that it names must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, serde::Serialize)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Filter", extend("minProperties" = 1))]
pub struct FilterConfig {
    /// Attributes that equal a text. All of them must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "texts_schema")]
    pub exact: Option<BTreeMap<String, String>>,
    /// Attributes that start with a text. All of them must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "texts_schema")]
    pub prefix: Option<BTreeMap<String, String>>,
    /// Attributes that end with a text. All of them must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "texts_schema")]
    pub suffix: Option<BTreeMap<String, String>>,
    /// Filters that must all hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub all: Option<Vec<FilterConfig>>,
    /// Filters of which at least one must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub any: Option<Vec<FilterConfig>>,
    /// A filter that must not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<FilterConfig>>,
}

/// The schema of attributes with a text each.
fn texts_schema(_: &mut SchemaGenerator) -> Schema {
    let mut schema = attributes_schema(&json!({ "type": "string", "minLength": 1 }));
    schema.insert("type".to_owned(), json!(["object", "null"]));
    schema
}

/// The schema of a table of attributes, whose values have the schema `value`.
pub fn attributes_schema(value: &Value) -> Schema {
    let properties = Attribute::ALL.iter().map(|attribute| {
        let mut schema = value.clone();
        schema["description"] = sentence(attribute.description()).into();
        (attribute.name().to_owned(), schema)
    });
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "properties": Value::Object(properties.collect()),
        "additionalProperties": false,
    })
}

/// A compiled filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The attribute equals the text.
    Exact(Attribute, String),
    /// The attribute starts with the text.
    Prefix(Attribute, String),
    /// The attribute ends with the text.
    Suffix(Attribute, String),
    /// All filters hold.
    All(Vec<Filter>),
    /// At least one filter holds.
    Any(Vec<Filter>),
    /// The filter does not hold.
    Not(Box<Filter>),
}

/// In words, for people.
impl fmt::Display for Filter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut list = |filters: &[Filter], word: &str| {
            for (index, filter) in filters.iter().enumerate() {
                if index > 0 {
                    write!(formatter, " {word} ")?;
                }
                match filter {
                    Filter::All(inner) | Filter::Any(inner) if inner.len() > 1 && filters.len() > 1 => {
                        write!(formatter, "({filter})")?;
                    }
                    _ => write!(formatter, "{filter}")?,
                }
            }
            Ok(())
        };
        match self {
            Filter::Exact(attribute, text) => write!(formatter, "{attribute} = {text:?}"),
            Filter::Prefix(attribute, text) => write!(formatter, "{attribute} starts with {text:?}"),
            Filter::Suffix(attribute, text) => write!(formatter, "{attribute} ends with {text:?}"),
            Filter::All(filters) => list(filters, "and"),
            Filter::Any(filters) => list(filters, "or"),
            Filter::Not(filter) => write!(formatter, "not ({filter})"),
        }
    }
}

impl Filter {
    /// The values that an attribute can have in events that pass, if the filter lists them; otherwise nothing.
    pub fn listed_values(&self, attribute: Attribute) -> Option<BTreeSet<&str>> {
        match self {
            Filter::Exact(named, text) => (*named == attribute).then(|| BTreeSet::from([text.as_str()])),
            Filter::All(filters) => {
                let listed = filters.iter().filter_map(|filter| filter.listed_values(attribute));
                listed.reduce(|one, other| &one & &other)
            }
            Filter::Any(filters) => {
                let listed = filters.iter().map(|filter| filter.listed_values(attribute));
                listed.reduce(|one, other| Some(&one? | &other?)).flatten()
            }
            Filter::Prefix(..) | Filter::Suffix(..) | Filter::Not(_) => None,
        }
    }
}

/// A mistake in a filter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The filter names no dialect.
    #[error("the filter is empty; expected exact, prefix, suffix, all, any or not")]
    Empty,
    /// A dialect that compares attributes names none.
    #[error("`{0}` is empty; expected an attribute")]
    NoAttribute(&'static str),
    /// The text to compare with is empty.
    #[error("`{dialect}.{attribute}` is empty; expected a text")]
    NoText {
        /// The dialect.
        dialect: &'static str,
        /// The attribute as it was written.
        attribute: String,
    },
    /// No event has an attribute of this name.
    #[error("`{dialect}.{attribute}`: unknown attribute{hint}")]
    UnknownAttribute {
        /// The dialect.
        dialect: &'static str,
        /// The attribute as it was written.
        attribute: String,
        /// The similar attribute, or the list of all, as the end of the sentence.
        hint: String,
    },
    /// A dialect that combines filters has none.
    #[error("`{0}` is empty; expected a filter")]
    NoFilter(&'static str),
}

impl Filter {
    /// Checks and compiles a filter.
    ///
    /// # Errors
    /// Every mistake, in the order of the dialects.
    pub fn compile(config: &FilterConfig) -> Result<Filter, Vec<FilterError>> {
        let mut filters = Vec::new();
        let mut errors = Vec::new();
        let mut add = |result: Result<Filter, Vec<FilterError>>| match result {
            Ok(filter) => filters.push(filter),
            Err(mut found) => errors.append(&mut found),
        };
        type Compare = fn(Attribute, String) -> Filter;
        for (dialect, attributes, build) in [
            ("exact", &config.exact, Filter::Exact as Compare),
            ("prefix", &config.prefix, Filter::Prefix as Compare),
            ("suffix", &config.suffix, Filter::Suffix as Compare),
        ] {
            let Some(attributes) = attributes else { continue };
            if attributes.is_empty() {
                add(Err(vec![FilterError::NoAttribute(dialect)]));
            }
            for (name, text) in attributes {
                let attribute = name.clone();
                add(match Attribute::from_name(name) {
                    _ if text.is_empty() => Err(vec![FilterError::NoText { dialect, attribute }]),
                    Some(known) => Ok(build(known, text.clone())),
                    None => {
                        let hint = super::attribute_hint(name);
                        Err(vec![FilterError::UnknownAttribute { dialect, attribute, hint }])
                    }
                });
            }
        }
        type Combine = fn(Vec<Filter>) -> Filter;
        for (dialect, inner, build) in
            [("all", &config.all, Filter::All as Combine), ("any", &config.any, Filter::Any as Combine)]
        {
            let Some(inner) = inner else { continue };
            if inner.is_empty() {
                add(Err(vec![FilterError::NoFilter(dialect)]));
                continue;
            }
            let (good, bad): (Vec<_>, Vec<_>) = inner.iter().map(Filter::compile).partition(Result::is_ok);
            add(if bad.is_empty() {
                Ok(build(good.into_iter().flatten().collect()))
            } else {
                Err(bad.into_iter().filter_map(Result::err).flatten().collect())
            });
        }
        if let Some(inner) = &config.not {
            add(Filter::compile(inner).map(|filter| Filter::Not(Box::new(filter))));
        }
        if filters.is_empty() && errors.is_empty() {
            errors.push(FilterError::Empty);
        }
        match (errors.is_empty(), filters.len()) {
            (false, _) => Err(errors),
            (true, 1) => Ok(filters.remove(0)),
            (true, _) => Ok(Filter::All(filters)),
        }
    }

    /// Checks and compiles filters that must all hold; none if there are none.
    ///
    /// # Errors
    /// Every mistake.
    pub fn compile_all(configs: &[FilterConfig]) -> Result<Option<Filter>, Vec<FilterError>> {
        let mut filters = Vec::new();
        let mut errors = Vec::new();
        for config in configs {
            match Filter::compile(config) {
                Ok(filter) => filters.push(filter),
                Err(mut found) => errors.append(&mut found),
            }
        }
        match (errors.is_empty(), filters.len()) {
            (false, _) => Err(errors),
            (true, 0 | 1) => Ok(filters.pop()),
            (true, _) => Ok(Some(Filter::All(filters))),
        }
    }

    /// Whether the filter holds for the event.
    pub fn holds(&self, event: &Event) -> bool {
        let value = |attribute: &Attribute| event.get(*attribute);
        match self {
            Filter::Exact(attribute, text) => value(attribute).is_some_and(|value| value == text),
            Filter::Prefix(attribute, text) => value(attribute).is_some_and(|value| value.starts_with(text.as_str())),
            Filter::Suffix(attribute, text) => value(attribute).is_some_and(|value| value.ends_with(text.as_str())),
            Filter::All(filters) => filters.iter().all(|filter| filter.holds(event)),
            Filter::Any(filters) => filters.iter().any(|filter| filter.holds(event)),
            Filter::Not(filter) => !filter.holds(event),
        }
    }

    /// Conditions that must hold for the filter to hold and that an index can look up. Each item is a list of
    /// comparisons of one attribute; one of them must hold.
    pub(super) fn required(&self) -> Vec<Vec<&Filter>> {
        match self {
            Filter::All(filters) => filters.iter().flat_map(Filter::required).collect(),
            Filter::Exact(..) | Filter::Prefix(..) | Filter::Suffix(..) => vec![vec![self]],
            Filter::Any(filters) => {
                let attributes: Option<Vec<_>> = filters.iter().map(Filter::compared).collect();
                match attributes.as_deref() {
                    Some([first, rest @ ..]) if rest.iter().all(|other| first == other) => {
                        vec![filters.iter().collect()]
                    }
                    _ => Vec::new(),
                }
            }
            Filter::Not(_) => Vec::new(),
        }
    }

    /// The first condition `any` that must hold for the filter to hold and that looks at several attributes. For each
    /// alternative a list of comparisons of one attribute; one of them must hold for the alternative to hold.
    pub(super) fn alternatives(&self) -> Option<Vec<Vec<&Filter>>> {
        match self {
            Filter::All(filters) => filters.iter().find_map(Filter::alternatives),
            Filter::Any(filters) if self.required().is_empty() => {
                filters.iter().map(|filter| filter.required().into_iter().next()).collect()
            }
            Filter::Any(_) | Filter::Exact(..) | Filter::Prefix(..) | Filter::Suffix(..) | Filter::Not(_) => None,
        }
    }

    /// The attribute that a single comparison looks at.
    pub(super) fn compared(&self) -> Option<Attribute> {
        match self {
            Filter::Exact(attribute, _) | Filter::Prefix(attribute, _) | Filter::Suffix(attribute, _) => {
                Some(*attribute)
            }
            Filter::All(_) | Filter::Any(_) | Filter::Not(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Attribute;

    fn compile(text: &str) -> Result<Filter, Vec<FilterError>> {
        Filter::compile(&toml::from_str(text).expect("a filter"))
    }

    fn holds(text: &str) -> bool {
        let mut event = Event::new("{}");
        event.set(Attribute::Type, "com.aliyun.media.TranscodeComplete");
        event.set(Attribute::Status, "failure");
        compile(text).expect("valid").holds(&event)
    }

    #[test]
    fn dialects_follow_cloudevents_subscriptions() {
        assert!(holds("exact = { status = 'failure', type = 'com.aliyun.media.TranscodeComplete' }"));
        assert!(!holds("exact = { status = 'Failure' }"));
        assert!(holds("prefix = { type = 'com.aliyun.' }"));
        assert!(holds("suffix = { type = 'Complete' }"));
        assert!(holds("all = [{ prefix = { type = 'com.' } }, { not = { exact = { status = 'success' } } }]"));
        assert!(holds("any = [{ exact = { status = 'success' } }, { exact = { status = 'failure' } }]"));
        assert!(!holds("not = { suffix = { type = 'Complete' } }"));
        assert!(!holds("exact = { mediaid = 'x' }"), "an absent attribute compares false");
        assert!(holds("not = { exact = { mediaid = 'x' } }"), "and its negation is true");
        assert!(!holds("exact = { status = 'failure' }\nprefix = { type = 'org.' }"), "all dialects must hold");
    }

    #[test]
    fn a_filter_has_words_for_people() {
        let words = |text: &str| compile(text).expect("valid").to_string();
        assert_eq!(words("exact = { status = 'a\"b' }"), r#"status = "a\"b""#);
        assert_eq!(
            words("any = [{ prefix = { type = 'com.' } }, { not = { suffix = { subject = 'x' } } }]"),
            r#"type starts with "com." or not (subject ends with "x")"#
        );
        assert_eq!(
            words(
                "all = [{ any = [{ exact = { status = 'a' } }, { exact = { status = 'b' } }] }, { exact = { mediaid = 'm' } }]"
            ),
            r#"(status = "a" or status = "b") and mediaid = "m""#
        );
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let errors = |text: &str| -> Vec<String> {
            compile(text).expect_err("must be rejected").iter().map(FilterError::to_string).collect()
        };
        assert_eq!(
            errors("exact = { staus = 'x', type = '' }\nall = []"),
            [
                "`exact.staus`: unknown attribute; did you mean `status`?",
                "`exact.type` is empty; expected a text",
                "`all` is empty; expected a filter",
            ]
        );
        assert_eq!(errors(""), ["the filter is empty; expected exact, prefix, suffix, all, any or not"]);
    }
}
