//! What is valid but looks like a mistake.

use crate::dialect::Catalogue;
use crate::route::{Action, Route, Router};

/// Warnings about routes and dead letters. `keeps_dead_letters` says whether there is a place for dead letters.
pub(super) fn routes(
    router: &Router,
    catalogue: &Catalogue,
    type_prefix: &str,
    keeps_dead_letters: bool,
) -> Vec<String> {
    let mut warnings = router.warnings(catalogue, type_prefix);
    if keeps_dead_letters {
        return warnings;
    }
    let takes_everything = |route: &Route| route.matches.is_empty() && route.filter.is_none();
    if !router.routes().iter().any(takes_everything) {
        warnings.push(
            "no route matches everything, and there is no place for dead letters (a spool, or dead_letters.to): an event \
             that no route matches is answered with 503 and lost when Alibaba gives up"
                .to_owned(),
        );
    }
    let dead_letter_routes = router.routes().iter().filter(|route| route.action == Action::DeadLetter);
    warnings.extend(dead_letter_routes.map(|route| {
        format!(
            "route `{}` makes dead letters, but there is no place for them (a spool, or dead_letters.to): its events are \
             answered with 503",
            route.name
        )
    }));
    warnings
}
