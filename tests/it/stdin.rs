//! Callbacks from standard input: what becomes of each line, where a run that was stopped continues, and that nothing
//! waits for a line that does not come.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use apsara_bridge::config::{self, Layer};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::bridge::{Client, KEY, URL, callback, signed_headers};
use crate::support::kafka::{Kafka, Received};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::process::Process;
use crate::support::{eventually, free_port};

const SOON: Duration = Duration::from_secs(60);

/// Stopping without anything in flight, on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(8);

const NO_SPOOL: &str = "[spool]\nenabled = false\n";

/// A configuration with one standard input named `backfill`, and the program run on it.
struct Backfill {
    folder: TempDir,
    admin: SocketAddr,
}

impl Backfill {
    /// `input` are keys of the input, `rest` everything else. Without a word about it, the spool is in the folder.
    fn new(input: &str, rest: &str) -> Backfill {
        let backfill = Backfill {
            folder: tempfile::tempdir().expect("a folder"),
            admin: SocketAddr::from(([127, 0, 0, 1], free_port())),
        };
        let spool = format!("[spool]\npath = '{}'\n", backfill.spool().display());
        let spool = if rest.contains("[spool]") { "" } else { &spool };
        let text = format!(
            "[inputs.backfill]\nkind = 'stdin'\n{input}\n{rest}\n{spool}[admin]\nlisten = '{}'\n",
            backfill.admin
        );
        std::fs::write(backfill.configuration(), text).expect("written");
        backfill
    }

    fn configuration(&self) -> PathBuf {
        self.folder.path().join("bridge.toml")
    }

    fn spool(&self) -> PathBuf {
        self.folder.path().join("spool")
    }

    /// Starts the program with a file or a pipe as its standard input.
    fn start(&self, input: &Path) -> Process {
        self.start_by(r#"exec "$0" serve --config "$1" <"$2""#, input)
    }

    fn start_by(&self, script: &str, input: &Path) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_apsara-bridge")]);
        command.arg(self.configuration()).arg(input);
        Process::start("the bridge", &command, &self.folder.path().join("log"), None)
    }

    /// Starts the program with these lines, as they are.
    fn start_with(&self, lines: impl AsRef<[u8]>) -> Process {
        let file = self.folder.path().join("lines");
        std::fs::write(&file, lines).expect("written");
        self.start(&file)
    }

    /// Starts the program with a pipe, which stays open as long as its end that is returned.
    fn start_with_pipe(&self) -> (Process, File) {
        let path = self.folder.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo runs").success());
        // Opened for both, so that it need not wait for the program.
        let pipe = File::options().read(true).write(true).open(&path).expect("a pipe");
        (self.start(&path), pipe)
    }

    /// Runs another command on the configuration; exit code, standard output and standard error.
    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_apsara-bridge"));
        let output = command.args(arguments).arg("--config").arg(self.configuration()).output().expect("it runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        (output.status.code().expect("a code"), text(output.stdout), text(output.stderr))
    }

    fn dead_letters(&self) -> Vec<Value> {
        let (code, out, error) = self.run(&["dead-letters", "list", "--json"]);
        assert_eq!(code, 0, "{error}");
        serde_json::from_str(&out).expect("a JSON array")
    }

    /// The value of one metric of the running program, 0 where it is not there.
    async fn metric(&self, name_and_labels: &str) -> f64 {
        let answer = Client::connect(self.admin).await.request("GET", "/metrics", "", &[]).await;
        let text = String::from_utf8(answer.body.to_vec()).expect("UTF-8");
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("apsara_bridge_{name_and_labels} ")));
        line.map_or(0.0, |value| value.parse().expect("a number"))
    }

    async fn metric_becomes(&self, name_and_labels: &str, value: f64) {
        let what = format!("{name_and_labels} {value}");
        eventually(&what, SOON, async || (self.metric(name_and_labels).await == value).then_some(())).await;
    }
}

/// Waits for the end. The tests' runtime has other threads.
fn ended(process: &Process) -> i32 {
    process.wait(SOON).unwrap_or_else(|| panic!("it still runs:\n{}", process.log_tail()))
}

fn assert_logs(process: &Process, text: &str) {
    assert!(process.log().contains(text), "{text:?} is not in:\n{}", process.log_tail());
}

fn to_kafka(brokers: &str, topic: &str) -> String {
    format!(
        "[outputs.kafka]\nkind = 'kafka'\nbrokers = ['{brokers}']\n\
         [[routes]]\nname = 'all'\nto = {{ output = 'kafka', topic = '{topic}' }}\n"
    )
}

fn to_nats(nats: &Nats, subject: &str) -> String {
    format!(
        "[outputs.nats]\nkind = 'nats'\nservers = ['{}']\n\
         [[routes]]\nname = 'all'\nto = {{ output = 'nats', topic = '{subject}' }}\n",
        nats.url()
    )
}

fn lines(range: std::ops::Range<u32>) -> String {
    range.map(|number| callback(&format!("line-{number}")) + "\n").collect()
}

fn subject(record: &Received) -> String {
    record.header("ce_subject").expect("a subject").to_owned()
}

async fn subjects(nats: &Nats, stream: &str, at_least: usize) -> Vec<String> {
    let messages = nats.messages(stream, at_least, SOON).await;
    let subject = |payload: &[u8]| serde_json::from_slice::<Value>(payload).expect("JSON")["subject"].clone();
    messages.iter().map(|message| subject(&message.payload).as_str().expect("a subject").to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn good_lines_are_published_and_bad_ones_become_dead_letters() {
    let kafka = Kafka::shared().await;
    kafka.create_topic("stdin.good", 1, &[]).await;
    let backfill = Backfill::new("max_line = '2KiB'", &to_kafka(kafka.brokers(), "stdin.good"));
    let ims: Value =
        serde_json::from_str(include_str!("../../src/dialect/samples/ims-FileUploadComplete.json")).expect("JSON");
    let padded = callback("cut") + &" ".repeat(5000) + "{}";
    let mut lines: Vec<u8> = Vec::new();
    for line in [
        format!("{}\n", callback("vod")).as_bytes(),
        b"\n \t\r\n",
        format!("{ims}\r\n").as_bytes(),
        b"no JSON\r\n",
        b"no \xFF UTF-8\n",
        // Its beginning is a callback: what is cut off must not be lost without a word.
        format!("{padded}\n").as_bytes(),
        b"{}\n",
        callback("last").as_bytes(),
    ] {
        lines.extend_from_slice(line);
    }
    let bridge = backfill.start_with(lines);
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    let records = kafka.consume("stdin.good", 3, SOON).await;
    let found: BTreeSet<String> = records.iter().map(subject).collect();
    let media = ims["MessageBody"]["MediaId"].as_str().expect("an id");
    assert_eq!((records.len(), found), (3, BTreeSet::from(["vod".to_owned(), "last".to_owned(), media.to_owned()])));

    assert_logs(
        &bridge,
        "input `backfill`: 4 of 7 lines are not callbacks, the first is line 5; all are kept as dead letters",
    );
    for number in [5, 6, 7, 8] {
        let is_about = |line: &&str| {
            line.contains("a line is kept as a dead letter") && line.contains(&format!("\"line\":{number}"))
        };
        let log = bridge.log();
        let told = log.lines().find(is_about).unwrap_or_else(|| panic!("line {number}:\n{log}"));
        let (reason, bytes) = if number == 7 { ("line_too_long", padded.len()) } else { ("not_a_callback", 0) };
        assert!(told.contains(reason) && (bytes == 0 || told.contains(&format!("\"bytes\":{bytes}"))), "{told}");
    }
    let letters = backfill.dead_letters();
    assert_eq!(letters.len(), 4);
    for letter in &letters {
        assert_eq!((&letter["reason"], &letter["input"]), (&"not_a_callback".into(), &"backfill".into()), "{letter}");
    }
    let too_long = letters.iter().find(|letter| letter["code"].as_str().expect("a code").contains("2048")).expect("it");
    let code = format!("the body has {} bytes; expected at most 2048; it was cut to its first 2048", padded.len());
    assert_eq!(too_long["code"], code);
    // The line end does not belong to the body.
    let shown = |id: &Value| backfill.run(&["dead-letters", "show", &id.to_string(), "--json"]).1;
    let bodies: Vec<String> = letters.iter().map(|letter| shown(&letter["id"])).collect();
    assert!(bodies.iter().any(|letter| letter.contains(r#""body": "no JSON""#)), "{bodies:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_spool_a_bad_line_is_reported_and_not_tried_again() {
    let nats = Nats::shared().await;
    nats.create_stream("STDIN_UNKEPT", &["stdin.unkept"]).await;
    let backfill = Backfill::new("dialects = 'vod'", &(to_nats(nats, "stdin.unkept") + NO_SPOOL));
    let ims = include_str!("../../src/dialect/samples/ims-FileUploadComplete.json").replace('\n', "");
    let bridge = backfill.start_with(format!("{}\n{ims}\n{}\n", callback("one"), callback("two")));
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    assert_logs(&bridge, "1 of 3 lines are not callbacks, the first is line 2; 1 of them are not kept as dead letters");
    assert_logs(&bridge, "a callback of dialect ims");
    assert_eq!(subjects(nats, "STDIN_UNKEPT", 2).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_lines_are_published_exactly_once_by_id() {
    const COUNT: u32 = 20_000;
    let kafka = Kafka::shared().await;
    kafka.create_topic("stdin.many", 1, &[]).await;
    let backfill = Backfill::new("", &to_kafka(kafka.brokers(), "stdin.many"));
    let start = Instant::now();
    let bridge = backfill.start_with(lines(0..COUNT));
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    println!("{:.0} lines per second", f64::from(COUNT) / start.elapsed().as_secs_f64());
    assert_logs(&bridge, "\"published\":20000");
    let records = kafka.consume("stdin.many", COUNT as usize, SOON).await;
    let ids: BTreeSet<String> =
        records.iter().map(|record| record.header("ce_id").expect("an id").to_owned()).collect();
    assert_eq!((records.len(), ids.len()), (COUNT as usize, COUNT as usize));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_line_at_a_time_keeps_the_order_of_the_lines() {
    let nats = Nats::shared().await;
    nats.create_stream("STDIN_ORDER", &["stdin.order"]).await;
    let backfill = Backfill::new("max_in_flight = 1", &to_nats(nats, "stdin.order"));
    let bridge = backfill.start_with(lines(0..200));
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    let expected: Vec<String> = (0..200).map(|number| format!("line-{number}")).collect();
    assert_eq!(subjects(nats, "STDIN_ORDER", 200).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_are_handed_over_in_their_order_while_the_bus_is_up() {
    let nats = Nats::shared().await;
    nats.create_stream("STDIN_PARALLEL", &["stdin.parallel"]).await;
    // A busy machine must not look like a bus that does not answer.
    let rest = to_nats(nats, "stdin.parallel") + "[delivery]\ndeadline = '2900ms'\n";
    let backfill = Backfill::new("", &rest);
    let (bridge, mut pipe) = backfill.start_with_pipe();
    bridge.wait_log("serving metrics and probes", SOON);
    // Lines that wait for the connection may overtake each other.
    pipe.write_all(lines(0..1).as_bytes()).expect("written");
    backfill.metric_becomes(r#"callbacks_total{input="backfill",outcome="published"}"#, 1.0).await;
    pipe.write_all(lines(1..1000).as_bytes()).expect("written");
    drop(pipe);
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    let expected: Vec<String> = (0..1000).map(|number| format!("line-{number}")).collect();
    assert_eq!(subjects(nats, "STDIN_PARALLEL", 1000).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_line_is_tried_again_until_the_bus_is_there() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("LATER", &["later"]).await;
    nats.kill();
    let input = "deadline = '300ms'\nmax_in_flight = 4";
    let delivery = "[delivery]\ndeadline = '300ms'\n";
    let backfill = Backfill::new(input, &(to_nats(&nats, "later") + delivery + NO_SPOOL));
    let bridge = backfill.start_with(lines(0..10));
    bridge.wait_log("lines are refused; they are tried again", SOON);
    assert!(backfill.metric(r#"callbacks_total{input="backfill",outcome="refused"}"#).await >= 1.0);
    nats.restart().await;
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    let found: BTreeSet<String> = subjects(&nats, "LATER", 10).await.into_iter().collect();
    assert_eq!(found.len(), 10, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_stopped_says_where_to_continue() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("STOPPED", &["stopped"]).await;
    let rest = to_nats(&nats, "stopped") + NO_SPOOL + "[shutdown]\ndrain = '500ms'\n";
    let backfill = Backfill::new("", &rest);
    let (bridge, mut pipe) = backfill.start_with_pipe();
    let published = r#"callbacks_total{input="backfill",outcome="published"}"#;
    bridge.wait_log("serving metrics and probes", SOON);
    pipe.write_all(lines(0..10).as_bytes()).expect("written");
    backfill.metric_becomes(published, 10.0).await;
    nats.kill();
    pipe.write_all(lines(10..13).as_bytes()).expect("written");
    backfill.metric_becomes("in_flight", 3.0).await;
    bridge.signal("TERM");
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    assert_logs(&bridge, "input `backfill`: stopped before the end: continue with line 11 (`tail -n +11`)");
    drop(pipe);
    nats.restart().await;
    let rest: String = lines(0..13).lines().skip(10).map(|line| format!("{line}\n")).collect();
    let bridge = backfill.start_with(rest);
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    let found: BTreeSet<String> = subjects(&nats, "STOPPED", 13).await.into_iter().collect();
    assert_eq!(found.len(), 13, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_no_line_that_does_not_come() {
    let nats = Nats::shared().await;
    nats.create_stream("STDIN_SILENT", &["stdin.silent"]).await;
    let backfill = Backfill::new("", &to_nats(nats, "stdin.silent"));
    let (bridge, mut pipe) = backfill.start_with_pipe();
    bridge.wait_log("accepting callbacks", SOON);
    pipe.write_all(format!("{}\nhalf a li", callback("one")).as_bytes()).expect("written");
    backfill.metric_becomes(r#"callbacks_total{input="backfill",outcome="published"}"#, 1.0).await;
    let start = Instant::now();
    bridge.signal("TERM");
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_logs(&bridge, "stopped before the end: continue with line 2 (`tail -n +2`)");
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_in_flight_are_bounded_and_the_bound_can_be_changed() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.kill();
    let backfill = Backfill::new("max_in_flight = 2\ndeadline = '10m'", &(to_nats(&nats, "bounded") + NO_SPOOL));
    let (bridge, mut pipe) = backfill.start_with_pipe();
    bridge.wait_log("serving metrics and probes", SOON);
    pipe.write_all(lines(0..20).as_bytes()).expect("written");
    backfill.metric_becomes("in_flight", 2.0).await;
    let text = std::fs::read_to_string(backfill.configuration()).expect("readable");
    std::fs::write(backfill.configuration(), text.replace("max_in_flight = 2", "max_in_flight = 5")).expect("written");
    bridge.signal("HUP");
    backfill.metric_becomes("in_flight", 5.0).await;
    // A second signal ends what waits for its bus.
    let start = Instant::now();
    bridge.signal("TERM");
    bridge.wait_log("accepting no more callbacks", SOON);
    bridge.signal("TERM");
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
    assert_logs(&bridge, "continue with line 1 (`tail -n +1`)");
    drop(pipe);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_spooled_stays_in_the_spool_when_the_input_ends() {
    let nats = Nats::start(NatsOptions::default()).await;
    nats.create_stream("SPOOLED", &["spooled"]).await;
    nats.kill();
    let delivery = "[delivery]\ndeadline = '200ms'\n";
    let backfill = Backfill::new("deadline = '200ms'", &(to_nats(&nats, "spooled") + delivery));
    let bridge = backfill.start_with(lines(0..5));
    assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
    assert_logs(&bridge, "\"spooled\":5");
    nats.restart().await;
    let (code, _, error) = backfill.run(&["spool", "drain", "--timeout", "60s"]);
    assert_eq!(code, 0, "{error}");
    let found: BTreeSet<String> = subjects(&nats, "SPOOLED", 5).await.into_iter().collect();
    assert_eq!(found.len(), 5, "{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_continues_with_its_other_inputs() {
    let nats = Nats::shared().await;
    nats.create_stream("STDIN_BESIDE", &["stdin.beside"]).await;
    let port = free_port();
    let http = format!(
        "[inputs.http]\nkind = 'http'\nlisten = '127.0.0.1:{port}'\n[[inputs.http.endpoints]]\nurls = ['{URL}']\n\
         keys = ['{KEY}']\n"
    );
    for (lines, code) in [(lines(0..3), 0), ("no callback\n".to_owned(), 1)] {
        let backfill = Backfill::new("", &(to_nats(nats, "stdin.beside") + &http));
        let bridge = backfill.start_with(&lines);
        bridge.wait_log("done with standard input", SOON);
        let input = SocketAddr::from(([127, 0, 0, 1], port));
        let body = callback(&format!("http-{code}"));
        let answer = Client::connect(input).await.post("/callbacks", body, &signed_headers("VOD")).await;
        assert_eq!((answer.status.as_u16(), bridge.exit_code()), (200, None), "{}", bridge.log_tail());
        bridge.signal("TERM");
        assert_eq!(ended(&bridge), code, "{}", bridge.log_tail());
        assert!(!bridge.log().contains("stopped before the end"), "{}", bridge.log_tail());
    }
    assert_eq!(subjects(nats, "STDIN_BESIDE", 5).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_or_closed_standard_input_ends_at_once() {
    let nats = Nats::shared().await;
    for script in [r#"exec "$0" serve --config "$1" </dev/null"#, r#"exec "$0" serve --config "$1" <&-"#] {
        let backfill = Backfill::new("", &to_nats(nats, "stdin.empty"));
        let start = Instant::now();
        let bridge = backfill.start_by(script, Path::new(""));
        assert_eq!(ended(&bridge), 0, "{}", bridge.log_tail());
        assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        assert_logs(&bridge, "\"lines\":0");
    }
    // A folder cannot be read.
    let backfill = Backfill::new("", &to_nats(nats, "stdin.empty"));
    let bridge = backfill.start(backfill.folder.path());
    assert_eq!(ended(&bridge), 1, "{}", bridge.log_tail());
    assert_logs(&bridge, "standard input cannot be read: Is a directory (os error 21): continue with line 1");
}

#[test]
fn mistakes_in_the_configuration_are_reported() {
    let text = "
        [inputs.a]
        kind = 'stdin'
        max_line = '0B'
        max_in_flight = 0
        deadline = '10ms'
        [inputs.b]
        kind = 'stdin'
        [outputs.console]
        kind = 'console'
        [[routes]]
        name = 'all'
        to = { output = 'console' }
    ";
    let errors = config::load(&[Layer::Text("bridge.toml".to_owned(), text.to_owned())]).expect_err("must be refused");
    let mut told: Vec<String> = errors.iter().map(|error| format!("{}: {}", error.key, error.message)).collect();
    told.sort();
    assert_eq!(
        told,
        [
            "inputs.a.deadline: 10ms is shorter than delivery.deadline",
            "inputs.a.max_in_flight: 0 is out of range: expected at least 1",
            "inputs.a.max_line: expected more than 0B",
            "inputs.b.kind: input `a` reads standard input already; it can be read only once",
        ]
    );
}
