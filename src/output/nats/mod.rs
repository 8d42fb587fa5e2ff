//! NATS, through async-nats.
//!
//! The contract:
//! - **JetStream**: a message is published when its stream acknowledges it. `Nats-Msg-Id` is derived from the event's
//!   source and id and from the subject. The stream drops a repeat within its duplicate window, and keeps the same
//!   event on two subjects. For a dead letter, the id also contains the reason and the destination that failed, because
//!   one event can have several dead letters.
//! - **Core NATS**, only if configured: there are no acknowledgements. A message is delivered at most once.
//! - A publish returns at its deadline at the latest. While the output is down it returns at once, with the reason.
//! - An error that can pass without a change to the message is transient or operator's. Only a message that is too
//!   large, or refused because of its content, fails for good.
//! - The error about a missing permission names the subject.
//!
//! # Layout
//!
//! - `config`: settings and their checks; `stream_config`: settings of the stream
//! - `binding`: headers and payload of a message
//! - `publisher`: publishes to JetStream; `slots`: the messages that wait for an acknowledgement
//! - `errors`: what each answer means
//! - `stream`: creates the stream, or compares it with the configuration
//! - `examine`: what `doctor` checks
//! - `link`: one client and what its events reported; `watch`: connects, and decides whether the output is up

mod binding;
mod config;
mod errors;
mod examine;
mod link;
mod publisher;
mod slots;
mod stream;
mod stream_config;
mod watch;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use async_nats::{HeaderMap, HeaderName, Subject};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use schemars::JsonSchema;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Bus, ErrorKind, Health, Needs, Output, OutputKind, OutputSettings, PublishError, Record, Rendered};
use crate::common::findings::Findings;
use crate::common::kind::{AddressKey, KindKeys};
use crate::common::validation::FieldError;
use crate::event::{Attribute, Event, percent_encode};
use crate::telemetry::metrics::Metrics;

pub use config::{NatsConfig, NatsDelivery, NatsSettings};
use link::Link;
pub use stream_config::{StreamConfig, StreamStorage};

/// The kind.
pub(super) const KIND: OutputKind = OutputKind {
    name: "nats",
    keys: KindKeys {
        addresses: &[AddressKey { key: "servers[]", port: 4222 }],
        secrets: &["password", "token", "nkey"],
        ..KindKeys::NONE
    },
    read: super::read::<NatsConfig>,
    schema: <NatsConfig as JsonSchema>::json_schema,
};

/// The header that identifies a repeat to a stream.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// Publishes to NATS. Dropping it ends its connection.
pub struct Nats {
    settings: Arc<NatsSettings>,
    shared: Arc<Shared>,
    watch: tokio::task::JoinHandle<()>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Nats").field("name", &self.settings.name).finish_non_exhaustive()
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        self.shared.health.close();
        self.watch.abort();
    }
}

/// What the output and the task that watches it share.
#[derive(Debug)]
struct Shared {
    health: Health,
    link: RwLock<Option<Arc<Link>>>,
    /// Why it is down.
    reason: Mutex<Option<PublishError>>,
    /// Notified when no stream accepted a subject.
    no_stream: Notify,
}

impl Shared {
    fn link(&self) -> Option<Arc<Link>> {
        self.link.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn has_link(&self) -> bool {
        self.link.read().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn replace_link(&self, link: Option<Arc<Link>>) {
        *self.link.write().unwrap_or_else(PoisonError::into_inner) = link;
    }

    fn up(&self) {
        self.health.up();
    }

    fn down(&self, reason: PublishError) {
        self.health.down(&reason.message);
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    fn not_connected(&self) -> PublishError {
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (kind, message) = match reason {
            Some(PublishError { kind, message }) => (kind, message),
            None => (ErrorKind::Unavailable, "no server has answered yet".to_owned()),
        };
        PublishError::new(kind, format!("not connected: {message}"))
    }
}

impl Nats {
    /// Starts connecting, in the background.
    fn start(settings: NatsSettings, metrics: &Metrics) -> Nats {
        let settings = Arc::new(settings);
        let shared = Arc::new(Shared {
            health: Health::new(&settings.name, metrics),
            link: RwLock::new(None),
            reason: Mutex::default(),
            no_stream: Notify::new(),
        });
        let watch = tokio::spawn(watch::watch(settings.clone(), shared.clone()));
        Nats { settings, shared, watch }
    }

    async fn send(&self, link: &Link, record: &Record, deadline: Instant) -> Result<(), PublishError> {
        let rendered = self.settings.render(record);
        let mut headers = HeaderMap::new();
        for (name, value) in rendered.headers {
            headers.insert(HeaderName::from_static(name), value.into_owned());
        }
        let subject = Subject::from(record.topic.as_str());
        let Some(publisher) = &link.publisher else {
            return send_core(link, subject, headers, rendered.payload, deadline).await;
        };
        if let Some(refusal) = link.inbox_refusal() {
            return Err(refusal);
        }
        publisher.publish(subject, headers, rendered.payload, deadline).await
    }
}

/// Core NATS: a message that was written counts as published.
async fn send_core(
    link: &Link,
    subject: Subject,
    headers: HeaderMap,
    payload: Bytes,
    deadline: Instant,
) -> Result<(), PublishError> {
    let sent = async {
        link.client.publish_with_headers(subject, headers, payload).await.map_err(|error| errors::not_sent(&error))?;
        link.client.flush().await.map_err(|error| PublishError::new(ErrorKind::Unavailable, error))
    };
    let late = |_| Err(PublishError::new(ErrorKind::TimedOut, "not written before the deadline"));
    tokio::time::timeout_at(deadline, sent).await.unwrap_or_else(late)
}

/// The id that identifies a repeat to a stream. Two dead letters of one event have different ids.
fn message_id(event: &Event, subject: &str) -> String {
    let part = |attribute| event.get(attribute).unwrap_or_default();
    let mut id = [part(Attribute::Source), "|", part(Attribute::Id), "|", subject].concat();
    for attribute in [Attribute::DlqReason, Attribute::DlqDestination] {
        if let Some(value) = event.get(attribute) {
            id.push('|');
            id.push_str(value);
        }
    }
    match percent_encode(&id) {
        Cow::Borrowed(_) => id,
        Cow::Owned(encoded) => encoded,
    }
}

impl OutputSettings for NatsSettings {
    fn start(self: Box<Self>, metrics: &Metrics) -> Result<Arc<dyn Output>, FieldError> {
        Ok(Arc::new(Nats::start(*self, metrics)))
    }

    fn examine<'a>(&'a self, needs: &'a Needs, findings: &'a Findings) -> BoxFuture<'a, ()> {
        Box::pin(examine::examine(self, needs, findings))
    }

    fn render<'r>(&self, record: &'r Record) -> Rendered<'r> {
        let mode = record.mode.unwrap_or(self.mode);
        let mut headers = binding::headers(&record.event, mode);
        if self.delivery == NatsDelivery::Jetstream {
            headers.push((MESSAGE_ID, message_id(&record.event, &record.topic).into()));
        }
        Rendered { mode, key: None, headers, payload: binding::payload(&record.event, mode) }
    }

    fn bus(&self) -> Option<Bus> {
        Some(NatsSettings::bus(self))
    }

    fn has_acknowledgements(&self) -> bool {
        self.delivery == NatsDelivery::Jetstream
    }
}

impl Output for Nats {
    fn name(&self) -> &str {
        &self.settings.name
    }

    fn publish<'a>(&'a self, record: &'a Record, deadline: Instant) -> BoxFuture<'a, Result<(), PublishError>> {
        Box::pin(async move {
            let started = Instant::now();
            // A client without a connection would keep the message in its queue beyond the deadline.
            let Some(link) = self.shared.link().filter(|_| self.shared.health.is_up()) else {
                return Err(self.shared.not_connected());
            };
            let error = match self.send(&link, record, deadline).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if error.kind == ErrorKind::NoSuchDestination {
                self.shared.no_stream.notify_one();
            }
            if !matches!(error.kind, ErrorKind::TimedOut | ErrorKind::Unavailable) {
                return Err(error);
            }
            if let Some(refusal) = link.refusal_since(started, &record.topic) {
                return Err(refusal);
            }
            self.shared.health.request_probe();
            Err(error)
        })
    }

    fn health(&self) -> &Health {
        &self.shared.health
    }
}
