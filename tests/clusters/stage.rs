//! One scenario: a bridge with its own folder, the load that is sent to it, and the result.
//!
//! Promises: the load does not depend on the answers. The figures of the bridge are read before it is stopped. All
//! faults of a scenario are collected and reported.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, block_in_place};

use crate::side::Side;
use crate::support::config::{Config, Route};
use crate::support::eventually;
use crate::support::program::{Metrics, Program};
use crate::support::sender::{Alibaba, Callback, Dialect, send_all};
use crate::support::wait::{SOON, STOPPED, try_eventually};
use crate::verdict::{Arrivals, Verdict};

/// Events per second.
const RATE: u32 = 100;

/// How many answers a scenario waits for before its fault begins, and after it has ended.
const CALM: usize = 100;

/// How long after the end of a fault the spool must be empty. Operator's errors are retried every 30 s.
const DRAINED: Duration = Duration::from_secs(60);

/// The result of a scenario.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The line of figures.
    pub figures: String,
    /// The faults.
    pub faults: Vec<String>,
    /// Whether it was aborted.
    pub is_broken: bool,
}

impl Report {
    pub fn broken(why: &str) -> Report {
        Report { figures: why.to_owned(), faults: vec![why.to_owned()], is_broken: true }
    }
}

/// A scenario before its bridge is started.
#[derive(Debug)]
pub struct Stage {
    pub side: Arc<Side>,
    /// A unique name, for topics and folders.
    pub name: String,
    folder: PathBuf,
}

/// A running bridge.
#[derive(Debug)]
pub struct Served {
    pub program: Program,
}

/// Events that are being sent.
#[derive(Debug)]
pub struct Load {
    pub sender: Arc<Alibaba>,
    prefix: &'static str,
    is_over: Ending,
    sending: JoinHandle<Vec<bool>>,
}

/// Ends the sending when it is dropped, also when a scenario is aborted.
#[derive(Debug)]
struct Ending(Arc<AtomicBool>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Events that were sent.
#[derive(Debug)]
pub struct Sent {
    pub sender: Arc<Alibaba>,
    pub prefix: &'static str,
    /// For each event, whether it was answered with 200.
    pub accepted: Vec<bool>,
}

/// The counters of the bridge.
#[derive(Clone, Copy, Debug, Default)]
pub struct Figures {
    /// Callbacks that were stored in the spool before they were answered.
    pub spooled: u64,
    /// Publishes that failed.
    pub failures: u64,
    pub dead_letters: u64,
}

impl Stage {
    pub fn new(side: Arc<Side>, name: String, folder: PathBuf) -> Stage {
        Stage { side, name, folder }
    }

    /// Starts a bridge with these routes, each a prefix of media ids and a destination, and waits until it is
    /// connected.
    pub async fn start(&self, is_proxied: bool, routes: &[(&str, &str)]) -> Served {
        let (kind, addresses) = self.side.output(is_proxied);
        let config = Config::http()
            .output("bus", kind, &addresses)
            .routes(routes.iter().map(|(prefix, destination)| {
                Route::new(prefix).when(&format!("mediaid = '{prefix}-*'")).to("bus", destination)
            }))
            .spool(self.folder.join("spool"))
            .set("spool.max_bytes = '256MiB'\nshutdown.drain = '5s'\nlog = { format = 'text', filter = 'info' }");
        let program = block_in_place(|| Program::start(&self.folder, config));
        program.ready().await;
        Served { program }
    }
}

impl Served {
    /// Starts sending events whose media ids begin with `prefix`, and returns when some were answered.
    pub async fn load(&self, prefix: &'static str) -> Load {
        let sender = Arc::new(Alibaba::new(self.program.input));
        let is_over = Arc::new(AtomicBool::new(false));
        let ends = is_over.clone();
        let next = move |number| (!ends.load(Ordering::Relaxed)).then(|| callback(prefix, number));
        let sending = tokio::spawn(send_all(sender.clone(), RATE, next));
        let load = Load { sender, prefix, is_over: Ending(is_over), sending };
        load.calm().await;
        load
    }

    /// The current metrics of the bridge.
    pub async fn metrics(&self) -> Metrics {
        eventually("the metrics of the bridge", SOON, async || self.program.metrics().await.ok()).await
    }

    /// Its current counters.
    pub async fn figures(&self) -> Figures {
        let metrics = self.metrics().await;
        Figures {
            spooled: metrics.sum("callbacks_total", &["outcome=\"spooled\""]),
            failures: metrics.sum("publish_failures_total", &[]),
            dead_letters: metrics.sum("dead_letters_total", &[]),
        }
    }

    /// The current number of records in the spool.
    pub async fn spooled(&self) -> u64 {
        self.metrics().await.sum("spool_events", &[])
    }

    /// Waits until the spool is empty. Returns how long that took, or the fault.
    pub async fn drained(&self) -> Result<Duration, String> {
        let begun = Instant::now();
        let mut left = 0;
        let is_empty = try_eventually(DRAINED, async || {
            left = self.spooled().await;
            (left == 0).then_some(())
        });
        match is_empty.await {
            Some(()) => Ok(begun.elapsed()),
            None => Err(format!("{DRAINED:?} after the fault {left} records are still in the spool")),
        }
    }

    /// Stops it with SIGTERM. Returns the fault, if there is one.
    pub fn stop(&self) -> Option<String> {
        block_in_place(|| {
            let process = self.program.process();
            if let Some(code) = process.exit_code() {
                return Some(format!("the bridge has ended by itself with exit code {code}"));
            }
            process.signal("TERM");
            match process.wait(STOPPED) {
                Some(0) => None,
                Some(code) => Some(format!("the bridge ended with exit code {code} after SIGTERM: expected 0")),
                None => Some(format!("the bridge still runs {STOPPED:?} after SIGTERM")),
            }
        })
    }

    /// Ends a scenario: waits until the spool is empty, stops the bridge, reads the destinations, and judges. `effect`
    /// is a message if the fault did not have its effect.
    pub async fn finish(
        self,
        side: &Side,
        sent: &[(Sent, &str)],
        note: &str,
        effect: impl FnOnce(Figures) -> Option<String>,
    ) -> Report {
        let mut faults = Vec::new();
        let drained = self.drained().await;
        let figures = self.figures().await;
        faults.extend(drained.as_ref().err().cloned());
        faults.extend(self.stop());
        if figures.dead_letters > 0 {
            faults.push(format!("{} dead letters: expected none", figures.dead_letters));
        }
        faults.extend(effect(figures));
        let mut lines = Vec::new();
        for (sent, destination) in sent {
            let verdict = match side.read(destination).await {
                Ok(records) => Arrivals::of(sent.prefix, &records).verdict(&sent.accepted),
                Err(error) => {
                    faults.push(error);
                    continue;
                }
            };
            faults.extend(verdict.faults().into_iter().map(|fault| format!("{}: {fault}", sent.prefix)));
            lines.push(line(sent, &verdict));
        }
        let Figures { spooled, failures, dead_letters } = figures;
        let drained = drained.map_or_else(|_| "not".to_owned(), |time| format!("in {:.1} s", time.as_secs_f64()));
        let line = lines.join("; ");
        Report {
            figures: format!(
                "{line}; dead letters {dead_letters}, spooled {spooled}, failed publishes {failures}, \
                 drained {drained}{note}"
            ),
            faults,
            is_broken: false,
        }
    }
}

/// The figures of one load.
fn line(sent: &Sent, verdict: &Verdict) -> String {
    let times = sent.sender.answer_times(0);
    let Verdict { accepted, found, repeats, .. } = verdict;
    format!(
        "{} sent {}, 200 {accepted}, arrived {found}, missing {}, repeats {repeats}, p50 {}, p99 {}",
        sent.prefix,
        sent.accepted.len(),
        verdict.missing.len(),
        milliseconds(times.percentile(0.5)),
        milliseconds(times.percentile(0.99)),
    )
}

/// A duration as it is printed.
pub fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1_000.0)
}

impl Load {
    /// Waits for some more answers with 200.
    pub async fn calm(&self) {
        let enough = self.sender.accepted() + CALM;
        eventually(&format!("{CALM} more callbacks to be answered with 200"), SOON, async || {
            (self.sender.accepted() >= enough).then_some(())
        })
        .await;
    }

    /// Stops sending, and waits for the last answers.
    pub async fn stop(self) -> Sent {
        drop(self.is_over);
        let accepted = self.sending.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        Sent { sender: self.sender, prefix: self.prefix, accepted }
    }
}

/// A callback of about the size of real ones.
fn callback(prefix: &str, number: usize) -> Callback {
    let url = format!("http://outin.oss-cn-shanghai.aliyuncs.com/{}.mp4", "sv/93ad7c5-182010aa3dc/".repeat(20));
    let body = format!(
        r#"{{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","Status":"success","VideoId":"{prefix}-{number}","Size":{number},"FileUrl":"{url}"}}"#
    );
    Callback { dialect: Dialect::Vod, body: body.into(), is_twin: false }
}
