//! What a reader of the event stream asks for: the `match` and the `filter` of a route, without the route.

use std::collections::BTreeMap;

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{Filter, FilterConfig, Matches, Pattern, parse_match, unknown_values};
use crate::dialect::Catalogue;
use crate::event::{Attribute, Event};

/// Longest query without its percent-encoding, in bytes, and most parameters. A condition is tested on every event, and some patterns take long on long
/// values.
const MAX_QUERY: (usize, usize) = (4096, 16);

/// The name of the parameter that has a filter. No attribute has this name.
const FILTER: &str = "filter";

/// A condition as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditionConfig {
    /// Attributes, each with patterns of which one must fit, as in the `match` of a route.
    pub matches: BTreeMap<String, Vec<String>>,
    /// Filters that must all hold, as in the `filter` of a route.
    pub filters: Vec<FilterConfig>,
}

impl ConditionConfig {
    /// The condition as the query of a URL: a parameter for each pattern, with the name of its attribute, and a parameter
    /// `filter` with JSON for each filter.
    pub fn to_query(&self) -> String {
        let matches = self.matches.iter().flat_map(|(name, patterns)| patterns.iter().map(move |text| (name, text)));
        let matches = matches.map(|(name, text)| (name.as_str(), text.clone()));
        // A filter can always be written.
        let filters = self.filters.iter().filter_map(|filter| Some((FILTER, serde_json::to_string(filter).ok()?)));
        let parameters = matches.chain(filters).map(|(name, value)| {
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            format!("{}={}", encoded(name), encoded(&value))
        });
        parameters.collect::<Vec<_>>().join("&")
    }

    /// Reads a query that [`to_query`](ConditionConfig::to_query), a form or a person wrote.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_query(query: &str) -> Result<ConditionConfig, String> {
        let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
        let bytes = percent_decode_str(query).count();
        if bytes > MAX_QUERY.0 {
            return Err(format!("the condition has {bytes} bytes; expected at most {}", MAX_QUERY.0));
        }
        if parameters.clone().count() > MAX_QUERY.1 {
            return Err(format!("expected at most {} patterns and filters", MAX_QUERY.1));
        }
        let mut config = ConditionConfig::default();
        for parameter in parameters {
            let Some((name, value)) = parameter.split_once('=') else {
                return Err(format!("`{parameter}`: expected attribute=pattern"));
            };
            let decoded = |text: &str| {
                let text = text.replace('+', " ");
                percent_decode_str(&text).decode_utf8().map(|text| text.into_owned())
            };
            let (Ok(name), Ok(value)) = (decoded(name), decoded(value)) else {
                return Err("a parameter is not UTF-8".to_owned());
            };
            if name == FILTER {
                let filter = serde_json::from_str(&value).map_err(|error| format!("`{FILTER}`: {error}"))?;
                config.filters.push(filter);
            } else {
                config.matches.entry(name).or_default().push(value);
            }
        }
        Ok(config)
    }
}

/// A compiled condition.
#[derive(Clone, Debug, Default)]
pub struct Condition {
    matches: Matches,
    filter: Option<Filter>,
}

impl Condition {
    /// Checks and compiles a condition. A pattern of `type` can omit the prefix.
    ///
    /// # Errors
    /// Every mistake, as one text.
    pub fn compile(config: &ConditionConfig, type_prefix: &str) -> Result<Condition, String> {
        let mut errors = Vec::new();
        let matches = parse_match(&config.matches, type_prefix).unwrap_or_else(|wrong| {
            errors.extend(wrong.iter().map(|error| format!("`{}`: {error}", error.attribute)));
            Vec::new()
        });
        let filter = Filter::compile_all(&config.filters).unwrap_or_else(|wrong| {
            errors.extend(wrong.iter().map(|error| format!("filter: {error}")));
            None
        });
        if errors.is_empty() { Ok(Condition { matches, filter }) } else { Err(errors.join("; ")) }
    }

    /// Whether every event meets it.
    pub fn is_empty(&self) -> bool {
        self.matches.is_empty() && self.filter.is_none()
    }

    /// What it compares with and no known event has, each as the end of a sentence.
    pub fn unknown_values(&self, catalogue: &Catalogue, type_prefix: &str) -> Vec<String> {
        unknown_values(&self.matches, self.filter.as_ref(), catalogue, type_prefix)
    }

    /// Whether an event meets it.
    pub fn holds(&self, event: &Event) -> bool {
        let fits = |(attribute, patterns): &(Attribute, Vec<Pattern>)| {
            event.get(*attribute).is_some_and(|value| patterns.iter().any(|pattern| pattern.fits(value)))
        };
        self.matches.iter().all(fits) && self.filter.as_ref().is_none_or(|filter| filter.holds(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DEFAULT_TYPE_PREFIX;

    fn condition(query: &str) -> Result<Condition, String> {
        Condition::compile(&ConditionConfig::from_query(query)?, DEFAULT_TYPE_PREFIX)
    }

    #[test]
    fn a_condition_is_a_match_and_filters() {
        let mut event = Event::new("{}");
        event.set(Attribute::Type, "com.aliyun.media.TranscodeComplete");
        event.set(Attribute::Status, "failure");
        let holds = |query: &str| condition(query).expect("valid").holds(&event);
        assert!(holds("") && condition("").expect("valid").is_empty());
        assert!(holds("status=partial&status=failure&type=Transcode*"));
        assert!(!holds("status=failure&mediaid=*"));
        assert!(holds("filter=%7B%22not%22:%7B%22exact%22:%7B%22status%22:%22success%22%7D%7D%7D"));
        assert!(!holds("status=failure&filter={\"prefix\":{\"type\":\"org.\"}}"));
    }

    #[test]
    fn a_query_keeps_every_character() {
        let mut config = ConditionConfig::default();
        config.matches.insert("subject".to_owned(), vec!["a b+c&d=é%".to_owned(), "[ab]*".to_owned()]);
        config.matches.insert("status".to_owned(), vec!["failure".to_owned()]);
        let exact = [("status".to_owned(), "a&b".to_owned())];
        config.filters.push(FilterConfig { exact: Some(exact.into()), ..FilterConfig::default() });
        assert_eq!(ConditionConfig::from_query(&config.to_query()), Ok(config));
        // Each character has nine bytes when it is encoded.
        let long = [("subject".to_owned(), vec!["转".repeat(1_360)])];
        let config = ConditionConfig { matches: long.into(), filters: Vec::new() };
        assert_eq!(ConditionConfig::from_query(&config.to_query()), Ok(config));
        let form = ConditionConfig::from_query("subject=a+b").expect("valid");
        assert_eq!(form.matches["subject"], ["a b"]);
    }

    #[test]
    fn mistakes_are_explained() {
        let error = |query: &str| condition(query).expect_err("must be refused");
        assert_eq!(
            error("staus=failure&filter={\"exact\":{}}"),
            "`staus`: unknown attribute; did you mean `status`?; filter: `exact` is empty; expected an attribute"
        );
        assert_eq!(error("failure"), "`failure`: expected attribute=pattern");
        assert!(error("filter=x").starts_with("`filter`: expected value"), "{}", error("filter=x"));
        assert_eq!(error("type=%ff"), "a parameter is not UTF-8");
        assert!(error(&"x".repeat(5_000)).contains("expected at most 4096"));
        assert!(error(&"id=x&".repeat(17)).contains("expected at most 16"));
        assert!(condition(&"id=x&".repeat(16)).is_ok());
    }
}
