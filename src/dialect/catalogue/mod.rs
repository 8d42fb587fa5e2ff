//! The catalogue: every EventType of both dialects, its fields, and where its outcome is found. Data, not code.
//!
//! * The built-in entries are in `src/dialect/catalogue.toml`; its head explains the format. Files of the same format
//!   (`catalogue.files`) add entries or replace them.
//! * A top-level name has one type in all entries, so that a field means the same in both dialects. Only the shapes of
//!   objects may differ. A file that breaks this, or names an unknown type, is rejected with the line of the mistake.
//! * `model` is the catalogue that callbacks are normalized with. `file` reads it from TOML, `resolve` checks and builds it,
//!   and `fields` lists the fields of an event for people.

mod fields;
mod file;
mod model;
mod resolve;

pub use fields::FieldRow;
pub use file::CatalogueError;
pub use model::{Catalogue, Dialect, Difference, ErrorFields, EventType, Field, Kind, Object, Path, ShapeId, Unit};
