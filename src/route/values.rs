//! Which values an attribute can have: one table for warnings, schemas and the AsyncAPI document.

use super::{Filter, Matches};
use crate::common::suggest::did_you_mean;
use crate::dialect::{Catalogue, Dialect, Status, Verdict};
use crate::event::Attribute;

/// The values that an attribute can have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Values {
    /// These and no others.
    Closed(Vec<&'static str>),
    /// The program and its configuration fix them. No sender can add one.
    Fixed,
    /// These are known. Senders can add others.
    Known(Vec<String>),
    /// Senders choose them.
    Open,
}

impl Values {
    /// The values of an attribute.
    pub fn of(attribute: Attribute, catalogue: &Catalogue, type_prefix: &str) -> Values {
        match attribute {
            Attribute::SpecVersion => Values::Closed(vec!["1.0"]),
            Attribute::DataContentType => Values::Closed(vec!["application/json"]),
            Attribute::Dialect => Values::Closed(Dialect::ALL.map(Dialect::as_str).to_vec()),
            Attribute::Status => Values::Closed(Status::ALL.map(Status::as_str).to_vec()),
            Attribute::Verdict => Values::Closed(Verdict::ALL.map(Verdict::as_str).to_vec()),
            // The reasons are a list of `bridge`. The destinations are the topics of routes, which have their own warnings.
            Attribute::DlqReason | Attribute::DlqDestination => Values::Fixed,
            // An EventType that the catalogue does not know becomes a type all the same.
            Attribute::Type => {
                Values::Known(catalogue.events().iter().map(|event| format!("{type_prefix}{}", event.name)).collect())
            }
            // An IMS callback names its account.
            Attribute::Source
            | Attribute::AccountId
            | Attribute::AppId
            | Attribute::DataSchema
            | Attribute::Id
            | Attribute::Subject
            | Attribute::MediaId
            | Attribute::JobId
            | Attribute::PartitionKey
            | Attribute::Time
            | Attribute::RecordedTime
            | Attribute::Traceparent
            | Attribute::DlqCode
            | Attribute::DlqAttempts => Values::Open,
        }
    }

    /// Whether no sender can add a value.
    pub fn is_closed(&self) -> bool {
        matches!(self, Values::Closed(_) | Values::Fixed)
    }

    /// The values that are known; none if nothing is known about them.
    pub fn known(&self) -> Option<Vec<&str>> {
        match self {
            Values::Closed(values) => Some(values.clone()),
            Values::Known(values) => Some(values.iter().map(String::as_str).collect()),
            Values::Fixed | Values::Open => None,
        }
    }
}

/// What a `match` and a `filter` compare with and no known event has, each as the end of a sentence about who compares.
/// Also what is compared under `not`, because it is a mistake there too.
pub fn unknown_values(
    matches: &Matches,
    filter: Option<&Filter>,
    catalogue: &Catalogue,
    type_prefix: &str,
) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |attribute: Attribute, how: &str, text: &str, fits: &dyn Fn(&str) -> bool| {
        let values = Values::of(attribute, catalogue, type_prefix);
        let known = values.known();
        // An attribute that an event has is not empty.
        let is_possible = known.as_ref().map_or(!text.is_empty(), |known| known.iter().any(|value| fits(value)));
        if !is_possible {
            let full = format!("{type_prefix}{text}");
            let lacks_prefix = attribute == Attribute::Type && matches!(how, "exact" | "prefix");
            let hint = match known.unwrap_or_default() {
                known
                    if lacks_prefix
                        && known.iter().any(|value| *value == full || how == "prefix" && value.starts_with(&full)) =>
                {
                    format!("; did you mean `{full}`?")
                }
                known => did_you_mean(text, known.into_iter()),
            };
            let how = if how.is_empty() { "matches".to_owned() } else { format!("filters by {how}") };
            found.push(format!("{how} {attribute} = `{text}`, but no known event has it{hint}"));
        }
    };
    for (attribute, patterns) in matches {
        for pattern in patterns {
            look(*attribute, "", pattern.as_str(), &|value| pattern.fits(value));
        }
    }
    let mut filters: Vec<&Filter> = filter.into_iter().collect();
    while let Some(filter) = filters.pop() {
        match filter {
            Filter::Exact(attribute, text) => look(*attribute, "exact", text, &|value| value == text),
            Filter::Prefix(attribute, text) => {
                look(*attribute, "prefix", text, &|value| value.starts_with(text.as_str()));
            }
            Filter::Suffix(attribute, text) => {
                look(*attribute, "suffix", text, &|value| value.ends_with(text.as_str()));
            }
            Filter::All(inner) | Filter::Any(inner) => filters.extend(inner.iter().rev()),
            Filter::Not(inner) => filters.push(inner),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DEFAULT_TYPE_PREFIX;
    use crate::route::{FilterConfig, parse_match};

    #[test]
    fn what_no_known_event_has_is_found_in_patterns_and_filters() {
        let catalogue = Catalogue::built_in().expect("valid");
        let matched = |name: &str, pattern: &str| {
            let patterns = [(name.to_owned(), vec![pattern.to_owned()])].into();
            let matches = parse_match(&patterns, DEFAULT_TYPE_PREFIX).expect("valid");
            unknown_values(&matches, None, &catalogue, DEFAULT_TYPE_PREFIX)
        };
        let filtered = |text: &str| {
            let config: FilterConfig = toml::from_str(text).expect("TOML");
            let filter = Filter::compile(&config).expect("valid");
            unknown_values(&Vec::new(), Some(&filter), &catalogue, DEFAULT_TYPE_PREFIX)
        };
        for (name, pattern) in [("status", "failure"), ("type", "Transcode*"), ("subject", "any"), ("status", "[fp]*")]
        {
            assert_eq!(matched(name, pattern), [""; 0], "{name} {pattern}");
        }
        assert_eq!(
            matched("status", "Failure"),
            ["matches status = `Failure`, but no known event has it; did you mean `failure`?"]
        );
        for (name, pattern) in [("status", "fail"), ("status", ""), ("subject", "")] {
            assert_eq!(matched(name, pattern), [format!("matches {name} = `{pattern}`, but no known event has it")]);
        }
        for known in [
            "prefix = { type = 'com.aliyun.media.Transcode' }",
            "suffix = { type = 'Complete' }",
            "not = { exact = { status = 'success' } }",
            "exact = { mediaid = 'any' }",
        ] {
            assert_eq!(filtered(known), [""; 0], "{known}");
        }
        assert_eq!(
            filtered("prefix = { type = 'Transcode' }"),
            [
                "filters by prefix type = `Transcode`, but no known event has it; did you mean `com.aliyun.media.Transcode`?"
            ]
        );
        assert_eq!(
            filtered("any = [{ not = { exact = { status = 'succes' } } }, { suffix = { type = 'complete' } }]"),
            [
                "filters by exact status = `succes`, but no known event has it; did you mean `success`?",
                "filters by suffix type = `complete`, but no known event has it",
            ]
        );
    }
}
