//! What kinds of inputs and outputs have in common: reading a section, its schema, and what is to know
//! about its keys.

use figment::value::Value;
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

/// Reads a section of the configuration into the settings of a kind. The error has one entry for each value that does
/// not fit.
pub type ReadSection<T> = fn(&Value) -> Result<Box<T>, Box<figment::Error>>;

/// The JSON Schema of a section, without `kind`: `json_schema` of its settings, which derive `JsonSchema`. Their doc
/// comments are the descriptions that users see.
pub type SectionSchema = fn(&mut SchemaGenerator) -> Schema;

/// The keys of a kind that a deployment must know about. `[]` stands for each item of a list, `*` for each key of a
/// table.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct KindKeys {
    /// Keys whose value is an address to listen on.
    pub listeners: &'static [&'static str],
    /// Keys whose value is an address to connect to.
    pub addresses: &'static [AddressKey],
    /// Keys whose value is a secret.
    pub secrets: &'static [&'static str],
}

/// A key whose value is an address to connect to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AddressKey {
    /// The key.
    pub key: &'static str,
    /// The port of an address that has none.
    pub port: u16,
}
