//! What several modules share and what knows none of them.
//!
//! * [`suggest`]: the known name that a mistyped one was probably meant to be.

pub mod suggest;
