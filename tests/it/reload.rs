//! A running bridge applies changed files automatically: the configuration with its catalogue, secrets, certificates.

use std::process::Command;
use std::time::{Duration, SystemTime};

use apsara_bridge::input;
use apsara_bridge::service::RELOADABLE;
use tokio::task::JoinSet;

use crate::support::bridge::{Client, KEY, URL, callback, headers_signed_at, signed_headers};
use crate::support::certificates::Certificates;
use crate::support::config::{Config, Route};
use crate::support::free_port;
use crate::support::generated;
use crate::support::http_receiver::{Receiver, Reply};
use crate::support::process::Process;
use crate::support::program::{Program, command};
use crate::support::wait::{SOON, eventually, let_pass};

/// The promise: a change is applied within five seconds.
const APPLIED: Duration = Duration::from_secs(5);

/// An event type that only the user's catalogue defines.
const OWN_TYPE: &str = "[[events]]\ndialect = 'vod'\ntype = 'OwnComplete'\ndescription = 'own'\nsubject = ['mediaId']\nstatus = { default = 'success' }\n";

fn dropping(route: &str) -> Config {
    Config::http().output("console", "console", &[""; 0]).route(Route::new(route).set("drop = true"))
}

async fn reloads(bridge: &Program, result: &str) -> f64 {
    bridge.metric(&format!("apsara_bridge_config_reloads_total{{result=\"{result}\"}}")).await
}

async fn wait_reloads(bridge: &Program, result: &str, count: f64) {
    let what = format!("{count} reloads with result {result}");
    eventually(&what, APPLIED, async || (reloads(bridge, result).await == count).then_some(())).await;
}

async fn post_signed_by(bridge: &Program, key: &str, id: &str) -> u16 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    let headers = headers_signed_at("VOD", URL, now, key);
    Client::connect(bridge.input).await.post("/callbacks", callback(id), &headers).await.status.as_u16()
}

#[tokio::test]
async fn a_changed_file_is_applied_and_a_wrong_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Program::start(folder.path(), dropping("one"));
    let write = |text: &str| std::fs::write(bridge.configuration_file(), text).expect("written");
    let good = |route: &str| bridge.configuration().routes([Route::new(route).set("drop = true")]).to_string();
    let (second, third) = (good("two"), good("three"));
    write(&second);
    wait_reloads(&bridge, "success", 1.0).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="two"}"#).await, 1.0);

    write(&third.replace("drop", "dorp"));
    wait_reloads(&bridge, "failure", 1.0).await;
    assert!(bridge.process().log().contains("unknown key; did you mean `drop`?"), "{}", bridge.process().log_tail());
    assert_eq!(bridge.post(callback("b")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="two"}"#).await, 2.0);

    write(&third);
    wait_reloads(&bridge, "success", 2.0).await;
    assert_eq!(bridge.post(callback("c")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="three"}"#).await, 1.0);
    bridge.stop();
}

#[tokio::test]
async fn the_catalogue_is_applied_with_the_configuration_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let catalogue = folder.path().join("own.toml");
    let bridge = Program::start(folder.path(), dropping("one"));
    // The configuration names the file before it exists. The route must not change without it.
    let files = format!("catalogue.files = [{:?}]", catalogue.display().to_string());
    bridge
        .configuration()
        .set(&files)
        .routes([Route::new("two").set("drop = true")])
        .write(&bridge.configuration_file());
    wait_reloads(&bridge, "failure", 1.0).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="one"}"#).await, 1.0);

    std::fs::write(&catalogue, OWN_TYPE).expect("written");
    wait_reloads(&bridge, "success", 1.0).await;
    let own = callback("b").replace("FileUploadComplete", "OwnComplete");
    assert_eq!(bridge.post(own).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="two"}"#).await, 1.0);
    let metrics = bridge.metrics().await.expect("an answer");
    assert_eq!(metrics.sum("events_total", &[r#"type="OwnComplete""#]), 1);
    bridge.stop();
}

/// A ConfigMap as the kubelet mounts it: files are links through `..data`, and an update replaces `..data`.
#[tokio::test]
async fn a_replaced_config_map_is_applied() {
    let folder = tempfile::tempdir().expect("a folder");
    let mount = folder.path().join("mount");
    let version = |name: &str, route: &str| {
        std::fs::create_dir_all(mount.join(name)).expect("made");
        let text = Config::new().routes([Route::new(route).set("drop = true")]);
        text.without("admin").without("spool").write(&mount.join(name).join("routes.toml"));
    };
    let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, mount.join(name)).expect("linked");
    version("..1", "one");
    link("..1", "..data");
    link("..data/routes.toml", "routes.toml");
    let bridge = Program::launch(None, folder.path(), dropping("zero"), |command| {
        command.arg("--config").arg(mount.join("routes.toml"));
    });
    bridge.ready().await;
    version("..2", "two");
    link("..2", "..data_tmp");
    std::fs::rename(mount.join("..data_tmp"), mount.join("..data")).expect("replaced");
    std::fs::remove_dir_all(mount.join("..1")).expect("removed");
    wait_reloads(&bridge, "success", 1.0).await;
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="two"}"#).await, 1.0);
    bridge.stop();
}

#[tokio::test]
async fn a_key_is_read_again_by_itself_and_the_last_good_one_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("key");
    std::fs::write(&file, KEY).expect("written");
    let bridge = Program::start(folder.path(), dropping("all").keys(&format!("[{{ file = {file:?} }}]")));
    assert_eq!(post_signed_by(&bridge, KEY, "a").await, 200);
    // The configuration becomes invalid. The key does not depend on it.
    std::fs::write(bridge.configuration_file(), "routes = 5").expect("written");
    wait_reloads(&bridge, "failure", 1.0).await;

    std::fs::write(&file, "AnotherKey1\n").expect("written");
    wait_reloads(&bridge, "success", 1.0).await;
    assert_eq!(post_signed_by(&bridge, "AnotherKey1", "b").await, 200);
    assert_eq!(post_signed_by(&bridge, KEY, "c").await, 401);

    std::fs::remove_file(&file).expect("removed");
    wait_reloads(&bridge, "failure", 2.0).await;
    assert_eq!(post_signed_by(&bridge, "AnotherKey1", "d").await, 200);
    std::fs::write(&file, KEY).expect("written");
    wait_reloads(&bridge, "success", 2.0).await;
    assert_eq!(post_signed_by(&bridge, KEY, "e").await, 200);
    let log = bridge.process().log();
    assert!(!log.contains("AnotherKey1") && !log.contains(KEY), "{log}");
    bridge.stop();
}

#[tokio::test]
async fn a_certificate_without_its_key_is_not_used() {
    let folder = tempfile::tempdir().expect("a folder");
    let (old, new) = (Certificates::make(&folder.path().join("old")), Certificates::make(&folder.path().join("new")));
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::copy(&old.server, &cert).expect("copied");
    std::fs::copy(&old.server_key, &key).expect("copied");
    let tls = format!("inputs.http.tls = {{ cert_file = {cert:?}, key_file = {key:?} }}");
    let bridge = Program::start(folder.path(), dropping("all").set(&tls));
    let serves = |certificates: &Certificates| {
        let address = bridge.input.to_string();
        let mut client = Command::new("openssl");
        client.args(["s_client", "-connect", &address, "-verify_return_error", "-brief", "-CAfile"]);
        client.arg(&certificates.authority).stdin(std::process::Stdio::null());
        client.output().expect("openssl runs").status.success()
    };
    assert!(serves(&old) && !serves(&new));
    std::fs::copy(&new.server, &cert).expect("copied");
    wait_reloads(&bridge, "failure", 1.0).await;
    assert!(serves(&old) && !serves(&new));
    std::fs::copy(&new.server_key, &key).expect("copied");
    wait_reloads(&bridge, "success", 1.0).await;
    assert!(serves(&new) && !serves(&old));
    bridge.stop();
}

/// Every key is either applied while the bridge runs, or reported as one that needs a restart.
#[tokio::test]
async fn each_key_is_applied_or_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let spool = folder.path().join("spool");
    let receiver = Receiver::start().await;
    receiver.answer(Reply::Never);
    let before = dropping("all")
        .spool(&spool)
        .set(&format!("[outputs.web]\nkind = 'http'\nurl = '{}'", receiver.url()))
        .set("[outputs.kafka]\nkind = 'kafka'\nbrokers = ['127.0.0.1:9']\nclient.\"sasl.password\" = 'hunter2'");
    let bridge = Program::start(folder.path(), before);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="duplicate"}"#).await, 1.0);
    let changed = bridge.configuration().set(
        "[inputs.http]\nmax_body = '1KiB'\nmax_in_flight = 7\nheader_timeout = '6s'\n\
         [delivery]\ndeadline = '2s'\ngive_up_after = '2h'\nmax_in_flight = 5\nmax_in_flight_bytes = '8KiB'\n\
         [spool]\nmax_bytes = '64MiB'\nlane_share = 0.25\n[dead_letters]\nmax_bytes = '32MiB'\nmax_age = '30d'\n\
         [dedupe]\nwindow = '0s'\n[event]\ntype_prefix = 'com.example.'\n[log]\nfilter = 'debug'\n\
         [outputs.kafka]\nclient.\"sasl.password\" = 'hunter3'\n[shutdown]\ndrain = '5s'",
    );
    changed.write(&bridge.configuration_file());
    wait_reloads(&bridge, "success", 1.0).await;
    let log = bridge.process().log();
    let named = log.lines().find(|line| line.contains("changed keys need a restart")).expect("keys are named");
    let keys = named.split("\"keys\":\"").nth(1).and_then(|rest| rest.split("\",\"").next()).expect("a list");
    let mut keys: Vec<&str> = keys.split(", ").collect();
    keys.sort_unstable();
    let password = r#"outputs.kafka.client.\"sasl.password\""#;
    assert_eq!(keys, ["delivery.deadline", "inputs.http.header_timeout", password, "shutdown.drain"]);
    assert!(!log.contains("hunter"), "{log}");

    assert_eq!(bridge.metric("apsara_bridge_spool_max_bytes").await, f64::from(64 << 20));
    assert_eq!(bridge.metric("apsara_bridge_dead_letters_max_bytes").await, f64::from(32 << 20));
    let long = callback("long").replace("42", &"4".repeat(2000));
    assert_eq!(bridge.post(long).await.status.as_u16(), 413);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_callbacks_total{input="http",outcome="duplicate"}"#).await, 1.0);
    bridge.process().wait_log(r#""type":"com.example.FileUploadComplete""#, SOON);
    // Callbacks that wait for a receiver use up the limit of requests in flight; one more is refused.
    let waiting = bridge.configuration().without("routes").route(Route::new("all").set("to = { output = 'web' }"));
    waiting.write(&bridge.configuration_file());
    wait_reloads(&bridge, "success", 2.0).await;
    let mut senders = JoinSet::new();
    for sender in 0..8 {
        let input = bridge.input;
        senders.spawn(async move {
            let mut client = Client::connect(input).await;
            for number in 0.. {
                client.post("/callbacks", callback(&format!("{sender}-{number}")), &signed_headers("VOD")).await;
            }
        });
    }
    eventually("the limit to be reached", SOON, async || {
        let answer = bridge.post(callback("b")).await;
        (answer.status.as_u16() == 503).then(|| assert_eq!(answer.problem().0, "too-many-requests"))
    })
    .await;
    senders.shutdown().await;
    bridge.stop();
}

/// A file that is not text fails once, not at every look.
#[tokio::test]
async fn a_file_that_is_not_text_is_not_tried_again_until_it_changes() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Program::start(folder.path(), dropping("one"));
    let good = bridge.configuration();
    std::fs::write(bridge.configuration_file(), b"# \xe9\n").expect("written");
    wait_reloads(&bridge, "failure", 1.0).await;
    // Longer than several looks at the files.
    let_pass(Duration::from_secs(5)).await;
    assert_eq!(reloads(&bridge, "failure").await, 1.0);
    good.write(&bridge.configuration_file());
    wait_reloads(&bridge, "success", 1.0).await;
    bridge.stop();
}

/// A header can have no line break. The value that was valid stays.
#[tokio::test]
async fn a_secret_that_cannot_be_used_does_not_replace_the_last_good_one() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("token");
    std::fs::write(&file, "Bearer one").expect("written");
    let output = format!(
        "[outputs.http]\nkind = 'http'\nurl = 'http://127.0.0.1:9/'\nrequest_headers.authorization = {{ file = {file:?} }}"
    );
    let bridge = Program::start(folder.path(), dropping("one").set(&output));
    std::fs::write(&file, "Bearer one\nBearer two").expect("written");
    wait_reloads(&bridge, "failure", 1.0).await;
    assert_eq!(reloads(&bridge, "success").await, 0.0);
    assert!(!bridge.process().log().contains("Bearer"), "{}", bridge.process().log_tail());
    std::fs::write(&file, "Bearer two").expect("written");
    wait_reloads(&bridge, "success", 1.0).await;
    bridge.stop();
}

/// The routes of the new configuration follow the rules of the new kind. They must not reach the old output.
#[tokio::test]
async fn an_output_of_another_kind_needs_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Program::start(folder.path(), dropping("one"));
    let changed = bridge.configuration().without("outputs.console").output("console", "nats", &["nats://127.0.0.1:9"]);
    changed.routes([Route::new("two").to("console", "media.two")]).write(&bridge.configuration_file());
    wait_reloads(&bridge, "failure", 1.0).await;
    bridge.process().wait_log("output `console` runs as console, and is nats in the new configuration", SOON);
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    assert_eq!(bridge.metric(r#"apsara_bridge_route_matches_total{route="one"}"#).await, 1.0);
    assert!(!bridge.metrics().await.expect("an answer").contains("two"), "a series of a rejected configuration");
    bridge.stop();
}

/// A new address needs a restart, new endpoints do not. Together they must not open the old address to unsigned callbacks.
#[tokio::test]
async fn keys_stay_required_where_others_can_reach_the_input() {
    let folder = tempfile::tempdir().expect("a folder");
    let (input, admin) = (free_port(), free_port());
    let file = folder.path().join("bridge.toml");
    let listening = |on: &str| {
        dropping("all").set(&format!("inputs.http.listen = '{on}:{input}'\nadmin.listen = '127.0.0.1:{admin}'"))
    };
    listening("0.0.0.0").write(&file);
    let command = command(&["serve", "--config", file.to_str().expect("UTF-8")]);
    let bridge = Process::start("the bridge", &command, &folder.path().join("bridge.log"), None);
    bridge.wait_log("accepting callbacks", SOON);
    listening("127.0.0.1").keys("[]").set("inputs.http.max_body = '1KiB'").write(&file);
    bridge.wait_log("the running input is reachable from other machines", SOON);
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], input));
    let mut client = Client::connect(address).await;
    assert_eq!(client.post("/callbacks", callback("a"), &[]).await.status.as_u16(), 401);
    bridge.signal("TERM");
    assert_eq!(bridge.wait(SOON), Some(0));
}

/// Reading a pipe can take forever. It is refused.
#[tokio::test]
async fn a_pipe_instead_of_the_configuration_is_refused_and_delays_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let bridge = Program::start(folder.path(), dropping("all"));
    let file = bridge.configuration_file();
    std::fs::remove_file(&file).expect("removed");
    let made = Command::new("mkfifo").arg(&file).status().expect("mkfifo runs");
    assert!(made.success());
    bridge.process().signal("HUP");
    wait_reloads(&bridge, "failure", 1.0).await;
    assert!(bridge.process().log().contains("expected a regular file"));
    assert_eq!(bridge.post(callback("a")).await.status.as_u16(), 200);
    bridge.stop();
}

/// The list in docs/operations.md is generated from the code.
#[test]
fn generated_the_docs_list_every_reloadable_key() {
    let mut keys: Vec<String> = RELOADABLE.iter().map(|key| format!("- `{key}`\n")).collect();
    for kind in input::KINDS.iter().filter(|kind| !kind.reloadable.is_empty()) {
        let of_kind: Vec<String> = kind.reloadable.iter().map(|key| format!("`{key}`")).collect();
        keys.push(format!("- of an input of kind `{}`: {}\n", kind.name, of_kind.join(", ")));
    }
    generated::check_part("docs/operations.md", &format!("\n{}\n", keys.concat()));
}
