//! The queue: a server that plays MNS, and the sender that puts events into it as Alibaba does.
//!
//! The server lives in this process and is never killed, as the real one isn't: what is put stays until it is deleted.
//! It can only be out of reach for a while. A put doesn't go by the network, so that each one counts: somebody has
//! answered for it, and it must be found.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::support::config::Config;
use crate::support::mns::queue::{Counts, QueueAttributes};
use crate::support::mns::{Mns, MnsOptions};
use crate::support::sender::{Callback, Sender};

/// Its name.
const NAME: &str = "chaos-media";

/// A lease, of the queue and as the bridge extends it: longer than the bridge's deadline, and short enough that what a
/// killed bridge held comes again within the run.
const LEASE: Duration = Duration::from_secs(10);

/// After so many puts the server forgets which requests it had: an hour's would take more memory than all else.
const FORGET_AFTER: usize = 1_000;

/// A server with one queue.
#[derive(Debug)]
pub struct Queue {
    mns: Mns,
    puts: AtomicUsize,
    longest: AtomicUsize,
}

/// What became of the messages.
#[derive(Clone, Debug)]
pub struct Messages {
    pub put: usize,
    /// Most that were in the queue at a time, held or not, looked at now and then.
    pub longest: usize,
    pub deleted: usize,
    /// How many the queue has dropped because nobody deleted them.
    pub lapsed: usize,
    /// How many were received how often.
    pub receives: BTreeMap<u32, usize>,
}

impl Queue {
    pub fn start() -> Queue {
        let mns = Mns::start(MnsOptions::default());
        mns.create_queue(NAME, QueueAttributes { visibility_timeout: LEASE, ..QueueAttributes::default() });
        Queue { mns, puts: AtomicUsize::new(0), longest: AtomicUsize::new(0) }
    }

    /// Adds it to a bridge's configuration.
    pub fn input(&self, config: Config) -> Config {
        config.mns(&self.mns, NAME).set(&format!(
            "inputs.queue = {{ receivers = 2, wait = '5s', visibility = '{}s', max_in_flight = 512, deadline = '5s' }}",
            LEASE.as_secs()
        ))
    }

    /// Breaks all connections to the server, and refuses new ones. Blocks the thread.
    pub fn down(&self) {
        self.mns.down();
    }

    /// Ends that. Blocks the thread.
    pub fn up(&self) {
        self.mns.up();
    }

    /// How many messages are in it, held or not.
    pub fn left(&self) -> usize {
        let Counts { active, inactive, delayed } = self.mns.counts(NAME);
        active + inactive + delayed
    }

    /// What became of the messages so far.
    pub fn messages(&self) -> Messages {
        let mut receives = BTreeMap::new();
        for times in self.mns.received(NAME).into_values() {
            *receives.entry(times).or_default() += 1;
        }
        Messages {
            put: self.puts.load(Ordering::Relaxed),
            longest: self.longest.load(Ordering::Relaxed),
            deleted: self.mns.deleted(NAME).len(),
            lapsed: self.mns.lapsed(NAME).len(),
            receives,
        }
    }

    /// The first few messages that are in it, for a person: how often each was received, how it stands, its body.
    pub fn examples(&self, most: usize) -> Vec<String> {
        let left = self.mns.left(NAME).into_iter().take(most);
        left.map(|left| format!("{} receives, {:?}: {}", left.dequeue_count, left.standing, left.body)).collect()
    }
}

impl Sender for Queue {
    /// Puts it there: plain and in Base64 by turns, as both kinds of setups exist. So twins are mostly one of each, and
    /// as each pair shifts the turns, both shapes are seen of either dialect.
    async fn deliver(&self, callback: &Callback) -> bool {
        let puts = self.puts.fetch_add(1, Ordering::Relaxed);
        let body = if puts.is_multiple_of(2) {
            String::from_utf8(callback.body.to_vec()).expect("JSON")
        } else {
            STANDARD.encode(&callback.body)
        };
        self.mns.put(NAME, body);
        if puts.is_multiple_of(FORGET_AFTER) {
            self.mns.forget_requests();
            self.longest.fetch_max(self.left(), Ordering::Relaxed);
        }
        true
    }
}
