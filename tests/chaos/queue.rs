//! The queue: a server that simulates MNS, and the sender that puts events into it like Alibaba.
//!
//! The server runs in this process and is never killed, because the real service does not lose messages: a message
//! stays until it is deleted. The server can only be unreachable for a while. Putting a message does not use the
//! network, so it always succeeds: each event counts as accepted and must be found.

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

/// The lease of the queue, and the one to which the bridge extends it. It is longer than the bridge's deadline, and
/// short enough for the messages of a killed bridge to be delivered again within the run.
const LEASE: Duration = Duration::from_secs(10);

/// After this many puts the server forgets its log of requests. That of an hour would need more memory than the rest.
const FORGET_AFTER: usize = 1_000;

/// A server with one queue.
#[derive(Debug)]
pub struct Queue {
    mns: Mns,
    puts: AtomicUsize,
    longest: AtomicUsize,
}

/// The results for the messages.
#[derive(Clone, Debug)]
pub struct Messages {
    pub put: usize,
    /// The most messages in the queue, leased or not, sampled from time to time.
    pub longest: usize,
    pub deleted: usize,
    /// How many messages the queue has dropped because they were not deleted.
    pub lapsed: usize,
    /// How many messages were received how often.
    pub receives: BTreeMap<u32, usize>,
}

impl Queue {
    pub fn start() -> Queue {
        let mns = Mns::start(MnsOptions::default());
        mns.create_queue(NAME, QueueAttributes { visibility_timeout: LEASE, ..QueueAttributes::default() });
        Queue { mns, puts: AtomicUsize::new(0), longest: AtomicUsize::new(0) }
    }

    /// Adds the queue to a bridge's configuration.
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

    /// How many messages are in it, leased or not.
    pub fn left(&self) -> usize {
        let Counts { active, inactive, delayed } = self.mns.counts(NAME);
        active + inactive + delayed
    }

    /// The results for the messages so far.
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

    /// Descriptions of the first few messages in it: how often each was received, its state, its body.
    pub fn examples(&self, most: usize) -> Vec<String> {
        let left = self.mns.left(NAME).into_iter().take(most);
        left.map(|left| format!("{} receives, {:?}: {}", left.dequeue_count, left.standing, left.body)).collect()
    }
}

impl Sender for Queue {
    /// Puts an event into the queue, alternately plain and in Base64, because both setups exist. The two copies of an
    /// event mostly have different forms, and both dialects are sent in both forms.
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
