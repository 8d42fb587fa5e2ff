//! The HTTP output: events as receivers of other languages read them, the meaning of each answer, receivers that are
//! unavailable, TLS and secrets that change, and the way through a whole bridge.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apsara_bridge::common::validation::Validation;
use apsara_bridge::common::watch::Reread;
use apsara_bridge::event::{Attribute, Event, Mode};
use apsara_bridge::output::{ErrorKind, KINDS, Output, OutputConfig, OutputContext, PublishError, Record};
use apsara_bridge::telemetry::metrics::Metrics;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use crate::support::bridge::{TestBridge, callback};
use crate::support::certificates::Certificates;
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::judges::{self, Message, accepted};
use crate::support::program;
use crate::support::wait::SOON;

fn read(text: &str) -> Box<dyn OutputConfig> {
    let section = toml::from_str(text).expect("TOML");
    let kind = KINDS.iter().find(|kind| kind.name == "http").expect("a kind");
    (kind.read)(&section).expect("the form is right")
}

fn start_with_rereads(text: &str) -> (Arc<dyn Output>, Vec<Arc<dyn Reread>>) {
    let context = OutputContext { name: "webhook", deadline: Duration::from_secs(1) };
    let mut validation = Validation::of("");
    let settings = read(text).validate(context, &mut validation);
    let validated = validation.finish();
    let settings = settings.unwrap_or_else(|| panic!("{:?}", validated.errors));
    let secrets = validated.secrets.into_iter().map(|(_, secret)| secret as Arc<dyn Reread>);
    let rereads = secrets.chain(validated.rereads).collect();
    (settings.start(&Metrics::new().expect("a valid table")).expect("it starts"), rereads)
}

fn start(receiver: &Receiver, more: &str) -> Arc<dyn Output> {
    start_with_rereads(&format!("url = '{}'\n{more}", receiver.url())).0
}

async fn up(output: &Arc<dyn Output>) {
    tokio::time::timeout(SOON, output.health().wait_until_up()).await.expect("the output connects");
}

async fn down(output: &Arc<dyn Output>) {
    eventually("the output to be down", SOON, async || (!output.health().is_up()).then_some(())).await;
}

/// All that is hard to carry in a header.
const SUBJECT: &str = "Euro \u{20ac} \"\u{1f600}\" 100%, a\\b";

fn record(mode: Option<Mode>) -> Record {
    let mut event = Event::new(r#"{"size":1.0,"name":"é"}"#);
    for (attribute, value) in [
        (Attribute::Id, "1%20"),
        (Attribute::Source, "acs:vod"),
        (Attribute::Type, "com.aliyun.media.FileUploadComplete"),
        (Attribute::Subject, SUBJECT),
        (Attribute::Time, "2026-01-01T00:00:00Z"),
        (Attribute::PartitionKey, SUBJECT),
    ] {
        event.set(attribute, value);
    }
    Record { event: Arc::new(event), topic: "http".to_owned(), key: None, mode }
}

async fn publish_within(output: &Arc<dyn Output>, within: Duration) -> Result<(), PublishError> {
    output.publish(&record(None), Instant::now() + within).await
}

async fn publish(output: &Arc<dyn Output>) -> Result<(), PublishError> {
    publish_within(output, SOON).await
}

async fn published(output: &Arc<dyn Output>) {
    eventually("an event to be published", SOON, async || publish(output).await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn receivers_of_other_languages_read_both_modes() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "mode = 'binary'");
    up(&output).await;
    let modes = [(None, judges::Mode::Binary), (Some(Mode::Structured), judges::Mode::Structured)];
    for (mode, expected) in modes {
        output.publish(&record(mode), Instant::now() + SOON).await.expect("answered");
        let request = receiver.events().pop().expect("received");
        assert_eq!(request.target, "/events?tenant=a");
        let event = accepted(&Message::http(&request));
        assert_eq!(event.mode, expected);
        for (attribute, value) in record(mode).event.attributes() {
            assert_eq!(event.attribute(attribute.name()), Some(value));
        }
        assert_eq!(event.data, Some(json!({ "size": 1.0, "name": "é" })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_status_has_its_kind() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "");
    up(&output).await;
    for status in [200, 201, 202, 204, 206, 299] {
        receiver.answer(Reply::status(status));
        publish(&output).await.expect("success");
    }
    let table = [
        (ErrorKind::Rejected, vec![400, 422]),
        (ErrorKind::TooLarge, vec![413]),
        (ErrorKind::Unauthorized, vec![401, 403, 407]),
        (ErrorKind::NoSuchDestination, vec![404, 410]),
        (ErrorKind::Misconfigured, vec![301, 302, 303, 307, 308, 405, 415, 431]),
        (ErrorKind::TimedOut, vec![408]),
        (ErrorKind::Unavailable, vec![402, 409, 418, 425, 429, 499, 500, 501, 502, 503, 504, 507, 599]),
    ];
    for (kind, statuses) in table {
        for status in statuses {
            receiver.answer(Reply::status(status));
            let error = publish(&output).await.expect_err("no success");
            assert_eq!(error.kind, kind, "{status}: {error}");
            assert!(error.message.starts_with(&format!("the receiver answered {status}")), "{error}");
        }
    }
    // OPTIONS was answered all the time.
    assert!(output.health().is_up());
    // A redirect is not followed.
    let before = receiver.events().len();
    receiver.answer(Reply::Status(308, vec![("location", format!("{}&token=hunter2", receiver.url()))], ""));
    let error = publish(&output).await.expect_err("not followed");
    assert!(error.message.contains("which points to http://127.0.0.1:") && error.message.contains("/events ("));
    assert!(!error.message.contains("hunter2"), "{error}");
    assert_eq!(receiver.events().len(), before + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_asks_to_wait_gets_nothing_until_then() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "");
    up(&output).await;
    // A date has whole seconds: it is between one and two seconds away.
    let date = || httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(2));
    for (status, value) in [(429, (|| "1".to_owned()) as fn() -> String), (503, date)] {
        receiver.answer(Reply::retry_after(status, value()));
        let asked = Instant::now();
        assert_eq!(publish(&output).await.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
        receiver.answer(Reply::status(204));
        let received = receiver.events().len();
        let error = publish(&output).await.expect_err("it asked to wait");
        assert_eq!(error.kind, ErrorKind::Unavailable);
        let words = format!("the receiver answered {status}");
        assert!(error.message.starts_with(&words) && error.message.contains("asked to wait; the next request is in"));
        assert!(asked.elapsed() < Duration::from_secs(1), "at once");
        assert_eq!(receiver.events().len(), received);
        published(&output).await;
        assert!(asked.elapsed() > Duration::from_millis(900), "{:?}", asked.elapsed());
        assert!(output.health().is_up());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_is_gone_is_noticed_and_used_again() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "");
    up(&output).await;
    publish(&output).await.expect("answered");
    receiver.stop().await;
    let error = publish(&output).await.expect_err("nobody listens");
    assert_eq!(error.kind, ErrorKind::Unavailable);
    assert!(error.message.contains("Connection refused"), "{error}");
    down(&output).await;
    let error = publish(&output).await.expect_err("down");
    assert!(error.message.starts_with("not connected: ") && error.message.contains("Connection refused"), "{error}");
    receiver.restart().await;
    up(&output).await;
    publish(&output).await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_comes_up_when_its_receiver_does() {
    let receiver = Receiver::start().await;
    receiver.stop().await;
    let output = start(&receiver, "");
    let error = publish(&output).await.expect_err("not connected");
    assert!(error.kind == ErrorKind::Unavailable && error.message.starts_with("not connected: "), "{error}");
    receiver.restart().await;
    up(&output).await;
    // Asking was enough: nothing was posted.
    assert!(receiver.events().is_empty() && receiver.questions() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_without_a_receiver_is_down_and_a_receiver_that_refuses_some_events_is_not() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "");
    for status in [502, 503] {
        up(&output).await;
        receiver.answer(Reply::status(status));
        receiver.answer_questions(Reply::status(status));
        assert_eq!(publish(&output).await.map_err(|error| error.kind), Err(ErrorKind::Unavailable));
        down(&output).await;
        let error = publish(&output).await.expect_err("down");
        assert!(error.message.starts_with(&format!("not connected: the receiver answered {status}")), "{error}");
        receiver.answer_questions(Reply::status(404));
        receiver.answer(Reply::status(202));
        published(&output).await;
    }
    receiver.answer(Reply::status(503));
    let asked = receiver.questions();
    let _ = publish(&output).await;
    eventually("a question", SOON, async || (receiver.questions() > asked).then_some(())).await;
    assert!(output.health().is_up());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_is_kept_while_nothing_answers() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "max_in_flight = 2");
    up(&output).await;
    receiver.answer(Reply::Never);
    receiver.answer_questions(Reply::Never);
    let mut publishes = JoinSet::new();
    // The first two are sent; there is no room for the others.
    for (count, millis, kind) in [(2, 1000, ErrorKind::TimedOut), (4, 100, ErrorKind::QueueFull)] {
        for _ in 0..count {
            let output = output.clone();
            publishes.spawn(async move {
                let deadline = Instant::now() + Duration::from_millis(millis);
                let error = output.publish(&record(None), deadline).await.expect_err("no answer");
                assert_eq!(error.kind, kind, "{error}");
                deadline.elapsed()
            });
        }
        eventually("two requests", SOON, async || (receiver.events().len() == 2).then_some(())).await;
    }
    while let Some(late) = publishes.join_next().await {
        let late = late.expect("no panic");
        assert!(late < Duration::from_millis(200), "{late:?} late");
    }
    down(&output).await;
    receiver.answer(Reply::status(204));
    receiver.answer_questions(Reply::status(204));
    up(&output).await;
    publish(&output).await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_at_once_have_a_bound_and_share_connections() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "max_in_flight = 3");
    up(&output).await;
    receiver.answer(Reply::Late(204, Duration::from_millis(20)));
    let mut publishes = JoinSet::new();
    for _ in 0..60 {
        let output = output.clone();
        publishes.spawn(async move { publish(&output).await });
    }
    while let Some(done) = publishes.join_next().await {
        done.expect("no panic").expect("answered");
    }
    assert_eq!((receiver.events().len(), receiver.most_at_once()), (60, 3));
    // One more for each that was opened while another became free.
    assert!(receiver.connections() <= 8, "{}", receiver.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_under_a_request_costs_nothing() {
    let receiver = Receiver::start().await;
    let output = start(&receiver, "max_in_flight = 1");
    up(&output).await;
    receiver.answer(Reply::OncePerConnection);
    for _ in 0..5 {
        publish(&output).await.expect("sent once more");
    }
    assert_eq!(receiver.events().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_that_refuses_before_the_end_of_the_body_is_heard() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/", listener.local_addr().expect("bound"));
    let receiver = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut head = [0; 4096];
            let length = stream.read(&mut head).await.expect("readable");
            let status = if head[..length].starts_with(b"OPTIONS") { "204 No Content" } else { "413 Too Large" };
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.expect("writable");
            stream.shutdown().await.expect("open");
            // As servers do that close gently: what still arrives is read, and not used.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        }
    }));
    let output = start_with_rereads(&format!("url = '{url}'")).0;
    up(&output).await;
    let mut large = record(None);
    large.event = Arc::new(Event::new(format!("\"{}\"", "x".repeat(8 << 20))));
    let error = output.publish(&large, Instant::now() + SOON).await.expect_err("refused");
    assert_eq!(error.kind, ErrorKind::TooLarge, "{error}");
    drop(receiver);
}

#[tokio::test(flavor = "multi_thread")]
async fn changed_certificates_are_used_without_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first", "second"].map(|name| Certificates::make(&folder.path().join(name)));
    let files = ["ca.pem", "client.pem", "client.key"].map(|name| folder.path().join(name));
    let place = |certificates: &Certificates| {
        let sources = [&certificates.authority, &certificates.client, &certificates.client_key];
        for (source, file) in sources.iter().zip(&files) {
            std::fs::copy(source, file).expect("copied");
        }
    };
    place(&first);
    let receiver = Receiver::start_tls(&first).await;
    let [ca, cert, key] = files.each_ref().map(|file| file.display());
    let url = receiver.url();
    let (output, rereads) = start_with_rereads(&format!(
        "url = '{url}'\ntls = {{ ca_file = '{ca}', cert_file = '{cert}', key_file = '{key}' }}"
    ));
    up(&output).await;
    publish(&output).await.expect("answered");

    // Without a certificate of its own a client is refused, and one that does not know the authority refuses.
    let without = start_with_rereads(&format!("url = '{url}'\ntls = {{ ca_file = '{ca}' }}")).0;
    let stranger = start_with_rereads(&format!("url = '{url}'")).0;
    for (output, words) in [(&without, "CertificateRequired"), (&stranger, "invalid peer certificate")] {
        eventually(words, SOON, async || {
            publish(output).await.expect_err("not connected").message.contains(words).then_some(())
        })
        .await;
    }

    receiver.stop().await;
    receiver.restart_tls(&second).await;
    eventually("the new certificate to be refused", SOON, async || publish(&output).await.err()).await;
    // Files that do not fit together change nothing.
    std::fs::copy(&second.client, &files[1]).expect("copied");
    rereads.iter().for_each(|reread| {
        let error = reread.reread().expect_err("the key is the old one");
        assert!(error.to_string().contains("cannot be used together"), "{error}");
    });
    place(&second);
    rereads.iter().for_each(|reread| reread.reread().expect("readable"));
    up(&output).await;
    publish(&output).await.expect("answered");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_is_sent_with_the_next_request_and_never_shown() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "Bearer hunter1\n").expect("written");
    let receiver = Receiver::start().await;
    let (output, rereads) = start_with_rereads(&format!(
        "url = '{}'\nrequest_headers = {{ Authorization = {{ file = '{}' }}, x-tenant = 'a' }}",
        receiver.url(),
        file.display()
    ));
    up(&output).await;
    let change = |text: &str| {
        std::fs::write(&file, text).expect("written");
        rereads.iter().for_each(|reread| reread.reread().expect("readable"));
    };
    for value in ["Bearer hunter1", "Bearer hunter2"] {
        change(value);
        publish(&output).await.expect("answered");
        let request = receiver.events().pop().expect("received");
        assert_eq!((request.header("authorization"), request.header("x-tenant")), (Some(value), Some("a")));
        assert!(request.header("user-agent").is_some_and(|agent| agent.starts_with("apsara-bridge/")));
    }
    receiver.answer(Reply::Status(403, vec![("content-type", "text/plain".to_owned())], "hunter2 may not"));
    let error = publish(&output).await.expect_err("refused");
    assert!(error.message.starts_with("the receiver answered 403 Forbidden") && !error.message.contains("hunter2"));
    // A header cannot have this value. The last good one stays in use.
    std::fs::write(&file, "Bearer\u{7} hunter3").expect("written");
    let errors: Vec<String> =
        rereads.iter().filter_map(|reread| reread.reread().err()).map(|error| error.to_string()).collect();
    assert!(errors.len() == 1 && !errors[0].contains("hunter3"), "{errors:?}");
    publish(&output).await.expect_err("refused");
    assert_eq!(receiver.events().pop().expect("received").header("authorization"), Some("Bearer hunter2"));
    assert!(!format!("{output:?}").contains("hunter"), "{output:?}");
}

fn config(receiver: &Receiver, spool: &Path) -> Config {
    Config::http()
        .output("webhook", "http", &[""; 0])
        .set(&format!("outputs.webhook.url = '{}'", receiver.url()))
        .route(Route::new("all").set("to = { output = 'webhook' }"))
        .spool(spool)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_receiver_is_bridged_in_order() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let configuration = config(&receiver, folder.path()).set("outputs.webhook.max_in_flight = 1");
    let bridge = TestBridge::start_connected(&configuration).await;
    assert_eq!(bridge.post(callback("before")).await.status.as_u16(), 200);
    receiver.stop().await;
    for number in 0..20 {
        assert_eq!(bridge.post(callback(&format!("v{number:02}"))).await.status.as_u16(), 200);
    }
    bridge.disconnected().await;
    bridge.spooled(20.0).await;
    receiver.restart().await;
    bridge.spooled(0.0).await;
    let subjects: Vec<String> = receiver
        .events()
        .iter()
        .map(|request| accepted(&Message::http(request)).attribute("subject").expect("a subject").to_owned())
        .collect();
    let mut drained = subjects[1..].to_vec();
    drained.dedup();
    let expected: Vec<String> = (0..20).map(|number| format!("v{number:02}")).collect();
    assert_eq!((subjects[0].as_str(), drained), ("before", expected));
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_somebody_must_fix_is_reported_and_a_refused_event_is_a_dead_letter() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let bridge = TestBridge::start_connected(&config(&receiver, folder.path())).await;
    receiver.answer(Reply::Status(422, vec![("content-type", "text/plain".to_owned())], "no such field"));
    assert_eq!(bridge.post(callback("rejected")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_dead_letters_total{reason="rejected"}"#), 1.0);

    receiver.answer(Reply::status(404));
    assert_eq!(bridge.post(callback("lost")).await.status.as_u16(), 200);
    bridge.spooled(1.0).await;
    let status = || {
        let mut command = program::command(&["spool", "status", "--path"]);
        command.arg(folder.path());
        program::run(command).1
    };
    let words = "no_such_destination: the receiver answered 404 Not Found (check the path of `url`); create";
    eventually(words, SOON, async || status().contains(words).then_some(())).await;
    assert!(status().contains("webhook/http: 1 record"), "{}", status());
    receiver.answer(Reply::status(202));
    bridge.spooled(0.0).await;
    assert_eq!(bridge.stop().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_shows_what_is_sent_and_check_hides_the_headers() {
    let folder = tempfile::tempdir().expect("a folder");
    let receiver = Receiver::start().await;
    let configuration = config(&receiver, folder.path())
        .set("outputs.webhook = { mode = 'binary', request_headers = { x-key = 'hunter2' } }");
    let file = folder.path().join("bridge.toml");
    configuration.write(&file);
    let run = |command: &[&str]| {
        let mut command = program::command(command);
        command.arg("--config").arg(&file);
        program::run(command)
    };
    let (code, checked, _) = run(&["check"]);
    assert!(code == 0 && checked.contains("x-key = \"<hidden>\"") && !checked.contains("hunter2"), "{checked}");

    let sample = "src/dialect/samples/vod-ProduceMediaComplete-fail.json";
    let (code, explained, _) = run(&["explain", sample]);
    assert!(code == 0 && !explained.contains("hunter2") && !explained.contains("  topic"), "{explained}");
    let bridge = TestBridge::start_connected(&configuration).await;
    bridge.post(std::fs::read(sample).expect("a sample")).await;
    let request = receiver.events().pop().expect("received");
    let of_request = ["host", "content-length", "user-agent", "x-key"];
    for (name, value) in request.headers.iter().filter(|(name, _)| !of_request.contains(&name.as_str())) {
        // It is the time of receipt.
        let shown = if name == "ce-recordedtime" {
            format!("  header  {name}: ")
        } else {
            format!("  header  {name}: {value}\n")
        };
        assert!(explained.contains(&shown), "{shown} is not in\n{explained}");
    }
    assert_eq!(request.header("x-key"), Some("hunter2"));
    assert_eq!(bridge.stop().await, 0);
}

#[test]
fn wrong_settings_are_reported_without_secrets() {
    let errors = |text: &str| {
        let context = OutputContext { name: "webhook", deadline: Duration::from_secs(1) };
        let mut validation = Validation::of("");
        assert!(read(text).validate(context, &mut validation).is_none(), "{text}");
        validation.errors().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(
        errors("max_in_flight = 0"),
        [
            "url: missing; expected http:// or https://, for example https://events.example.com/",
            "max_in_flight: 0 is out of range: expected at least 1",
        ]
    );
    for wrong in ["events.example.com", "ftp://a/", "http://", "http://a:b/", "http://a:99999/", "http://a/#b", "/path"]
    {
        let [error] = &errors(&format!("url = '{wrong}?token=hunter2'"))[..] else { panic!("one error") };
        assert!(error.starts_with("url: invalid url `") && !error.contains("hunter2"), "{error}");
    }
    assert_eq!(
        errors("url = 'https://me:hunter2@events.example.com/'"),
        ["url: a login in a url would be shown in logs; set `request_headers.authorization` instead"]
    );
    let headers = "Content-Type = 'a'\nCE-Id = 'a'\nHost = 'a'\n'a b' = 'a'\nX-A = 'a'\nx-a = 'b'\nbad = \"hunter2\\n\"\n\
                   missing = { file = '/nonexistent/token' }";
    let reserved = "cannot be set here: the bridge sets it, or it belongs to the connection";
    assert_eq!(
        errors(&format!("url = 'http://a/'\n[request_headers]\n{headers}")),
        [
            format!("request_headers.CE-Id: {reserved}"),
            format!("request_headers.Content-Type: {reserved}"),
            format!("request_headers.Host: {reserved}"),
            "request_headers.a b: invalid name of a header: expected letters, digits and `-`".to_owned(),
            "request_headers.bad: the value contains characters that a header cannot have".to_owned(),
            "request_headers.missing: secret file /nonexistent/token cannot be read: No such file or directory (os error 2)"
                .to_owned(),
            "request_headers.x-a: the same header is set twice: upper and lower case do not differ".to_owned(),
        ]
    );
    assert_eq!(
        errors("url = 'http://a/'\ntls = {}"),
        ["tls: the url begins with http://, which has no TLS; leave it out or use https://"]
    );
    assert_eq!(
        errors("url = 'https://a/'\ntls = { ca_file = '/nonexistent/ca.pem', cert_file = 'Cargo.toml' }"),
        [
            "tls.ca_file: /nonexistent/ca.pem cannot be read: No such file or directory (os error 2)",
            "tls: `cert_file` and `key_file` must be set together",
        ]
    );
    assert_eq!(
        errors("url = 'https://a/'\ntls = { ca_file = 'Cargo.toml' }"),
        ["tls: Cargo.toml contains no certificate"]
    );
    for valid in ["http://a", "https://[::1]:8443/x/@me?y=z", "http://127.0.0.1:8081/"] {
        let mut validation = Validation::of("");
        let context = OutputContext { name: "webhook", deadline: Duration::from_secs(1) };
        assert!(read(&format!("url = '{valid}'")).validate(context, &mut validation).is_some(), "{valid}");
    }
}
