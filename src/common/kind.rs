//! What all kinds of inputs and outputs have in common: how a section is read, its schema, and facts about its keys.

use figment::value::Value;
use schemars::{Schema, SchemaGenerator};
use serde::Serialize;

/// Reads a section of the configuration into the settings of a kind. The error has one entry for each invalid value.
pub type ReadSection<T> = fn(&Value) -> Result<Box<T>, Box<figment::Error>>;

/// The JSON Schema of a section, without `kind`: `json_schema` of its settings, which derive `JsonSchema`. Their doc
/// comments are the descriptions that users see.
pub type SectionSchema = fn(&mut SchemaGenerator) -> Schema;

/// What a deployment must know about a kind. The chart of Helm reads it from files that `make generate` writes.
///
/// In a key, `[]` stands for each item of a list, or for the one value in its place, and `*` for any text.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct KindKeys {
    /// Keys whose value is an address to listen on.
    pub listeners: &'static [&'static str],
    /// Keys whose value is an address to connect to.
    pub addresses: &'static [AddressKey],
    /// Keys whose value is a secret.
    pub secrets: &'static [&'static str],
    /// The key of the access key, for a kind that asks the cloud for one when it is missing.
    pub cloud_key: Option<&'static str>,
}

impl KindKeys {
    /// Those of a kind that has none.
    pub const NONE: KindKeys = KindKeys { listeners: &[], addresses: &[], secrets: &[], cloud_key: None };
}

/// A key whose value is an address to connect to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct AddressKey {
    /// The key.
    pub key: &'static str,
    /// The port of an address that has neither a port nor the scheme `http` or `https`.
    pub port: u16,
}
