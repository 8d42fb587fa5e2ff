//! The integration tests. They are one binary, which is linked once and whose tests share one broker of each kind.
//!
//! Layout: `support_*` test the support code itself (brokers that restart, judges that refuse), because all other tests
//! rely on it.

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod asyncapi;
mod cli;
mod completions;
mod config;
mod config_schema;
mod contract;
mod dead_letters;
mod docs;
mod doctor;
mod generated;
mod hostile;
mod http;
mod http_output;
mod image;
mod kafka;
mod lanes;
mod mns;
mod nats;
mod nats_output;
mod normalize;
mod page;
mod reload;
mod route_tests;
mod send;
mod shutdown;
mod spool;
mod stdin;
mod support_config;
mod support_judges;
mod support_kafka;
mod support_mns;
mod support_nats;
mod support_process;
mod tail;
mod third_party;
mod toolchain;
mod watching;
