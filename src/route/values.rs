//! Which values an attribute can have: one table for warnings, schemas and the AsyncAPI document.

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
