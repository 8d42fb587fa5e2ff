//! A client of the servers, its publisher, and what its events reported.
//!
//! async-nats reconnects by itself for a while; [`super::watch`] replaces the whole client when that takes too long.
//! Events of the client only speed things up. The library drops events when there are too many, so nothing relies on
//! them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectErrorKind, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::{NatsDelivery, NatsSettings, PresentLogin};
use super::errors;
use super::publisher::{self, HANDED_OVER, Publisher};
use super::slots::Slots;
use super::stream;
use crate::common::backoff::jittered;
use crate::output::{ErrorKind, PublishError};

/// How long a server may take to send its greeting, to log in the client, or to answer a request about a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the library sends a PING. It closes a connection when two are unanswered and a third one is due. This is 2
/// to 3 seconds after a server stopped answering.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);

/// The longest pause between two attempts of the library to reconnect.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// After this many failed attempts in a row the library gives up. Its client has been replaced by then. Without a
/// limit, the task of the old client would try forever.
const RECONNECTS: usize = 60;

/// Most subjects that are remembered because the user may not publish on them.
const MAX_REFUSALS: usize = 32;

/// What the events of a client reported.
#[derive(Debug)]
pub(super) struct Events {
    output: String,
    inbox_prefix: String,
    slots: Arc<Slots>,
    reported: Mutex<Reported>,
    /// Set when the user may not subscribe to the answers. Each publish looks at it, without a lock.
    inbox: OnceLock<PublishError>,
    /// Notified when the client connects or disconnects.
    changed: Notify,
    /// Notified when a permission is missing.
    refused: Notify,
}

#[derive(Debug, Default)]
struct Reported {
    /// The last error that the server or the client reported, and when.
    last_error: Option<(Instant, String)>,
    /// Subjects that the user may not publish on, and when the server said so; the latest first.
    refusals: VecDeque<(Instant, String, PublishError)>,
}

impl Events {
    fn new(settings: &NatsSettings) -> Events {
        Events {
            output: settings.name.clone(),
            inbox_prefix: settings.inbox_prefix.clone(),
            slots: publisher::slots(),
            reported: Mutex::default(),
            inbox: OnceLock::new(),
            changed: Notify::new(),
            refused: Notify::new(),
        }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn handle(&self, event: &Event) {
        tracing::debug!(output = self.output, %event, "nats");
        match event {
            Event::Connected | Event::Disconnected | Event::Closed => self.changed.notify_one(),
            Event::ServerError(error) => {
                self.reported().last_error = Some((Instant::now(), error.to_string()));
                if let ServerError::Other(words) = error {
                    self.handle_server_error(words);
                }
            }
            Event::ClientError(error) => self.reported().last_error = Some((Instant::now(), error.to_string())),
            _ => {}
        }
    }

    /// Handles an error of the server about a message or a subscription. It has no number, but names a subject.
    fn handle_server_error(&self, words: &str) {
        if words.eq_ignore_ascii_case("maximum payload violation") {
            // A limit of the account or the user. The server does not announce it, and closes the connection.
            self.slots.end_largest(&errors::too_large(format!(
                "larger than the account or the user may send (server: {words})"
            )));
            return;
        }
        match Violation::parse(words) {
            Some(Violation::Publish(subject)) => {
                let error = may_not_publish(&subject, words);
                self.slots.end_subject(&subject, &error);
                let mut reported = self.reported();
                reported.refusals.retain(|(_, known, _)| *known != subject);
                reported.refusals.push_front((Instant::now(), subject, error));
                reported.refusals.truncate(MAX_REFUSALS);
            }
            Some(Violation::Inbox(subject)) => {
                let error = may_not_get_answers(&subject, &self.inbox_prefix, words);
                let _ = self.inbox.set(error.clone());
                self.slots.end_all(&error);
            }
            None => return,
        }
        self.refused.notify_one();
    }

    /// Waits until the client reports that it has connected or disconnected.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until the server reports that the user may not send requests to JetStream, or not receive the answers.
    async fn refused(&self) -> PublishError {
        loop {
            self.refused.notified().await;
            let reported = self.reported();
            let of_the_api = reported.refusals.iter().find(|(_, subject, _)| subject.starts_with("$JS."));
            if let Some(error) = self.inbox.get().or(of_the_api.map(|(_, _, error)| error)) {
                return error.clone();
            }
        }
    }

    /// The last error, if it is not older than `start`.
    pub(super) fn last_error_since(&self, start: Instant) -> Option<String> {
        let reported = self.reported();
        reported.last_error.as_ref().filter(|(came, _)| *came >= start).map(|(_, words)| words.clone())
    }
}

/// What the user of a NATS connection may not do.
#[derive(Debug, PartialEq)]
enum Violation {
    /// Publish on a subject.
    Publish(String),
    /// Subscribe to a subject, or use it as the subject for answers.
    Inbox(String),
}

impl Violation {
    /// Parses a message of the server: `Permissions Violation for Publish to "media.x"`.
    fn parse(words: &str) -> Option<Violation> {
        let (what, quoted) = words.split_once('"')?;
        let mut subject = String::new();
        let mut rest = quoted.chars();
        loop {
            match rest.next()? {
                '"' => break,
                '\\' => subject.push(rest.next()?),
                other => subject.push(other),
            }
        }
        match what.trim_end().to_ascii_lowercase().strip_prefix("permissions violation for ")? {
            "publish to" => Some(Violation::Publish(subject)),
            "subscription to" | "publish with reply of" => Some(Violation::Inbox(subject)),
            _ => None,
        }
    }
}

fn may_not_publish(subject: &str, words: &str) -> PublishError {
    let message = format!(
        "the NATS user may not publish on \"{subject}\": give it the permission to publish there (server: {words})"
    );
    PublishError::new(ErrorKind::Unauthorized, message)
}

fn may_not_get_answers(subject: &str, prefix: &str, words: &str) -> PublishError {
    let message = format!(
        "the NATS user may not receive acknowledgements on \"{subject}\": give it the permission to subscribe to \
         \"{prefix}.>\", or set `inbox_prefix` to one that it has (server: {words})"
    );
    PublishError::new(ErrorKind::Unauthorized, message)
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) struct ConnectFault {
    /// What the client says.
    pub(super) message: String,
    /// Whether it is about the login, and not about the network.
    pub(super) is_login: bool,
}

/// A client and its publisher.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) client: Client,
    /// None for core NATS, which acknowledges nothing.
    pub(super) publisher: Option<Publisher>,
    pub(super) events: Arc<Events>,
}

impl Link {
    /// Connects, once.
    ///
    /// # Errors
    /// The error of the client.
    pub(super) async fn connect(settings: &NatsSettings, login: &PresentLogin) -> Result<Link, ConnectFault> {
        let events = Arc::new(Events::new(settings));
        let options = options(settings, login, events.clone());
        let options = options.map_err(|message| ConnectFault { message, is_login: true })?;
        let client = options.connect(settings.servers.as_slice()).await.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = error.to_string();
            let message = if text.contains(&cause) { text } else { format!("{text}: {cause}") };
            let of_login = [ConnectErrorKind::Authentication, ConnectErrorKind::AuthorizationViolation];
            ConnectFault { message, is_login: of_login.contains(&error.kind()) }
        })?;
        let publisher = match settings.delivery {
            NatsDelivery::Jetstream => {
                let publisher = Publisher::start(&client, events.slots.clone()).await;
                Some(publisher.map_err(|message| ConnectFault { message, is_login: false })?)
            }
            NatsDelivery::Core => None,
        };
        Ok(Link { client, publisher, events })
    }

    /// Asks JetStream for what the output needs. Returns warnings.
    ///
    /// # Errors
    /// A sentence with the remedy. A missing permission is reported as soon as the server sends it.
    pub(super) async fn verify(&self, settings: &NatsSettings) -> Result<Vec<String>, PublishError> {
        if self.publisher.is_none() {
            return Ok(Vec::new());
        }
        let context = self.jetstream(ANSWER_TIMEOUT);
        let verified = self.unless_refused(stream::ensure(&context, settings.stream.as_ref())).await?;
        verified.map_err(|reason| PublishError::new(ErrorKind::Unavailable, reason))
    }

    /// Requests to JetStream, each with this time for its answer.
    pub(super) fn jetstream(&self, timeout: Duration) -> jetstream::Context {
        let mut context = jetstream::new(self.client.clone());
        context.set_timeout(timeout);
        context
    }

    /// What a request gives.
    ///
    /// # Errors
    /// That the user may not send requests to JetStream or not receive the answers, as soon as the server sends it.
    pub(super) async fn unless_refused<T>(&self, request: impl Future<Output = T>) -> Result<T, PublishError> {
        tokio::select! {
            refusal = self.events.refused() => Err(refusal),
            answer = request => Ok(answer),
        }
    }

    /// Ends the publishes that were sent over a lost connection.
    pub(super) fn end_lost(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.end_lost(&self.client);
        }
    }

    /// The error if the user may not subscribe to acknowledgements; then none will ever arrive.
    pub(super) fn inbox_refusal(&self) -> Option<PublishError> {
        self.events.inbox.get().cloned()
    }

    /// The error if the server has reported since `start` that the user may not publish on the subject.
    pub(super) fn refusal_since(&self, start: Instant, subject: &str) -> Option<PublishError> {
        let reported = self.events.reported();
        let refusal = reported.refusals.iter().find(|(came, refused, _)| *came >= start && refused == subject);
        refusal.map(|(_, _, error)| error.clone())
    }
}

fn options(settings: &NatsSettings, login: &PresentLogin, events: Arc<Events>) -> Result<ConnectOptions, String> {
    let mut options = ConnectOptions::new()
        .name("apsara-bridge")
        .connection_timeout(ANSWER_TIMEOUT)
        .ping_interval(PING_EVERY)
        .client_capacity(HANDED_OVER)
        .custom_inbox_prefix(&settings.inbox_prefix)
        .max_reconnects(RECONNECTS + settings.servers.len())
        .reconnect_delay_callback(|attempts| match attempts {
            0 | 1 => Duration::ZERO,
            more => jittered(Duration::from_millis(50 << more.min(6)).min(RECONNECT_PAUSE)),
        })
        .event_callback(move |event| {
            let events = events.clone();
            async move { events.handle(&event) }
        });
    options = match login.clone() {
        PresentLogin::None => options,
        PresentLogin::User(user, password) => options.user_and_password(user, password.to_string()),
        PresentLogin::Token(token) => options.token(token.to_string()),
        PresentLogin::NKey(seed) => options.nkey(seed.to_string()),
        PresentLogin::Credentials(text) => {
            options.credentials(&text).map_err(|error| format!("the credentials file is malformed: {error}"))?
        }
    };
    if let Some(tls) = &settings.tls {
        options = options.require_tls(true);
        if let Some(ca) = &tls.ca_file {
            options = options.add_root_certificates(ca.clone());
        }
        if let (Some(cert), Some(key)) = (&tls.cert_file, &tls.key_file) {
            options = options.add_client_certificate(cert.clone(), key.clone());
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violations_are_parsed_from_the_messages_of_the_server() {
        for (words, expected) in [
            ("Permissions Violation for Publish to \"a.b\"", Some(Violation::Publish("a.b".to_owned()))),
            ("Permissions Violation for Publish to \"a\\\"b\"", Some(Violation::Publish("a\"b".to_owned()))),
            (
                "Permissions Violation for Subscription to \"_INBOX.x.*\"",
                Some(Violation::Inbox("_INBOX.x.*".to_owned())),
            ),
            (
                "Permissions Violation for Subscription to \"a\" using queue \"q\"",
                Some(Violation::Inbox("a".to_owned())),
            ),
            ("Permissions Violation for Publish with Reply of \"_R\"", Some(Violation::Inbox("_R".to_owned()))),
            ("Permissions Violation for Subscription to \"a\" (sid \"2\")", Some(Violation::Inbox("a".to_owned()))),
            ("Permissions Violation for Publish to \"a", None),
            ("Authorization Violation", None),
            ("Unknown \"x\"", None),
        ] {
            assert_eq!(Violation::parse(words), expected, "{words}");
        }
    }

    #[test]
    fn an_error_about_a_missing_permission_names_the_subject() {
        let error = may_not_publish("media.x", "W");
        assert_eq!(error.kind, ErrorKind::Unauthorized);
        assert!(error.message.starts_with("the NATS user may not publish on \"media.x\""), "{error}");
        let error = may_not_get_answers("_INBOX.a.*", "_INBOX", "W");
        assert!(error.message.contains("subscribe to \"_INBOX.>\""), "{error}");
    }
}
