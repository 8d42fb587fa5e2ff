//! The chart: every values file of `ci/` rendered, held against its papers, installed into a real Kubernetes API
//! server, and what it renders really run.
//!
//! Layout: [`rendered`] what helm makes of a values file; `install` the life of a release on the server; `refused` the
//! values and changes that the chart says no to; `config_schema` mistakes below `config`; `kubernetes_schema` wrong types
//! in fields of Kubernetes; `scaling` the query that keeps pods; `references` what the objects say of one another; `papers` lint, unit tests, README, schema, rules, package; `alerts` the alerts and their values;
//! [`pod`] and `run` the program on the rendered files, as the rendered pod would run it. What these say rests on the
//! server being real: `support_server`.

// Tests fail with a panic; no other crate sees their items.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::unwrap_used, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod alerts;
mod config_schema;
mod install;
mod kinds;
mod kubernetes_schema;
mod papers;
mod pod;
mod references;
mod refused;
mod rendered;
mod run;
mod scaling;
mod support_server;
