//! Callbacks from standard input, one per line: for backfills.
//!
//! The input ends at the end of standard input, when every line has an outcome. It hands lines over in their order, up to
//! a limit at a time. A line that is refused is tried again until it is accepted. A line that is not a callback is kept
//! as a dead letter and reported with its number; the input then ends with an error. If it is stopped before the end, the
//! error says where to continue.
//!
//! # Layout
//!
//! - `config`: settings and their checks
//! - `lines`: reads lines, on a thread of its own
//! - `consume`: one line to its outcome
//! - `progress`: which lines have an outcome

mod config;
mod consume;
mod lines;
mod progress;

pub use config::StdinConfig;

use schemars::JsonSchema;

use super::InputKind;
use crate::common::kind::KindKeys;

/// The kind.
pub(super) const KIND: InputKind = InputKind {
    name: "stdin",
    keys: KindKeys::NONE,
    reloadable: &["max_line", "max_in_flight"],
    read: super::read::<StdinConfig>,
    schema: <StdinConfig as JsonSchema>::json_schema,
};
