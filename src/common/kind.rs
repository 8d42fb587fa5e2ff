//! What all kinds of inputs and outputs have in common: how a section is read, and facts about its keys.

use figment::value::Value;
use serde::Serialize;

/// Reads a section of the configuration into the settings of a kind. The error has one entry for each invalid value.
pub type ReadSection<T> = fn(&Value) -> Result<Box<T>, Box<figment::Error>>;

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
    /// The port of an address without one.
    pub port: u16,
}
