//! Keeps a NATS output connected, and says whether it is up.
//!
//! - An output is up while its client is connected and the server sends something at least every two seconds. The
//!   library sends a PING every second, so that a server that works answers that often, with or without traffic.
//! - This task looks every second, at once when the client says that something changed, and at once when a publish got
//!   no answer. It reads counters and the state of the client, so that nothing depends on one event that may be lost.
//! - A stream that does not answer while the server does is not the output's fault: only its subjects fail.
//! - A client that is not connected or gets no answer for ten seconds is replaced by a new one. So is one whose secret
//!   has changed, as soon as the new secret works.
//! - The user must have the right to get acknowledgements; if the server takes it away, the output is down until it is
//!   given back.
//! - JetStream and the stream must answer before the output is up for the first time. Later only the connection counts:
//!   a cluster without a leader for its API still takes messages.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::connection::State;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::Shared;
use super::config::{NatsSettings, Present, PresentLogin};
use super::link::{Link, PING_EVERY};
use crate::common::backoff::{Backoff, jittered};
use crate::output::{ErrorKind, PublishError};
use crate::telemetry::LogThrottle;

/// Waiting time between attempts to connect: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// The longest time between two looks at a connection.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The shortest time between two looks: many publishes that fail at once ask for many.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long a connection may be silent: two PINGs and their answers.
const SILENCE: Duration = PING_EVERY.saturating_mul(2);

/// After this time without an answer the client is replaced. The library reconnects in less when there is a server to
/// connect to.
const REPLACE: Duration = Duration::from_secs(10);

/// How often the same failure of a new secret is logged.
const REMIND: Duration = Duration::from_secs(60);

/// The shortest time between two attempts to create a stream that has vanished.
const CREATE_EVERY: Duration = Duration::from_secs(5);

/// Connects, and looks after the connection, forever.
pub(super) async fn watch(settings: Arc<NatsSettings>, shared: Arc<Shared>) {
    let _creating = AbortOnDropHandle::new(tokio::spawn(create_again(settings.clone(), shared.clone())));
    // The connection that is used while a new secret is tried.
    let mut old: Option<Watched> = None;
    let mut has_to_verify = true;
    loop {
        let (present, link) = match &mut old {
            None => connect(&settings, &shared, has_to_verify).await,
            Some(watched) => tokio::select! {
                connected = connect(&settings, &shared, false) => connected,
                () = watched.attend(&shared) => continue,
            },
        };
        let link = Arc::new(link);
        shared.replace_link(Some(link.clone()));
        shared.up();
        if old.take().is_some() || !has_to_verify {
            tokio::spawn(verify_later(settings.clone(), link.clone()));
        }
        let mut watched = Watched::new(link);
        match watched.attend_until(&shared, || settings.present() != present).await {
            End::NewSecret => {
                tracing::info!(output = settings.name, "the secret has changed; logging in with it");
                has_to_verify = false;
                old = Some(watched);
            }
            End::GivenUp => {
                tracing::info!(output = settings.name, "the connection is given up; starting a new client");
                has_to_verify = watched.link.inbox_refusal().is_some();
                shared.replace_link(None);
            }
        }
    }
}

/// Connects with the present secret, however long it takes.
async fn connect(settings: &NatsSettings, shared: &Shared, has_to_verify: bool) -> (Present, Link) {
    let mut backoff = Backoff::new(RETRY.0, RETRY.1);
    let throttle = LogThrottle::every(REMIND);
    loop {
        let present = settings.present();
        match connect_once(settings, &present.login, has_to_verify).await {
            Ok(link) => return (present, link),
            Err(error) if shared.has_link() => {
                let reason = error.message;
                if throttle.is_due(&reason) {
                    tracing::warn!(
                        output = settings.name,
                        reason,
                        "logging in with the new secret failed; trying again"
                    );
                }
            }
            Err(error) => shared.down(error),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

async fn connect_once(
    settings: &NatsSettings,
    login: &PresentLogin,
    has_to_verify: bool,
) -> Result<Link, PublishError> {
    let link = Link::connect(settings, login).await.map_err(not_connected)?;
    if has_to_verify {
        warn(settings, link.verify(settings).await?);
    }
    Ok(link)
}

/// Creates the stream when it has vanished, for example with the data of its server, if it is the bridge's to create.
async fn create_again(settings: Arc<NatsSettings>, shared: Arc<Shared>) {
    loop {
        shared.no_stream.notified().await;
        if let Some(link) = shared.link().filter(|_| settings.creates_stream())
            && let Err(error) = link.verify(&settings).await
        {
            tracing::debug!(output = settings.name, %error, "no stream takes a subject, and it could not be checked why");
        }
        tokio::time::sleep(CREATE_EVERY).await;
    }
}

/// Asks JetStream about the stream again, without holding anything up.
async fn verify_later(settings: Arc<NatsSettings>, link: Arc<Link>) {
    match link.verify(&settings).await {
        Ok(warnings) => warn(&settings, warnings),
        Err(error) => {
            let reason = error.message;
            tracing::warn!(output = settings.name, reason, "the stream could not be checked after connecting again");
        }
    }
}

fn warn(settings: &NatsSettings, warnings: Vec<String>) {
    for warning in warnings {
        tracing::warn!(output = settings.name, warning, "the stream is not as configured");
    }
}

fn not_connected(reason: impl std::fmt::Display) -> PublishError {
    PublishError::new(ErrorKind::Unavailable, reason)
}

/// Why a connection is not looked after any more.
enum End {
    NewSecret,
    GivenUp,
}

/// A connection that is looked after.
struct Watched {
    link: Arc<Link>,
    looked: Instant,
    received: u64,
    /// How long nothing has come. A pause of this process itself does not count.
    silent: Duration,
    not_connected_since: Option<Instant>,
}

impl Watched {
    fn new(link: Arc<Link>) -> Watched {
        Watched { link, looked: Instant::now(), received: 0, silent: Duration::ZERO, not_connected_since: None }
    }

    /// Waits until it is time to look.
    async fn pause(&self, shared: &Shared) {
        tokio::time::sleep(LOOK_PAUSE).await;
        tokio::select! {
            () = self.link.events.changed() => {}
            _ = shared.health.probe_requested(jittered(LOOK_EVERY)) => {}
        }
    }

    /// Looks after the connection until it is given up or the secret is another one.
    async fn attend_until(&mut self, shared: &Shared, has_new_secret: impl Fn() -> bool) -> End {
        loop {
            self.pause(shared).await;
            self.look(shared);
            if has_new_secret() {
                return End::NewSecret;
            }
            if self.is_given_up() {
                return End::GivenUp;
            }
        }
    }

    /// Looks after the connection forever.
    async fn attend(&mut self, shared: &Shared) {
        loop {
            self.pause(shared).await;
            self.look(shared);
        }
    }

    fn look(&mut self, shared: &Shared) {
        let now = Instant::now();
        let received = self.link.client.statistics().in_bytes.load(Ordering::Relaxed);
        if received == self.received {
            self.silent += now.duration_since(self.looked).min(LOOK_EVERY);
        } else {
            self.received = received;
            self.silent = Duration::ZERO;
        }
        self.looked = now;
        self.link.end_lost();
        if self.link.client.connection_state() != State::Connected {
            let since = *self.not_connected_since.get_or_insert(now);
            let recently = since.checked_sub(LOOK_EVERY).unwrap_or(since);
            let complaint = self.link.events.complaint_since(recently);
            shared.down(not_connected(complaint.as_deref().unwrap_or("disconnected")));
            return;
        }
        self.not_connected_since = None;
        if let Some(refusal) = self.link.inbox_refusal() {
            shared.down(refusal);
        } else if self.silent < SILENCE {
            shared.up();
        } else {
            // The library finds that too, within a second, and reconnects. Asking it to do so now would not help: it
            // takes the request from a queue that it does not read while a write is stuck.
            shared.down(not_connected("the server does not answer"));
        }
    }

    fn is_given_up(&self) -> bool {
        let is_not_connected = self.not_connected_since.is_some_and(|since| since.elapsed() >= REPLACE);
        is_not_connected || self.silent >= REPLACE || self.link.inbox_refusal().is_some()
    }
}
