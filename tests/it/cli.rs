//! The program as a user runs it: commands, exit codes, standard output and standard error.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::bridge::{Client, KEY, URL, callback};
use crate::support::config::Config;
use crate::support::kafka::mock;
use crate::support::nats::{
    Auth, Nats, NatsOptions, PASSWORD as NATS_PASSWORD, TOKEN as NATS_TOKEN, USER as NATS_USER,
};
use crate::support::process::Process;
use crate::support::program::{self, Program, command, ended};
use crate::support::wait::SOON;
use crate::support::{blocking, eventually, free_port, tool};

fn program(arguments: &[&str]) -> Command {
    let mut command = command(arguments);
    command.current_dir(env!("CARGO_MANIFEST_DIR")).env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    command
}

fn run(arguments: &[&str]) -> (i32, String, String) {
    program::run(program(arguments))
}

fn run_with_input(arguments: &[&str], input: &[u8]) -> (i32, String, String) {
    with_input(program(arguments), input)
}

fn with_input(mut command: Command, input: &[u8]) -> (i32, String, String) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program runs");
    child.stdin.take().expect("piped").write_all(input).expect("written");
    ended(child.wait_with_output().expect("the program ends"))
}

#[test]
fn help_shows_examples() {
    let (_, help, _) = run(&["--help"]);
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).expect("a list");
    let name =
        |line: &str| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()).map(str::to_owned);
    let commands: Vec<String> = listed.lines().filter_map(name).filter(|name| name != "help").collect();
    assert!(commands.len() >= 11, "{commands:?}");
    for command in &commands {
        let (code, out, _) = run(&[command, "--help"]);
        assert!(code == 0 && out.contains("Examples:") && out.contains(&format!("apsara-bridge {command}")), "{out}");
        assert!(!out.contains('\u{1b}'), "no colours in a pipe");
    }
    let (code, _, error) = run(&["serv"]);
    assert!(code == 2 && error.contains("serve"), "{error}");
    assert_eq!(run(&[]).0, 2);
}

#[test]
fn normalize_prints_one_envelope_per_line() {
    let sample = "src/dialect/samples/vod-TranscodeComplete.json";
    let (code, out, error) = run(&["normalize", sample, sample]);
    assert_eq!((code, out.lines().count(), error.as_str()), (0, 2, ""));
    let first: serde_json::Value = serde_json::from_str(out.lines().next().expect("a line")).expect("JSON");
    assert_eq!(first["type"], "com.aliyun.media.TranscodeComplete");
    let (code, pretty, _) = run(&["normalize", "--pretty", sample]);
    assert!(code == 0 && pretty.lines().count() > 30);

    let several = format!("\u{feff}{}\n{} {{\"a\":1}} {}", callback("a"), callback("b"), callback("c"));
    let (code, out, error) = run_with_input(&["normalize", "-"], several.as_bytes());
    assert_eq!((code, out.lines().count()), (1, 3));
    assert_eq!(error, "standard input, callback 3: neither a VOD nor an IMS callback: `EventType` is missing\n");
    let (code, _, error) = run_with_input(&["normalize"], b"not json");
    assert!(code == 1 && error.contains("not valid JSON"), "{error}");
    let broken = format!("{}\n{{\"a\":1,}}\n{}\n", callback("a"), callback("c"));
    let (code, out, error) = run_with_input(&["normalize"], broken.as_bytes());
    assert_eq!((code, out.lines().count()), (1, 2), "the lines after a broken one are read");
    assert!(error.starts_with("standard input, callback 2: not valid JSON"), "{error}");
    assert_eq!(run_with_input(&["normalize"], b"").2, "standard input: contains no callback\n");
    let (code, _, error) = run(&["normalize", "no-such-file"]);
    assert!(code == 1 && error.starts_with("no-such-file: cannot be read"), "{error}");
    let (_, out, _) = run(&["normalize", sample, "--set", "event.type_prefix=org.example."]);
    assert!(out.contains(r#""type":"org.example.TranscodeComplete""#), "{out}");
}

const EXPLAINED: &str = "
[inputs.http]
kind = 'http'
[[inputs.http.endpoints]]
region = 'cn-shanghai'
account_id = '42'
[outputs.kafka]
kind = 'kafka'
[outputs.nats]
kind = 'nats'
mode = 'binary'
[[routes]]
name = 'failures'
match = { status = ['failure', 'partial'] }
to = { output = 'kafka', topic = 'media.failed' }
continue = true
[[routes]]
name = 'transcodes'
match = { type = '*Transcode*' }
to = { output = 'kafka', topic = 'media.transcode' }
[[routes]]
name = 'rest'
to = { output = 'nats', topic = 'media.{status}' }
[[routes]]
name = 'never'
drop = true
";

#[test]
fn explain_shows_the_final_topic_key_and_headers() {
    let mut file = tempfile::NamedTempFile::with_suffix(".toml").expect("a file");
    file.write_all(EXPLAINED.as_bytes()).expect("written");
    let path = file.path().to_str().expect("UTF-8");
    let sample = "src/dialect/samples/vod-ProduceMediaComplete-fail.json";
    let (code, out, error) = run(&["explain", sample, "--config", path]);
    assert_eq!((code, error.as_str()), (0, ""));
    for expected in [
        "Dialect  vod\n",
        "Status   failure\n",
        "\"source\": \"acs:vod:cn-shanghai:42\"",
        "  failures    yes, and continues\n",
        "  transcodes  no: type is com.aliyun.media.ProduceMediaComplete, not *Transcode*\n",
        "  rest        yes\n",
        "  never       not tried: `rest` matches and does not continue\n",
        "Record by route `failures`:\n  output  kafka (kafka)\n  topic   media.failed\n  key     1234343b689*****a5422dfe1e472a41\n",
        "header  content-type: application/cloudevents+json; charset=UTF-8",
        "  topic   media.failure\n",
        "header  ce-subject: 1234343b689*****a5422dfe1e472a41",
        "header  Nats-Msg-Id: acs:vod:cn-shanghai:42|",
    ] {
        assert!(out.contains(expected), "{expected}\nis not in\n{out}");
    }
    let (code, _, error) = run_with_input(&["explain", "--config", path], b"{}");
    assert!(code == 1 && error.contains("`EventType` is missing"), "{error}");
    let (code, out, _) = run(&["explain", sample]);
    assert!(code == 0 && out.contains("set one with --config"), "{out}");

    let (code, out, error) = run(&["check", "--config", path]);
    assert!(code == 0 && out.contains("[outputs.nats]") && error.contains("route `never` can never match"), "{error}");
    assert!(error.ends_with("the configuration is valid\n"));
    let (code, _, error) = run(&["check", "--config", path, "--set", "delivery.deadlin=1s", "--set", "log.format=xml"]);
    assert_eq!(code, 2);
    assert!(error.contains("--set: delivery.deadlin: unknown key; did you mean `deadline`?\n"), "{error}");
    assert!(error.contains("--set: log.format: unknown value `xml`; expected one of auto, text, json"), "{error}");
    let (code, _, error) = run(&["serve", "--config", "no-such-file"]);
    assert!(code == 2 && error.starts_with("no-such-file: cannot be read"), "{error}");
}

/// Flags and variables override files, so whoever depends on a value asks for it.
#[test]
fn check_holds_a_configuration_against_expectations() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("bridge.toml");
    Config::http()
        .kafka("127.0.0.1:1")
        .to("kafka", "all")
        .set("shutdown = { delay = '0s', drain = '20s' }")
        .write(&file);
    let path = file.to_str().expect("UTF-8");
    let check =
        |more: &[&str]| run(&[&["check", "--config", path, "--set", "admin.listen=127.0.0.1:9464"], more].concat());
    let met = ["--expect", "admin.listen=127.0.0.1:9464", "--expect", "spool.enabled=false", "--max-stop", "32s"];
    let (code, _, error) = check(&met);
    assert_eq!(code, 0, "{error}");
    let unmet = ["--set", "spool.enabled=true", "--set", "shutdown.drain=2m", "--expect", "no.such=key"];
    let (code, out, error) = check(&[&met[..], &unmet].concat());
    assert_eq!((code, out.as_str()), (2, ""), "{error}");
    for sentence in [
        "spool.enabled: found `true`; expected `false`, by --expect\n",
        "no.such: missing; expected `key`, by --expect\n",
        "shutdown: stopping may take 2m 12s (shutdown.delay, shutdown.drain and a reserve); expected at most 32s, by \
         --max-stop\n",
    ] {
        assert!(error.contains(sentence), "{sentence}\nis not in\n{error}");
    }
    let (code, _, error) = check(&["--expect", "admin.listen"]);
    assert!(code == 2 && error.contains("expected section.key=value"), "{error}");
}

/// What a sender writes into a callback cannot control the terminal of a person who looks at it.
#[test]
fn what_a_terminal_would_obey_is_escaped() {
    let evil = "\u{1b}]0;x\u{7}\u{9b}31m\u{7f}\u{202e}\u{2066}\u{200b}\u{e0041}";
    let hidden = ['\u{202e}', '\u{2066}', '\u{200b}', '\u{e0041}'];
    let is_clean = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n' || hidden.contains(&c));
    let body = callback("evil").replace("\"evil\"", &serde_json::to_string(evil).expect("JSON"));
    for arguments in [&["normalize"][..], &["normalize", "--pretty"], &["explain"]] {
        let (code, out, error) = run_with_input(arguments, body.as_bytes());
        assert!(code == 0 && is_clean(&out) && is_clean(&error), "{out:?} {error:?}");
        assert!(out.contains("\\u001b]0;x\\u0007\\u009b31m\\u007f\\u202e\\u2066\\u200b\\udb40\\udc41"), "{out:?}");
        if arguments[0] == "normalize" {
            let event: serde_json::Value = serde_json::from_str(&out).expect("JSON");
            assert_eq!(event["data"]["mediaId"], evil, "the meaning stays");
        }
    }
    let twice = "{\"EventType\":\"X\",\"EventTime\":\"2026-01-01T00:00:00Z\",\"\u{202e}\":1,\"\u{202e}\":2}";
    for command in ["normalize", "explain"] {
        let (code, out, error) = run_with_input(&[command], twice.as_bytes());
        assert!(
            code == 1 && out.is_empty() && is_clean(&error) && error.contains("key `\\u{202e}` occurs"),
            "{error:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_needs_no_certificates_of_authorities() {
    let without_authorities = |arguments: &[&str]| {
        let mut command = program(arguments);
        command.env("SSL_CERT_FILE", "/nonexistent/file").env("SSL_CERT_DIR", "/nonexistent/folder");
        program::run(command)
    };
    let port = free_port();
    let (code, _, error) = without_authorities(&["send", &format!("http://127.0.0.1:{port}/callbacks")]);
    assert!(code == 1 && error.contains("onnection refused"), "{error}");
    let (code, _, error) = without_authorities(&["health", "--set", &format!("admin.listen=127.0.0.1:{port}")]);
    assert!(code == 1 && error.contains("onnection refused"), "{error}");
    let (code, _, error) = without_authorities(&["send", &format!("https://127.0.0.1:{port}/callbacks")]);
    assert!(code == 1 && error.contains("no certificates of authorities to trust"), "{error}");
}

#[test]
fn the_schema_of_the_configuration_is_printed() {
    let (code, out, error) = run(&["config-schema"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(out == crate::support::repository_text("config/apsara-bridge.schema.json"), "not the committed schema");
}

#[test]
fn the_schema_of_an_event_is_printed() {
    let (code, out, error) = run(&["schema", "TranscodeComplete", "--dialect", "vod"]);
    assert_eq!((code, error.as_str()), (0, ""));
    assert!(
        out == crate::support::repository_text("docs/schemas/vod/TranscodeComplete.json"),
        "not the committed schema"
    );
    let (code, out, _) = run(&["schema"]);
    assert!(code == 0 && out == crate::support::repository_text("docs/schemas/event.json"), "not the committed schema");
    let (code, out, _) = run(&["schema", "TranscodeComplete", "--set", "event.type_prefix=org.example."]);
    assert!(code == 0 && out.contains(r#""const": "org.example.TranscodeComplete""#), "{out}");
    let (code, _, error) = run(&["schema", "TranscodComplete"]);
    assert!(code == 1 && error.contains("did you mean TranscodeComplete?"), "{error}");
    let (code, out, _) = run(&["schema", "com.aliyun.media.TranscodeComplete", "--dialect", "vod"]);
    assert!(code == 0 && out.contains("urn:apsara-bridge:schema:vod:TranscodeComplete:1"), "{out}");
    let (code, _, error) = run(&["schema", "Snapshot"]);
    assert!(code == 1 && error.contains("did you mean LiveSnapshotFileCreated or SnapshotComplete?"), "{error}");
    let (code, _, error) = run(&["schema", "RegisterMediaComplete", "--dialect", "vod"]);
    assert!(code == 1 && error.contains("vod has no event type RegisterMediaComplete; ims has it"), "{error}");
    let (code, _, error) = run(&["schema", "TranscodeComplete", "--dialect", "mps"]);
    assert!(code == 2 && error.contains("[possible values: vod, ims]"), "{error}");
}

#[test]
fn the_catalogue_is_listed() {
    let (code, out, _) = run(&["catalogue"]);
    assert_eq!((code, out.lines().count()), (0, 53));
    let (code, out, _) = run(&["catalogue", "TranscodeComplete"]);
    assert!(code == 0 && out.contains("vod TranscodeComplete") && out.contains("ims TranscodeComplete"), "{out}");
    assert!(out.contains("together with the status of its parts"), "{out}");
    assert!(out.contains("data.streamInfos[].duration") && out.contains("seconds"), "fields at every depth: {out}");
    let (code, out, _) = run(&["catalogue", "TranscodeComplete", "--dialect", "ims"]);
    assert!(code == 0 && !out.contains("vod TranscodeComplete"), "{out}");
    let (code, out, _) = run(&["catalogue", "--json"]);
    let events: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, events.len()), (0, 53));
    let snapshot = &events.iter().find(|event| event["type"] == "SnapshotComplete" && event["dialect"] == "ims");
    let fields = snapshot.expect("known")["fields"].as_array().expect("fields");
    let time = fields.iter().find(|field| field["path"] == "templateConfig.time").expect("a nested field");
    assert_eq!((&time["unit"], &time["sent_unit"]), (&json!("seconds"), &json!("milliseconds")));
    assert_eq!(time["origin"], "MessageBody.TemplateConfig.Time");
    assert_eq!(snapshot.expect("known")["dataschema"], "urn:apsara-bridge:schema:ims:SnapshotComplete:1");
    let (code, _, error) = run(&["catalogue", "TranscodeComplet"]);
    assert!(code == 1 && error.contains("did you mean TranscodeComplete?"), "{error}");
}

#[test]
fn the_demo_shows_that_every_sample_arrives() {
    let (code, out, error) = run(&["demo", "--once"]);
    assert_eq!(code, 0, "{error}");
    let samples = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/src/dialect/samples"));
    // Two pairs of samples have the same content, and the bridge publishes one of each pair.
    let count = samples.expect("the samples").count() - 2;
    assert!(out.contains(&format!("{count} of {count} callbacks arrived")), "{out}");
    assert!(!out.contains("MISSING"), "{out}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_publishes_to_a_nats_server_and_leaves_nothing_there() {
    let nats = Nats::start(NatsOptions { auth: Auth::UserPassword, ..NatsOptions::default() }).await;
    let url = nats.url().replace("nats://", &format!("nats://{NATS_USER}:{}@", NATS_PASSWORD.replace(' ', "%20")));
    let demo = program(&["demo", "--once", "--nats", &url]);
    let (code, out, error) = blocking(move || program::run(demo)).await;
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("callbacks arrived on apsara-bridge-demo-") && out.contains("sequence 1 "), "{out}");
    assert!(!out.contains("MISSING"), "{out}");
    assert_eq!(streams(&nats).await, Vec::<String>::new());
    let closed = format!("nats://u:hunter2@127.0.0.1:{}", free_port());
    let (code, _, error) = run(&["demo", "--once", "--nats", &closed]);
    assert!(code == 1 && error.contains("onnection refused") && !error.contains("hunter2"), "{error}");
    let (code, _, error) = run(&["demo", "--once", "--nats", "u:hunter2@ho st"]);
    assert!(code == 2 && error.contains("expected nats://host:port") && !error.contains("hunter2"), "{error}");
}

async fn streams(nats: &Nats) -> Vec<String> {
    use futures_util::TryStreamExt as _;
    nats.jetstream().await.stream_names().try_collect().await.expect("the names")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_on_nats_tidies_up_after_a_signal_and_without_a_reader() {
    let nats = Nats::start(NatsOptions { auth: Auth::Token, ..NatsOptions::default() }).await;
    let url = nats.url().replace("nats://", &format!("nats://{NATS_TOKEN}@"));
    let demo = || program(&["demo", "--nats", &url]);
    let folder = tempfile::tempdir().expect("a folder");
    let start = |name: &str| Process::start(name, &demo(), &folder.path().join(name), None);
    // Two demos on one server do not meet.
    let (first, second) = (start("first"), start("second"));
    for process in [&first, &second] {
        process.wait_log("Ctrl-C stops it", SOON);
        let log = process.log();
        assert!(log.contains("64 of 64") || !log.contains("MISSING"), "{log}");
        let reader = format!("nats --server {} subscribe 'apsara-bridge-demo-", nats.url().replace("//", "//LOGIN@"));
        assert!(log.contains(&reader) && !log.contains(NATS_TOKEN), "{log}");
        assert!(log.contains("apsara-bridge tail --admin 127.0.0.1:"), "{log}");
    }
    assert_eq!(streams(&nats).await.len(), 2);
    for (process, signal) in [(&first, "TERM"), (&second, "INT")] {
        process.signal(signal);
        assert_eq!(process.wait(SOON), Some(0), "{}", process.log());
        let log = process.log();
        let end = log.rsplit("Ctrl-C stops it").next().unwrap_or_default();
        assert!(!end.contains("WARN") && !end.contains("ERROR"), "{log}");
    }
    // A reader that has gone, as `head` does.
    let mut unread = demo();
    unread.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let code = blocking(move || {
        let mut process = unread.spawn().expect("started");
        drop(process.stdout.take());
        process.wait().expect("ended").code()
    });
    assert_eq!(code.await, Some(0));
    assert_eq!(streams(&nats).await, Vec::<String>::new());

    let config = async_nats::jetstream::stream::Config {
        name: "MINE".to_owned(),
        subjects: vec!["*.vod".to_owned()],
        // A server requires it, because the first token can be that of its own API.
        no_ack: true,
        ..Default::default()
    };
    nats.jetstream().await.create_stream(config).await.expect("a stream");
    let (code, _, error) = run(&["demo", "--once", "--nats", &url]);
    assert!(code == 1 && error.contains("because the stream MINE of this server accepts the subjects"), "{error}");
    assert_eq!(streams(&nats).await, ["MINE"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_demo_that_is_stopped_early_says_so_in_one_sentence() {
    let folder = tempfile::tempdir().expect("a folder");
    let process = Process::start("the demo", &program(&["demo"]), &folder.path().join("demo.log"), None);
    process.wait_log("Posting ", SOON);
    process.signal("INT");
    assert_eq!(process.wait(SOON), Some(130), "{}", process.log());
    let log = process.log();
    let after: Vec<&str> = log.lines().filter(|line| !line.is_empty() && !line.starts_with("Posting ")).collect();
    assert_eq!(after, ["apsara-bridge: stopped before all callbacks had arrived"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_posts_a_trickle_while_it_stays_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let process = Process::start("the demo", &program(&["demo"]), &folder.path().join("demo.log"), None);
    process.wait_log("Ctrl-C stops it", SOON);
    let log = process.log();
    let admin = log.split("curl http://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
    let admin: std::net::SocketAddr = admin.parse().expect("an address");
    let published = r#"apsara_bridge_callbacks_total{input="http",outcome="published"}"#;
    let count = async || {
        let answer = Client::connect(admin).await.request("GET", "/metrics", "", &[]).await;
        crate::support::bridge::metric(std::str::from_utf8(&answer.body).expect("text"), published)
    };
    let samples = count().await;
    assert!(log.contains(&format!("http://{admin}/   (the page")), "{log}");
    let page = Client::connect(admin).await.request("GET", "/", "", &[]).await;
    assert_eq!(page.status.as_u16(), 403, "for a host that is not this machine");
    eventually("two more", SOON, async || (count().await >= samples + 2.0).then_some(())).await;
    process.signal("INT");
    assert_eq!(process.wait(SOON), Some(0), "{}", process.log());
    assert!(!process.log().contains("answered with"), "all were accepted: {}", process.log());
}

/// A bridge whose key is in the environment.
fn serve(folder: &Path, brokers: &str, change: &str) -> Program {
    let config = Config::http()
        .keys("[{ env = 'CALLBACK_KEY' }]")
        .kafka(brokers)
        .to("kafka", "served")
        .spool(folder.join("spool"))
        .set(change);
    Program::launch(None, folder, config, |command| {
        command.env("CALLBACK_KEY", KEY);
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_runs_until_sigterm() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["served"]);
    let bridge = serve(folder.path(), &cluster.bootstrap_servers(), "");
    bridge.process().wait_log("output is connected", SOON);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);

    let metrics = Client::connect(bridge.admin).await.request("GET", "/metrics", "", &[]).await;
    let mut check = Command::new(tool("promtool", "promtool"));
    check.args(["check", "metrics"]);
    let (code, out, error) = with_input(check, &metrics.body);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "", ""), "promtool has no complaints");

    let file = bridge.configuration_file();
    let path = file.to_str().expect("UTF-8");
    // A callback as Alibaba sends it, and the request of a container's health check.
    let target = format!("http://{}/callbacks", bridge.input);
    let metrics_url = format!("http://{}/metrics", bridge.admin);
    let with_key = |arguments: &[&str], key: &str| {
        let mut command = program(arguments);
        command.env("CALLBACK_KEY", key);
        program::run(command)
    };
    let send = ["send", &target, "--url", URL, "--key-env", "CALLBACK_KEY", "--metrics", &metrics_url];
    let (code, out, error) = with_key(&send, KEY);
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(out, "answered with 200, and counted: 1 before, 2 after\n");
    let fixture = concat!(env!("CARGO_MANIFEST_DIR"), "/src/dialect/samples/ims-FileUploadComplete.json");
    let send = ["send", &target, fixture, "--url", URL, "--key-env", "CALLBACK_KEY"];
    let (code, out, _) = with_key(&send, KEY);
    assert_eq!((code, out.as_str()), (0, "answered with 200\n"));
    let (code, _, error) = with_key(&send, "AnotherKey1");
    assert!(code == 1 && error.contains("answered with 401") && error.contains("signature-wrong"), "{error}");
    for (arguments, expected) in [(&[][..], "ok\n"), (&["--ready"][..], "ready\n")] {
        let (code, out, _) = run(&[&["health", "--config", path], arguments].concat());
        assert_eq!((code, out.as_str()), (0, expected));
    }
    let elsewhere = format!("admin.listen=127.0.0.1:{}", free_port());
    let (code, _, error) = run(&["health", "--set", &elsewhere]);
    assert!(code == 1 && error.contains("/healthz: "), "{error}");

    // A second service can use neither the spool nor the port, and names the key.
    let (code, _, error) = with_key(&["serve", "--config", path], KEY);
    assert_eq!(code, 1);
    let owner = format!("belongs to another bridge that is running (process {})", bridge.process().id());
    assert!(error.contains("spool.path: ") && error.contains(&owner), "{error}");
    let (code, _, error) = with_key(&["serve", "--config", path, "--set", "spool.enabled=false"], KEY);
    assert_eq!(code, 1);
    assert!(error.contains("cannot be bound: Address already in use"), "{error}");

    let log = bridge.process().log();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().expect("a line")).expect("a line of JSON");
    assert_eq!(line["level"], "INFO");
    assert!(!log.contains(KEY));
    bridge.stop();
    assert!(!bridge.process().log().contains("output is down"), "{}", bridge.process().log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_it_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let cluster = mock(&["served"]);
    let bridge = serve(folder.path(), &cluster.bootstrap_servers(), "shutdown.delay = '1h'");
    let process = bridge.process();
    process.wait_log("accepting callbacks", SOON);
    process.signal("INT");
    process.wait_log("not ready any more", SOON);
    process.signal("INT");
    assert_eq!(process.wait(SOON), Some(0));
}
