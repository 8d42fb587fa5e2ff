//! `asyncapi`: the AsyncAPI document of a configuration.

use std::process::ExitCode;

use super::terminal::print;
use super::{ConfigArgs, config_errors};
use crate::{config, contract};

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints an AsyncAPI 3.0.0 document in JSON, which every YAML parser reads too. It has a server for each output,
a channel for each topic of its routes and of its dead letters, and the messages that can arrive there. It has
no secrets. Connects to nothing. The inputs of the configuration are not needed.

Examples:
  apsara-bridge asyncapi --config bridge.toml > asyncapi.json
  apsara-bridge asyncapi --config bridge.toml | jq '.channels | map_values(.address)'
")]
pub(super) struct Asyncapi {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Asyncapi {
    pub(super) fn run(self) -> ExitCode {
        match config::load_without_inputs(&self.config.layers()) {
            Ok(loaded) => {
                print(format!("{:#}\n", contract::asyncapi(&loaded.settings)));
                ExitCode::SUCCESS
            }
            Err(errors) => config_errors(&errors),
        }
    }
}
