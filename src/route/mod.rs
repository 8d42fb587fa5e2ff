//! Which events go where: routes, tried in order, compiled once.
//!
//! * A route matches an event when every attribute under `match` fits and the `filter` holds. A route without both
//!   matches every event.
//! * The first route that matches decides, unless it says `continue`. The same destination is published to once, however
//!   many routes name it.
//! * [`Router::decide`] does not try one route after the other. For each attribute that routes ask for, an index gives the
//!   set of routes that a value fits, and the sets are intersected. A thousand routes cost little more than ten.

mod condition;
mod filter;
mod index;
mod pattern;
mod possible;
mod template;
mod values;

use crate::common::suggest::nearest;
use crate::event::{Attribute, Event, Mode};
pub use condition::{Condition, ConditionConfig};
pub use filter::{Filter, FilterConfig, FilterError, attributes_schema};
use index::Index;
pub use pattern::{MatchError, MatchErrorKind, Matches, Pattern, PatternError, match_schema, parse_match};
pub use possible::{Fact, Possibilities};
pub use template::{ABSENT, MAX_KEY_BYTES, MAX_TOPIC_VALUE_BYTES, Template, TemplateError, inserted};
pub use values::{Values, unknown_values};

/// Where a record goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Name of the output.
    pub output: String,
    /// Topic of Kafka, subject of NATS.
    pub topic: Template,
    /// Key of the Kafka record.
    pub key: Template,
    /// Layout; none means the output's own.
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

/// A route.
#[derive(Clone, Debug)]
pub struct Route {
    /// Its name: unique, and a label of metrics.
    pub name: String,
    /// Attributes and their patterns. Each attribute must fit one of its patterns.
    pub matches: Matches,
    /// A further condition.
    pub filter: Option<Filter>,
    /// What is done with events that match.
    pub action: Action,
    /// Whether later routes are tried after this one has matched.
    pub continue_matching: bool,
}

impl Route {
    /// The destinations that it publishes to.
    pub fn destinations(&self) -> &[Destination] {
        match &self.action {
            Action::To(destinations) => destinations,
            Action::Drop | Action::DeadLetter => &[],
        }
    }

    /// Whether the route matches the event. Tries its conditions one by one; [`Router::decide`] is faster.
    ///
    /// # Errors
    /// The first condition that does not hold.
    pub fn try_match(&self, event: &Event) -> Result<(), Mismatch> {
        for (attribute, patterns) in &self.matches {
            let wanted = || patterns.iter().map(Pattern::as_str).collect::<Vec<_>>().join(" or ");
            match event.get(*attribute) {
                None => return Err(Mismatch::Absent { attribute: *attribute, wanted: wanted() }),
                Some(value) if !patterns.iter().any(|pattern| pattern.fits(value)) => {
                    let value = value.to_owned();
                    return Err(Mismatch::Value { attribute: *attribute, value, wanted: wanted() });
                }
                Some(_) => {}
            }
        }
        match &self.filter {
            Some(filter) if !filter.holds(event) => Err(Mismatch::Filter),
            _ => Ok(()),
        }
    }
}

/// Why a route does not match an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// The event does not have an attribute.
    #[error("the event has no {attribute}; the route matches {wanted}")]
    Absent {
        /// The attribute.
        attribute: Attribute,
        /// The patterns of the route.
        wanted: String,
    },
    /// An attribute fits none of the patterns.
    #[error("{attribute} is {value}, not {wanted}")]
    Value {
        /// The attribute.
        attribute: Attribute,
        /// Its value.
        value: String,
        /// The patterns of the route.
        wanted: String,
    },
    /// The filter does not hold.
    #[error("its filter does not hold")]
    Filter,
}

/// What the routes decide about an event.
#[derive(Debug, Default)]
pub struct Decision<'r> {
    /// Destinations, each once, with the first route that names it.
    pub destinations: Vec<(&'r Route, &'r Destination)>,
    /// The first route that drops the event.
    pub dropped_by: Option<&'r Route>,
    /// The first route that makes the event a dead letter.
    pub dead_letter_by: Option<&'r Route>,
    /// Positions of all routes that matched, in order.
    pub matched: Vec<usize>,
}

/// What happens to an event.
#[derive(Clone, Copy, Debug)]
pub enum Fate<'r> {
    /// No route matched it, so it becomes a dead letter.
    Unrouted,
    /// The route makes it a dead letter. Earlier routes can have destinations for it all the same.
    DeadLetter(&'r Route),
    /// The route drops it, and no other route has a destination for it.
    Dropped(&'r Route),
    /// It is published to each destination.
    Published,
}

impl<'r> Decision<'r> {
    /// Whether no route matched the event.
    pub fn is_unrouted(&self) -> bool {
        self.matched.is_empty()
    }

    /// What happens to the event.
    pub fn fate(&self) -> Fate<'r> {
        match (self.dead_letter_by, self.dropped_by) {
            _ if self.is_unrouted() => Fate::Unrouted,
            (Some(route), _) => Fate::DeadLetter(route),
            (None, Some(route)) if self.destinations.is_empty() => Fate::Dropped(route),
            _ => Fate::Published,
        }
    }
}

/// The compiled routes.
#[derive(Debug)]
pub struct Router {
    routes: Vec<Route>,
    index: Index,
}

/// The patterns of all routes together are too large to be matched at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the patterns of all routes together are too large: {0}")]
pub struct PatternsTooLarge(#[from] globset::Error);

impl Router {
    /// Compiles routes.
    ///
    /// # Errors
    /// [`PatternsTooLarge`].
    pub fn new(routes: Vec<Route>) -> Result<Router, PatternsTooLarge> {
        let index = Index::new(&routes)?;
        Ok(Router { routes, index })
    }

    /// The routes in order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The routes that are tried for an event, in order, each with why it does not match. The last one is the route that
    /// decides, if there is one. Tries them one by one; [`Router::decide`] is faster.
    pub fn tried<'r>(&'r self, event: &'r Event) -> impl Iterator<Item = (&'r Route, Result<(), Mismatch>)> {
        let mut is_decided = false;
        self.routes.iter().map_while(move |route| {
            let result = if is_decided { return None } else { route.try_match(event) };
            is_decided = result.is_ok() && !route.continue_matching;
            Some((route, result))
        })
    }

    /// Decides where an event goes.
    pub fn decide(&self, event: &Event) -> Decision<'_> {
        let mut decision = Decision::default();
        self.index.visit(event, |index| {
            let route = &self.routes[index];
            if !route.filter.as_ref().is_none_or(|filter| filter.holds(event)) {
                return true;
            }
            decision.matched.push(index);
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
            route.continue_matching
        });
        decision
    }
}

/// The end of an error about an unknown attribute: the similar one, or the list of all.
pub fn attribute_hint(name: &str) -> String {
    let names = || Attribute::ALL.iter().map(|attribute| attribute.name());
    match nearest(name, names()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None => format!("; expected one of {}", names().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests;
