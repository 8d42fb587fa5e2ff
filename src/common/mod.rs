//! What several modules share and what knows none of them.
//!
//! * [`suggest`]: the known name that a mistyped one was probably meant to be.
//! * `words`: enums whose variants each have one word.

pub mod suggest;
pub(crate) mod words;
