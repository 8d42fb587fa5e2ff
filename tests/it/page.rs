//! The page on the admin port, and the state of the bridge that it shows.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use apsara_bridge::bridge::feed::MAX_LISTENERS;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::bridge::{
    Client, TestBridge, callback, headers_signed_at, large_callback, now, raw, signed_headers,
};
use crate::support::config::{Config, Route};
use crate::support::free_port;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::program::Program;
use crate::support::wait::{ANSWER, SOON};
use crate::support::{blocking, eventually};
use crate::tail::{Reader, refused};

/// What asks for the state.
const STATE: &str = "?state=true";

/// The promise: the state comes once a second.
const EACH: Duration = Duration::from_secs(1);

/// The promise: so many failures, and so many rejections, are kept.
const KEPT: usize = 100;

fn dropping() -> Config {
    Config::http().output("console", "console", &[""; 0]).route(Route::new("all").set("drop = true"))
}

/// The head and the body of the page.
async fn page(admin: SocketAddr, method: &str) -> (String, String) {
    let request = format!("{method} / HTTP/1.1\r\nhost: localhost:9464\r\nconnection: close\r\n\r\n");
    let answer = tokio::time::timeout(ANSWER, raw(admin, &request)).await.expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// The value of a header.
fn header<'h>(head: &'h str, name: &str) -> &'h str {
    let line = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_else(|| panic!("no {name} in {head}"))
}

/// The text between the tags of an element that is there once.
fn inside<'d>(document: &'d str, element: &str) -> &'d str {
    let (open, close) = (format!("<{element}"), format!("</{element}>"));
    assert_eq!((document.matches(&open).count(), document.matches(&close).count()), (1, 1), "{element}");
    let from = &document[document.find(&open).expect("it is there")..];
    let from = &from[from.find('>').expect("a tag") + 1..];
    &from[..from.find(&close).expect("it is closed")]
}

/// The first state of a stream, and the entries up to the next state.
async fn look(admin: SocketAddr, query: &str) -> (Value, Vec<Value>) {
    let mut reader = Reader::open(admin, query).await;
    let state = reader.next().await.expect("an entry");
    assert_eq!((&state["kind"], &state["whole"]), (&json!("state"), &json!(true)), "{state}");
    let mut entries = Vec::new();
    loop {
        let entry = reader.next().await.expect("an entry");
        if entry["kind"] == "state" {
            return (state, entries);
        }
        entries.push(entry);
    }
}

/// The next state.
async fn next_state(reader: &mut Reader) -> Value {
    loop {
        let entry = reader.next().await.expect("an entry");
        if entry["kind"] == "state" {
            return entry;
        }
    }
}

/// Waits for a state that meets a condition.
pub async fn state_with(admin: SocketAddr, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let mut reader = Reader::open(admin, STATE).await;
    let found = async {
        loop {
            let state = next_state(&mut reader).await;
            if fits(&state) {
                return state;
            }
        }
    };
    tokio::time::timeout(SOON, found).await.unwrap_or_else(|_| panic!("no state with {what}"))
}

#[tokio::test]
async fn the_page_is_one_document_whose_policy_allows_only_its_own_script() {
    let bridge = TestBridge::start(&dropping()).await;
    let (head, document) = page(bridge.admin, "GET").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(header(&head, name), value);
    }
    let policy: Vec<&str> = header(&head, "content-security-policy").split("; ").collect();
    let hash = |element: &str| STANDARD.encode(Sha256::digest(inside(&document, element)));
    for directive in [
        "default-src 'none'".to_owned(),
        format!("script-src 'sha256-{}'", hash("script")),
        format!("style-src 'sha256-{}'", hash("style")),
        "connect-src 'self'".to_owned(),
        "base-uri 'none'".to_owned(),
        "form-action 'none'".to_owned(),
        "frame-ancestors 'none'".to_owned(),
    ] {
        assert!(policy.contains(&directive.as_str()), "{directive} in {policy:?}");
    }
    assert!(!policy.iter().any(|directive| directive.contains("unsafe")), "{policy:?}");
    assert!(document.contains(env!("CARGO_PKG_VERSION")) && !document.contains("{{"), "every place is filled");
    let (without_script, _) = document.split_once("<script").expect("a script");
    for foreign in [" src=", "href=\"http", "href=\"/", "@import", "url(http"] {
        assert!(!without_script.contains(foreign), "{foreign}");
    }

    let (only_head, nothing) = page(bridge.admin, "HEAD").await;
    assert_eq!(nothing, "");
    assert_eq!(header(&only_head, "content-security-policy"), header(&head, "content-security-policy"));
    assert_eq!(header(&only_head, "content-length"), document.len().to_string());
    bridge.stop().await;
}

#[tokio::test]
async fn the_page_answers_those_who_may_read_the_stream() {
    let bridge = TestBridge::start(&dropping()).await;
    for (headers, why) in [
        ("host: evil.example\r\n", "`host` header"),
        ("host: localhost\r\nx-forwarded-for: 10.0.0.1\r\n", "through a proxy"),
        ("host: localhost\r\nsec-fetch-site: cross-site\r\n", "other web sites"),
        ("host: localhost\r\norigin: http://evil.example\r\n", "other web sites"),
    ] {
        for path in ["/", "/?x", "/events?state=true"] {
            let (status, text) = refused(bridge.admin, &format!("GET {path} HTTP/1.1\r\n{headers}")).await;
            assert!(status == 403 && text.contains(why), "{path} {headers}: {status} {text}");
        }
    }
    for (request, expected) in [
        ("GET /index.html", 404),
        ("GET //", 404),
        ("GET /page", 404),
        ("POST /", 405),
        ("GET /events?state=yes", 400),
        ("GET /events?state=true&colour=red", 400),
    ] {
        let (status, text) = refused(bridge.admin, &format!("{request} HTTP/1.1\r\nhost: localhost\r\n")).await;
        assert_eq!(status, expected, "{request}: {text}");
    }
    bridge.stop().await;

    let bridge = TestBridge::start(&dropping().set("admin.page = 'off'")).await;
    for path in ["/", "/events?state=true"] {
        let (status, text) = refused(bridge.admin, &format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n")).await;
        assert!(status == 403 && text.contains("admin.page is \"off\""), "{status} {text}");
    }
    bridge.stop().await;

    let bridge = TestBridge::start(&dropping().set("admin.page = 'all'")).await;
    let answer = Client::connect(bridge.admin).await.request("GET", "/", "", &[]).await;
    assert_eq!(answer.status.as_u16(), 200, "with any host");
    bridge.stop().await;
}

#[tokio::test]
async fn the_state_counts_against_the_streams() {
    let bridge = TestBridge::start(&dropping()).await;
    let mut readers = Vec::new();
    for number in 0..MAX_LISTENERS {
        readers.push(Reader::open(bridge.admin, if number % 2 == 0 { STATE } else { "" }).await);
    }
    let (status, _) = refused(bridge.admin, "GET /events?state=true HTTP/1.1\r\nhost: localhost\r\n").await;
    assert_eq!(status, 503);
    assert_eq!(page(bridge.admin, "GET").await.0.lines().next(), Some("HTTP/1.1 200 OK"), "the page itself comes");
    bridge.stop().await;
}

#[tokio::test]
async fn the_state_says_what_came_in_and_where_it_goes() {
    let receiver = Receiver::start().await;
    let bridge = TestBridge::start_connected(
        &Config::http()
            .http_output("web", &receiver.url())
            .route(
                Route::new("failures")
                    .when("status = ['failure', 'partial'], type = 'Transcode*'")
                    .set("filter = { not = { exact = { subject = 'a' } } }\ncontinue = true\nto = { output = 'web' }"),
            )
            .route(Route::new("noise").when("status = 'progress'").set("drop = true"))
            .route(Route::new("bad").when("status = 'canceled'").set("dead_letter = true"))
            .route(Route::new("rest").set("to = { output = 'web' }")),
    )
    .await;
    let mut reader = Reader::open(bridge.admin, STATE).await;
    let first = next_state(&mut reader).await;
    assert_eq!((&first["whole"], &first["ready"], &first["readiness"]), (&json!(true), &json!(true), &json!("ready")));
    assert_eq!((&first["version"], &first["more_routes"]), (&json!(env!("CARGO_PKG_VERSION")), &json!(0)));
    assert_eq!((first.get("spool"), &first["lanes"]), (None, &json!([])));
    let definitions: Vec<&Value> =
        first["routes"].as_array().expect("routes").iter().map(|route| &route["definition"]).collect();
    assert_eq!(definitions[0]["match"], json!(["status = failure or partial", "type = com.aliyun.media.Transcode*"]));
    assert_eq!(
        (&definitions[0]["filter"], &definitions[0]["action"], &definitions[0]["continues"]),
        (&json!("not (subject = \"a\")"), &json!("publish"), &json!(true))
    );
    assert_eq!(definitions[0]["destinations"][0]["output"], "web");
    assert_eq!(
        (&definitions[1]["action"], &definitions[2]["action"], &definitions[3]["match"]),
        (&json!("drop"), &json!("dead_letter"), &json!([]))
    );
    assert_eq!(
        (&first["outputs"][0]["name"], &first["outputs"][0]["output_kind"], &first["outputs"][0]["state"]),
        (&json!("web"), &json!("http"), &json!("up"))
    );
    let input = &first["inputs"][0];
    assert_eq!(
        (&input["name"], &input["input_kind"], &input["state"], &input["places"]),
        (&json!("http"), &json!("http"), &json!("accepting"), &json!(["/callbacks"]))
    );
    assert!(input["origin"].as_str().expect("a text").contains(&bridge.input.port().to_string()), "{input}");
    assert_eq!((input.get("last_event"), &input["rejections"]), (None, &json!([])));

    bridge.post(callback("m1")).await;
    bridge.post(callback("m1")).await;
    let stale = headers_signed_at("VOD", "https://other.example/", now(), "WrongKey1");
    for _ in 0..2 {
        bridge.post_with(callback("m2"), &stale).await;
    }
    Client::connect(bridge.input).await.request("POST", "/callback?key=hunter2", "", &signed_headers("VOD")).await;
    bridge.post("no JSON").await;
    let state = state_with(bridge.admin, "everything", |state| state["totals"]["rejected"] == 4).await;
    let outcomes = &state["totals"]["outcomes"];
    assert_eq!(
        (&outcomes["published"], &outcomes["duplicate"], &outcomes["not_accepted"]),
        (&json!(1), &json!(1), &json!(4))
    );
    assert_eq!(
        (&state["routes"][3]["matched"], &state["routes"][3]["recent"], &state["routes"][0]["matched"]),
        (&json!(1), &json!(1), &json!(0))
    );
    assert_eq!(state["outputs"][0]["published"], 1);
    let input = &state["inputs"][0];
    assert!(input["last_event"].is_string(), "{input}");
    assert_eq!(&input["outcomes"], outcomes);
    let rejections = input["rejections"].as_array().expect("a list");
    let of = |reason: &str| {
        rejections.iter().find(|rejection| rejection["reason"] == reason).unwrap_or_else(|| panic!("{input}"))
    };
    let wrong = of("signature_wrong");
    assert_eq!((&wrong["count"], &wrong["path"]), (&json!(2), &json!("/callbacks")));
    assert!(wrong["message"].as_str().expect("a text").contains("`urls` and `keys`"), "{wrong}");
    assert_eq!((&of("no_such_path")["count"], &of("no_such_path")["path"]), (&json!(1), &json!("/callback")));
    assert_eq!(of("not_a_callback")["count"], 1);
    assert!(!state.to_string().contains("hunter2") && !state.to_string().contains("TestKey123"), "{state}");

    let later = next_state(&mut reader).await;
    assert_eq!((&later["whole"], later["routes"][0].get("definition")), (&json!(false), None));
    let start = Instant::now();
    next_state(&mut reader).await;
    assert!(start.elapsed() < EACH + ANSWER);
    bridge.stop().await;
}

#[tokio::test]
async fn the_state_says_what_stands_still_and_why() {
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::http()
        .spool(folder.path())
        .http_output("web", &receiver.url())
        .route(Route::new("all").set("to = { output = 'web' }"));
    let bridge = TestBridge::start_connected(&config).await;
    receiver.answer(Reply::status(404));
    bridge.post(callback("m1")).await;
    // The parts of a state are not of one moment.
    let is_failing =
        |state: &Value| state["lanes"][0]["state"] == "failing" && state["outputs"][0]["lanes_failing"] == 1;
    let state = state_with(bridge.admin, "a lane that fails", is_failing).await;
    let lane = &state["lanes"][0];
    assert_eq!((&lane["output"], &lane["backlog"]), (&json!("web"), &json!(1)));
    assert!(lane["bytes"].as_u64().expect("a number") > 0 && lane["oldest_seconds"].is_number(), "{lane}");
    assert!(lane["error"]["message"].as_str().expect("a text").contains("404"), "{lane}");
    assert!(lane["error"]["attempts"].as_u64().expect("a number") >= 1 && lane["error"]["since"].is_string());
    let output = &state["outputs"][0];
    assert_eq!((&output["backlog"], &output["lanes_failing"]), (&json!(1), &json!(1)));
    assert_eq!(output["last_error"]["error"], lane["error"]["error"], "{output}");
    assert_eq!((&state["spool"]["events"], &state["spool"]["state"]), (&json!(1), &json!("ok")));

    receiver.stop().await;
    bridge.post(callback("m2")).await;
    let is_down = |state: &Value| state["outputs"][0]["state"] == "down" && state["spool"]["events"] == 2;
    let state = state_with(bridge.admin, "an output that is down", is_down).await;
    let output = &state["outputs"][0];
    assert!(output["down"]["message"].is_string() && output["down"]["since"].is_string(), "{output}");
    assert_eq!(state["readiness"], "ready; spooling for outputs not connected: web");
    let started = state["started"].clone();
    bridge.stop().await;

    // What was counted is gone with the process. What is on the disk is not.
    let bridge = TestBridge::start(&config).await;
    let (state, past) = look(bridge.admin, STATE).await;
    assert!(state["started"] != started && past.is_empty());
    let output = &state["outputs"][0];
    assert_eq!((&output["state"], &output["backlog"]), (&json!("connecting"), &json!(2)), "{output}");
    let lane = &state["lanes"][0];
    assert_eq!((&lane["backlog"], &state["spool"]["events"]), (&json!(2), &json!(2)));
    assert!(lane["oldest_seconds"].as_f64().expect("a number") > 0.0, "{lane}");

    receiver.answer(Reply::status(202));
    receiver.restart().await;
    let is_empty = |state: &Value| state["spool"]["events"] == 0 && state["outputs"][0]["state"] == "up";
    let state = state_with(bridge.admin, "an empty spool", is_empty).await;
    assert_eq!((&state["lanes"], state["outputs"][0].get("down")), (&json!([]), None));
    bridge.stop().await;
}

#[tokio::test]
async fn the_state_says_that_the_spool_is_full() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::http()
        .spool(folder.path())
        .kafka(&format!("127.0.0.1:{}", free_port()))
        .to("kafka", "full")
        .set("spool.max_bytes = '20KiB'");
    let bridge = TestBridge::start(&config).await;
    let mut refused = 0;
    for number in 0..20 {
        let answer = bridge.post(large_callback(&number.to_string(), 3000)).await;
        refused += u64::from(answer.status.as_u16() == 503);
    }
    assert!(refused > 0, "20 of 3 KB do not fit");
    let (state, past) = look(bridge.admin, STATE).await;
    let spool = &state["spool"];
    assert_eq!((&spool["state"], &spool["max_bytes"]), (&json!("full"), &json!(20 << 10)));
    assert!(spool["bytes"].as_u64() <= spool["max_bytes"].as_u64(), "{spool}");
    assert_eq!((&spool["failures"]["spool_full"], &state["ready"]), (&json!(refused), &json!(false)), "{spool}");
    let of_refused: Vec<&Value> = past.iter().filter(|entry| entry["outcome"] == "refused").collect();
    assert_eq!(of_refused.len() as u64, refused);
    assert_eq!(of_refused[0]["destinations"][0]["result"], "refused");
    assert!(of_refused[0]["reason"].as_str().expect("a text").contains("the spool is full"), "{}", of_refused[0]);
    bridge.stop().await;
}

#[tokio::test]
async fn failures_and_rejections_are_kept_while_nobody_looks() {
    let receiver = Receiver::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let config = Config::http()
        .spool(folder.path())
        .http_output("web", &receiver.url())
        .route(Route::new("videos").when("subject = 'm*'").set("to = { output = 'web' }"))
        .set("admin.show_payloads = true");
    let bridge = TestBridge::start_connected(&config).await;
    bridge.post(callback("m-published")).await;
    bridge.post(callback("unrouted")).await;
    bridge.post_with(callback("m"), &headers_signed_at("VOD", "https://other.example/", now(), "Key1")).await;
    receiver.stop().await;
    let mut client = Client::connect(bridge.input).await;
    let headers = signed_headers("VOD");
    for number in 0..KEPT + 20 {
        client.post("/callbacks", callback(&format!("m{number}")), &headers).await;
        client.post("/elsewhere", "", &headers).await;
    }
    let (state, past) = look(bridge.admin, STATE).await;
    let count = |name: &str| state["past"][name].as_u64().expect("a number") as usize;
    assert_eq!((count("failures"), count("rejections"), count("left_out")), (KEPT, KEPT, 0));
    assert_eq!(past.len(), 2 * KEPT);
    assert!(past.iter().all(|entry| entry["past"] == true && entry.get("payload").is_none()));
    let events: Vec<&Value> = past.iter().filter(|entry| entry["kind"] == "callback").collect();
    let rejections: Vec<&Value> = past.iter().filter(|entry| entry["kind"] == "rejection").collect();
    assert_eq!((events.len(), rejections.len()), (KEPT, KEPT));
    // What is rare is not pushed out by what is frequent.
    let letter = events[0];
    assert_eq!((&letter["reason"], &letter["attributes"]["subject"]), (&json!("unrouted"), &json!("unrouted")));
    assert_eq!(letter["routes"][0]["why"], "subject is unrouted, not m*");
    assert_eq!(rejections[0]["reason"], "signature_wrong");
    assert_eq!(rejections[1]["reason"], "no_such_path");
    let last = events[KEPT - 1];
    assert_eq!(
        (&last["outcome"], &last["attributes"]["subject"], &last["routes"]),
        (&json!("spooled"), &json!(format!("m{}", KEPT + 19)), &json!([{ "name": "videos", "matched": true }]))
    );
    assert_eq!(
        (&last["destinations"][0]["result"], &last["destinations"][0]["route"], last["destinations"][0].get("took_ms")),
        (&json!("spooled"), &json!("videos"), None),
        "{last}"
    );
    assert_eq!(last["destinations"][0]["error"], "unavailable");
    assert_eq!(
        (&state["dead_letters"]["events"], &state["dead_letters"]["reasons"]["unrouted"]),
        (&json!(1), &json!(1))
    );
    assert!(state["dead_letters"]["newest"].is_string(), "{}", state["dead_letters"]);

    let (_, filtered) = look(bridge.admin, "?subject=unrouted&state=true").await;
    let kinds = |entries: &[Value], kind: &str| entries.iter().filter(|entry| entry["kind"] == kind).count();
    assert_eq!((kinds(&filtered, "callback"), kinds(&filtered, "rejection")), (1, KEPT));
    let mut tail = Reader::open(bridge.admin, "").await;
    client.post("/elsewhere", "", &headers).await;
    let entry = tail.next().await.expect("an entry");
    assert_eq!((&entry["kind"], entry.get("past")), (&json!("rejection"), None), "only the page gets the past");
    bridge.stop().await;

    // A restart begins anew. When the newest dead letter came is on the disk.
    let bridge = TestBridge::start(&config).await;
    let (after, past) = look(bridge.admin, STATE).await;
    assert_eq!((past.len(), &after["past"]["failures"], &after["totals"]["rejected"]), (0, &json!(0), &json!(0)));
    assert_eq!(after["dead_letters"]["newest"], state["dead_letters"]["newest"]);
    bridge.stop().await;
}

#[tokio::test]
async fn an_event_is_shown_within_a_second_and_once() {
    let bridge = TestBridge::start(&dropping()).await;
    let mut reader = Reader::open(bridge.admin, STATE).await;
    next_state(&mut reader).await;
    let start = Instant::now();
    bridge.post(callback("m1")).await;
    let mut shown = 0;
    let mut states = 0;
    while states < 2 {
        let entry = reader.next().await.expect("an entry");
        if entry["kind"] == "state" {
            states += 1;
            continue;
        }
        shown += 1;
        assert_eq!((&entry["attributes"]["subject"], entry.get("past")), (&json!("m1"), None));
        assert!(start.elapsed() < EACH + ANSWER);
    }
    assert_eq!(shown, 1);
    bridge.stop().await;
}

#[tokio::test]
async fn thousands_of_lanes_and_routes_leave_the_state_small() {
    const LANES: usize = 300;
    const ROUTES: usize = 1200;
    let folder = tempfile::tempdir().expect("a folder");
    let mut config = Config::http()
        .spool(folder.path())
        .kafka(&format!("127.0.0.1:{}", free_port()))
        .route(Route::new("all").to("kafka", "media.{subject}"));
    for number in 0..ROUTES {
        config = config.route(Route::new(&format!("route{number}")).when("status = 'x'").set("drop = true"));
    }
    let bridge = TestBridge::start(&config).await;
    let mut client = Client::connect(bridge.input).await;
    let headers = signed_headers("VOD");
    for number in 0..LANES {
        let answer = client.post("/callbacks", callback(&format!("m{number}")), &headers).await;
        assert_eq!(answer.status.as_u16(), 200);
    }
    // One topic has more than the others.
    client.post("/callbacks", callback("m7").replace("42", "43"), &headers).await;
    bridge.spooled(LANES as f64 + 1.0).await;
    let (state, _) = look(bridge.admin, STATE).await;
    let lanes = state["lanes"].as_array().expect("a list");
    assert_eq!((lanes.len(), &state["more_lanes"]), (100, &json!(LANES - 100)));
    assert_eq!((&lanes[0]["topic"], &lanes[0]["backlog"]), (&json!("media.m7"), &json!(2)));
    assert_eq!(state["outputs"][0]["lanes_waiting"], LANES);
    assert_eq!(
        (state["routes"].as_array().map(Vec::len), &state["more_routes"]),
        (Some(1000), &json!(ROUTES + 1 - 1000))
    );
    assert!(state.to_string().len() < 512 << 10, "{}", state.to_string().len());
    bridge.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_what_the_page_shows() {
    let folder = tempfile::tempdir().expect("a folder");
    let (path, config) = (folder.path().to_owned(), dropping());
    let bridge = blocking(move || Program::start(&path, config)).await;
    bridge.process().wait_log(&format!("http://{}/", bridge.admin), SOON);
    let mut reader = Reader::open(bridge.admin, STATE).await;
    let state = next_state(&mut reader).await;
    assert_eq!((&state["routes"][0]["name"], &state["inputs"][0]["places"]), (&json!("all"), &json!(["/callbacks"])));
    let changed = bridge.configuration().routes([
        Route::new("new").when("status = 'failure'").set("drop = true"),
        Route::new("all").set("drop = true"),
    ]);
    let changed = changed.to_string().replace("\"/callbacks\"", "\"/elsewhere\"");
    bridge.reload(&changed);
    // The stream gets a whole state again, or ends.
    let state = loop {
        match reader.next().await {
            Some(entry) if entry["kind"] == "state" && entry["whole"] == true => break entry,
            Some(entry) if entry["kind"] == "state" => assert_eq!(entry["routes"][0]["name"], "all", "{entry}"),
            Some(_) => {}
            None => reader = Reader::open(bridge.admin, STATE).await,
        }
    };
    assert_eq!((&state["routes"][0]["name"], &state["routes"][1]["name"]), (&json!("new"), &json!("all")));
    assert_eq!(state["routes"][0]["definition"]["match"], json!(["status = failure"]));
    let is_elsewhere = |state: &Value| state["inputs"][0]["places"] == json!(["/elsewhere"]);
    state_with(bridge.admin, "the new path", is_elsewhere).await;

    let off = bridge.configuration().set("admin.page = 'off'").to_string();
    bridge.reload(&off);
    eventually("the page to be off", SOON, async || {
        let (status, _) = refused(bridge.admin, "GET / HTTP/1.1\r\nhost: localhost\r\n").await;
        (status == 403).then_some(())
    })
    .await;
    blocking(move || bridge.stop()).await;
}

#[tokio::test]
async fn the_history_has_a_step_every_ten_seconds() {
    let bridge = TestBridge::start(&dropping()).await;
    let mut reader = Reader::open(bridge.admin, STATE).await;
    let first = next_state(&mut reader).await;
    assert_eq!(first["history"], json!({ "step_seconds": 10, "steps": [] }));
    for number in 0..3 {
        bridge.post(callback(&number.to_string())).await;
    }
    bridge.post_with(callback("a"), &[]).await;
    let found = async {
        loop {
            let state = next_state(&mut reader).await;
            if let Some(step) = state["history"]["steps"].get(0) {
                return step.clone();
            }
        }
    };
    let step = tokio::time::timeout(SOON, found).await.expect("a step");
    assert_eq!((&step["dropped"], &step["not_accepted"], &step["rejected"]), (&json!(3), &json!(1), &json!(1)));
    assert!((step["seconds"].as_f64().expect("a number") - 10.0).abs() < 5.0, "{step}");
    let [p50, p99] = ["p50_ms", "p99_ms"].map(|name| step[name].as_f64().expect("a number"));
    assert!(0.0 < p50 && p50 <= p99, "{step}");
    // It comes once, and whoever comes later gets it too.
    assert_eq!(next_state(&mut reader).await["history"]["steps"], json!([]));
    let (later, _) = look(bridge.admin, STATE).await;
    assert_eq!(later["history"]["steps"][0], step);
    bridge.stop().await;
}
