//! The index of [`super::Router::decide`]: for each attribute, the set of routes that a value fits.
//!
//! * A route that does not ask for an attribute is in the set of every value.
//! * The sets of all attributes are intersected. Their summaries, one bit for 64 routes, are intersected first, so that
//!   words without a common route are skipped.
//! * Conditions at the top of a filter are indexed like `match`. For a filter `any` across several attributes, the sets of
//!   its alternatives are united first. The rest of a filter is tried on the routes that remain.

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
    /// Routes that fit without the attribute: those that do not ask for it. Empty for a column of alternatives.
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
    /// The column of what routes must fulfil.
    fn of_demands(attribute: Attribute, demands: &[Vec<Demand<'_>>]) -> Result<Column, globset::Error> {
        let mut indifferent = Routes::with_room_for(demands.len());
        let mut wanted = Vec::new();
        for (index, demands) in demands.iter().enumerate() {
            // The first of several demands on one attribute is indexed. The others are tried with the filter.
            match demands.iter().find(|demand| demand.attribute == attribute) {
                Some(demand) => wanted.extend(demand.patterns.iter().map(|pattern| (index, pattern))),
                None => indifferent.insert(index),
            }
        }
        Column::new(attribute, demands.len(), indifferent, &wanted)
    }

    /// The column of alternatives, one of which each route must fulfil.
    fn of_alternatives(attribute: Attribute, alternatives: &[Vec<Demand<'_>>]) -> Result<Column, globset::Error> {
        let demands = alternatives.iter().enumerate();
        let demands = demands.flat_map(|(index, demands)| demands.iter().map(move |demand| (index, demand)));
        let wanted: Vec<(usize, &Wanted<'_>)> = demands
            .filter(|(_, demand)| demand.attribute == attribute)
            .flat_map(|(index, demand)| demand.patterns.iter().map(move |pattern| (index, pattern)))
            .collect();
        Column::new(attribute, alternatives.len(), Routes::with_room_for(alternatives.len()), &wanted)
    }

    fn new(
        attribute: Attribute,
        count: usize,
        indifferent: Routes,
        wanted: &[(usize, &Wanted<'_>)],
    ) -> Result<Column, globset::Error> {
        let mut column = Column {
            attribute,
            indifferent,
            exact: HashMap::new(),
            globs: GlobSet::empty(),
            by_glob: Vec::new(),
            cached: RwLock::default(),
        };
        let mut globs: Vec<(Glob, Routes)> = Vec::new();
        let mut positions: HashMap<Glob, usize> = HashMap::new();
        for (index, pattern) in wanted {
            match pattern {
                Wanted::Exact(value) => column
                    .exact
                    .entry((*value).to_owned())
                    .or_insert_with(|| Routes::with_room_for(count))
                    .insert(*index),
                Wanted::Glob(glob) => {
                    let position = *positions.entry(glob.clone()).or_insert(globs.len());
                    if position == globs.len() {
                        globs.push((glob.clone(), Routes::with_room_for(count)));
                    }
                    globs[position].1.insert(*index);
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
        let required = route.filter.iter().flat_map(Filter::required).filter_map(Demand::of_comparisons);
        matches.chain(required).collect()
    }

    /// The alternatives of a filter `any` across several attributes. The first such filter of a route is indexed; others
    /// are tried with the rest of the filter.
    fn alternatives(route: &'r Route) -> Vec<Demand<'r>> {
        let alternatives = route.filter.as_ref().and_then(Filter::alternatives).unwrap_or_default();
        // All of them must have a demand, otherwise the route can match without those that have.
        alternatives.into_iter().map(Demand::of_comparisons).collect::<Option<_>>().unwrap_or_default()
    }

    /// The demand that one of several comparisons of one attribute holds.
    fn of_comparisons(comparisons: Vec<&'r Filter>) -> Option<Demand<'r>> {
        let attribute = comparisons.first()?.compared()?;
        let patterns = comparisons.into_iter().map(|filter| match filter {
            Filter::Exact(_, text) => Some(Wanted::Exact(text.as_str())),
            Filter::Prefix(_, text) => Some(Wanted::Glob(Self::glob(text, "", "*")?)),
            Filter::Suffix(_, text) => Some(Wanted::Glob(Self::glob(text, "*", "")?)),
            Filter::All(_) | Filter::Any(_) | Filter::Not(_) => None,
        });
        Some(Demand { attribute, patterns: patterns.collect::<Option<_>>()? })
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
    /// Columns of alternatives; see [`Demand::alternatives`].
    alternatives: Vec<Column>,
    /// Routes without alternatives.
    without_alternatives: Routes,
}

/// The attributes of demands, each once.
fn attributes(demands: &[Vec<Demand<'_>>]) -> Vec<Attribute> {
    let mut attributes: Vec<Attribute> = Vec::new();
    for demand in demands.iter().flatten() {
        if !attributes.contains(&demand.attribute) {
            attributes.push(demand.attribute);
        }
    }
    attributes
}

impl Index {
    /// Builds the index.
    ///
    /// # Errors
    /// When the globs of all routes together are too large for one automaton.
    pub(super) fn new(routes: &[Route]) -> Result<Index, globset::Error> {
        let demands: Vec<Vec<Demand<'_>>> = routes.iter().map(Demand::of_route).collect();
        let columns = attributes(&demands).into_iter().map(|attribute| Column::of_demands(attribute, &demands));
        let columns = columns.collect::<Result<_, _>>()?;
        let demands: Vec<Vec<Demand<'_>>> = routes.iter().map(Demand::alternatives).collect();
        let alternatives =
            attributes(&demands).into_iter().map(|attribute| Column::of_alternatives(attribute, &demands));
        let alternatives = alternatives.collect::<Result<_, _>>()?;
        let mut without_alternatives = Routes::with_room_for(routes.len());
        let without = demands.iter().enumerate().filter(|(_, demands)| demands.is_empty());
        without.for_each(|(index, _)| without_alternatives.insert(index));
        Ok(Index { count: routes.len(), columns, alternatives, without_alternatives })
    }

    /// Visits the routes whose indexed conditions hold, in order, until the visitor returns false.
    pub(super) fn visit(&self, event: &Event, mut visitor: impl FnMut(usize) -> bool) {
        let mut own: Vec<Routes> = vec![Routes::default(); self.columns.len()];
        let mut sets: Vec<&Routes> =
            self.columns.iter().zip(&mut own).map(|(column, own)| column.routes(event, own)).collect();
        let mut united;
        if !self.alternatives.is_empty() {
            united = self.without_alternatives.clone();
            let mut own = Routes::default();
            for column in &self.alternatives {
                united.add(column.routes(event, &mut own));
            }
            sets.push(&united);
        }
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
