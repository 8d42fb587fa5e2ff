//! The filter dialects of CloudEvents Subscriptions 0.1: exact, prefix, suffix, all, any, not.
//!
//! As that text demands: comparisons are case-sensitive, several attributes under one dialect must all hold, and an
//! attribute that an event doesn't have makes the comparison false, so that its `not` is true.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::event::{Attribute, Event};

/// A filter as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct FilterConfig {
    /// Attributes that equal a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exact: Option<BTreeMap<String, String>>,
    /// Attributes that start with a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<BTreeMap<String, String>>,
    /// Attributes that end with a text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suffix: Option<BTreeMap<String, String>>,
    /// Filters that must all hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub all: Option<Vec<FilterConfig>>,
    /// Filters of which one must hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any: Option<Vec<FilterConfig>>,
    /// A filter that must not hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<FilterConfig>>,
}

/// A filter ready to be tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The attribute equals the text.
    Exact(Attribute, String),
    /// The attribute starts with the text.
    Prefix(Attribute, String),
    /// The attribute ends with the text.
    Suffix(Attribute, String),
    /// All hold.
    All(Vec<Filter>),
    /// One holds.
    Any(Vec<Filter>),
    /// It doesn't hold.
    Not(Box<Filter>),
}

impl Filter {
    /// Checks and compiles a filter; several dialects side by side must all hold.
    ///
    /// # Errors
    /// A sentence for each mistake: an empty filter, name or text, or a name that is no attribute.
    pub fn compile(config: &FilterConfig) -> Result<Filter, Vec<String>> {
        let mut filters = Vec::new();
        let mut errors = Vec::new();
        let mut take = |result: Result<Filter, Vec<String>>| match result {
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
                take(Err(vec![format!("`{dialect}` names no attribute")]));
            }
            for (name, text) in attributes {
                take(match Attribute::from_name(name) {
                    _ if text.is_empty() => Err(vec![format!("`{dialect}.{name}` is empty; a text was expected")]),
                    Some(known) => Ok(build(known, text.clone())),
                    None => Err(vec![format!("`{dialect}.{name}` is no attribute{}", super::attribute_hint(name))]),
                });
            }
        }
        type Combine = fn(Vec<Filter>) -> Filter;
        for (dialect, inner, build) in
            [("all", &config.all, Filter::All as Combine), ("any", &config.any, Filter::Any as Combine)]
        {
            let Some(inner) = inner else { continue };
            if inner.is_empty() {
                take(Err(vec![format!("`{dialect}` holds no filter")]));
                continue;
            }
            let (good, bad): (Vec<_>, Vec<_>) = inner.iter().map(Filter::compile).partition(Result::is_ok);
            take(if bad.is_empty() {
                Ok(build(good.into_iter().flatten().collect()))
            } else {
                Err(bad.into_iter().filter_map(Result::err).flatten().collect())
            });
        }
        if let Some(inner) = &config.not {
            take(Filter::compile(inner).map(|filter| Filter::Not(Box::new(filter))));
        }
        if filters.is_empty() && errors.is_empty() {
            errors.push("the filter is empty; expected exact, prefix, suffix, all, any or not".to_owned());
        }
        match (errors.is_empty(), filters.len()) {
            (false, _) => Err(errors),
            (true, 1) => Ok(filters.remove(0)),
            (true, _) => Ok(Filter::All(filters)),
        }
    }

    /// Whether the event passes.
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

    /// What must hold for the filter to hold, as far as an index can look it up: each item is a list of comparisons
    /// of one attribute of which one must hold.
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

    fn compile(text: &str) -> Result<Filter, Vec<String>> {
        Filter::compile(&toml::from_str(text).expect("the form is right"))
    }

    fn holds(text: &str) -> bool {
        let mut event = Event::new("{}");
        event.set(Attribute::Type, "com.aliyun.media.TranscodeComplete");
        event.set(Attribute::Status, "failure");
        compile(text).expect("valid").holds(&event)
    }

    #[test]
    fn dialects_behave_as_cloudevents_subscriptions_say() {
        assert!(holds("exact = { status = 'failure', type = 'com.aliyun.media.TranscodeComplete' }"));
        assert!(!holds("exact = { status = 'Failure' }"));
        assert!(holds("prefix = { type = 'com.aliyun.' }"));
        assert!(holds("suffix = { type = 'Complete' }"));
        assert!(holds("all = [{ prefix = { type = 'com.' } }, { not = { exact = { status = 'success' } } }]"));
        assert!(holds("any = [{ exact = { status = 'success' } }, { exact = { status = 'failure' } }]"));
        assert!(!holds("not = { suffix = { type = 'Complete' } }"));
        assert!(!holds("exact = { mediaid = 'x' }"), "an absent attribute compares false");
        assert!(holds("not = { exact = { mediaid = 'x' } }"), "and its negation true");
        assert!(!holds("exact = { status = 'failure' }\nprefix = { type = 'org.' }"), "side by side all must hold");
    }

    #[test]
    fn mistakes_are_told_all_at_once() {
        assert_eq!(
            compile("exact = { staus = 'x', type = '' }\nall = []").expect_err("must be refused"),
            [
                "`exact.staus` is no attribute; did you mean `status`?",
                "`exact.type` is empty; a text was expected",
                "`all` holds no filter",
            ]
        );
        assert_eq!(
            compile("").expect_err("must be refused"),
            ["the filter is empty; expected exact, prefix, suffix, all, any or not"]
        );
    }
}
