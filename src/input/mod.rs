//! Inputs: the ways that callbacks come in. Each hands what it received to [`crate::bridge::Bridge::accept`] and
//! answers its sender from the outcome.
//!
//! A new input is one folder with its settings, and one line in [`KINDS`].

pub mod http;
pub mod mns;

/// The kinds of inputs, as `kind` names them.
pub const KINDS: &[&str] = &["http", "mns"];
