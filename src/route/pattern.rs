//! The `match` of a route: attributes, each with patterns of which one must fit.

use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobMatcher};
use schemars::{Schema, SchemaGenerator};
use serde_json::json;

use super::attribute_hint;
use super::filter::attributes_schema;
use crate::event::Attribute;

/// Attributes, each with the patterns of which one must fit.
pub type Matches = Vec<(Attribute, Vec<Pattern>)>;

/// A pattern that a value can fit.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// The whole value.
    Exact(String),
    /// A glob: `*` is any text, `?` any character, `[…]` one of several.
    Glob(GlobMatcher),
}

/// A malformed glob.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern `{pattern}`: {reason}")]
pub struct PatternError {
    /// The pattern as it was written.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Pattern {
    /// Reads a pattern of an attribute. A pattern of [`Attribute::Type`] can omit the type prefix.
    ///
    /// # Errors
    /// [`PatternError`] when the glob is malformed.
    pub fn parse(text: &str, attribute: Attribute, type_prefix: &str) -> Result<Pattern, PatternError> {
        let literal = text.find(['*', '?', '[', '{', '\\']).map_or(text, |start| &text[..start]);
        let reaches_into_prefix = !literal.is_empty() && literal != text && type_prefix.starts_with(literal);
        let is_full = text.starts_with(type_prefix) || text.starts_with('*') || reaches_into_prefix;
        let full =
            if attribute == Attribute::Type && !is_full { format!("{type_prefix}{text}") } else { text.to_owned() };
        if literal.len() == text.len() {
            return Ok(Pattern::Exact(full));
        }
        GlobBuilder::new(&full)
            .literal_separator(false)
            .backslash_escape(true)
            .build()
            .map(|glob| Pattern::Glob(glob.compile_matcher()))
            .map_err(|error| PatternError { pattern: text.to_owned(), reason: error.kind().to_string() })
    }

    /// Whether a value fits.
    pub fn fits(&self, value: &str) -> bool {
        match self {
            Pattern::Exact(text) => text == value,
            Pattern::Glob(glob) => glob.is_match(value),
        }
    }

    /// The only value that fits; none if it is a glob.
    pub fn exact(&self) -> Option<&str> {
        match self {
            Pattern::Exact(text) => Some(text),
            Pattern::Glob(_) => None,
        }
    }

    /// The pattern as text, with the prefix of the type.
    pub fn as_str(&self) -> &str {
        match self {
            Pattern::Exact(text) => text,
            Pattern::Glob(glob) => glob.glob().glob(),
        }
    }
}

/// A mistake in the `match` of a route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub struct MatchError {
    /// The attribute as it was written.
    pub attribute: String,
    /// What is wrong with it.
    pub kind: MatchErrorKind,
}

/// What is wrong with one attribute of a `match`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MatchErrorKind {
    /// No event has an attribute of this name.
    #[error("unknown attribute{hint}")]
    UnknownAttribute {
        /// The similar attribute, or the list of all, as the end of the sentence.
        hint: String,
    },
    /// The list of patterns is empty.
    #[error("an empty list matches nothing; expected at least one pattern")]
    NoPattern,
    /// A pattern is malformed.
    #[error(transparent)]
    Pattern(#[from] PatternError),
}

/// The schema of the `match` of a route: attributes, each with one pattern or a list of them.
pub fn match_schema(_: &mut SchemaGenerator) -> Schema {
    let mut schema = attributes_schema(&json!({
        "anyOf": [{ "type": "string" }, { "type": "array", "items": { "type": "string" }, "minItems": 1 }],
    }));
    // Without attributes, a route matches every event.
    schema.remove("minProperties");
    schema
}

/// Reads the `match` of a route: patterns by the name of the attribute.
///
/// # Errors
/// Every unknown attribute, empty list and malformed pattern.
pub fn parse_match(patterns: &BTreeMap<String, Vec<String>>, type_prefix: &str) -> Result<Matches, Vec<MatchError>> {
    let mut matches = Vec::new();
    let mut errors = Vec::new();
    for (name, texts) in patterns {
        let mut wrong = |kind: MatchErrorKind| errors.push(MatchError { attribute: name.clone(), kind });
        let Some(attribute) = Attribute::from_name(name) else {
            wrong(MatchErrorKind::UnknownAttribute { hint: attribute_hint(name) });
            continue;
        };
        if texts.is_empty() {
            wrong(MatchErrorKind::NoPattern);
        }
        let mut parsed = Vec::new();
        for text in texts {
            match Pattern::parse(text, attribute, type_prefix) {
                Ok(pattern) => parsed.push(pattern),
                Err(error) => wrong(error.into()),
            }
        }
        matches.push((attribute, parsed));
    }
    if errors.is_empty() { Ok(matches) } else { Err(errors) }
}
