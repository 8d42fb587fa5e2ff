use std::collections::BTreeSet;

use super::*;
use crate::event::{Attribute, DEFAULT_TYPE_PREFIX};

fn event(r#type: &str, dialect: &str, status: &str) -> Event {
    let mut event = Event::new("{}");
    event.set(Attribute::Type, format!("{DEFAULT_TYPE_PREFIX}{type}"));
    event.set(Attribute::Dialect, dialect);
    event.set(Attribute::Status, status);
    event.set(Attribute::Subject, "video-1");
    event
}

fn to(topic: &str) -> Action {
    Action::To(vec![Destination {
        output: "kafka".to_owned(),
        topic: Template::parse_topic(topic).expect("valid"),
        key: Template::parse("{partitionkey}").expect("valid"),
        mode: None,
    }])
}

fn route(name: &str, conditions: &[(&str, &[&str])], action: Action) -> Route {
    let patterns = conditions
        .iter()
        .map(|(name, texts)| ((*name).to_owned(), texts.iter().map(|text| (*text).to_owned()).collect()))
        .collect();
    Route {
        name: name.to_owned(),
        matches: parse_match(&patterns, DEFAULT_TYPE_PREFIX).expect("valid"),
        filter: None,
        action,
        continue_matching: false,
    }
}

fn filtered(name: &str, filter: &str, action: Action) -> Route {
    let filter = Filter::compile(&toml::from_str(filter).expect("a filter")).expect("valid");
    Route { filter: Some(filter), ..route(name, &[], action) }
}

fn router(routes: Vec<Route>) -> Router {
    Router::new(routes).expect("few patterns")
}

fn matched(router: &Router, event: &Event) -> Vec<String> {
    router.decide(event).matched.iter().map(|index| router.routes()[*index].name.clone()).collect()
}

#[test]
fn the_first_match_wins_unless_it_continues() {
    let mut failures = route("failures", &[("status", &["failure", "partial"])], to("media.failed"));
    failures.continue_matching = true;
    let router = router(vec![
        failures,
        route("transcodes", &[("type", &["TranscodeComplete"]), ("dialect", &["vod"])], to("media.transcode")),
        route("noise", &[("type", &["Live*"])], Action::Drop),
        route("strange", &[("status", &["unknown"])], Action::DeadLetter),
        route("rest", &[], to("media.rest")),
    ]);
    assert_eq!(matched(&router, &event("TranscodeComplete", "vod", "partial")), ["failures", "transcodes"]);
    assert_eq!(matched(&router, &event("TranscodeComplete", "ims", "success")), ["rest"]);
    assert!(router.decide(&event("LiveRecordTaskStatus", "ims", "progress")).dropped_by.is_some());
    assert!(router.decide(&event("X", "ims", "unknown")).dead_letter_by.is_some());
}

#[test]
fn one_destination_named_twice_is_published_to_once() {
    let mut first = route("first", &[], to("media.all"));
    first.continue_matching = true;
    let router = router(vec![first, route("second", &[], to("media.all"))]);
    let event = event("X", "vod", "success");
    let decision = router.decide(&event);
    assert_eq!((decision.matched.len(), decision.destinations.len()), (2, 1));
}

#[test]
fn a_type_can_omit_its_prefix_and_patterns_are_globs() {
    let fits = |pattern: &str, name: &str| {
        Pattern::parse(pattern, Attribute::Type, DEFAULT_TYPE_PREFIX)
            .expect("valid")
            .fits(&format!("com.aliyun.media.{name}"))
    };
    assert!(fits("TranscodeComplete", "TranscodeComplete"));
    assert!(fits("com.aliyun.media.TranscodeComplete", "TranscodeComplete"));
    assert!(!fits("TranscodeComplete", "StreamTranscodeComplete"));
    assert!(fits("*TranscodeComplete", "StreamTranscodeComplete"));
    assert!(fits("Transcode*", "TranscodeComplete"));
    assert!(fits("com.aliyun.*", "TranscodeComplete"));
    assert!(fits("AI????Audit*", "AIMediaAuditComplete") || fits("AI?????Audit*", "AIMediaAuditComplete"));
    assert!(fits("*", "../../x y"));
    assert!(fits("[ST]*", "SnapshotComplete"));
    assert!(Pattern::parse("[a", Attribute::Type, DEFAULT_TYPE_PREFIX).is_err());
    let subject = Pattern::parse("a*", Attribute::Subject, DEFAULT_TYPE_PREFIX).expect("valid");
    assert!(subject.fits("a/b.c") && !subject.fits("b"));
}

#[test]
fn an_absent_attribute_fits_nothing() {
    let router = router(vec![route("with media", &[("mediaid", &["*"])], to("m.a"))]);
    let mut event = event("X", "vod", "success");
    assert!(router.decide(&event).is_unrouted());
    event.set(Attribute::MediaId, "1");
    assert!(!router.decide(&event).is_unrouted());
}

/// Routes of many forms.
fn various(picks: &[(usize, bool)]) -> Vec<Route> {
    picks
        .iter()
        .enumerate()
        .map(|(index, (pick, continue_matching))| {
            let name = format!("r{index}");
            let mut route = match pick {
                0 => route(&name, &[("type", &["A", "B"])], to("m.a")),
                1 => route(&name, &[("type", &["A*"]), ("status", &["success"])], to("m.a")),
                2 => route(&name, &[("status", &["fail*", "partial"]), ("dialect", &["vod"])], to("m.a")),
                3 => route(&name, &[("mediaid", &["*"])], to("m.a")),
                4 => filtered(&name, "suffix = { type = 'D' }", to("m.a")),
                5 => filtered(
                    &name,
                    "any = [{ exact = { status = 'partial' } }, { prefix = { type = 'com.aliyun.media.C' } }]",
                    to("m.a"),
                ),
                6 => filtered(
                    &name,
                    "all = [{ exact = { dialect = 'ims' } }, { not = { exact = { status = 'success' } } }]",
                    to("m.a"),
                ),
                8 => filtered(
                    &name,
                    "any = [{ exact = { status = 'partial' } }, { suffix = { status = 'cess' } }]",
                    to("m.a"),
                ),
                7 => route(&name, &[("type", &["*B", "ABC"])], to("m.a")),
                9 => filtered(
                    &name,
                    "any = [{ exact = { dialect = 'ims' } }, { suffix = { type = 'B' } }, { exact = { mediaid = 'x' } }]",
                    to("m.a"),
                ),
                10 => filtered(
                    &name,
                    "any = [{ all = [{ exact = { dialect = 'vod' } }, { prefix = { status = 'suc' } }] }, { suffix = { type = 'AA' } }]",
                    to("m.a"),
                ),
                11 => filtered(
                    &name,
                    "any = [{ not = { exact = { dialect = 'vod' } } }, { suffix = { type = 'C' } }]",
                    to("m.a"),
                ),
                12 => filtered(
                    &name,
                    "exact = { subject = 'video-1' }\nall = [{ any = [{ exact = { status = 'failure' } }, { exact = { dialect = 'ims' } }] }, { any = [{ suffix = { type = 'A' } }, { exact = { status = 'partial' } }] }]",
                    to("m.a"),
                ),
                _ => route(&name, &[("type", &["D"]), ("type", &["D"])], to("m.a")),
            };
            route.continue_matching = *continue_matching;
            route
        })
        .collect()
}

proptest::proptest! {
    /// The index finds the same routes as trying each one.
    #[test]
    fn the_index_agrees_with_trying_every_route(
        picks in proptest::collection::vec((0usize..14, proptest::bool::ANY), 1..200),
        name in "[A-D]{1,3}",
        status in proptest::sample::select(vec!["success", "failure", "partial"]),
        dialect in proptest::sample::select(vec!["vod", "ims"]),
    ) {
        let routes = various(&picks);
        let event = event(&name, dialect, status);
        let mut expected = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            if route.try_match(&event).is_ok() {
                expected.push(index);
                if !route.continue_matching {
                    break;
                }
            }
        }
        proptest::prop_assert_eq!(router(routes).decide(&event).matched, expected);
    }

    /// Whatever is known about an event, the routes that match it are possible.
    #[test]
    fn what_happens_to_an_event_is_possible(
        picks in proptest::collection::vec((0usize..14, proptest::bool::ANY), 1..20),
        name in "[A-D]{1,3}",
        status in proptest::sample::select(vec!["success", "failure", "partial"]),
        dialect in proptest::sample::select(vec!["vod", "ims"]),
        knowledge in proptest::collection::vec(0usize..4, Attribute::ALL.len()),
    ) {
        let event = event(&name, dialect, status);
        let others = BTreeSet::from(["A", "ABC", "D"].map(|name| format!("{DEFAULT_TYPE_PREFIX}{name}")));
        let fact = |attribute: Attribute| match (event.get(attribute), knowledge[attribute as usize]) {
            (None, 0) => Fact::Absent,
            (Some(value), 0) => Fact::Is(value),
            (Some(value), 1) if !others.contains(value) => Fact::StartsWith(&value[..value.len() - 1], &others),
            (Some(_), 2) => Fact::Present,
            _ => Fact::Unknown,
        };
        let router = router(various(&picks));
        let possible = router.possibilities(fact);
        let decision = router.decide(&event);
        for index in &decision.matched {
            let route = &router.routes()[*index];
            proptest::prop_assert!(possible.routes.iter().any(|possible| possible.name == route.name), "{}", route.name);
        }
        proptest::prop_assert!(possible.can_be_unrouted || !decision.is_unrouted());
    }

    /// About an event that is known as a whole, nothing is uncertain.
    #[test]
    fn of_a_known_event_only_what_happens_is_possible(
        picks in proptest::collection::vec((0usize..14, proptest::bool::ANY), 1..20),
        name in "[A-D]{1,3}",
    ) {
        let event = event(&name, "vod", "failure");
        let router = router(various(&picks));
        let possible = router.possibilities(|attribute| event.get(attribute).map_or(Fact::Absent, Fact::Is));
        let names: Vec<&str> = possible.routes.iter().map(|route| route.name.as_str()).collect();
        proptest::prop_assert_eq!(names, matched(&router, &event));
        proptest::prop_assert_eq!(possible.can_be_unrouted, router.decide(&event).is_unrouted());
    }
}

#[test]
fn an_event_of_an_unknown_type_has_no_known_type() {
    let others = BTreeSet::from([format!("{DEFAULT_TYPE_PREFIX}Known")]);
    let can_match = |conditions: &[(&str, &[&str])], filter: Option<&str>| {
        let mut route = route("r", conditions, Action::Drop);
        route.filter = filter.map(|filter| Filter::compile(&toml::from_str(filter).expect("a filter")).expect("valid"));
        let router = router(vec![route]);
        let possible = router.possibilities(|attribute| match attribute {
            Attribute::Type => Fact::StartsWith(DEFAULT_TYPE_PREFIX, &others),
            _ => Fact::Unknown,
        });
        (!possible.routes.is_empty(), possible.can_be_unrouted)
    };
    let (no, maybe, yes) = ((false, true), (true, true), (true, false));
    assert_eq!(can_match(&[("type", &["Known"])], None), no);
    assert_eq!(can_match(&[("type", &["Known", "Other"])], None), maybe);
    assert_eq!(can_match(&[("type", &["Kno*"])], None), maybe);
    assert_eq!(can_match(&[("type", &["org.example.*"])], None), maybe, "the prefix is added");
    assert_eq!(can_match(&[("type", &["com.aliyun.*"])], None), yes);
    assert_eq!(can_match(&[("type", &["*"])], None), yes);
    assert_eq!(can_match(&[("mediaid", &["*"])], None), maybe);
    assert_eq!(can_match(&[], Some("prefix = { type = 'com.aliyun.' }")), yes);
    assert_eq!(can_match(&[], Some("prefix = { type = 'org.' }")), no);
    assert_eq!(can_match(&[], Some("not = { exact = { type = 'com.aliyun.media.Known' } }")), yes);
    assert_eq!(can_match(&[], Some("not = { suffix = { type = 'n' } }")), maybe);
}
