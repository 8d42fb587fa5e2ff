//! The index of [`super::Router::decide`]: for each attribute, the set of routes that a value fits.
//!
//! * A route that does not ask for an attribute is in the set of every value.
//! * The sets of all attributes are intersected. Their summaries, one bit for 64 routes, are intersected first, so that
//!   words without a common route are skipped.
//! * Conditions at the top of a filter are indexed like `match`. The rest of a filter is tried on the routes that remain.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};

use globset::{Glob, GlobSet, GlobSetBuilder};
use rustc_hash::FxHashMap;

use crate::event::{Attribute, Event};

use super::{Filter, Pattern, Route};

/// A set of positions of routes, with a summary of its non-empty words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Routes {
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Routes {
    fn with_room_for(count: usize) -> Routes {
        let words = count.div_ceil(64);
        Routes { words: vec![0; words], summary: vec![0; words.div_ceil(64)] }
    }

    fn insert(&mut self, index: usize) {
        self.words[index / 64] |= 1 << (index % 64);
        self.summary[index / 4096] |= 1 << (index / 64 % 64);
    }

    fn add(&mut self, other: &Routes) {
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
        for (mine, theirs) in self.summary.iter_mut().zip(&other.summary) {
            *mine |= theirs;
        }
    }
}

/// One attribute that routes ask for.
#[derive(Debug)]
struct Column {
    attribute: Attribute,
    /// Routes that do not ask for it. An event without the attribute fits these alone.
    indifferent: Routes,
    /// Routes by the whole value, with the indifferent ones.
    exact: HashMap<String, Routes>,
    globs: GlobSet,
    /// Routes of each glob.
    by_glob: Vec<Routes>,
    /// Results of the first values. Attributes such as type and status have few values, which repeat.
    cached: RwLock<FxHashMap<String, Routes>>,
}

/// Most values that a column caches. An attribute with more values, such as an id, fills the cache once; later values
/// are matched each time.
const MAX_CACHED: usize = 512;

impl Column {
    fn new(attribute: Attribute, demands: &[Vec<Demand<'_>>]) -> Result<Column, globset::Error> {
        let count = demands.len();
        let mut column = Column {
            attribute,
            indifferent: Routes::with_room_for(count),
            exact: HashMap::new(),
            globs: GlobSet::empty(),
            by_glob: Vec::new(),
            cached: RwLock::default(),
        };
        let mut globs: Vec<(Glob, Routes)> = Vec::new();
        for (index, demands) in demands.iter().enumerate() {
            // The first of several demands on one attribute is indexed. The others are tried with the filter.
            let Some(demand) = demands.iter().find(|demand| demand.attribute == attribute) else {
                column.indifferent.insert(index);
                continue;
            };
            for pattern in &demand.patterns {
                match pattern {
                    Wanted::Exact(value) => column
                        .exact
                        .entry((*value).to_owned())
                        .or_insert_with(|| Routes::with_room_for(count))
                        .insert(index),
                    Wanted::Glob(glob) => match globs.iter_mut().find(|(known, _)| known == glob) {
                        Some((_, routes)) => routes.insert(index),
                        None => {
                            let mut routes = Routes::with_room_for(count);
                            routes.insert(index);
                            globs.push((glob.clone(), routes));
                        }
                    },
                }
            }
        }
        for routes in column.exact.values_mut() {
            routes.add(&column.indifferent);
        }
        let mut builder = GlobSetBuilder::new();
        for (glob, routes) in globs {
            builder.add(glob);
            column.by_glob.push(routes);
        }
        column.globs = builder.build()?;
        Ok(column)
    }

    fn routes<'c>(&'c self, event: &Event, own: &'c mut Routes) -> &'c Routes {
        let Some(value) = event.get(self.attribute) else { return &self.indifferent };
        let exact = self.exact.get(value).unwrap_or(&self.indifferent);
        if self.by_glob.is_empty() {
            return exact;
        }
        let has_room = {
            let cached = self.cached.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(known) = cached.get(value) {
                own.clone_from(known);
                return own;
            }
            cached.len() < MAX_CACHED
        };
        own.clone_from(exact);
        for glob in self.globs.matches(value) {
            own.add(&self.by_glob[glob]);
        }
        if has_room {
            let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
            cached.insert(value.to_owned(), own.clone());
        }
        own
    }
}

/// What one route demands of one attribute: that it fits one of several patterns.
struct Demand<'r> {
    attribute: Attribute,
    patterns: Vec<Wanted<'r>>,
}

enum Wanted<'r> {
    Exact(&'r str),
    Glob(Glob),
}

impl<'r> Demand<'r> {
    fn of_route(route: &'r Route) -> Vec<Demand<'r>> {
        let matches = route.matches.iter().map(|(attribute, patterns)| Demand {
            attribute: *attribute,
            patterns: patterns
                .iter()
                .map(|pattern| match pattern {
                    Pattern::Exact(text) => Wanted::Exact(text),
                    Pattern::Glob(glob) => Wanted::Glob(glob.glob().clone()),
                })
                .collect(),
        });
        let required = route.filter.iter().flat_map(Filter::required).filter_map(|comparisons| {
            let attribute = comparisons.first()?.compared()?;
            let patterns = comparisons.into_iter().map(|filter| match filter {
                Filter::Exact(_, text) => Some(Wanted::Exact(text.as_str())),
                Filter::Prefix(_, text) => Some(Wanted::Glob(Self::glob(text, "", "*")?)),
                Filter::Suffix(_, text) => Some(Wanted::Glob(Self::glob(text, "*", "")?)),
                Filter::All(_) | Filter::Any(_) | Filter::Not(_) => None,
            });
            Some(Demand { attribute, patterns: patterns.collect::<Option<_>>()? })
        });
        matches.chain(required).collect()
    }

    fn glob(text: &str, before: &str, behind: &str) -> Option<Glob> {
        Glob::new(&format!("{before}{}{behind}", globset::escape(text))).ok()
    }
}

/// The index of a list of routes.
#[derive(Debug)]
pub(super) struct Index {
    count: usize,
    columns: Vec<Column>,
}

impl Index {
    /// Builds the index.
    ///
    /// # Errors
    /// When the globs of all routes together are too large for one automaton.
    pub(super) fn new(routes: &[Route]) -> Result<Index, globset::Error> {
        let demands: Vec<Vec<Demand<'_>>> = routes.iter().map(Demand::of_route).collect();
        let mut attributes: Vec<Attribute> = Vec::new();
        for demand in demands.iter().flatten() {
            if !attributes.contains(&demand.attribute) {
                attributes.push(demand.attribute);
            }
        }
        let columns = attributes.into_iter().map(|attribute| Column::new(attribute, &demands));
        Ok(Index { count: routes.len(), columns: columns.collect::<Result<_, _>>()? })
    }

    /// Visits the routes whose indexed conditions hold, in order, until the visitor returns false.
    pub(super) fn visit(&self, event: &Event, mut visitor: impl FnMut(usize) -> bool) {
        let mut own: Vec<Routes> = vec![Routes::default(); self.columns.len()];
        let sets: Vec<&Routes> =
            self.columns.iter().zip(&mut own).map(|(column, own)| column.routes(event, own)).collect();
        for block in 0..self.count.div_ceil(4096) {
            let mut summary = sets.iter().fold(u64::MAX, |left, set| left & set.summary[block]);
            while summary != 0 {
                let word = block * 64 + summary.trailing_zeros() as usize;
                summary &= summary - 1;
                if word * 64 >= self.count {
                    return;
                }
                let room = (self.count - word * 64).min(64);
                let all = if room == 64 { u64::MAX } else { (1 << room) - 1 };
                let mut routes = sets.iter().fold(all, |left, set| left & set.words[word]);
                while routes != 0 {
                    let index = word * 64 + routes.trailing_zeros() as usize;
                    routes &= routes - 1;
                    if !visitor(index) {
                        return;
                    }
                }
            }
        }
    }
}
