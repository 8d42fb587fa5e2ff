//! What the routes can decide about an event of which only a part is known.
//!
//! The answer errs to one side only: a route that matches some event of this kind is among the possible ones.

use std::collections::BTreeSet;

use super::{Filter, Pattern, Route, Router};
use crate::event::Attribute;

/// What is known about an attribute of an event.
#[derive(Clone, Copy, Debug)]
pub enum Fact<'a> {
    /// The event does not have it.
    Absent,
    /// It has this value.
    Is(&'a str),
    /// Its value begins with a text, and is none of a set.
    StartsWith(&'a str, &'a BTreeSet<String>),
    /// The event has it, with any value.
    Present,
    /// Nothing.
    Unknown,
}

/// Whether something holds. Ordered, so that "all" is the minimum and "any" the maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Certainty {
    No,
    Maybe,
    Yes,
}

use Certainty::{Maybe, No, Yes};

impl Certainty {
    fn of(holds: bool) -> Certainty {
        if holds { Yes } else { No }
    }

    fn negated(self) -> Certainty {
        match self {
            No => Yes,
            Maybe => Maybe,
            Yes => No,
        }
    }

    fn all(items: impl Iterator<Item = Certainty>) -> Certainty {
        items.min().unwrap_or(Yes)
    }

    fn any(items: impl Iterator<Item = Certainty>) -> Certainty {
        items.max().unwrap_or(No)
    }
}

/// What can happen to an event.
#[derive(Debug)]
pub struct Possibilities<'r> {
    /// The routes that can match it, in order.
    pub routes: Vec<&'r Route>,
    /// Whether it can be that no route matches it.
    pub can_be_unrouted: bool,
}

impl Route {
    /// The values that an attribute can have in events that match, if the route lists them; otherwise nothing.
    pub fn listed_values(&self, attribute: Attribute) -> Option<BTreeSet<&str>> {
        let of_matches = self.matches.iter().filter(|(named, _)| *named == attribute).filter_map(|(_, patterns)| {
            patterns.iter().map(|pattern| pattern.exact()).collect::<Option<BTreeSet<&str>>>()
        });
        let of_filter = self.filter.as_ref().and_then(|filter| filter.listed_values(attribute));
        of_matches.chain(of_filter).reduce(|one, other| &one & &other)
    }
}

impl Fact<'_> {
    /// Whether the attribute can have this value.
    pub fn can_be(self, value: &str) -> bool {
        equals(value, self) != No
    }
}

impl Router {
    /// What can happen to an event about which only some facts are known.
    pub fn possibilities<'f>(&self, facts: impl Fn(Attribute) -> Fact<'f>) -> Possibilities<'_> {
        let mut possible = Possibilities { routes: Vec::new(), can_be_unrouted: true };
        for route in self.routes() {
            let matches = route.matches.iter().map(|(attribute, patterns)| {
                let fact = facts(*attribute);
                Certainty::any(patterns.iter().map(|pattern| fits(pattern, fact)))
            });
            let filter = route.filter.iter().map(|filter| holds(filter, &facts));
            let certainty = Certainty::all(matches.chain(filter));
            if certainty == No {
                continue;
            }
            possible.routes.push(route);
            if certainty == Yes {
                possible.can_be_unrouted = false;
                if !route.continue_matching {
                    break;
                }
            }
        }
        possible
    }
}

fn fits(pattern: &Pattern, fact: Fact<'_>) -> Certainty {
    match (pattern, fact) {
        (_, Fact::Absent) => No,
        (_, Fact::Is(value)) => Certainty::of(pattern.fits(value)),
        (Pattern::Exact(text), fact) => equals(text, fact),
        (Pattern::Glob(_), Fact::StartsWith(start, _)) => {
            let glob = pattern.as_str();
            let literal = glob.find(['*', '?', '[', '{', '\\']).map_or(glob, |end| &glob[..end]);
            if &glob[literal.len()..] == "*" && start.starts_with(literal) {
                Yes
            } else if start.starts_with(literal) || literal.starts_with(start) {
                Maybe
            } else {
                No
            }
        }
        (Pattern::Glob(_), Fact::Present) if pattern.as_str() == "*" => Yes,
        (Pattern::Glob(_), Fact::Present | Fact::Unknown) => Maybe,
    }
}

fn equals(text: &str, fact: Fact<'_>) -> Certainty {
    match fact {
        Fact::Absent => No,
        Fact::Is(value) => Certainty::of(value == text),
        Fact::StartsWith(start, others) if !text.starts_with(start) || others.contains(text) => No,
        Fact::StartsWith(..) | Fact::Present | Fact::Unknown => Maybe,
    }
}

fn holds<'f>(filter: &Filter, facts: &impl Fn(Attribute) -> Fact<'f>) -> Certainty {
    match filter {
        Filter::Exact(attribute, text) => equals(text, facts(*attribute)),
        Filter::Prefix(attribute, text) => match facts(*attribute) {
            Fact::Absent => No,
            Fact::Is(value) => Certainty::of(value.starts_with(text.as_str())),
            Fact::StartsWith(start, _) if start.starts_with(text.as_str()) => Yes,
            Fact::StartsWith(start, _) if !text.starts_with(start) => No,
            Fact::StartsWith(..) | Fact::Present | Fact::Unknown => Maybe,
        },
        Filter::Suffix(attribute, text) => match facts(*attribute) {
            Fact::Absent => No,
            Fact::Is(value) => Certainty::of(value.ends_with(text.as_str())),
            Fact::StartsWith(..) | Fact::Present | Fact::Unknown => Maybe,
        },
        Filter::All(filters) => Certainty::all(filters.iter().map(|filter| holds(filter, facts))),
        Filter::Any(filters) => Certainty::any(filters.iter().map(|filter| holds(filter, facts))),
        Filter::Not(filter) => holds(filter, facts).negated(),
    }
}
