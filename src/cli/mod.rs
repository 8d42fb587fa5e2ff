//! The command line: one file per command.
//!
//! Exit codes: 0 success, 1 the work failed, 2 wrong usage, including an invalid configuration. Results go to standard
//! output, everything else to standard error.

mod asyncapi;
mod callbacks;
mod catalogue;
mod check;
mod completions;
mod config_schema;
mod dead_letters;
#[cfg(feature = "kafka")]
mod demo;
mod doctor;
mod expect;
mod explain;
mod health;
mod normalize;
mod schema;
mod send;
mod serve;
mod spool;
mod tail;
mod terminal;
mod test;

use std::fmt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueHint};
use time::OffsetDateTime;

use crate::common::units::Span;
use crate::common::visible;
use crate::config::{self, ConfigError, Layer, Loaded};
use crate::dialect::Normalizer;
use crate::store::StoreError;
use crate::store::{self, StoreSettings};

/// The work failed.
const FAILED: u8 = 1;

/// Wrong usage, including an invalid configuration.
const USAGE: u8 = 2;

/// Publishes the callbacks of ApsaraVideo VOD and Intelligent Media Services (IMS) as CloudEvents to Kafka, NATS or HTTP.
#[derive(Debug, Parser)]
#[command(
    name = "apsara-bridge",
    version,
    after_help = "\
Examples:
  apsara-bridge demo                                  try it, without anything installed
  apsara-bridge normalize callback.json --pretty      convert a callback to an event
  apsara-bridge check --config bridge.toml            check a configuration
  apsara-bridge test --config bridge.toml             test its routes
  apsara-bridge serve --config bridge.toml            run the bridge
"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the bridge until SIGTERM or SIGINT.
    Serve(serve::Serve),
    /// Check a configuration and print the effective values, with secrets hidden.
    Check(check::Check),
    /// Run the tests of the routes: is every event published where its test says?
    Test(test::Test),
    /// Print the JSON Schema of the configuration, for editors.
    ConfigSchema(config_schema::ConfigSchema),
    /// Convert callbacks to events, one envelope per line.
    Normalize(normalize::Normalize),
    /// Show what would happen to a callback: its envelope, which routes match and why, topics, keys and headers.
    Explain(explain::Explain),
    /// Post signed callbacks as Alibaba does, to test an endpoint or a queue: one, or a load.
    Send(send::Send),
    /// Check a configuration against what is there: outputs, topics, queues, permissions, URLs, the disk, the clock.
    Doctor(doctor::Doctor),
    /// Ask a running bridge whether it is alive or ready, for health checks of containers.
    Health(health::Health),
    /// Follow a running bridge: print each event with its routes, its destinations and its outcome.
    Tail(tail::Tail),
    /// List the known event types, or the fields of one.
    Catalogue(catalogue::List),
    /// Print the JSON Schema of an event type, for subscribers.
    Schema(schema::Schema),
    /// Print the AsyncAPI document of a configuration, for subscribers: channels, messages and servers.
    Asyncapi(asyncapi::Asyncapi),
    /// Look at events that could not be published, publish them again, or delete them.
    DeadLetters(dead_letters::DeadLetters),
    /// Look at the events stored on disk, and publish or move them.
    Spool(spool::Spool),
    /// Show the whole path without anything installed: post signed sample callbacks, and read the events from Kafka topics.
    #[cfg(feature = "kafka")]
    Demo(demo::Demo),
    /// Print a script with which a shell completes commands, options and files.
    Completions(completions::Completions),
}

/// Where the configuration comes from.
#[derive(Args)]
struct ConfigArgs {
    /// Configuration file, TOML or YAML. A later file overrides an earlier one, and the environment
    /// (APSARA_BRIDGE__SECTION__KEY) overrides all files.
    #[arg(short, long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Set one key, for example delivery.deadline=2s. This overrides files and environment.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl fmt::Debug for ConfigArgs {
    // `--set` can contain secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(self.layers()).finish()
    }
}

impl ConfigArgs {
    fn is_given(&self) -> bool {
        !self.config.is_empty() || !self.set.is_empty()
    }

    fn layers(&self) -> Vec<Layer> {
        let mut layers: Vec<Layer> = self.config.iter().cloned().map(Layer::File).collect();
        layers.push(Layer::Environment);
        layers.extend(self.set.iter().cloned().map(Layer::Set));
        layers
    }

    /// Loads the configuration, or prints every error and gives the exit code.
    fn load(&self) -> Result<Loaded, ExitCode> {
        config::load(&self.layers()).map_err(|errors| config_errors(&errors))
    }

    /// The normalizer of the configuration, of which no other part is needed.
    fn normalizer(&self) -> Result<Normalizer, ExitCode> {
        config::load_normalizer(&self.layers()).map_err(|errors| config_errors(&errors))
    }
}

/// Where the spool is stored.
#[derive(Debug, Args)]
struct StoreArgs {
    #[command(flatten)]
    config: ConfigArgs,
    /// Folder of the spool. Default: spool.path of the configuration.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    path: Option<PathBuf>,
}

impl StoreArgs {
    fn settings(&self) -> Result<StoreSettings, ExitCode> {
        let settings = config::load_store(&self.config.layers()).map_err(|errors| config_errors(&errors))?;
        Ok(match &self.path {
            Some(path) => StoreSettings { path: path.clone(), ..settings },
            None => settings,
        })
    }
}

/// Reads a time with its unit.
fn span(text: &str) -> Result<Duration, String> {
    let parsed: Result<Span, serde::de::value::Error> =
        serde::Deserialize::deserialize(serde::de::value::StrDeserializer::new(text));
    parsed.map(|span| span.0).map_err(|error| error.to_string())
}

/// Why a command cannot use a spool.
fn unreadable(settings: &StoreSettings, error: &StoreError) -> String {
    let file = store::file(&settings.path);
    if !file.exists() {
        return format!("there is no spool at {}; set its folder with --path, or use --config", file.display());
    }
    format!("{} cannot be used: {error}", file.display())
}

/// How long ago a time of the store was.
fn age(milliseconds: i64) -> Duration {
    let now = OffsetDateTime::now_utc().unix_timestamp_nanos() / 1_000_000;
    Duration::from_millis(u64::try_from(now - i128::from(milliseconds)).unwrap_or(0))
}

/// Prints the errors of a configuration. Gives the exit code of wrong usage.
fn config_errors(errors: &[ConfigError]) -> ExitCode {
    for error in errors {
        eprintln!("{}", visible::text(&error.to_string()));
    }
    ExitCode::from(USAGE)
}

/// Runs the program with the arguments of the process.
pub fn main() -> ExitCode {
    // clap prints its own errors and exits with 2.
    match Cli::parse().command {
        Command::Serve(serve) => serve.run(),
        Command::Check(check) => check.run(),
        Command::Test(test) => test.run(),
        Command::ConfigSchema(config_schema) => config_schema.run(),
        Command::Normalize(normalize) => normalize.run(),
        Command::Explain(explain) => explain.run(),
        Command::Send(send) => send.run(),
        Command::Doctor(doctor) => doctor.run(),
        Command::Health(health) => health.run(),
        Command::Tail(tail) => tail.run(),
        Command::Catalogue(list) => list.run(),
        Command::Schema(schema) => schema.run(),
        Command::Asyncapi(asyncapi) => asyncapi.run(),
        Command::DeadLetters(dead_letters) => dead_letters.run(),
        Command::Spool(spool) => spool.run(),
        #[cfg(feature = "kafka")]
        Command::Demo(demo) => demo.run(),
        Command::Completions(completions) => completions.run(),
    }
}

/// Runs a future to its end.
fn block_on<T>(future: impl Future<Output = T>) -> Result<T, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.map_err(|error| format!("the runtime cannot be started: {error}"))?.block_on(future))
}
