//! A client of the servers with what belongs to it: its publisher, and what its events said.
//!
//! async-nats reconnects by itself for a while; [`super::watch`] replaces the whole client when that takes too long.
//! Events of the client make things quick. Nothing relies on them: the library drops events when they come too fast.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, ServerError, jetstream};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::config::{NatsDelivery, NatsSettings, PresentLogin};
use super::errors;
use super::publisher::{self, HANDED_OVER, Publisher};
use super::slots::Slots;
use super::stream;
use crate::common::backoff::jittered;
use crate::output::{ErrorKind, PublishError};

/// How long a server may take to greet, to log in or to answer a question about a stream.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// How often the library sends a PING. It gives a connection up when two are unanswered and a third one is due, which
/// is 2 to 3 seconds after a server stopped answering.
pub(super) const PING_EVERY: Duration = Duration::from_secs(1);

/// The longest pause between two attempts of the library to reconnect.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

/// After so many failed attempts in a row the library gives up. By then its client was replaced; without a bound the
/// task of the old client would try forever.
const RECONNECTS: usize = 60;

/// How many subjects are remembered that the user may not publish on.
const REFUSALS: usize = 32;

/// What the events of a client said.
#[derive(Debug)]
pub(super) struct Events {
    output: String,
    inbox_prefix: String,
    slots: Arc<Slots>,
    said: Mutex<Said>,
    /// Connected or disconnected.
    changed: Notify,
    /// A right is missing.
    refused: Notify,
}

#[derive(Debug, Default)]
struct Said {
    /// The last complaint of server or client, and when it came.
    complaint: Option<(Instant, String)>,
    /// Subjects that the user may not publish on, the latest first.
    refusals: VecDeque<(Instant, String, PublishError)>,
    /// The user may not subscribe to the answers.
    inbox: Option<PublishError>,
}

impl Events {
    fn new(settings: &NatsSettings) -> Events {
        Events {
            output: settings.name.clone(),
            inbox_prefix: settings.inbox_prefix.clone(),
            slots: publisher::slots(),
            said: Mutex::default(),
            changed: Notify::new(),
            refused: Notify::new(),
        }
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: &Event) {
        tracing::debug!(output = self.output, %event, "nats");
        match event {
            Event::Connected | Event::Disconnected | Event::Closed => self.changed.notify_one(),
            Event::ServerError(error) => {
                self.said().complaint = Some((Instant::now(), error.to_string()));
                if let ServerError::Other(words) = error {
                    self.take_complaint(words);
                }
            }
            Event::ClientError(error) => self.said().complaint = Some((Instant::now(), error.to_string())),
            _ => {}
        }
    }

    /// A complaint of the server about a message or a subscription. It carries no number, but names a subject.
    fn take_complaint(&self, words: &str) {
        if words.eq_ignore_ascii_case("maximum payload violation") {
            // A limit of the account or the user, which the server does not announce. The connection ends too.
            self.slots.end_largest(&errors::too_large(format!(
                "larger than the account or the user may send (server: {words})"
            )));
            return;
        }
        match Violation::read(words) {
            Some(Violation::Publish(subject)) => {
                let error = may_not_publish(&subject, words);
                self.slots.end_subject(&subject, &error);
                let mut said = self.said();
                said.refusals.retain(|(_, known, _)| *known != subject);
                said.refusals.push_front((Instant::now(), subject, error));
                said.refusals.truncate(REFUSALS);
            }
            Some(Violation::Inbox(subject)) => {
                let error = may_not_get_answers(&subject, &self.inbox_prefix, words);
                self.said().inbox = Some(error.clone());
                self.slots.end_all(&error);
            }
            None => return,
        }
        self.refused.notify_one();
    }

    /// Waits until the client says that it is connected or disconnected.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Waits until the server says that the right to ask JetStream, or to get its answers, is missing.
    async fn refused(&self) -> PublishError {
        loop {
            self.refused.notified().await;
            let said = self.said();
            let of_the_api = said.refusals.iter().find(|(_, subject, _)| subject.starts_with("$JS."));
            if let Some(error) = said.inbox.as_ref().or(of_the_api.map(|(_, _, error)| error)) {
                return error.clone();
            }
        }
    }

    /// The last complaint, if it is as young as that.
    pub(super) fn complaint_since(&self, start: Instant) -> Option<String> {
        let said = self.said();
        said.complaint.as_ref().filter(|(came, _)| *came >= start).map(|(_, words)| words.clone())
    }
}

/// What the user of a NATS connection may not do.
#[derive(Debug, PartialEq)]
enum Violation {
    /// Publish on a subject.
    Publish(String),
    /// Subscribe to a subject, or name it as the one for answers.
    Inbox(String),
}

impl Violation {
    /// Reads the words of a server: `Permissions Violation for Publish to "media.x"`.
    fn read(words: &str) -> Option<Violation> {
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
    /// What the client says.
    pub(super) async fn connect(settings: &NatsSettings, login: &PresentLogin) -> Result<Link, String> {
        let events = Arc::new(Events::new(settings));
        let client = options(settings, login, events.clone())?.connect(settings.servers.as_slice()).await;
        let client = client.map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let text = error.to_string();
            if text.contains(&cause) { text } else { format!("{text}: {cause}") }
        })?;
        let publisher = match settings.delivery {
            NatsDelivery::Jetstream => Some(Publisher::start(&client, events.slots.clone()).await?),
            NatsDelivery::Core => None,
        };
        Ok(Link { client, publisher, events })
    }

    /// Asks JetStream for what the output needs. Gives back warnings.
    ///
    /// # Errors
    /// A sentence with the remedy. A right that is missing is named as soon as the server says so.
    pub(super) async fn verify(&self, settings: &NatsSettings) -> Result<Vec<String>, PublishError> {
        if self.publisher.is_none() {
            return Ok(Vec::new());
        }
        let mut context = jetstream::new(self.client.clone());
        context.set_timeout(ANSWER_TIMEOUT);
        tokio::select! {
            refusal = self.events.refused() => Err(refusal),
            verified = stream::ensure(&context, settings.stream.as_ref()) => {
                verified.map_err(|reason| PublishError::new(ErrorKind::Unavailable, reason))
            }
        }
    }

    /// Ends what was sent over a connection that is lost.
    pub(super) fn end_lost(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.end_lost(&self.client);
        }
    }

    /// The user may not subscribe to acknowledgements: none will ever come.
    pub(super) fn inbox_refusal(&self) -> Option<PublishError> {
        self.events.said().inbox.clone()
    }

    /// Since then the server said that the user may not publish on the subject.
    pub(super) fn refusal_since(&self, start: Instant, subject: &str) -> Option<PublishError> {
        let said = self.events.said();
        let refusal = said.refusals.iter().find(|(came, refused, _)| *came >= start && refused == subject);
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
            async move { events.take(&event) }
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
    fn violations_are_read_from_the_words_of_the_server() {
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
            assert_eq!(Violation::read(words), expected, "{words}");
        }
    }

    #[test]
    fn a_missing_right_is_named_with_its_subject() {
        let error = may_not_publish("media.x", "W");
        assert_eq!(error.kind, ErrorKind::Unauthorized);
        assert!(error.message.starts_with("the NATS user may not publish on \"media.x\""), "{error}");
        let error = may_not_get_answers("_INBOX.a.*", "_INBOX", "W");
        assert!(error.message.contains("subscribe to \"_INBOX.>\""), "{error}");
    }
}
