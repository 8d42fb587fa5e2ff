//! apsara-bridge receives the callbacks of ApsaraVideo VOD and Intelligent Media Services (IMS), converts both to one
//! CloudEvents envelope, routes it by type and status, and publishes it to Kafka and NATS. It answers a callback with
//! 200 when every destination has acknowledged the event or the event is in the spool, and not before.
//!
//! # Layout
//!
//! The list follows the data, from the command line down. A module uses only modules below it.
//!
//! * [`cli`]: one file per command.
//! * [`contract`]: what subscribers get, as JSON Schemas and as an AsyncAPI document.
//! * [`config`]: the layers of the configuration, merged and checked.
//! * [`service`]: builds the parts, starts them, stops them in phases.
//! * [`admin`]: `/metrics`, `/healthz`, `/readyz`.
//! * [`input`]: the ways that callbacks come in, one folder for each kind.
//! * [`bridge`]: `accept`, one callback to one outcome; the drain of the spool, and replays.
//! * [`store`]: the spool and the dead letters on the disk.
//! * [`output`]: the buses Kafka and NATS, CloudEvents over HTTP, and the console.
//! * [`route`]: matching, and the templates of topics and keys.
//! * [`dialect`]: the catalogue of event types, and the conversion of a callback to an event.
//! * [`event`]: the envelope and its JSON.
//! * [`telemetry`]: metrics and logs.
//! * [`common`]: units, secrets, files and their watching, backoff, suggestions, an HTTP client, the
//!   HTTP server with its bounds.
//!
//! The library works without the service: [`dialect::Normalizer::normalize`] is a pure function from bytes to an
//! event.
//!
//! ```
//! use apsara_bridge::dialect::{Catalogue, Normalizer, Origin};
//! use apsara_bridge::event::{DEFAULT_TYPE_PREFIX, Attribute};
//!
//! let normalizer = Normalizer::new(Catalogue::built_in()?, DEFAULT_TYPE_PREFIX);
//! let body = br#"{"EventType":"FileUploadComplete","EventTime":"2026-01-01T00:00:00Z","VideoId":"v1","Size":42}"#;
//! let event = normalizer.normalize(body, &Origin::at(time::OffsetDateTime::now_utc()))?.event;
//! assert_eq!(event.get(Attribute::Subject), Some("v1"));
//! assert_eq!(event.get(Attribute::Status), Some("success"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod admin;
pub mod bridge;
pub mod cli;
pub mod common;
pub mod config;
pub mod contract;
pub mod dialect;
pub mod event;
pub mod input;
pub mod output;
pub mod route;
pub mod service;
pub mod store;
pub mod telemetry;
