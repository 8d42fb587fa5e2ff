//! What subscribers get, as documents that machines read: JSON Schemas of the events, and the AsyncAPI document of a
//! configuration.
//!
//! Everything is derived from the catalogue, the attributes of the envelope, the routes and the outputs, so that a document
//! cannot say anything else than what the bridge does.
//!
//! `reach` says which events can arrive where. `needs` turns this round: which topics an output must have.

mod asyncapi;
mod needs;
mod reach;
mod schema;

pub use asyncapi::asyncapi;
pub use needs::needs;
pub use schema::{general, of_event, of_events};
