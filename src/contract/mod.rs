//! What subscribers get, as documents that machines read: JSON Schemas of the events.
//!
//! Everything is derived from the catalogue and the attributes of the envelope, so that a document cannot say anything
//! else than what normalizing does.

mod schema;

pub use schema::{general, of_event, of_events};
