//! `check`: checks a configuration and prints the effective values.

use std::process::ExitCode;

use super::expect::Expectations;
use super::terminal::print;
use super::test::wrong_callbacks;
use super::{ConfigArgs, USAGE};
use crate::common::visible;
use crate::config;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints the effective configuration as TOML, and warnings on standard error.
Connects to nothing. A running bridge ignores [[tests]], so what is wrong with
them is a warning; `apsara-bridge test` runs them.

Examples:
  apsara-bridge check --config bridge.toml
  apsara-bridge check --config bridge.toml --strict > /dev/null
  apsara-bridge check --config bridge.toml --config production.toml --set delivery.deadline=2s
  apsara-bridge check --config bridge.toml --expect admin.listen=0.0.0.0:9464 --max-stop 37s
")]
pub(super) struct Check {
    /// Fail if there is a warning, with exit code 2.
    #[arg(long)]
    strict: bool,
    #[command(flatten)]
    config: ConfigArgs,
    #[command(flatten)]
    expectations: Expectations,
}

impl Check {
    pub(super) fn run(self) -> ExitCode {
        let mut loaded = match self.config.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let unmet = self.expectations.unmet(&loaded);
        if !unmet.is_empty() {
            unmet.iter().for_each(|sentence| eprintln!("{sentence}"));
            return ExitCode::from(USAGE);
        }
        // The configuration is valid, so that all errors are about tests.
        let wrong = match config::load_route_tests(&self.config.layers(), &[]) {
            Ok(tests) => wrong_callbacks(&tests),
            Err(errors) => errors,
        };
        loaded.warnings.extend(wrong.iter().map(|error| visible::text(&error.to_string()).into_owned()));
        print(loaded.effective.to_toml());
        for warning in &loaded.warnings {
            eprintln!("warning: {warning}");
        }
        eprintln!("at its bounds the bridge takes about {} MiB of memory", loaded.memory.div_ceil(1 << 20));
        if self.strict && !loaded.warnings.is_empty() {
            eprintln!("the configuration is valid, but it causes warnings, and --strict was given");
            return ExitCode::from(USAGE);
        }
        eprintln!("the configuration is valid");
        ExitCode::SUCCESS
    }
}
