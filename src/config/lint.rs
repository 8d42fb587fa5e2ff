//! Warnings about a valid configuration that is probably not what its author meant.

use crate::admin::{AdminSettings, Page};
use crate::dialect::Catalogue;
use crate::event::Attribute;
use crate::route::{Action, Destination, Pattern, Route, Router, Values, unknown_values};

/// Warnings about routes and dead letters. `keeps_dead_letters` says whether there is a place for dead letters.
pub(super) fn all(router: &Router, catalogue: &Catalogue, type_prefix: &str, keeps_dead_letters: bool) -> Vec<String> {
    let mut warnings = routes(router, catalogue, type_prefix);
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

/// Routes that can never match an event, and patterns that no known event has, one sentence each.
fn routes(router: &Router, catalogue: &Catalogue, type_prefix: &str) -> Vec<String> {
    let mut warnings = Vec::new();
    for (position, route) in router.routes().iter().enumerate() {
        if let Some(earlier) = router.routes()[..position].iter().find(|earlier| shadows(earlier, route)) {
            warnings.push(format!(
                "route `{}` can never match: the earlier route `{}` matches all of its events and does not continue",
                route.name, earlier.name
            ));
        }
        let unknown = unknown_values(&route.matches, route.filter.as_ref(), catalogue, type_prefix);
        warnings.extend(unknown.iter().map(|unknown| format!("route `{}` {unknown}", route.name)));
    }
    warnings
}

/// Topics that contain a value which senders choose freely, one sentence each. `has_topics` says whether an output has
/// topics.
pub(super) fn open_topics(
    router: &Router,
    catalogue: &Catalogue,
    type_prefix: &str,
    dead_letters: Option<&Destination>,
    has_topics: impl Fn(&str) -> bool,
) -> Vec<String> {
    let is_closed = |attribute: Attribute| Values::of(attribute, catalogue, type_prefix).is_closed();
    let warning = |place: &str, to: &Destination, is_fixed: &dyn Fn(Attribute) -> bool| {
        let mut attributes = to.topic.attributes().filter(|_| has_topics(&to.output));
        let chosen = attributes.find(|attribute| !is_closed(*attribute) && !is_fixed(*attribute))?;
        Some(format!(
            "{place}: topic `{}` contains {{{chosen}}}, which senders choose: they can make any number of topics if `{}` \
             creates missing ones; use {{dialect}} or {{status}}, or list the values of {chosen} in `match`",
            to.topic, to.output
        ))
    };
    let mut warnings = Vec::new();
    for route in router.routes() {
        let is_fixed = |attribute: Attribute| route.listed_values(attribute).is_some();
        let place = format!("route `{}`", route.name);
        warnings.extend(route.destinations().iter().filter_map(|to| warning(&place, to, &is_fixed)));
    }
    warnings.extend(dead_letters.and_then(|to| warning("dead_letters.to", to, &|_| false)));
    warnings
}

/// Weak settings of the admin listener, one sentence each.
pub(super) fn admin(admin: &AdminSettings) -> Vec<String> {
    let mut warnings = Vec::new();
    let reachable = admin.listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
    if let (Page::All, Some(address)) = (admin.page, reachable) {
        warnings.push(format!(
            "admin.page: \"all\" shows the page and all events to everybody who can reach {address}, and to web sites \
             that they have open (DNS rebinding); use \"local\" with `kubectl port-forward` or an SSH tunnel"
        ));
    }
    if admin.show_payloads && admin.page != Page::Off {
        let who =
            if admin.page == Page::All { "everybody who can reach the address" } else { "every user of this machine" };
        warnings
            .push(format!("admin.show_payloads: the page and the event stream show the data of all events to {who}"));
    }
    warnings
}

/// Whether the earlier route leaves no event for the later one.
fn shadows(earlier: &Route, later: &Route) -> bool {
    !earlier.continue_matching
        && earlier.filter.is_none()
        && earlier.matches.iter().all(|(attribute, patterns)| {
            Attribute::ALWAYS.contains(attribute) && patterns.iter().any(|pattern| pattern.as_str() == "*")
                || later.matches.iter().any(|(other, narrower)| {
                    attribute == other
                        && narrower.iter().all(|pattern| patterns.iter().any(|wide| covers(wide, pattern)))
                })
        })
}

/// Whether every value that fits the narrow pattern fits the wide one. False where the texts alone do not show it.
fn covers(wide: &Pattern, narrow: &Pattern) -> bool {
    match (wide, narrow) {
        (_, Pattern::Exact(text)) => wide.fits(text),
        (Pattern::Glob(_), _) if wide.as_str() == "*" => true,
        _ => wide.as_str() == narrow.as_str(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::DEFAULT_TYPE_PREFIX;
    use crate::route::parse_match;

    fn route(name: &str, conditions: &[(&str, &str)]) -> Route {
        let patterns =
            conditions.iter().map(|(attribute, pattern)| ((*attribute).to_owned(), vec![(*pattern).to_owned()]));
        Route {
            name: name.to_owned(),
            matches: parse_match(&patterns.collect(), DEFAULT_TYPE_PREFIX).expect("valid"),
            filter: None,
            action: Action::Drop,
            continue_matching: false,
        }
    }

    #[test]
    fn routes_that_can_never_match_are_reported() {
        let router = Router::new(vec![
            route("all transcodes", &[("type", "*Transcode*")]),
            route("mistyped", &[("status", "succes")]),
            route("no verdict", &[("verdict", "blok")]),
            route("vod transcodes", &[("type", "TranscodeComplete"), ("dialect", "vod")]),
            route("rest", &[]),
            route("too late", &[("dialect", "ims")]),
        ]);
        assert_eq!(
            routes(&router.expect("few patterns"), &Catalogue::built_in().expect("valid"), DEFAULT_TYPE_PREFIX),
            [
                "route `mistyped` matches status = `succes`, but no known event has it; did you mean `success`?",
                "route `no verdict` matches verdict = `blok`, but no known event has it; did you mean `block`?",
                "route `vod transcodes` can never match: the earlier route `all transcodes` matches all of its events \
                 and does not continue",
                "route `too late` can never match: the earlier route `rest` matches all of its events and does not \
                 continue",
            ]
        );
    }
}
