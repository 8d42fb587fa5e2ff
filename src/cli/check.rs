//! `check`: checks a configuration and prints the effective values.

use std::process::ExitCode;

use super::ConfigArgs;
use super::terminal::print;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the effective configuration as TOML, and warnings on standard error.
Connects to nothing.

Examples:
  apsara-bridge check --config bridge.toml
  apsara-bridge check --config bridge.toml --config production.toml --set delivery.deadline=2s
")]
pub(super) struct Check {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        match self.config.load() {
            Ok(loaded) => {
                print(loaded.effective.to_toml());
                for warning in &loaded.warnings {
                    eprintln!("warning: {warning}");
                }
                eprintln!("at its bounds the bridge takes about {} MiB of memory", loaded.memory.div_ceil(1 << 20));
                eprintln!("the configuration is valid");
                ExitCode::SUCCESS
            }
            Err(code) => code,
        }
    }
}
