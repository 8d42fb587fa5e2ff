//! Keeps a NATS output connected, and says whether it is up.
//!
//! - An output is up while its client is connected and the server sends something at least every two seconds. The
//!   library sends a PING every second, so a working server answers every second, with or without traffic.
//! - This task checks every second, and at once when the client reports a change or a publish got no answer. It reads
//!   counters and the state of the client, because an event may be lost.
//! - If a stream does not answer but the server does, the output stays up, and only the subjects of the stream fail.
//! - A client that is not connected or gets no answer for ten seconds is replaced by a new one. A client whose secret
//!   has changed is replaced as soon as the new secret works.
//! - The user must have the permission to receive acknowledgements. If the server revokes it, the output is down until
//!   the permission is granted again.
//! - JetStream and the stream must answer before the output is up for the first time. Later only the connection counts,
//!   because a cluster without a leader for its API still accepts messages.

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

/// Pause between attempts to connect: doubles from the first to the second.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));

/// The longest time between two checks of a connection.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// The shortest time between two checks. Many publishes that fail at once request many checks.
const CHECK_PAUSE: Duration = Duration::from_millis(20);

/// How long a connection may be silent: two PINGs and their answers.
const MAX_SILENCE: Duration = PING_EVERY.saturating_mul(2);

/// After this time without an answer the client is replaced. The library reconnects in less when there is a server to
/// connect to.
const REPLACE_AFTER: Duration = Duration::from_secs(10);

/// How often the same failure of a new secret is logged.
const REMIND: Duration = Duration::from_secs(60);

/// The shortest time between two attempts to create a stream again.
const CREATE_EVERY: Duration = Duration::from_secs(5);

/// Connects, and watches the connection, forever.
pub(super) async fn watch(settings: Arc<NatsSettings>, shared: Arc<Shared>) {
    let _creating = AbortOnDropHandle::new(tokio::spawn(create_again(settings.clone(), shared.clone())));
    // The connection that is used while a new secret is tried.
    let mut old: Option<WatchedLink> = None;
    let mut has_to_verify = true;
    loop {
        let (present, link) = match &mut old {
            None => connect(&settings, &shared, has_to_verify).await,
            Some(watched) => tokio::select! {
                connected = connect(&settings, &shared, false) => connected,
                () = watched.watch_forever(&shared) => continue,
            },
        };
        let link = Arc::new(link);
        shared.replace_link(Some(link.clone()));
        shared.up();
        if old.take().is_some() || !has_to_verify {
            tokio::spawn(verify_later(settings.clone(), link.clone()));
        }
        let mut watched = WatchedLink::new(link);
        match watched.watch_until(&shared, || settings.present() != present).await {
            End::NewSecret => {
                tracing::info!(output = settings.name, "the secret has changed; logging in with it");
                has_to_verify = false;
                old = Some(watched);
            }
            End::GivenUp => {
                tracing::info!(output = settings.name, "the connection is unusable; starting a new client");
                has_to_verify = watched.link.inbox_refusal().is_some();
                shared.replace_link(None);
            }
        }
    }
}

/// Connects with the present secret. Tries until it succeeds.
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
    let link = Link::connect(settings, login).await.map_err(|fault| not_connected(fault.message))?;
    if has_to_verify {
        warn(settings, link.verify(settings).await?);
    }
    Ok(link)
}

/// Creates the stream again after it was deleted, for example with the data of its server, if `stream.create` is set.
async fn create_again(settings: Arc<NatsSettings>, shared: Arc<Shared>) {
    loop {
        shared.no_stream.notified().await;
        if let Some(link) = shared.link().filter(|_| settings.creates_stream())
            && let Err(error) = link.verify(&settings).await
        {
            tracing::debug!(output = settings.name, %error, "the stream of a subject could not be checked");
        }
        tokio::time::sleep(CREATE_EVERY).await;
    }
}

/// Asks JetStream about the stream again. Nothing waits for the answer.
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

/// Why watching a connection ended.
enum End {
    NewSecret,
    GivenUp,
}

/// A connection that is being watched.
struct WatchedLink {
    link: Arc<Link>,
    last_check: Instant,
    received: u64,
    /// How long nothing has arrived. A pause of this process itself does not count.
    silent: Duration,
    not_connected_since: Option<Instant>,
}

impl WatchedLink {
    fn new(link: Arc<Link>) -> WatchedLink {
        WatchedLink { link, last_check: Instant::now(), received: 0, silent: Duration::ZERO, not_connected_since: None }
    }

    /// Waits until it is time to check.
    async fn pause(&self, shared: &Shared) {
        tokio::time::sleep(CHECK_PAUSE).await;
        tokio::select! {
            () = self.link.events.changed() => {}
            _ = shared.health.probe_requested(jittered(CHECK_EVERY)) => {}
        }
    }

    /// Watches the connection until it is unusable or the secret has changed.
    async fn watch_until(&mut self, shared: &Shared, has_new_secret: impl Fn() -> bool) -> End {
        loop {
            self.pause(shared).await;
            self.check(shared);
            if has_new_secret() {
                return End::NewSecret;
            }
            if self.is_given_up() {
                return End::GivenUp;
            }
        }
    }

    /// Watches the connection forever.
    async fn watch_forever(&mut self, shared: &Shared) {
        loop {
            self.pause(shared).await;
            self.check(shared);
        }
    }

    fn check(&mut self, shared: &Shared) {
        let now = Instant::now();
        let received = self.link.client.statistics().in_bytes.load(Ordering::Relaxed);
        if received == self.received {
            self.silent += now.duration_since(self.last_check).min(CHECK_EVERY);
        } else {
            self.received = received;
            self.silent = Duration::ZERO;
        }
        self.last_check = now;
        self.link.end_lost();
        if self.link.client.connection_state() != State::Connected {
            let since = *self.not_connected_since.get_or_insert(now);
            let recently = since.checked_sub(CHECK_EVERY).unwrap_or(since);
            let last_error = self.link.events.last_error_since(recently);
            shared.down(not_connected(last_error.as_deref().unwrap_or("disconnected")));
            return;
        }
        self.not_connected_since = None;
        if let Some(refusal) = self.link.inbox_refusal() {
            shared.down(refusal);
        } else if self.silent < MAX_SILENCE {
            shared.up();
        } else {
            // The library notices this too, within a second, and reconnects. Requesting it now would not help: it
            // does not read its queue of requests while a write is stuck.
            shared.down(not_connected("the server does not answer"));
        }
    }

    fn is_given_up(&self) -> bool {
        let is_not_connected = self.not_connected_since.is_some_and(|since| since.elapsed() >= REPLACE_AFTER);
        is_not_connected || self.silent >= REPLACE_AFTER || self.link.inbox_refusal().is_some()
    }
}
