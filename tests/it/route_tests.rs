//! `apsara-bridge test`: tests of the routes in a configuration and in files of their own.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use apsara_bridge::config::{self, Layer};
use serde_json::Value;

use crate::support::program::{self, command, ended};
use crate::support::{repository, repository_text};

/// Files in a temporary folder.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(files: &[(&str, &str)]) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder"));
        files.iter().for_each(|(name, text)| folder.write(name, text));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        std::fs::write(path, text).expect("written");
    }

    /// Runs `test` in the folder, with `bridge.toml` and further arguments.
    fn test(&self, arguments: &[&str]) -> (i32, String, String) {
        self.run(&[&["test", "--config", "bridge.toml"], arguments].concat())
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut command = command(arguments);
        command.current_dir(self.0.path()).stdin(Stdio::null());
        program::run(command)
    }

    /// What is wrong with the tests in a file, on one line each.
    fn errors(&self, name: &str, tests: &str) -> String {
        self.write(name, tests);
        let (code, out, error) = self.test(&["--tests", name]);
        assert_eq!((code, out.as_str()), (2, ""), "{tests}\n{error}");
        error
    }
}

/// Routes of every kind, outputs of every kind, and secrets that are not set.
const ROUTES: &str = r#"
[inputs.http]
kind = "http"
listen = "0.0.0.0:8080"
tls = { cert_file = "/nonexistent.pem", key_file = "/nonexistent.key" }
[[inputs.http.endpoints]]
path = "/vod"
urls = ["https://media.example.com/vod"]
keys = [{ env = "APSARA_TEST_UNSET" }]
dialects = ["vod"]
[[inputs.http.endpoints]]
path = "/ims"
dialects = ["ims"]
region = "cn-shanghai"
account_id = "42"

[outputs.kafka]
kind = "kafka"
brokers = ["kafka.example.com:9092"]
client = { "sasl.password" = { file = "/nonexistent" } }
[outputs.nats]
kind = "nats"
servers = ["nats://nats.example.com"]
token = { env = "APSARA_TEST_UNSET" }
[outputs.webhook]
kind = "http"
url = "https://events.example.com/"
[outputs.console]
kind = "console"

[[routes]]
name = "audit"
match = { status = ["failure", "unknown"] }
to = { output = "kafka", topic = "media.audit" }
continue = true
[[routes]]
name = "strange"
match = { status = "unknown" }
dead_letter = true
[[routes]]
name = "progress"
filter = { exact = { status = "progress" } }
drop = true
[[routes]]
name = "ims"
match = { source = "acs:ims:*" }
to = [{ output = "nats", topic = "media/ims.{status}" }, { output = "webhook" }, { output = "console" }]
[[routes]]
name = "vod"
match = { dialect = "vod", type = "*Complete" }
to = [{ output = "kafka", topic = "media.vod", key = "{jobid}" }, { output = "kafka", topic = "media.{type}" }]
"#;

const FAILED: &str =
    r#"{ "EventType": "TranscodeComplete", "EventTime": "2026-01-01T00:00:00Z", "Status": "fail", "VideoId": "v1" }"#;

fn bridge() -> Folder {
    Folder::new(&[("bridge.toml", ROUTES)])
}

#[test]
fn the_configurations_of_the_repository_pass_their_tests() {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(repository("config/examples")).unwrap().map(|file| file.unwrap().path()).collect();
    files.push(repository("config/apsara-bridge.toml"));
    assert!(files.len() > 5);
    let samples: Vec<Value> = std::fs::read_dir(repository("src/dialect/samples"))
        .unwrap()
        .map(|file| serde_json::from_slice(&std::fs::read(file.unwrap().path()).unwrap()).unwrap())
        .collect();
    let elsewhere = Folder::new(&[]);
    for file in files {
        let file = file.to_str().expect("UTF-8");
        let (code, out, error) = elsewhere.run(&["test", "--config", file, "--json"]);
        assert_eq!((code, error.as_str()), (0, ""), "{file}: {out}");
        let report: Value = serde_json::from_str(&out).expect("JSON");
        assert_eq!(report["unreached_routes"], serde_json::json!([]), "{file}");
        let document: toml::Table = std::fs::read_to_string(file).unwrap().parse().expect("TOML");
        let tests = document["tests"].as_array().expect("tests");
        assert_eq!(report["passed"], tests.len(), "{file}");
        let callbacks: Vec<&str> = tests.iter().filter_map(|test| test.get("callback")?.as_str()).collect();
        assert!(!callbacks.is_empty(), "{file} has no callback");
        for callback in callbacks {
            let callback: Value = serde_json::from_str(callback).expect("JSON");
            assert!(samples.contains(&callback), "{file}: {callback} is not a sample");
        }
    }
}

#[test]
fn every_outcome_can_be_expected() {
    let folder = bridge();
    folder.write("callbacks/failed.json", FAILED);
    folder.write(
        "tests.toml",
        &format!(
            r#"
[[tests]]
name = "two destinations on one output, and one of an earlier route"
callback = {{ file = "callbacks/failed.json" }}
expect = {{ status = "failure", to = ["kafka/media.com.aliyun.media.TranscodeComplete", "kafka/media.vod", "kafka/media.audit"] }}
[[tests]]
name = "the same from a text, in YAML's and JSON's order"
callback = '''{FAILED}'''
expect.status = "failure"
[[tests]]
name = "outputs without topics, and the endpoint that accepts the dialect"
callback = '{{"EventType":"TranscodeComplete","EventTime":"2026-01-01T00:00:00Z","MessageBody":{{"Status":"Success"}}}}'
expect.to = ["webhook", "console/console", "nats/media/ims.success"]
[[tests]]
name = "dropped"
event.status = "progress"
expect = "dropped"
[[tests]]
name = "a dead letter, which an earlier route publishes too"
event.status = "unknown"
expect = "dead_letter"
[[tests]]
name = "nothing is set"
event = {{}}
expect = "unrouted"
[[tests]]
name = "short type, and one destination"
event = {{ type = "SnapshotComplete", dialect = "vod", jobid = "j", partitionkey = "j" }}
expect = {{ to = ["kafka/media.vod", "kafka/media.com.aliyun.media.SnapshotComplete"], key = "j" }}
[[tests]]
name = "full type"
event = {{ type = "com.aliyun.media.SnapshotComplete", dialect = "vod", jobid = "j", partitionkey = "j" }}
expect.key = "j"
[[tests]]
name = "another type"
event = {{ type = "LiveRecordVideoComposeStart", dialect = "vod" }}
expect = "unrouted"
"#
        ),
    );
    let (code, out, error) = folder.test(&["--tests", "tests.toml"]);
    assert_eq!((code, out.as_str(), error.as_str()), (0, "9 passed, 0 failed\n", ""));
}

const FAILING: &str = r#"
[[tests]]
name = "another topic, another status, other keys"
event = { type = "TranscodeComplete", dialect = "vod", status = "failure", jobid = "j" }
expect = { status = "success", to = ["kafka/media.vods", "kafka/media.audit"], key = "k" }

[[tests]]
name = "published"
event = { type = "A", source = "acs:ims:cn-shanghai:42", status = "success" }
expect = "dropped"

[[tests]]
name = "a dead letter apart from the destination"
event = { status = "unknown" }
expect = { to = "kafka/media.audit" }

[[tests]]
name = "nothing \u001b[31m"
event = { dialect = "ims" }
expect = { to = "webhook" }
"#;

#[test]
fn a_failure_says_what_was_expected_what_came_and_why() {
    let folder = Folder::new(&[("bridge.toml", ROUTES), ("tests.toml", FAILING)]);
    let (code, out, error) = folder.test(&["--tests", "tests.toml"]);
    assert_eq!((code, error.as_str()), (1, ""));
    assert_eq!(
        out,
        r"FAILED  another topic, another status, other keys  (tests.toml:2)
  status  expected      success
          came          failure
  to      missing       kafka/media.vods
          not expected  kafka/media.vod by route `vod`
          not expected  kafka/media.com.aliyun.media.TranscodeComplete by route `vod`
  key     expected      k
          came          (none) for kafka/media.audit by route `audit`
          came          j for kafka/media.vod by route `vod`
          came          (none) for kafka/media.com.aliyun.media.TranscodeComplete by route `vod`
  routes
    audit     yes, and continues
    strange   no: status is failure, not unknown
    progress  no: its filter does not hold
    ims       no: the event has no source; the route matches acs:ims:*
    vod       yes

FAILED  published  (tests.toml:7)
  outcome  expected  dropped
           came      nats/media/ims.success by route `ims`
           came      webhook by route `ims`
           came      console/console by route `ims`
  routes
    audit     no: status is success, not failure or unknown
    strange   no: status is success, not unknown
    progress  no: its filter does not hold
    ims       yes
    vod       not tried: `ims` matches and does not continue

FAILED  a dead letter apart from the destination  (tests.toml:12)
  outcome  expected  published
           came      dead_letter by route `strange`
  routes
    audit     yes, and continues
    strange   yes: makes it a dead letter
    progress  not tried: `strange` matches and does not continue
    ims       not tried: `strange` matches and does not continue
    vod       not tried: `strange` matches and does not continue

FAILED  nothing \u{1b}[31m  (tests.toml:17)
  to  missing  webhook
      came     unrouted, because no route matches
  routes
    audit     no: the event has no status; the route matches failure or unknown
    strange   no: the event has no status; the route matches unknown
    progress  no: its filter does not hold
    ims       no: the event has no source; the route matches acs:ims:*
    vod       no: dialect is ims, not vod

Routes that no test reaches:
  progress

0 passed, 4 failed
"
    );

    let (code, out, error) = folder.test(&["--json", "--tests", "tests.toml"]);
    assert_eq!((code, error.as_str()), (1, ""));
    assert!(!out.contains('\u{1b}'));
    let report: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((&report["passed"], &report["failed"]), (&0.into(), &4.into()));
    assert_eq!(report["unreached_routes"], serde_json::json!(["progress"]));
    let test = &report["tests"][0];
    assert_eq!((&test["source"], &test["line"], &test["passed"]), (&"tests.toml".into(), &2.into(), &false.into()));
    assert_eq!((&test["outcome"], &test["status"]), (&"published".into(), &"failure".into()));
    assert_eq!(test["records"][1], serde_json::json!({ "to": "kafka/media.vod", "route": "vod", "key": "j" }));
    assert_eq!(test["differences"][0]["expected"], "success");
    assert_eq!(test["differences"][1]["expected"], serde_json::json!(["kafka/media.audit", "kafka/media.vods"]));
    assert_eq!(test["routes"][1]["why"], "no: status is failure, not unknown");
    assert_eq!(report["tests"][3]["name"], "nothing \u{1b}[31m");
}

/// With many routes the report has those that matter.
#[test]
fn the_report_of_many_routes_is_short() {
    let mut config = "[outputs.nats]\nkind = 'nats'\n".to_owned();
    for index in 0..500 {
        config.push_str(&format!(
            "[[routes]]\nname = 'r{index}'\nmatch = {{ subject = 's{index}' }}\nto = {{ output = 'nats', topic = 't{index}' }}\n"
        ));
    }
    config.push_str("[[tests]]\nname = 'x'\nevent.subject = 's300'\nexpect.to = 'nats/t7'\n");
    let folder = Folder::new(&[("bridge.toml", &config)]);
    let (code, out, _) = folder.test(&[]);
    assert_eq!(code, 1);
    let expected =
        "  routes\n    r7    no: subject is s300, not s7\n    r300  yes\n    and 498 others that do not match\n";
    assert!(out.contains(expected), "{out}");
    assert!(out.contains("  r499\n") && out.lines().count() < 520, "{out}");
}

/// An event can be published and become a dead letter too.
#[test]
fn destinations_of_a_dead_letter_can_be_expected() {
    let folder = bridge();
    folder.write(
        "tests.toml",
        "[[tests]]\nname = 'both'\nevent.status = 'unknown'\nexpect = { to = 'kafka/media.audit', dead_letter = true }\n\
         [[tests]]\nname = 'one'\nevent.status = 'unknown'\nexpect = { status = 'unknown', dead_letter = true }\n\
         [[tests]]\nname = 'another'\nevent.status = 'unknown'\nexpect = { to = 'kafka/x', dead_letter = true }\n\
         [[tests]]\nname = 'no letter'\nevent.status = 'failure'\nexpect = { to = 'kafka/media.audit', dead_letter = true }\n",
    );
    let (code, out, error) = folder.test(&["--tests", "tests.toml"]);
    assert_eq!((code, error.as_str()), (1, ""), "{out}");
    let another = "FAILED  another  (tests.toml:9)\n  to  missing       kafka/x\n      \
                   not expected  kafka/media.audit by route `audit`\n  routes\n";
    let letter = "FAILED  no letter  (tests.toml:13)\n  outcome  expected  dead_letter\n           \
                  came      kafka/media.audit by route `audit`\n  routes\n";
    assert!(out.contains(another) && out.contains(letter), "{out}");
    assert!(out.ends_with("2 passed, 2 failed\n"), "{out}");
}

#[test]
fn a_callback_larger_than_the_input_accepts_fails() {
    let folder = bridge();
    let callback = |bytes| format!("{FAILED}{}", " ".repeat(bytes - FAILED.len()));
    let test = |max: &str, bytes| {
        folder.write("callback.json", &callback(bytes));
        folder.write("t.toml", "[[tests]]\nname = 'x'\ncallback.file = 'callback.json'\nexpect.status = 'failure'");
        folder.test(&["--tests", "t.toml", "--set", &format!("inputs.http.max_body={max}")])
    };
    assert_eq!(test("1KiB", 1024).0, 0);
    let (code, out, _) = test("1KiB", 1025);
    assert_eq!(code, 1);
    let why = "outcome  came  no input accepts it: its body has 1025 bytes, and max_body of the input is 1KiB";
    assert!(out.contains(why), "{out}");
    assert_eq!(test("2KiB", 1025).0, 0);
}

/// The parser of YAML takes time that grows with the square of the depth.
#[test]
fn yaml_that_nests_too_deep_is_refused_at_once() {
    let folder = bridge();
    let started = std::time::Instant::now();
    let deep = format!("tests: {}", "[".repeat(100_000));
    let error = folder.errors("t.yaml", &deep);
    assert_eq!(error, "t.yaml: the lists and tables nest deeper than 128 levels\n");
    folder.write("bridge.yaml", &deep.replace('[', "{a: "));
    let (code, _, error) = folder.run(&["check", "--config", "bridge.yaml"]);
    assert_eq!((code, error.as_str()), (2, "bridge.yaml: the lists and tables nest deeper than 128 levels\n"));
    assert!(started.elapsed() < std::time::Duration::from_secs(10), "{:?}", started.elapsed());
    // Brackets in texts and comments do not count.
    let brackets = "[".repeat(300);
    folder.write(
        "t.yaml",
        &format!("# {brackets}\ntests:\n- name: \"\\\"{brackets}\"\n  event: {{subject: '''{brackets}'}} # {brackets}\n  expect: unrouted\n"),
    );
    let (code, out, error) = folder.test(&["--tests", "t.yaml"]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
}

/// What `test` calls invalid, `check` warns about.
#[test]
fn check_reads_the_callbacks_of_tests() {
    for (callback, warning) in [
        ("{ file = 'none.json' }", "tests[0].callback.file: none.json cannot be read: "),
        ("'{}'", "tests[0].callback: not a callback: "),
    ] {
        let tests = format!("[[tests]]\nname = 'x'\ncallback = {callback}\nexpect.to = 'console/console'\n");
        let folder = Folder::new(&[("bridge.toml", &format!("{SERVED}{tests}"))]);
        let (code, _, error) = folder.run(&["check", "--strict", "--config", "bridge.toml"]);
        assert!(code == 2 && error.contains("warning: bridge.toml:") && error.contains(warning), "{error}");
        assert_eq!(folder.run(&["check", "--config", "bridge.toml"]).0, 0);
    }
}

#[test]
fn a_callback_that_no_input_accepts_fails() {
    let folder = Folder::new(&[("bridge.toml", &ROUTES.replace("dialects = [\"ims\"]", "dialects = [\"vod\"]"))]);
    folder.write(
        "tests.toml",
        "[[tests]]\nname = 'x'\ncallback = '{\"EventType\":\"X\",\"EventTime\":\"2026-01-01T00:00:00Z\",\"MessageBody\":{}}'\n\
         expect = 'unrouted'",
    );
    let (code, out, _) = folder.test(&["--tests", "tests.toml"]);
    assert!(code == 1 && out.contains("outcome  came  no input accepts it: a callback of dialect ims"), "{out}");
}

/// A test with some keys, and the end of what is reported about it.
const WRONG: &[(&str, &str)] = &[
    (
        "name = 'x'",
        "tests.toml:1: tests[0]: expected one of `callback` and `event`, found neither\n\
      tests.toml:1: tests[0].expect: missing; it says what must happen to the event\n",
    ),
    ("event = {}\nexpect = 'dropped'", "tests.toml:1: tests[0].name: missing; the report names a test by it\n"),
    ("name = 'x'\nevnt = {}\nexpect = 'dropped'", "tests.toml:3: tests[0].evnt: unknown key; did you mean `event`?\n"),
    (
        "name = 'x'\nevent = {}\nexpect = 'droped'",
        "tests.toml:4: tests[0].expect: unknown value `droped`; did you mean `dropped`?; expected one of dropped, dead_letter, unrouted\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect = {}",
        "tests.toml:4: tests[0].expect: expected at least one of status, to, key and dead_letter = true\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect = 5",
        "tests.toml:4: tests[0].expect: found the number `5`; expected a table with status, to, key or dead_letter, or one of \"dropped\", \"dead_letter\", \"unrouted\"\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect = { staus = 'success' }",
        "tests.toml:4: tests[0].expect.staus: unknown key; did you mean `status`?\n",
    ),
    (
        "name = 'x'\nevent = {}\n[tests.expect]\nstatus = 'failed'\nto = ['kafka/x', 'kafak/x', 'kafka', 'kafka/', 'webhook/x', 'console', 'kafka/m.{type}']",
        "tests.toml:5: tests[0].expect.status: unknown value `failed`; expected one of success, skipped, progress, unknown, partial, canceled, failure\n\
      tests.toml:6: tests[0].expect.to[1]: there is no output `kafak`; did you mean `kafka`?\n\
      tests.toml:6: tests[0].expect.to[2]: `kafka` has no topic; expected `kafka/TOPIC`\n\
      tests.toml:6: tests[0].expect.to[3]: `kafka/` has no topic; expected `kafka/TOPIC`\n\
      tests.toml:6: tests[0].expect.to[4]: `webhook/x`: an output of kind http has no topics; expected `webhook`\n\
      tests.toml:6: tests[0].expect.to[5]: `console` has no topic; expected `console/console`, or the topic of the route\n\
      tests.toml:6: tests[0].expect.to[6]: `kafka/m.{type}`: expected the topic with its values, without braces\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect.to = []",
        "tests.toml:4: tests[0].expect.to: expected at least one destination; if there is none, expect is one of \"dropped\", \"dead_letter\", \"unrouted\"\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect = { to = 'webhook', key = 'k' }",
        "tests.toml:4: tests[0].expect.key: no output of `to` has keys; leave it out\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect.key = ''",
        "tests.toml:4: tests[0].expect.key: expected a text; leave it out to accept any key\n",
    ),
    (
        "name = 'x'\ncallback = '{}'\nevent = {}\nexpect = 'dropped'",
        "tests.toml:1: tests[0]: expected one of `callback` and `event`, found both\n",
    ),
    (
        "name = 'x'\ncallback = { fil = 'y' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback.fil: unknown key; did you mean `file`?\ntests.toml:3: tests[0].callback.file: missing\n",
    ),
    (
        "name = 'x'\ncallback = 5\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback: found the number `5`; expected JSON as a text, or { file = \"…\" }\n",
    ),
    (
        "name = 'x'\nevent = { staus = 'x', status = 'fail', subject = '', type = 5 }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].event.type: found the number `5`; expected a string\n\
      tests.toml:3: tests[0].event.status: unknown value `fail`; expected one of success, skipped, progress, unknown, partial, canceled, failure\n\
      tests.toml:3: tests[0].event.staus: unknown attribute; did you mean `status`?\n\
      tests.toml:3: tests[0].event.subject: expected a text; leave it out for an event without it\n",
    ),
    (
        "name = 'x'\ncolour = 1\nevent.staus = 'x'\nexpect = { to = 'kafak/x', keyy = 'k' }",
        "tests.toml:3: tests[0].colour: unknown key; expected one of name, callback, event, expect\n\
      tests.toml:5: tests[0].expect.keyy: unknown key; did you mean `key`?\n\
      tests.toml:4: tests[0].event.staus: unknown attribute; did you mean `status`?\n\
      tests.toml:5: tests[0].expect.to[0]: there is no output `kafak`; did you mean `kafka`?\n",
    ),
    (
        "name = 'x'\nevent = { staus = 'x', status = 'succes', subject = '', verdict = 'ok' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].event.status: unknown value `succes`; did you mean `success`?; expected one of success, skipped, progress, unknown, partial, canceled, failure\n\
      tests.toml:3: tests[0].event.staus: unknown attribute; did you mean `status`?\n\
      tests.toml:3: tests[0].event.subject: expected a text; leave it out for an event without it\n\
      tests.toml:3: tests[0].event.verdict: unknown value `ok`; expected one of pass, review, block\n",
    ),
    (
        "name = 'x'\nevent = {}\nexpect = 'dropped'\n[[tests]]\nname = 'x'\nevent = {}\nexpect = 'dropped'",
        "tests.toml:6: tests[1].name: two tests are named `x`\n",
    ),
    // What a callback is, is found when the tests run.
    (
        "name = 'x'\ncallback = { file = 'none.json' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback.file: none.json cannot be read: No such file or directory (os error 2)\n",
    ),
    (
        "name = 'x'\ncallback = { file = '-' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback.file: - cannot be read: No such file or directory (os error 2)\n",
    ),
    (
        "name = 'x'\ncallback = { file = '/dev/zero' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback.file: /dev/zero cannot be read: expected a regular file\n",
    ),
    (
        "name = 'x'\ncallback = { file = '.' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback.file: . cannot be read: Is a directory (os error 21)\n",
    ),
    (
        "name = 'x'\ncallback = { file = 'bridge.toml' }\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback: bridge.toml: not a callback: not valid JSON at byte 2: a value was expected\n",
    ),
    (
        "name = 'x'\ncallback = ''\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback: not a callback: not valid JSON at byte 0: a value was expected, but the text is empty\n",
    ),
    (
        "name = 'x'\ncallback = '{}'\nexpect = 'dropped'",
        "tests.toml:3: tests[0].callback: not a callback: neither a VOD nor an IMS callback: `EventType` is missing\n",
    ),
];

#[test]
fn wrong_tests_are_refused_with_file_line_and_key() {
    let folder = bridge();
    let mut wrong = String::new();
    for (test, expected) in WRONG {
        let error = folder.errors("tests.toml", &format!("[[tests]]\n{test}"));
        if error != *expected {
            wrong.push_str(&format!("{test}\nis reported as\n{error}expected\n{expected}\n"));
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn wrong_files_are_refused() {
    let folder = bridge();
    let only = "; a file of tests contains only [[tests]]\n";
    assert_eq!(folder.errors("t.toml", ""), "t.toml: contains no tests; expected at least one [[tests]]\n");
    assert_eq!(folder.errors("t.toml", "tests = []"), "t.toml: contains no tests; expected at least one [[tests]]\n");
    assert_eq!(folder.errors("t.yaml", "tests:\n"), "t.yaml: contains no tests; expected at least one [[tests]]\n");
    assert_eq!(
        folder.errors("t.toml", "[tests]\nname = 'x'"),
        "t.toml:1: tests: found a table; expected a list of tables, each written as [[tests]]\n"
    );
    assert_eq!(folder.errors("t.toml", "tests = [5]"), "t.toml:1: tests[0]: found the number `5`; expected a table\n");
    assert_eq!(
        folder.errors("t.toml", "\n[[test]]\nname = 'x'"),
        format!("t.toml:2: test: unknown key; did you mean `tests`?{only}")
    );
    assert!(folder.errors("t.toml", ROUTES).starts_with(&format!("t.toml:2: inputs: unknown key{only}")));
    assert!(folder.errors("t.toml", "[[tests]\n").starts_with("t.toml: TOML parse error at line 1"));
    assert!(folder.errors("t.yaml", "tests: [\n").starts_with("t.yaml: "));
    assert_eq!(
        folder.errors("t.yaml", "tests:\n- name: x\n  event: {}\n  expct: dropped\n"),
        "t.yaml: tests[0].expct: unknown key; did you mean `expect`?\n"
    );
    std::fs::write(folder.path("t.toml"), b"# \xff").expect("written");
    assert_eq!(folder.test(&["--tests", "t.toml"]).2, "t.toml: cannot be read: the file is not valid UTF-8\n");
    for (name, why) in [
        ("none.toml", "No such file or directory (os error 2)"),
        (".", "Is a directory (os error 21)"),
        ("/dev/zero", "expected a regular file"),
        ("huge.toml", "the file is larger than 64MiB"),
    ] {
        if name == "huge.toml" {
            let file = std::fs::File::create(folder.path(name)).expect("made");
            file.set_len((64 << 20) + 1).expect("a sparse file");
        }
        let (code, out, error) = folder.test(&["--tests", name]);
        assert_eq!((code, out, error), (2, String::new(), format!("{name}: cannot be read: {why}\n")));
    }
    // All wrong files are reported at once.
    folder.write("t.toml", "");
    let (code, _, error) = folder.test(&["--tests", "t.toml", "--tests", "none.toml"]);
    assert!(code == 2 && error.lines().count() == 2, "{error}");
}

#[test]
fn wrong_usage_has_exit_code_2() {
    let folder = bridge();
    let (code, out, error) = folder.test(&[]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert_eq!(error, "there are no tests: add [[tests]] to the configuration, or name files after --tests\n");
    folder.write("tests.toml", FAILING);
    for (arguments, expected) in [
        (&["test", "--config", "none.toml"][..], "none.toml: cannot be read"),
        (
            &["test", "--config", "bridge.toml", "--set", "routes=[]", "--tests", "tests.toml"],
            "routes: expected at least one",
        ),
        (
            &["test", "--config", "bridge.toml", "--set", "delivry.deadline=1s"],
            "--set: delivry: unknown key; did you mean `delivery`?",
        ),
        (
            &["test", "--config", "bridge.toml", "--set", "inputs.http.kind=htp"],
            "--set: inputs.http.kind: unknown kind `htp`",
        ),
        (&["test", "--tests", "tests.toml"], "outputs: expected at least one"),
        (&["test", "--config", "bridge.toml", "--tests"], "a value is required for '--tests <FILE>...'"),
        (&["test", "--config", "bridge.toml", "tests.toml"], "unexpected argument 'tests.toml'"),
    ] {
        let (code, out, error) = folder.run(arguments);
        assert!(code == 2 && out.is_empty() && error.contains(expected), "{arguments:?}: {error}");
    }
}

const PASSING: &str = "[[tests]]\nname = 'x'\ncallback = { file = 'callback.json' }\nexpect.status = 'failure'\n";

/// A path in a test is relative to its file, however the file was named.
#[test]
fn files_are_found_and_read_once() {
    let folder = bridge();
    folder.write("routes/first.toml", PASSING);
    folder.write("routes/callback.json", FAILED);
    // Windows line ends, Unicode, and a file in YAML.
    folder.write(
        "häßlich 测试/second.yaml",
        "tests:\r\n- name: Ünïcode 测试\r\n  callback:\r\n    file: 回调.json\r\n  expect: { status: failure }\r\n",
    );
    folder.write("häßlich 测试/回调.json", &FAILED.replace(", ", ",\r\n"));
    folder.write(
        "third.toml",
        &format!("\u{feff}# head\r\n{}", PASSING.replace('\n', "\r\n"))
            .replace("callback.json", "routes/callback.json"),
    );
    let passed = |arguments: &[&str], count: usize| {
        let (code, out, error) = folder.test(arguments);
        assert_eq!((code, error.as_str()), (0, ""), "{arguments:?}: {out}");
        assert!(out.ends_with(&format!("{count} passed, 0 failed\n")), "{arguments:?}: {out}");
    };
    let second = "häßlich 测试/second.yaml";
    passed(&["--tests", "routes/first.toml", second, "--tests", "third.toml"], 3);
    let absolute = folder.path("routes/first.toml");
    passed(&["--tests", absolute.to_str().unwrap()], 1);

    // A file that is given twice is read once. Its names may occur in other files.
    std::os::unix::fs::symlink(&absolute, folder.path("routes/link.toml")).expect("made");
    passed(&["--tests", "routes/first.toml", "./routes/../routes/first.toml", "routes/link.toml"], 1);
    // A path is relative to the folder of a link, not to that of its target.
    std::os::unix::fs::symlink(&absolute, folder.path("link.toml")).expect("made");
    let (code, _, error) = folder.test(&["--tests", "link.toml"]);
    assert!(code == 2 && error.contains("callback.json cannot be read"), "{error}");
    folder.write("callback.json", FAILED);
    passed(&["--tests", "link.toml"], 1);

    // From another working directory.
    let config = folder.path("bridge.toml");
    let elsewhere = Folder::new(&[]);
    let arguments = ["test", "--config", config.to_str().unwrap(), "--tests", absolute.to_str().unwrap()];
    assert_eq!(elsewhere.run(&arguments).0, 0);

    // From standard input, where paths are relative to the working directory.
    for input in [PASSING, "[[tests]]\nname = 'x'\nexpect = 'dropped'\n"] {
        let mut command = command(&["test", "--config", "bridge.toml", "--tests", "-", "-", "routes/first.toml"]);
        command.current_dir(folder.0.path()).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program runs");
        child.stdin.take().unwrap().write_all(input.as_bytes()).expect("written");
        let (code, out, error) = ended(child.wait_with_output().expect("the program ends"));
        if input == PASSING {
            assert!(code == 0 && out.ends_with("2 passed, 0 failed\n"), "{out}{error}");
        } else {
            assert_eq!(code, 2);
            assert_eq!(error, "standard input: tests[0]: expected one of `callback` and `event`, found neither\n");
        }
    }
}

/// Tests in the configuration follow its layers: a list replaces a list.
#[test]
fn tests_follow_the_layers_of_the_configuration() {
    let folder = Folder::new(&[("first/bridge.toml", &format!("{ROUTES}{FAILING}")), ("callback.json", FAILED)]);
    let run = |arguments: &[&str], variable: Option<&str>| {
        let mut command = command(&[&["test", "--config", "first/bridge.toml"], arguments].concat());
        command.current_dir(folder.0.path()).envs(variable.map(|tests| ("APSARA_BRIDGE__TESTS", tests)));
        program::run(command)
    };
    let (code, out, _) = run(&[], None);
    assert!(code == 1 && out.contains("(first/bridge.toml:"), "{out}");
    folder.write("second/more.toml", PASSING);
    let (code, _, error) = run(&["--config", "second/more.toml"], None);
    assert!(
        code == 2 && error.starts_with("second/more.toml:3: tests[0].callback.file: second/callback.json cannot"),
        "{error}"
    );
    folder.write("second/callback.json", FAILED);
    let (code, out, error) = run(&["--config", "second/more.toml"], None);
    assert!(code == 0 && out.ends_with("1 passed, 0 failed\n"), "{out}{error}");
    let inline = r#"[{name="x", callback={file="callback.json"}, expect={status="failure"}}]"#;
    let (code, out, error) = run(&[], Some(inline));
    assert!(code == 0 && out.ends_with("1 passed, 0 failed\n"), "{out}{error}");
    let (code, _, error) = run(&[], Some(r#"[{name="x", expect="dropped"}]"#));
    assert_eq!(
        (code, error.as_str()),
        (2, "environment: tests[0]: expected one of `callback` and `event`, found neither\n")
    );
    let (code, _, error) = run(&["--set", "tests=5"], None);
    assert_eq!(
        (code, error.as_str()),
        (2, "--set: tests: found the number `5`; expected a list of tables, each written as [[tests]]\n")
    );
    let (code, out, _) =
        run(&["--set", "event.type_prefix=org.example.", "--set", "tests=[]", "--tests", "second/more.toml"], None);
    assert!(code == 0 && out.ends_with("1 passed, 0 failed\n"), "{out}");
}

const SERVED: &str = "
[inputs.i]
kind = 'stdin'
[outputs.console]
kind = 'console'
[[routes]]
name = 'all'
to = { output = 'console' }
[spool]
enabled = false
[log]
format = 'text'
";

/// Whatever is wrong with tests, it must not stop a bridge: `serve` ignores them and `check` warns.
#[test]
fn wrong_tests_do_not_stop_a_bridge() {
    let valid = "[[tests]]\nname = 'x'\nevent = {}\nexpect.to = 'console/console'\n";
    let wrong = "[[tests]]\nnam = 'secret?'\nexpect = { too = 5 }\n";
    let mut effective = Vec::new();
    for tests in ["", valid, wrong, "tests = 5", "tests = [5]", "[tests]\nx = 1\n"] {
        let config = if tests.starts_with("tests") { format!("{tests}\n{SERVED}") } else { format!("{SERVED}{tests}") };
        let loaded = config::load(&[Layer::Text("bridge.toml".to_owned(), config.clone())]);
        let loaded = loaded.unwrap_or_else(|errors| panic!("{tests}: {errors:?}"));
        assert_eq!(loaded.warnings, Vec::<String>::new());
        assert!(!loaded.effective.to_toml().contains("tests"));
        effective.push(loaded.effective);

        let folder = Folder::new(&[("bridge.toml", &config)]);
        let (code, out, error) = folder.run(&["serve", "--config", "bridge.toml", "--set", "admin.listen=127.0.0.1:0"]);
        assert!(code == 0 && out.is_empty() && !error.contains("tests"), "{error}");
        let is_wrong = tests != valid && !tests.is_empty();
        let (code, out, error) = folder.run(&["check", "--config", "bridge.toml"]);
        assert_eq!(code, 0, "{error}");
        assert!(!out.contains("tests") && error.contains("warning: bridge.toml:") == is_wrong, "{out}{error}");
        assert!(error.ends_with("the configuration is valid\n"), "{error}");
        let (code, _, error) = folder.run(&["check", "--strict", "--config", "bridge.toml"]);
        assert_eq!(code, if is_wrong { 2 } else { 0 }, "{error}");
    }
    // A change of them changes nothing.
    assert!(effective.iter().all(|other| effective[0].changed_keys(other).is_empty()));
    let folder = Folder::new(&[("bridge.toml", &format!("{SERVED}{wrong}"))]);
    let (_, _, error) = folder.run(&["check", "--config", "bridge.toml"]);
    assert!(error.contains("warning: bridge.toml:14: tests[0].nam: unknown key; did you mean `name`?\n"), "{error}");
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn strict_fails_on_warnings() {
    let config = SERVED
        .replace("name = 'all'", "name = 'all'\nmatch = { status = 'succes' }")
        .replace("enabled = false", "path = 'spool'");
    let folder = Folder::new(&[("bridge.toml", &config)]);
    let (code, out, error) = folder.run(&["check", "--config", "bridge.toml"]);
    assert!(code == 0 && error.contains("warning: route `all` matches status = `succes`"), "{error}");
    let (code, strict_out, error) = folder.run(&["check", "--config", "bridge.toml", "--strict"]);
    assert!(code == 2 && error.contains("warning: route `all` matches status = `succes`"), "{error}");
    assert!(error.ends_with("the configuration is valid, but it causes warnings, and --strict was given\n"), "{error}");
    assert_eq!(out, strict_out);
    let (code, _, error) =
        Folder::new(&[("bridge.toml", SERVED)]).run(&["check", "--strict", "--config", "bridge.toml"]);
    assert!(code == 0 && error.ends_with("the configuration is valid\n"), "{error}");
}

/// The time grows with the number of tests, good and bad, and not with its square.
#[test]
fn many_tests_take_little_time() {
    let folder = bridge();
    let tests = |event: &str, count: usize| -> String {
        let test = |index: usize| {
            format!(
                "[[tests]]\nname = 'test {index}'\n{event} = {{ type = 'TranscodeComplete', dialect = 'vod', status = 'success' }}\n\
                 expect = {{ status = 'success', to = ['kafka/media.vod', 'kafka/media.com.aliyun.media.TranscodeComplete'] }}\n"
            )
        };
        (0..count).map(test).collect()
    };
    let run = |count: usize| {
        let began = std::time::Instant::now();
        folder.write("good.toml", &tests("event", count));
        let (code, out, error) = folder.test(&["--json", "--tests", "good.toml"]);
        assert_eq!((code, error.as_str()), (0, ""));
        let report = serde_json::from_str::<Value>(&out).expect("JSON");
        assert_eq!(report["tests"][count - 1]["line"], 4 * count - 3);
        folder.write("bad.toml", &tests("evnt", count));
        let (code, _, error) = folder.test(&["--tests", "bad.toml"]);
        assert_eq!((code, error.lines().count()), (2, count));
        // Several mistakes in each test.
        folder.write("bad.toml", &"[[tests]]\n".repeat(2 * count));
        let (code, _, error) = folder.test(&["--tests", "bad.toml"]);
        assert_eq!((code, error.lines().count()), (2, 6 * count));
        began.elapsed()
    };
    let (few, many) = (run(400), run(4_000));
    // About 9 if each test costs the same, and about 90 if it costs as much as there are tests.
    assert!(many < few * 30, "{few:?} and {many:?}");
}

/// The documentation shows tests that pass.
#[test]
fn the_tests_in_the_documentation_pass() {
    let routing = repository_text("docs/routing.md");
    let blocks: Vec<&str> = routing.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    let [routes, tests] = blocks[..] else { panic!("{} blocks", blocks.len()) };
    let outputs = "[outputs.kafka]\nkind = 'kafka'\n[outputs.nats]\nkind = 'nats'\n";
    let folder = Folder::new(&[("bridge.toml", &format!("{outputs}{routes}")), ("tests/routes.toml", tests)]);
    let sample = Path::new("src/dialect/samples/vod-TranscodeComplete.json");
    std::fs::copy(repository(sample.to_str().unwrap()), folder.path("tests/transcode.json")).expect("copied");
    let (code, out, error) = folder.test(&["--tests", "tests/routes.toml"]);
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    assert!(out.ends_with("4 passed, 0 failed\n"), "{out}");
}
