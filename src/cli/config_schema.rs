//! `config-schema`: the JSON Schema of the configuration.

use std::process::ExitCode;

use super::{fail, print};
use crate::config;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints a JSON Schema (2020-12). With it, editors complete, explain and check the keys of a configuration file.

  TOML (Even Better TOML), first line:   #:schema ./apsara-bridge.schema.json
  YAML (Red Hat YAML), first line:       # yaml-language-server: $schema=apsara-bridge.schema.json

The schema describes the form of a complete configuration. `apsara-bridge check` also checks the values.

Examples:
  apsara-bridge config-schema > apsara-bridge.schema.json
  apsara-bridge config-schema | jq .properties.delivery
")]
pub(super) struct ConfigSchema {}

impl ConfigSchema {
    pub(super) fn run(self) -> ExitCode {
        match serde_json::to_string_pretty(&config::json_schema()) {
            Ok(schema) => {
                print(schema + "\n");
                ExitCode::SUCCESS
            }
            Err(error) => fail(error),
        }
    }
}
