//! Stopping: a second signal ends the service at once, in every phase and with every kind of input.

use std::time::Instant;

use crate::support::bridge::callback;
use crate::support::config::Config;
use crate::support::eventually;
use crate::support::kafka::mock;
use crate::support::mns::queue::QueueAttributes;
use crate::support::mns::{Mns, MnsOptions};
use crate::support::program::Program;
use crate::support::wait::{AT_ONCE, SOON};

/// Longer than any test waits: only a second signal ends these phases.
const LONG: &str = "10m";

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_every_phase_at_once() {
    // The delay before callbacks are refused, and the wait for callbacks in flight; both also with nothing in flight.
    for (delay, is_busy) in [(LONG, false), (LONG, true), ("0s", true)] {
        let folder = tempfile::tempdir().expect("a folder");
        let cluster = mock(&["stopped"]);
        let mns = Mns::start(MnsOptions::default());
        mns.create_queue("media", QueueAttributes::default());
        let config = Config::http()
            .mns(&mns, "media")
            .set("inputs.queue.deadline = '5m'")
            .kafka(&cluster.bootstrap_servers())
            .to("kafka", "stopped")
            .set(&format!("shutdown = {{ delay = '{delay}', drain = '{LONG}' }}"));
        let bridge = Program::start(folder.path(), config);
        bridge.ready().await;
        assert_eq!(bridge.post(callback("one")).await.status.as_u16(), 200);
        if is_busy {
            // A message of the queue waits for the bus.
            cluster.broker_down(1).expect("down");
            mns.put("media", callback("waits"));
            eventually("a message in flight", SOON, async || {
                (bridge.metric("apsara_bridge_in_flight").await == 1.0).then_some(())
            })
            .await;
        }
        let process = bridge.process();
        process.signal("TERM");
        process.wait_log(if delay == LONG { "not ready any more" } else { "accepting no more callbacks" }, SOON);
        assert_eq!(process.exit_code(), None, "{}", process.log_tail());
        let start = Instant::now();
        process.signal("TERM");
        let code = process.wait(SOON);
        assert_eq!(code, Some(i32::from(is_busy)), "delay {delay}, busy {is_busy}:\n{}", process.log_tail());
        assert!(
            start.elapsed() < AT_ONCE,
            "delay {delay}, busy {is_busy}: {:?}\n{}",
            start.elapsed(),
            process.log_tail()
        );
        assert_eq!(process.log().contains("stopped before these callbacks had an outcome"), is_busy);
    }
}
