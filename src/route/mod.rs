//! Which events go where: routes, tried in order, compiled once.
//!
//! A route takes an event when every attribute under `match` fits and its `filter` holds; without both it takes
//! everything. The first one that takes it decides, unless it says `continue`. The same destination is published
//! to once, however many routes name it.
//!
//! Matching doesn't try one route after the other: for each attribute that some route asks for, an index gives the
//! set of routes its value fits, and the sets are intersected. A thousand routes cost little more than ten.

mod filter;
mod index;
mod template;

use std::collections::BTreeMap;

use globset::{GlobBuilder, GlobMatcher};

use crate::common::suggest::nearest;
use crate::common::validation::FieldError;
use crate::dialect::{Catalogue, Dialect, Status};
use crate::event::{ATTRIBUTES, Attribute, DIALECT, Event, ID, Mode, SOURCE, STATUS, TYPE, attribute};
pub use filter::{Filter, FilterConfig};
use index::Index;
pub use template::{ABSENT, MAX_KEY_BYTES, MAX_TOPIC_VALUE_BYTES, Template, TemplateError};

/// Attributes that every event has.
const ALWAYS_THERE: [&Attribute; 5] = [&ID, &SOURCE, &TYPE, &DIALECT, &STATUS];

/// Where a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Name of the output.
    pub output: String,
    /// Topic of Kafka, subject of NATS.
    pub topic: Template,
    /// Key of the Kafka record.
    pub key: Template,
    /// Layout, where it is not the output's own.
    pub mode: Option<Mode>,
}

/// What a route does with an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Publish it to each destination.
    To(Vec<Destination>),
    /// Acknowledge it and forget it.
    Drop,
    /// Make it a dead letter.
    DeadLetter,
}

/// One of the patterns an attribute may fit.
#[derive(Clone, Debug)]
pub enum Pattern {
    /// The whole value.
    Exact(String),
    /// A glob: `*` is any text, `?` any character, `[…]` one of several.
    Glob(GlobMatcher),
}

impl Pattern {
    /// Reads a pattern; for `type` the prefix may be left out.
    ///
    /// # Errors
    /// A sentence when the glob is malformed.
    pub fn parse(text: &str, attribute: &'static Attribute, type_prefix: &str) -> Result<Pattern, String> {
        let literal = text.find(['*', '?', '[', '{', '\\']).map_or(text, |start| &text[..start]);
        let reaches_into_prefix = !literal.is_empty() && literal != text && type_prefix.starts_with(literal);
        let is_full = text.starts_with(type_prefix) || text.starts_with('*') || reaches_into_prefix;
        let full =
            if std::ptr::eq(attribute, &TYPE) && !is_full { format!("{type_prefix}{text}") } else { text.to_owned() };
        if literal.len() == text.len() {
            return Ok(Pattern::Exact(full));
        }
        GlobBuilder::new(&full)
            .literal_separator(false)
            .backslash_escape(true)
            .build()
            .map(|glob| Pattern::Glob(glob.compile_matcher()))
            .map_err(|error| format!("`{text}` is no pattern: {}", error.kind()))
    }

    /// Whether a value fits.
    pub fn fits(&self, value: &str) -> bool {
        match self {
            Pattern::Exact(text) => text == value,
            Pattern::Glob(glob) => glob.is_match(value),
        }
    }

    /// The pattern as text, with the prefix of the type.
    pub fn as_str(&self) -> &str {
        match self {
            Pattern::Exact(text) => text,
            Pattern::Glob(glob) => glob.glob().glob(),
        }
    }

    /// Whether every value that fits the other fits this one, as far as can be told by looking.
    fn covers(&self, other: &Pattern) -> bool {
        match (self, other) {
            (pattern, Pattern::Exact(text)) => pattern.fits(text),
            (Pattern::Glob(_), _) if self.as_str() == "*" => true,
            (pattern, other) => pattern.as_str() == other.as_str(),
        }
    }
}

/// Attributes, and the patterns of which each must fit one.
pub type Matches = Vec<(&'static Attribute, Vec<Pattern>)>;

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name: unique, and a label of metrics.
    pub name: String,
    /// What attributes must fit: one of the patterns each.
    pub matches: Matches,
    /// What must hold beside.
    pub filter: Option<Filter>,
    /// What is done.
    pub action: Action,
    /// Whether later routes are tried too.
    pub goes_on: bool,
}

impl Route {
    /// Whether the route takes the event, by trying its conditions one by one.
    ///
    /// # Errors
    /// The first condition that doesn't hold, as a phrase.
    pub fn try_take(&self, event: &Event) -> Result<(), String> {
        for (attribute, patterns) in &self.matches {
            let wanted = || patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" or ");
            match event.get(attribute) {
                None => return Err(format!("the event has no {}; wanted {}", attribute.name, wanted())),
                Some(value) if !patterns.iter().any(|pattern| pattern.fits(value)) => {
                    return Err(format!("{} is {value}, not {}", attribute.name, wanted()));
                }
                Some(_) => {}
            }
        }
        match &self.filter {
            Some(filter) if !filter.holds(event) => Err("its filter doesn't hold".to_owned()),
            _ => Ok(()),
        }
    }

    /// Whether this route, standing earlier, leaves nothing for the other.
    fn shadows(&self, later: &Route) -> bool {
        !self.goes_on
            && self.filter.is_none()
            && self.matches.iter().all(|(attribute, patterns)| {
                let is_always_there = ALWAYS_THERE.iter().any(|there| std::ptr::eq(*there, *attribute));
                is_always_there && patterns.iter().any(|pattern| pattern.as_str() == "*")
                    || later.matches.iter().any(|(other, narrower)| {
                        std::ptr::eq(*attribute, *other)
                            && narrower.iter().all(|pattern| patterns.iter().any(|wide| wide.covers(pattern)))
                    })
            })
    }
}

/// What the routes decide of an event.
#[derive(Debug, Default)]
pub struct Decision<'r> {
    /// Destinations with the route that named each first.
    pub destinations: Vec<(&'r Route, &'r Destination)>,
    /// A route that drops the event.
    pub dropped_by: Option<&'r Route>,
    /// A route that makes a dead letter of it.
    pub dead_letter_by: Option<&'r Route>,
    /// Indices of all routes that took it.
    pub taken_by: Vec<usize>,
}

impl Decision<'_> {
    /// Whether no route took the event.
    pub fn is_unrouted(&self) -> bool {
        self.taken_by.is_empty()
    }
}

/// The compiled routes.
#[derive(Debug)]
pub struct Router {
    routes: Vec<Route>,
    index: Index,
}

impl Router {
    /// Compiles routes.
    ///
    /// # Errors
    /// A sentence when the patterns of all routes together are too large to be matched at once.
    pub fn new(routes: Vec<Route>) -> Result<Router, String> {
        let index = Index::new(&routes)
            .map_err(|error| format!("the patterns of all routes together are too large: {error}"))?;
        Ok(Router { routes, index })
    }

    /// The routes in order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// Decides where an event goes.
    pub fn decide(&self, event: &Event) -> Decision<'_> {
        let mut decision = Decision::default();
        self.index.visit(event, |index| {
            let route = &self.routes[index];
            if !route.filter.as_ref().is_none_or(|filter| filter.holds(event)) {
                return true;
            }
            decision.taken_by.push(index);
            match &route.action {
                Action::To(destinations) => {
                    for destination in destinations {
                        if !decision.destinations.iter().any(|(_, known)| *known == destination) {
                            decision.destinations.push((route, destination));
                        }
                    }
                }
                Action::Drop => decision.dropped_by = decision.dropped_by.or(Some(route)),
                Action::DeadLetter => decision.dead_letter_by = decision.dead_letter_by.or(Some(route)),
            }
            route.goes_on
        });
        decision
    }

    /// What looks like a mistake though it is valid: routes that can never take an event.
    pub fn warnings(&self, catalogue: &Catalogue, type_prefix: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        for (position, route) in self.routes.iter().enumerate() {
            if let Some(earlier) = self.routes[..position].iter().find(|earlier| earlier.shadows(route)) {
                warnings.push(format!(
                    "route `{}` can never match: `{}` before it takes all of its events and doesn't continue",
                    route.name, earlier.name
                ));
            }
            for (attribute, patterns) in &route.matches {
                for pattern in patterns {
                    let known: Option<Vec<String>> = if std::ptr::eq(*attribute, &STATUS) {
                        Some(Status::ALL.map(|status| status.as_str().to_owned()).to_vec())
                    } else if std::ptr::eq(*attribute, &DIALECT) {
                        Some(Dialect::ALL.map(|dialect| dialect.as_str().to_owned()).to_vec())
                    } else if std::ptr::eq(*attribute, &TYPE) {
                        Some(catalogue.events().iter().map(|event| format!("{type_prefix}{}", event.name)).collect())
                    } else {
                        None
                    };
                    let Some(known) = known else { continue };
                    if !known.iter().any(|value| pattern.fits(value)) {
                        let nearest = nearest(pattern.as_str(), known.iter().map(String::as_str))
                            .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
                        warnings.push(format!(
                            "route `{}` matches {} = `{}`, which no known event has{nearest}",
                            route.name,
                            attribute.name,
                            pattern.as_str()
                        ));
                    }
                }
            }
        }
        warnings
    }
}

/// Reads the `match` of a route: attribute to patterns.
///
/// # Errors
/// A sentence for each name that is no attribute and each pattern that is malformed.
pub fn parse_match(patterns: &BTreeMap<String, Vec<String>>, type_prefix: &str) -> Result<Matches, Vec<FieldError>> {
    let mut matches = Vec::new();
    let mut errors = Vec::new();
    for (name, texts) in patterns {
        let Some(known) = attribute(name) else {
            errors.push(FieldError { key: name.clone(), message: format!("no attribute{}", attribute_hint(name)) });
            continue;
        };
        if texts.is_empty() {
            let message = "an empty list matches nothing; expected at least one pattern".to_owned();
            errors.push(FieldError { key: name.clone(), message });
        }
        let mut parsed = Vec::new();
        for text in texts {
            match Pattern::parse(text, known, type_prefix) {
                Ok(pattern) => parsed.push(pattern),
                Err(error) => errors.push(FieldError { key: name.clone(), message: error }),
            }
        }
        matches.push((known, parsed));
    }
    if errors.is_empty() { Ok(matches) } else { Err(errors) }
}

/// `; did you mean …?` for a name that is no attribute, where one is near.
fn attribute_hint(name: &str) -> String {
    match nearest(name, ATTRIBUTES.iter().map(|attribute| attribute.name)) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => {
            let names: Vec<&str> = ATTRIBUTES.iter().map(|attribute| attribute.name).collect();
            format!("; known are {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests;
