//! Callbacks from a queue of Alibaba's Message Service (MNS, also called SMQ).
//!
//! A message stays in the queue until it is deleted. Whoever receives it holds a lease for a limited time. The input
//! hands it to the bridge, extends its lease while the bridge works on it, and deletes it when the event is published or
//! on disk. A refused message is left in the queue and comes again. The number of messages in the bridge is bounded;
//! the others stay in the queue.
//!
//! # Layout
//!
//! - `config`: settings and their checks
//! - `consume`: receives messages and processes each to its end; `lease` and `delete` are parts of that
//! - `client`: the calls of the protocol; [`signature`], `answer`, `body`: its formats
//! - `credentials`: the access key
//! - `examine`: what `doctor` checks
//! - [`QueueSender`]: puts callbacks into a queue, to test it
//! - `fuzzing`: for fuzz/ only

mod answer;
mod body;
mod client;
mod config;
mod consume;
mod credentials;
mod delete;
mod examine;
#[cfg(fuzzing)]
pub mod fuzzing;
mod lease;
mod send;
pub mod signature;

pub use answer::{MnsError, MnsErrorKind};
pub use config::MnsConfig;
pub use consume::RECEIVE_RESULTS;
pub use credentials::CredentialsConfig;
pub use send::QueueSender;

use schemars::JsonSchema;

use super::InputKind;
use crate::common::kind::{AddressKey, KindKeys};

/// The kind.
pub(super) const KIND: InputKind = InputKind {
    name: "mns",
    keys: KindKeys {
        addresses: &[AddressKey { key: "endpoint", port: 443 }],
        secrets: &["credentials.access_key_id", "credentials.access_key_secret", "credentials.security_token"],
        cloud_key: Some("credentials"),
        ..KindKeys::NONE
    },
    reloadable: &["max_in_flight"],
    read: super::read::<MnsConfig>,
    schema: <MnsConfig as JsonSchema>::json_schema,
};
