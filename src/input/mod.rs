//! Inputs: the ways that callbacks come in.
//!
//! An input kind is one constant in [`KINDS`] and one folder. Nothing outside the folder names the kind. The way from
//! the configuration to a running input:
//!
//! 1. [`InputKind::read`] reads the section of the configuration into an [`InputConfig`].
//! 2. [`InputConfig::validate`] checks it, reads its secrets, and gives [`InputSettings`].
//! 3. [`InputSettings::open`] binds addresses and gives the [`Input`], which [runs](Input::run) until the service stops.
//!
//! An input hands each callback to [`InputHandle::accept`] and answers the sender from the outcome.

mod handle;
pub mod http;
pub mod mns;
pub mod stdin;

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use figment::value::Value;
use futures_util::future::BoxFuture;
use serde::de::DeserializeOwned;

pub use handle::{InputHandle, Misconfigured};

use crate::bridge::Sender;
use crate::common::findings::Findings;
use crate::common::kind::{KindKeys, ReadSection, SectionSchema};
use crate::common::units::Size;
use crate::common::validation::{FieldError, Validation};
use crate::telemetry::metrics::Metrics;

/// Every kind of input.
pub const KINDS: &[InputKind] = &[http::KIND, mns::KIND, stdin::KIND];

/// A kind of input, as `kind` names it in the configuration.
#[derive(Debug)]
pub struct InputKind {
    /// Its name.
    pub name: &'static str,
    /// The keys that a deployment must know about.
    pub keys: KindKeys,
    /// The keys whose changes a running input takes over.
    pub reloadable: &'static [&'static str],
    /// Reads the section of an input, without `kind`.
    pub read: ReadSection<dyn InputConfig>,
    /// The schema of the section, without `kind`.
    pub schema: SectionSchema,
}

/// Reads a section into the settings of a kind.
fn read<T: InputConfig + DeserializeOwned + 'static>(
    section: &Value,
) -> Result<Box<dyn InputConfig>, Box<figment::Error>> {
    Ok(Box::new(section.deserialize::<T>()?))
}

/// What an input's settings are checked against.
#[derive(Clone, Copy, Debug)]
pub struct InputContext<'a> {
    /// The name of the input.
    pub name: &'a str,
    /// `delivery.deadline`.
    pub deadline: Duration,
    /// The names of earlier inputs of the same kind, for a kind that only one input can have.
    pub same_kind: &'a [&'a str],
}

/// The settings of an input as they are written.
pub trait InputConfig: fmt::Debug {
    /// Checks the settings and reads secrets. Reports everything that is wrong; gives settings only if nothing is.
    fn validate(&self, context: InputContext<'_>, validation: &mut Validation) -> Option<Box<dyn InputSettings>>;

    /// What is known about who sends callbacks: an item for each endpoint or queue.
    fn senders(&self) -> Vec<Sender>;

    /// The largest body that is accepted. None without a limit of its own.
    fn max_body(&self) -> Option<Size> {
        None
    }

    /// What is valid but looks like a mistake, or is weak. A setting that only this machine can reach is not weak.
    fn warnings(&self, name: &str) -> Vec<String> {
        let _ = name;
        Vec::new()
    }

    /// The settings with their defaults, secrets hidden.
    ///
    /// # Errors
    /// When a value has no form in TOML.
    fn effective(&self) -> Result<toml::Table, toml::ser::Error>;
}

/// Checked settings of an input.
pub trait InputSettings: Any + Send + fmt::Debug {
    /// Where callbacks come to, for example the path of an endpoint or the name of a queue, and what is known about
    /// who sends them there.
    fn senders(&self) -> Vec<(&str, &Sender)>;

    /// What it can take. Without listeners that is nothing worth counting.
    fn bounds(&self) -> ConnectionBounds {
        ConnectionBounds::default()
    }

    /// The addresses of its listener, of which the first that can be bound is used. Without a listener none.
    fn listen(&self) -> &[SocketAddr] {
        &[]
    }

    /// Checks for real what a newcomer gets wrong, without a change anywhere: no callback is taken. May be cancelled. Must
    /// run inside a tokio runtime.
    fn examine<'a>(&'a self, findings: &'a Findings) -> BoxFuture<'a, ()> {
        let _ = findings;
        Box::pin(std::future::ready(()))
    }

    /// Binds addresses and prepares connections. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// What the system refuses, at a key below the input.
    fn open(self: Box<Self>) -> BoxFuture<'static, Result<Box<dyn Input>, FieldError>>;
}

/// What the connections of an input can take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectionBounds {
    /// How many can be open at the same time.
    pub connections: usize,
    /// The bytes of memory that all of them take then, without complete bodies.
    pub memory: u64,
    /// Bytes of the largest body.
    pub max_body: u64,
}

/// An input whose settings are checked.
#[derive(Debug)]
pub struct CheckedInput {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Its settings.
    pub settings: Box<dyn InputSettings>,
}

impl CheckedInput {
    /// The paths of its endpoints, or the name of its queue.
    pub fn places(&self) -> Vec<String> {
        self.settings.senders().into_iter().map(|(place, _)| place.to_owned()).collect()
    }
}

/// An input that is ready to run.
pub trait Input: Send + fmt::Debug {
    /// Where callbacks come from, for the log: an address, a queue.
    fn origin(&self) -> String;

    /// The address that it is bound to, where it has one.
    fn address(&self) -> Option<SocketAddr> {
        None
    }

    /// What changes it while it runs, where something can.
    fn reload(&self) -> Option<Arc<dyn InputReload>> {
        None
    }

    /// Runs until the handle says that it is closed, or until there are no more callbacks.
    ///
    /// # Errors
    /// That some callbacks could not be accepted, for an input that ends by itself.
    fn run(self: Box<Self>, handle: InputHandle) -> BoxFuture<'static, Result<(), InputError>>;
}

/// Why an input that ended by itself has failed: a sentence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InputError(pub String);

/// Changes an input while it runs.
pub trait InputReload: Send + Sync + fmt::Debug {
    /// Whether other settings of the same input fit what runs. Called before anything is applied.
    ///
    /// # Errors
    /// The key of the configuration that does not fit, and why.
    fn check(&self, settings: &dyn InputSettings) -> Result<(), FieldError> {
        let _ = settings;
        Ok(())
    }

    /// Takes over those of the kind's reloadable keys from other settings of the same input. Settings of another kind
    /// change nothing. Cannot fail: whatever can go wrong is found when the settings are checked.
    fn apply(&self, settings: Box<dyn InputSettings>, metrics: &Metrics);
}
