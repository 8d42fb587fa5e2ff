//! apsara-bridge takes the callbacks of ApsaraVideo VOD and Intelligent Media Services (IMS), makes one kind of
//! CloudEvents of both, routes them by type and status, and publishes them to Kafka and NATS. It answers a callback
//! with 200 when every destination's bus has acknowledged it, and not before.
//!
//! # Layout
//!
//! The list runs along the data, from the command line down; a module knows only those below it.
//!
//! * [`cli`]: one file a command.
//! * [`config`]: layers of configuration, merged, checked, with errors that guide.
//! * [`service`]: puts the parts together, starts them, drains them.
//! * [`admin`]: `/metrics`, `/healthz`, `/readyz`.
//! * [`input`]: the ways that callbacks come in.
//! * [`bridge`]: `accept`, one callback to one outcome.
//! * [`output`]: the buses: Kafka, NATS, the console.
//! * [`route`]: matching and the templates of topics.
//! * [`dialect`]: the catalogue of event types, and what makes an event of a callback.
//! * [`event`]: the envelope, its JSON, and its bindings to Kafka and NATS.
//! * [`telemetry`]: metrics and logs.
//! * [`http`]: a client, for the queue and for commands.
//! * [`setting`]: spans of time, sizes and secrets, which the settings of several parts are made of.
//!
//! The library works without the service: [`dialect::Normalizer::normalize`] is a pure function from bytes to an
//! event.
//!
//! ```
//! use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
//! use apsara_bridge::event::{DEFAULT_TYPE_PREFIX, STATUS, SUBJECT};
//!
//! let normalizer = Normalizer::new(Catalogue::built_in(), DEFAULT_TYPE_PREFIX);
//! let body = br#"{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","VideoId":"v1","Size":42}"#;
//! let event = normalizer.normalize(body, &Origin::at(time::OffsetDateTime::now_utc()))?.event;
//! assert_eq!(event.get(&SUBJECT), Some("v1"));
//! assert_eq!(event.get(&STATUS), Some("success"));
//! # Ok::<(), apsara_bridge::dialect::NotACallback>(())
//! ```

#![forbid(unsafe_code)]
#![deny(rustdoc::broken_intra_doc_links, rustdoc::private_intra_doc_links)]
#![warn(missing_docs, unreachable_pub, missing_debug_implementations)]
#![warn(clippy::unwrap_used, clippy::dbg_macro, clippy::todo, clippy::print_stdout)]

pub mod admin;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod dialect;
pub mod event;
pub mod http;
pub mod input;
pub mod output;
pub mod route;
pub mod service;
pub mod setting;
pub mod store;
pub mod telemetry;
