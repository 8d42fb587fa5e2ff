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

proptest::proptest! {
    /// The index finds the same routes as trying each one.
    #[test]
    fn the_index_agrees_with_trying_every_route(
        picks in proptest::collection::vec((0usize..10, proptest::bool::ANY), 1..200),
        name in "[A-D]{1,3}",
        status in proptest::sample::select(vec!["success", "failure", "partial"]),
        dialect in proptest::sample::select(vec!["vod", "ims"]),
    ) {
        let routes: Vec<Route> = picks.iter().enumerate().map(|(index, (pick, continue_matching))| {
            let name = format!("r{index}");
            let mut route = match pick {
                0 => route(&name, &[("type", &["A", "B"])], to("m.a")),
                1 => route(&name, &[("type", &["A*"]), ("status", &["success"])], to("m.a")),
                2 => route(&name, &[("status", &["fail*", "partial"]), ("dialect", &["vod"])], to("m.a")),
                3 => route(&name, &[("mediaid", &["*"])], to("m.a")),
                4 => filtered(&name, "suffix = { type = 'D' }", to("m.a")),
                5 => filtered(&name, "any = [{ exact = { status = 'partial' } }, { prefix = { type = 'com.aliyun.media.C' } }]", to("m.a")),
                6 => filtered(&name, "all = [{ exact = { dialect = 'ims' } }, { not = { exact = { status = 'success' } } }]", to("m.a")),
                8 => filtered(&name, "any = [{ exact = { status = 'partial' } }, { suffix = { status = 'cess' } }]", to("m.a")),
                7 => route(&name, &[("type", &["*B", "ABC"])], to("m.a")),
                _ => route(&name, &[("type", &["D"]), ("type", &["D"])], to("m.a")),
            };
            route.continue_matching = *continue_matching;
            route
        }).collect();
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
}
