use super::*;
use crate::event::{DEFAULT_TYPE_PREFIX, MEDIAID, SUBJECT};

fn event(r#type: &str, dialect: &str, status: &str) -> Event {
    let mut event = Event::new("{}");
    event.set(&TYPE, format!("{DEFAULT_TYPE_PREFIX}{type}"));
    event.set(&DIALECT, dialect);
    event.set(&STATUS, status);
    event.set(&SUBJECT, "video-1");
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
        goes_on: false,
    }
}

fn filtered(name: &str, filter: &str, action: Action) -> Route {
    let filter = Filter::compile(&toml::from_str(filter).expect("the form is right")).expect("valid");
    Route { filter: Some(filter), ..route(name, &[], action) }
}

fn router(routes: Vec<Route>) -> Router {
    Router::new(routes).expect("few patterns")
}

fn taken(router: &Router, event: &Event) -> Vec<String> {
    router.decide(event).taken_by.iter().map(|index| router.routes()[*index].name.clone()).collect()
}

#[test]
fn the_first_match_wins_unless_it_continues() {
    let mut failures = route("failures", &[("status", &["failure", "partial"])], to("media.failed"));
    failures.goes_on = true;
    let router = router(vec![
        failures,
        route("transcodes", &[("type", &["TranscodeComplete"]), ("dialect", &["vod"])], to("media.transcode")),
        route("noise", &[("type", &["Live*"])], Action::Drop),
        route("strange", &[("status", &["unknown"])], Action::DeadLetter),
        route("rest", &[], to("media.rest")),
    ]);
    assert_eq!(taken(&router, &event("TranscodeComplete", "vod", "partial")), ["failures", "transcodes"]);
    assert_eq!(taken(&router, &event("TranscodeComplete", "ims", "success")), ["rest"]);
    assert!(router.decide(&event("LiveRecordTaskStatus", "ims", "progress")).dropped_by.is_some());
    assert!(router.decide(&event("X", "ims", "unknown")).dead_letter_by.is_some());
}

#[test]
fn one_destination_named_twice_is_published_to_once() {
    let mut first = route("first", &[], to("media.all"));
    first.goes_on = true;
    let router = router(vec![first, route("second", &[], to("media.all"))]);
    let event = event("X", "vod", "success");
    let decision = router.decide(&event);
    assert_eq!((decision.taken_by.len(), decision.destinations.len()), (2, 1));
}

#[test]
fn a_type_may_leave_out_its_prefix_and_patterns_are_globs() {
    let fits = |pattern: &str, name: &str| {
        Pattern::parse(pattern, &TYPE, DEFAULT_TYPE_PREFIX).expect("valid").fits(&format!("com.aliyun.media.{name}"))
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
    assert!(Pattern::parse("[a", &TYPE, DEFAULT_TYPE_PREFIX).is_err());
    let subject = Pattern::parse("a*", &SUBJECT, DEFAULT_TYPE_PREFIX).expect("valid");
    assert!(subject.fits("a/b.c") && !subject.fits("b"));
}

#[test]
fn an_absent_attribute_fits_nothing() {
    let router = router(vec![route("with media", &[("mediaid", &["*"])], to("m.a"))]);
    let mut event = event("X", "vod", "success");
    assert!(router.decide(&event).is_unrouted());
    event.set(&MEDIAID, "1");
    assert!(!router.decide(&event).is_unrouted());
}

#[test]
fn routes_that_never_match_are_warned_of() {
    let router = router(vec![
        route("all transcodes", &[("type", &["*Transcode*"])], to("m.a")),
        route("mistyped", &[("status", &["succes"])], to("m.b")),
        route("vod transcodes", &[("type", &["TranscodeComplete"]), ("dialect", &["vod"])], to("m.c")),
        route("rest", &[], to("m.d")),
        route("too late", &[("dialect", &["ims"])], to("m.e")),
    ]);
    let catalogue = Catalogue::built_in().expect("valid");
    let warnings = router.warnings(&catalogue, DEFAULT_TYPE_PREFIX);
    assert_eq!(
        warnings,
        [
            "route `mistyped` matches status = `succes`, which no known event has; did you mean `success`?",
            "route `vod transcodes` can never match: `all transcodes` before it takes all of its events and doesn't \
             continue",
            "route `too late` can never match: `rest` before it takes all of its events and doesn't continue",
        ]
    );
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
        let routes: Vec<Route> = picks.iter().enumerate().map(|(index, (pick, goes_on))| {
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
            route.goes_on = *goes_on;
            route
        }).collect();
        let event = event(&name, dialect, status);
        let mut expected = Vec::new();
        for (index, route) in routes.iter().enumerate() {
            if route.try_take(&event).is_ok() {
                expected.push(index);
                if !route.goes_on {
                    break;
                }
            }
        }
        proptest::prop_assert_eq!(router(routes).decide(&event).taken_by, expected);
    }
}
