//! Stopping: a second signal ends it at once, in every phase and with every kind of input.

use std::process::Command;
use std::time::Instant;

use rdkafka::mocking::MockCluster;

use crate::support::bridge::{Client, KEY, URL, callback, signed_headers};
use crate::support::mns::Mns;
use crate::support::mns::MnsOptions;
use crate::support::mns::queue::QueueAttributes;
use crate::support::process::Process;
use crate::support::wait::{AT_ONCE, SOON};
use crate::support::{eventually, free_port};

/// Longer than any test waits: only a second signal ends these phases.
const LONG: &str = "10m";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_every_phase_at_once() {
    // The delay before callbacks are refused; the wait for those in flight; and both with nothing to wait for.
    for (delay, is_busy) in [(LONG, false), (LONG, true), ("0s", true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = MockCluster::new(1).expect("a mock cluster");
        cluster.create_topic("stopped", 1, 1).expect("created");
        let mns = Mns::start(MnsOptions::default());
        mns.create_queue("media", QueueAttributes::default());
        let (input, admin) = (free_port(), free_port());
        let file = folder.path().join("bridge.toml");
        let text = format!(
            "[inputs.http]\nkind = 'http'\nlisten = '127.0.0.1:{input}'\n[[inputs.http.endpoints]]\nurls = ['{URL}']\n\
             keys = ['{KEY}']\n[inputs.queue]\nkind = 'mns'\nendpoint = '{}'\nqueue = 'media'\n\
             credentials = {{ access_key_id = '{}', access_key_secret = '{}' }}\ndeadline = '5m'\n\
             [outputs.kafka]\nkind = 'kafka'\nbrokers = ['{}']\n\
             [[routes]]\nname = 'all'\nto = {{ output = 'kafka', topic = 'stopped' }}\n\
             [spool]\nenabled = false\n[admin]\nlisten = '127.0.0.1:{admin}'\n\
             [shutdown]\ndelay = '{delay}'\ndrain = '{LONG}'\n",
            mns.endpoint(),
            Mns::KEY_ID,
            Mns::KEY_SECRET,
            cluster.bootstrap_servers()
        );
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_apsara-bridge"));
        command.args(["serve", "--config"]).arg(&file);
        let bridge = Process::start("apsara-bridge", &command, &folder.path().join("log"), None);
        bridge.wait_log("serving metrics and probes", SOON);
        let address = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
        eventually("connected", SOON, async || {
            let ready = Client::connect(address(admin)).await.request("GET", "/readyz", "", &[]).await;
            (ready.status.as_u16() == 200).then_some(())
        })
        .await;
        let post =
            Client::connect(address(input)).await.post("/callbacks", callback("one"), &signed_headers("VOD")).await;
        assert_eq!(post.status.as_u16(), 200);
        if is_busy {
            // A message of the queue waits for its bus.
            cluster.broker_down(1).expect("down");
            mns.put("media", callback("waits"));
            eventually("in flight", SOON, async || {
                let metrics = Client::connect(address(admin)).await.request("GET", "/metrics", "", &[]).await.body;
                String::from_utf8_lossy(&metrics).contains("apsara_bridge_in_flight 1\n").then_some(())
            })
            .await;
        }
        bridge.signal("TERM");
        bridge.wait_log(if delay == LONG { "not ready any more" } else { "taking no more callbacks" }, SOON);
        assert_eq!(bridge.exit_code(), None, "{}", bridge.log_tail());
        let start = Instant::now();
        bridge.signal("TERM");
        let code = bridge.wait(SOON);
        assert_eq!(code, Some(i32::from(is_busy)), "delay {delay}, busy {is_busy}:\n{}", bridge.log_tail());
        assert!(
            start.elapsed() < AT_ONCE,
            "delay {delay}, busy {is_busy}: {:?}\n{}",
            start.elapsed(),
            bridge.log_tail()
        );
        assert_eq!(bridge.log().contains("stopped before these callbacks had an outcome"), is_busy);
    }
}
