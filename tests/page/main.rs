//! The page of the admin address in a real Chromium, with the bridge's own program and a real NATS.
//!
//! Environment: PAGE_SCREENSHOT, a file: the picture for the README is written to it.
//!
//! # Layout
//!
//! - [`browser`]: Chromium, driven by `driver.mjs`
//! - [`stage`]: a bridge, its bus and a browser
//! - here: the tests

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

mod browser;
mod stage;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use browser::{PHONE, SCREEN, Theme};
use serde_json::json;
use stage::{Stage, callback_of};
use support::bridge::{callback, large_callback, signed_headers};
use support::config::{Config, Route};
use support::sender::{self, Alibaba, Dialect};
use support::wait::{SOON, eventually};
use support::{free_port, repository, samples};

/// The promise of the page.
const APPEARS: Duration = Duration::from_secs(1);

/// A page that cannot react for this long under load is broken. Usual are some tens of milliseconds.
const GROSS: Duration = Duration::from_secs(2);

/// Rows of the list of all events, and of the list of failures.
const LIVE: &str = "#live .row";
const FAILURES: &str = "#failures .row";

#[tokio::test]
async fn an_event_appears_within_a_second_with_its_path() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    page.wait("#sentence", "Output nats is up, no event has come since the start, nothing waits.");
    page.wait("#live .empty", "No event since this page was opened");
    assert_eq!(stage.post(callback_of("FileUploadComplete", "success", "media-1")).await, 200);
    let took = page.wait_within(APPEARS, LIVE, "media-1");
    println!("an event appears {} ms after the answer", took.as_millis());
    assert_eq!(page.text("#live .row .outcome"), "published");

    page.click(LIVE);
    let path = page.text("#live .path");
    for part in [
        "Received by input http at ",
        "signature valid",
        "dialect vod, type FileUploadComplete",
        "subject",
        "failures: no, ",
        "progress: no, ",
        "all: matched",
        "nats / media.vod: published after ",
        "(route all)",
        "Outcome",
        "\"mediaId\": \"media-1\"",
    ] {
        assert!(path.contains(part), "no `{part}` in\n{path}");
    }
    // The list stands still while a row is open, and says so.
    stage.post(callback_of("FileUploadComplete", "success", "media-2")).await;
    page.wait("#live .held", "Held while a row is open: 1 newer.");
    assert!(!page.text("#live .rows").contains("media-2"));
    page.click("#live .held button");
    page.wait(LIVE, "media-2");

    page.click("#live .pause");
    stage.post(callback_of("FileUploadComplete", "success", "media-3")).await;
    page.wait("#live .held", "Paused: 1 newer.");
    assert_eq!(page.count(LIVE), 2);
    page.click("#live .pause");
    page.wait(LIVE, "media-3");

    page.wait("#figures", "/s");
    page.wait("#routes > li:nth-child(3)", "all");
    page.wait("#routes > li:nth-child(3)", "3 / 3");
    page.wait("#routes > li:nth-child(2)", "dropped");
    page.wait("#outputs", "3 published, nothing waits");
    page.wait("#inputs", "published 3");
    // The charts have the first step of ten seconds.
    page.wait("#rate-legend", "published 3");
    page.wait("#latency-legend", "p99");
    page.click("#rate-details summary");
    page.wait("#rate-table", "published");
    page.has_no_faults();
}

#[tokio::test]
async fn the_filter_finds_events() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    for (event_type, status, media) in [
        ("FileUploadComplete", "success", "alpha"),
        ("TranscodeComplete", "fail", "beta"),
        ("TranscodeComplete", "success", "gamma"),
        ("UploadByURLComplete", "fail", "delta-one"),
    ] {
        assert_eq!(stage.post(callback_of(event_type, status, media)).await, 200);
        page.wait(LIVE, media);
    }
    let shows = |filter: &str, expected: &[&str]| {
        page.filter(filter);
        for media in ["alpha", "beta", "gamma", "delta-one"] {
            if expected.contains(&media) {
                page.wait(LIVE, media);
            } else {
                page.wait_gone(LIVE, media);
            }
        }
    };
    shows("status=failure", &["beta", "delta-one"]);
    shows("status = failure type=Transcode*", &["beta"]);
    shows("status!=failure", &["alpha", "gamma"]);
    shows("subject=alpha subject=gamma", &["alpha", "gamma"]);
    shows("subject=\"delta-one\"", &["delta-one"]);
    shows("type={File,UploadBy}*", &["alpha", "delta-one"]);
    shows("DELTA", &["delta-one"]);
    shows("route=failures", &["beta", "delta-one"]);
    shows("topic=media.failed", &["beta", "delta-one"]);
    shows("outcome!=published", &[]);
    shows("constructor=x", &[]);
    page.wait("#live .empty", "Nothing here matches the filter.");

    // The bridge tests the condition too, and the stream continues.
    shows("status=failure", &["beta", "delta-one"]);
    page.live();
    stage.post(callback_of("TranscodeComplete", "success", "later-good")).await;
    stage.post(callback_of("TranscodeComplete", "fail", "later-bad")).await;
    page.wait(LIVE, "later-bad");
    assert!(!page.text("#live .rows").contains("later-good"));

    page.filter("statu=failure");
    page.wait("#filter-problem", "did you mean `status`?");
    page.press("Escape");
    page.wait_gone("#filter-problem", "did you mean");
    page.wait(LIVE, "alpha");

    // A value of an event becomes a filter.
    page.click(LIVE);
    page.click("#live [aria-label='Filter by this subject']");
    page.wait("#live .held", "1 entry that matches");
    page.click("#clear");
    page.wait("#live .held", "entries.");
    page.has_no_faults();
}

#[tokio::test]
async fn the_keyboard_is_enough() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    for media in ["one", "two", "three"] {
        stage.post(callback_of("FileUploadComplete", "success", media)).await;
        page.wait(LIVE, media);
    }
    page.press("Tab");
    assert_eq!(page.focused(), "skip");
    page.press("Enter");
    let mut stops = Vec::new();
    while stops.last().is_none_or(|stop| stop != "row") {
        assert!(stops.len() < 12, "Tab does not reach the events: {stops:?}");
        page.press("Tab");
        assert!(page.is_focus_seen(), "{}", page.focused());
        stops.push(page.focused());
    }
    assert!(stops.contains(&"query".to_owned()) && stops.contains(&"pause".to_owned()), "{stops:?}");
    page.press("ArrowDown");
    page.press("ArrowDown");
    page.press("ArrowUp");
    page.wait("#live .row:focus", "two");
    assert!(page.is_focus_seen() && !page.is_expanded());
    page.press("Enter");
    assert!(page.is_expanded());
    page.wait("#live .path", "nats / media.vod: published");
    page.press("Escape");
    assert!(!page.is_expanded());
    assert_eq!(page.count("#live .path"), 0);
    page.press("End");
    page.wait("#live .row:focus", "one");
    // Nothing moves under the focus.
    stage.post(callback_of("FileUploadComplete", "success", "four")).await;
    page.wait("#live .held", "Held while a row has the focus: 1 newer.");
    page.wait("#live .row:focus", "one");
    page.press("Shift+Tab");
    page.press("Shift+Tab");
    page.wait(LIVE, "four");
    page.has_no_faults();
}

#[tokio::test]
async fn both_themes_and_widths_are_accessible() {
    let stage = Stage::start().await;
    let page = &stage.browser;
    stage.post_with_wrong_key(callback("x")).await;
    stage.post("not a callback").await;
    for body in samples() {
        stage.post(String::from_utf8(body).expect("UTF-8")).await;
    }
    stage.nats.shut_down();
    stage.post(callback_of("FileUploadComplete", "success", &"unseen".repeat(100))).await;
    page.open(stage.bridge.admin);
    page.wait("#sentence", "has been unavailable");
    for (number, media) in ["a", "b"].into_iter().enumerate() {
        assert_eq!(stage.post(callback_of("FileUploadComplete", "success", media)).await, 200);
        page.wait_within(SOON, &format!("{FAILURES} >> nth={number}"), "");
    }
    // Nobody measured how long it took.
    page.click(&format!("{FAILURES}:has-text('unseen')"));
    page.wait("#failures .path", "nats / media.vod: spooled (route all)");
    assert_eq!(page.axe(), [""; 0]);
    for theme in [Theme::Light, Theme::Dark] {
        for width in [PHONE, 800, SCREEN] {
            page.open_as(stage.bridge.admin, width, theme);
            page.live();
            page.wait("#lanes", "media.vod");
            page.click(FAILURES);
            page.wait("#failures .path", "Received");
            page.click("#rate-details summary");
            page.click("#latency-details summary");
            assert_eq!(page.axe(), [""; 0], "{theme:?}, {width} pixels");
            assert!(page.overflow() <= 0, "{theme:?}: {width} pixels are not enough, by {}", page.overflow());
            page.has_no_faults();
        }
    }
}

#[tokio::test]
async fn a_hostile_callback_is_only_text() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    let long = "x".repeat(10_000);
    let hostile = [
        "<script>window.marked=1;alert(1)</script>",
        "</script><script>window.marked=2</script>",
        "\"><img src=x onerror=\"window.marked=3\">",
        "javascript:window.marked=4",
        "<svg/onload=window.marked=5>",
        "' onfocus=window.marked=6 autofocus x='",
        "\u{202e}desrever\u{2066}\u{0000}\u{0007}\u{feff}",
        "{{7*7}}${7*7}<!--",
        &long,
    ];
    for (number, text) in hostile.iter().enumerate() {
        let body = json!({
            "EventType": text, "EventTime": text, "Status": text, "VideoId": format!("{number}{text}"),
            "JobId": text, "FileUrl": text, "Extend": text, "ErrorMessage": text, text.to_string(): text,
        });
        assert_eq!(stage.post(body.to_string()).await, 200, "{body}");
        // Bodies, paths and signatures that are rejected are texts too.
        stage.post(text.to_string()).await;
        stage.post_with_wrong_key(text.to_string()).await;
    }
    let path = "/%3Cscript%3E\"onerror=window.marked=7{{7*7}}";
    stage.post_to(path, "{}", &signed_headers("VOD")).await;
    page.wait(LIVE, "no such path");
    page.wait("#live .held", "28 entries");
    for attribute in ["subject", "type", "jobid"] {
        page.filter(&format!("{attribute}=*alert*"));
        page.wait("#live .held", "1 entry that matches");
        page.click(LIVE);
        page.wait("#live .path", "<script>window.marked=1;alert(1)</script>");
        page.wait("#live pre", "<script>window.marked=1;alert(1)</script>");
        page.click(LIVE);
    }
    page.filter("javascript:window.marked");
    page.wait(LIVE, "javascript:window.marked=4");
    page.filter("");
    for number in 0..28 {
        page.click(&format!("{LIVE} >> nth={number}"));
        page.click(&format!("{FAILURES} >> nth=0"));
    }
    assert!(page.text("#live .path").len() > 20);
    assert_eq!(page.count("a:not(.skip)") + page.count("img") + page.count("iframe") + page.count("script"), 1);
    for width in [PHONE, SCREEN] {
        page.open_as(stage.bridge.admin, width, Theme::Light);
        page.live();
        page.wait(FAILURES, "no such path");
        for number in 0..3 {
            page.click(&format!("{FAILURES} >> nth={number}"));
        }
        assert!(page.overflow() <= 0, "a text makes the page wider than {width} pixels");
    }
    assert_eq!(page.marked(), json!(null));
    page.has_no_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_events_per_second_leave_it_usable() {
    // Events that are dropped cost the bridge least, so that the rate is reached on a busy machine too.
    let stage = Stage::start_with(|config| config.routes([Route::new("none").set("drop = true")])).await;
    let page = &stage.browser;
    page.open(stage.bridge.admin);
    let rate = 1_000;
    let sending = tokio::spawn({
        let sender = Arc::new(Alibaba::new(stage.bridge.input));
        async move {
            let next = move |number: usize| {
                (number < 20 * rate as usize).then(|| sender::Callback {
                    dialect: Dialect::Vod,
                    body: callback(&format!("m{number}")).into(),
                    is_twin: false,
                })
            };
            sender::send_all(sender.clone(), rate, next).await
        }
    });
    page.wait(LIVE, "dropped");
    page.gap();
    tokio::task::block_in_place(|| {
        page.wait("#live .held", "The newest 100 of 400.");
        // It can be used in the meantime.
        page.click("#live .pause");
        page.wait("#live .held", "Paused");
        page.click(LIVE);
        page.wait("#live .path", "none: matched");
        page.click("#live .pause");
        page.click("#live .held button");
        page.filter("status=failure");
        page.wait("#live .empty", "Nothing here matches the filter.");
        page.filter("m1");
        page.wait(LIVE, "m1");
        page.filter("needle");
    });
    // What a filter finds stays, however many others come.
    assert_eq!(stage.post(callback("needle")).await, 200);
    page.wait(LIVE, "needle");
    let dropped = r#"apsara_bridge_callbacks_total{input="http",outcome="dropped"}"#;
    let before = stage.bridge.metric(dropped).await;
    eventually("many others", SOON, async || (stage.bridge.metric(dropped).await > before + 1_000.0).then_some(()))
        .await;
    page.wait("#live .held", "1 entry that matches");
    page.wait(LIVE, "needle");
    tokio::task::block_in_place(|| {
        page.filter("");
        page.wait("#live .held", "The newest 100 of 400.");
    });
    // And the needle.
    let accepted = 1 + sending.await.expect("it does not panic").into_iter().filter(|accepted| *accepted).count();
    let gap = page.gap();
    println!("with {rate} events/s, of which {accepted} were accepted, the longest pause of the page was {gap:?}");
    assert!(gap < GROSS, "the page did not react for {gap:?}");
    assert!(page.count("*") < 6_000, "{} elements", page.count("*"));
    page.wait("#inputs", &format!("dropped {},{:03}", accepted / 1000, accepted % 1000));
    page.has_no_faults();
}

#[tokio::test]
async fn a_reload_and_a_restart_are_shown() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    stage.post(callback_of("FileUploadComplete", "success", "before")).await;
    page.wait(LIVE, "before");
    let config = stage.bridge.configuration();
    let other = config.clone().routes([Route::new("renamed").to("nats", "media.{dialect}")]);
    stage.bridge.reload(&other.to_string());
    page.wait("#live .mark", "The configuration was reloaded.");
    page.wait("#routes", "renamed");
    let filtered =
        config.clone().routes([Route::new("renamed").when("status = 'success'").to("nats", "media.{dialect}")]);
    stage.bridge.reload(&filtered.to_string());
    page.wait("#routes", "status = success");
    stage.bridge.reload(&other.to_string());
    page.wait("#routes", "every event");
    assert_eq!(page.count("#routes > li"), 1);
    page.live();
    stage.post(callback_of("FileUploadComplete", "success", "reloaded")).await;
    page.wait(LIVE, "reloaded");

    // The admin port does not answer.
    stage.stop_bridge().await;
    page.wait("#connection[data-state=lost]", "Lost: retrying in");
    page.wait("#trouble", "What is below is from ");
    page.wait("#trouble", "stopped");
    page.wait(LIVE, "reloaded");
    assert_eq!(page.axe(), [""; 0]);
    stage.start_bridge_again().await;
    page.click("#retry");
    page.live();
    page.wait("#live .mark", "Connected again, after");
    page.wait("#live .mark", "The bridge was restarted at");
    page.wait_gone("#trouble", "What is below");
    stage.post(callback_of("FileUploadComplete", "success", "restarted")).await;
    page.wait(LIVE, "restarted");

    // It also comes back on its own.
    stage.bridge.process().kill();
    page.wait("#connection[data-state=lost]", "Lost: retrying in");
    page.wait("#trouble", "The bridge has not answered since");
    stage.start_bridge_again().await;
    page.live();

    // Who may read can change while the page is open.
    stage.bridge.reload(&other.set("admin.page = 'off'").to_string());
    page.wait("#connection[data-state=lost]", "Lost");
    page.wait("#trouble", "admin.page is \"off\"");
    let (status, text) = page.open_as(stage.bridge.admin, SCREEN, Theme::Light);
    assert_eq!(status, 403);
    assert!(text.contains("admin.page is \"off\""), "{text}");
}

#[tokio::test]
async fn another_version_is_reported() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    for (hello, trouble) in [
        (json!({ "kind": "hello", "format": 1, "version": "9.9.9", "type_prefix": "p." }), "bridge has not answered"),
        (json!({ "kind": "hello", "format": 2, "version": "9.9.9", "more": [] }), "does not understand"),
    ] {
        page.open(stage.bridge.admin);
        page.answer(200, "text/event-stream", &format!("data: {hello}\n\ndata: {{\"kind\":\"later\"}}\n\n"));
        stage.stop_bridge().await;
        stage.start_bridge_again().await;
        page.wait("#other-version", "Another version of the bridge answers now: 9.9.9.");
        page.wait("#trouble", trouble);
        assert_eq!(page.axe(), [""; 0]);
        page.answer_no_more();
        page.click("#reload");
        page.live();
        page.wait_gone("#other-version", "Another version");
    }
    // Something else answers at the address.
    for body in ["data: {\"kind\":\"other\"}\n\n", "data: <html>\n\n", ": hello\n\n"] {
        page.open(stage.bridge.admin);
        page.answer(200, "text/event-stream", body);
        stage.stop_bridge().await;
        stage.start_bridge_again().await;
        page.wait("#trouble", "does not send what this page understands");
        assert!(page.title().starts_with("? Not connected"), "{}", page.title());
        page.answer_no_more();
    }
    for (status, content_type, expected) in [
        (404, "text/html", "Something answers that is not this bridge"),
        (502, "text/html", "answers with status 502"),
        (200, "text/html", "answers with status 200"),
    ] {
        page.open(stage.bridge.admin);
        page.answer(status, content_type, "<script>window.marked = 1</script>");
        stage.stop_bridge().await;
        stage.start_bridge_again().await;
        page.wait("#trouble", expected);
    }
    assert_eq!(page.marked(), json!(null));
}

#[tokio::test]
async fn a_full_house_is_explained() {
    let stage = Stage::start().await;
    let page = &stage.browser;
    let mut others: Vec<_> = (0..8).map(|_| stage.other_stream()).collect();
    page.open_as(stage.bridge.admin, SCREEN, Theme::Light);
    page.wait("#trouble", "event streams are open");
    page.wait("#trouble", "Close another tab");
    assert_eq!(page.axe(), [""; 0]);
    others.pop();
    page.live();
    page.wait_gone("#trouble", "event streams");
    page.has_no_faults();
}

#[tokio::test]
async fn large_events_are_shown() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    assert_eq!(stage.post(large_callback("large", 64_000)).await, 200);
    page.wait(LIVE, "large");
    page.gap();
    page.click(LIVE);
    page.wait("#live .path", "64,");
    assert!(page.text("#live pre").len() > 64_000);
    assert_eq!(stage.post(large_callback("too-large", 70_000)).await, 200);
    page.click("#live .held button");
    page.wait(LIVE, "too-large");
    page.click(LIVE);
    page.wait("#live .path", "not shown: it is larger than 64 KiB");
    assert!(page.gap() < GROSS);
    // Numbers have more digits than JavaScript can count with.
    let body = callback("digits").replace("\"42\"", "12345678901234567890.10");
    assert_eq!(stage.post(body.replace("Size", "Extra")).await, 200);
    page.click("#live .held button");
    page.wait(LIVE, "digits");
    page.click(LIVE);
    page.wait("#live pre", "12345678901234567890.10");
    for width in [PHONE, SCREEN] {
        page.open_as(stage.bridge.admin, width, Theme::Dark);
        page.live();
        stage.post(large_callback(&format!("at-{width}"), 60_000)).await;
        page.wait(LIVE, "at-");
        page.click(LIVE);
        page.wait("#live pre", "4444");
        assert!(page.overflow() <= 0);
        assert_eq!(page.axe(), [""; 0]);
    }
    page.has_no_faults();
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_lanes_are_shown() {
    let stage = Stage::start_with(|config: Config| {
        config
            .set(&format!("outputs.nats.servers = ['nats://127.0.0.1:{}']", free_port()))
            .routes([Route::new("each").to("nats", "media.{subject}")])
    })
    .await;
    let page = &stage.browser;
    let lanes = 5_000;
    let sender = Arc::new(Alibaba::new(stage.bridge.input));
    let next = |number: usize| {
        let body = callback(&format!("lane-{number:04}")).into();
        (number < lanes).then_some(sender::Callback { dialect: Dialect::Vod, body, is_twin: false })
    };
    let accepted = sender::send_all(sender.clone(), 1_000, next).await;
    assert!(accepted.iter().all(|accepted| *accepted));
    page.open(stage.bridge.admin);
    page.wait("#lanes-note", "5,000 topics with events in the spool");
    page.wait("#lanes-more", "and 4,900 more lanes");
    page.wait("#sentence", "Output nats is not connected yet; 5,000 events wait in the spool.");
    page.gap();
    assert_eq!(stage.post(large_callback("lane-0001", 60_000)).await, 200);
    page.wait(LIVE, "lane-0001");
    page.click(LIVE);
    page.wait("#live .path", "nats / media.lane-0001: spooled after");
    page.wait("#lanes-note", "5,000 topics");
    let gap = page.gap();
    println!("with 5,000 lanes, the longest pause of the page was {gap:?}");
    assert!(gap < GROSS, "the page did not react for {gap:?}");
    assert_eq!(page.axe(), [""; 0]);
    page.has_no_faults();
}

#[tokio::test]
async fn failures_are_there_before_anybody_looks() {
    let stage = Stage::start_with(|config| {
        config.routes([Route::new("some").when("type = 'FileUpload*'").to("nats", "media.{dialect}")])
    })
    .await;
    let page = &stage.browser;
    assert_eq!(stage.post_with_wrong_key(callback("forged")).await, 401);
    assert_eq!(stage.post_to("/callback", callback("x"), &signed_headers("VOD")).await.status.as_u16(), 404);
    assert_eq!(stage.post_to("/callbacks", callback("x"), &[]).await.status.as_u16(), 401);
    page.open(stage.bridge.admin);
    page.wait("#sentence", "Nothing is accepted: ");
    assert!(page.title().starts_with("✕ Nothing is accepted"), "{}", page.title());
    assert_eq!(stage.post("not JSON").await, 400);
    assert_eq!(stage.post(callback_of("TranscodeComplete", "success", "unrouted-1")).await, 200);
    page.open(stage.bridge.admin);
    for text in ["signature wrong", "no such path", "not signed", "not a callback", "unrouted-1"] {
        page.wait(FAILURES, text);
    }
    assert_eq!((page.count(FAILURES), page.count(LIVE)), (5, 0));
    // Under the input it says what to compare.
    page.wait("#inputs .rejections", "signature wrong");
    page.wait("#inputs .rejections", "1 time");
    page.wait("#inputs .rejections", "it matches no combination of the endpoint's `urls` and `keys`");
    page.wait("#inputs .rejections", "Compare keys with the key there");
    page.wait("#inputs .rejections", "on /callback");
    page.wait("#inputs .rejections", "The callback URL at Alibaba has a path that no endpoint has.");
    page.wait("#store", "unrouted 1");
    page.wait("#figures > div:nth-child(5)", "2");
    page.filter("unrouted-1");
    page.wait("#failures .held", "1 entry that matches");
    page.click(FAILURES);
    page.wait("#failures .path", "some: no, ");
    page.wait("#failures .path", "unrouted");
    page.filter("reason=signature_wrong");
    page.wait(FAILURES, "signature wrong");
    page.has_no_faults();
}

#[tokio::test]
async fn an_outage_is_seen_from_its_begin_to_its_end() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    stage.nats.kill();
    page.wait("#sentence", "Output nats has been unavailable since ");
    page.wait("#outputs", "unavailable");
    assert_eq!(stage.post(callback_of("FileUploadComplete", "success", "kept")).await, 200);
    page.wait(LIVE, "spooled");
    page.wait(FAILURES, "kept");
    page.wait("#sentence", "; 1 event waits in the spool.");
    page.wait("#lanes", "nats / media.vod");
    page.wait("#announcement", "Output nats has been unavailable");
    stage.nats.restart().await;
    page.wait(LIVE, "from spool");
    page.wait("#sentence", "Output nats is up");
    eventually("the spool to be empty", SOON, async || {
        (stage.bridge.metric("apsara_bridge_spool_events").await == 0.0).then_some(())
    })
    .await;
    page.wait("#sentence", "nothing waits");
    // The callback knows what became of it later.
    page.click(&format!("{FAILURES}:has-text('kept')"));
    page.wait("#failures .path", "nats / media.vod: spooled after");
    page.wait("#failures .path", "published to nats / media.vod from the spool");
    page.click("#live .row:has-text('spooled')");
    page.wait("#live .path", "published to nats / media.vod from the spool");
    page.has_no_faults();
}

/// The picture of the README.
#[tokio::test(flavor = "multi_thread")]
async fn a_picture_can_be_made() {
    let stage = Stage::open().await;
    let page = &stage.browser;
    let picture = std::env::var("PAGE_SCREENSHOT").ok().filter(|path| !path.is_empty());
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    let path = picture.as_ref().map_or(folder.path().join("page.png"), |path| repository(path));
    let bodies: Vec<String> = samples().into_iter().filter_map(|body| String::from_utf8(body).ok()).collect();
    // A picture of a few minutes of traffic looks like what one sees; a test needs none of it.
    let rounds = if picture.is_some() { 240 } else { 4 };
    for round in 0..rounds {
        for number in 0..2 + round % 5 {
            let id = format!(
                "{:032x}",
                (u128::from(round as u32) << 64 | number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060)
            );
            // Each one is another event, not a duplicate of the sample.
            let body =
                bodies[(round * 7 + number * 3) % bodies.len()].replacen('{', &format!("{{\"Extra\":\"{id}\","), 1);
            stage.post(body).await;
        }
        support::wait::let_pass(Duration::from_millis(500)).await;
    }
    page.wait("#rate-legend", "published");
    page.screenshot(&path, false);
    let bytes = std::fs::read(&path).expect("written");
    assert!(
        bytes.starts_with(b"\x89PNG") && bytes.len() < 300_000,
        "{} bytes in {}",
        bytes.len(),
        Path::display(&path)
    );
    page.has_no_faults();
}
