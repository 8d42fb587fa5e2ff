//! `serve`: runs the bridge.

use std::process::ExitCode;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::terminal::fail;
use super::{ConfigArgs, FAILED, config_errors};
use crate::common::descriptors;
use crate::config::{self, Effective, Layer};
use crate::service::{Candidate, Ended, LoadAttempt, Service, restart_keys};
use crate::telemetry::logs;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM or SIGINT stops it gracefully: callbacks in flight are finished first. A
second signal stops it at once.

Files that change are applied within 5 seconds, and at once on SIGHUP: the
configuration and the catalogue together, all or nothing; each secret and each
certificate alone. Keys that need a restart are logged.

Examples:
  apsara-bridge serve --config bridge.toml
  APSARA_BRIDGE__LOG__FILTER=debug apsara-bridge serve --config bridge.toml
")]
pub(super) struct Serve {
    #[command(flatten)]
    config: ConfigArgs,
}

impl Serve {
    pub(super) fn run(self) -> ExitCode {
        let layers = self.config.layers();
        let config::Attempt { result, files } = config::load_with_files(&layers);
        let loaded = match result {
            Ok(loaded) => loaded,
            Err(errors) => return config_errors(&errors),
        };
        let (format, filter) = &loaded.settings.log;
        let log_filter = logs::start(*format, filter);
        for warning in &loaded.warnings {
            tracing::warn!(warning, "configuration");
        }
        descriptors::raise();
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return fail(format!("cannot start the runtime: {error}")),
        };
        let code = runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
            else {
                return fail("cannot receive signals");
            };
            let service = match Service::start(loaded.settings).await {
                Ok(service) => service,
                Err(error) => return fail(error),
            };
            let running = loaded.effective;
            let load = Arc::new(move || load(&layers, &running));
            let (request, requests) = mpsc::channel(1);
            tokio::spawn(service.reloader().run(load, log_filter, files, loaded.rereads, requests));
            let (count, signals) = watch::channel(0);
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {
                            // A full channel means that a reload is requested already.
                            let _ = request.try_send(());
                            continue;
                        }
                    }
                    count.send_modify(|count| *count += 1);
                }
            });
            let nth = |nth: usize| {
                let mut signals = signals.clone();
                // The sender lives as long as the runtime.
                async move { drop(signals.wait_for(|count| *count >= nth).await.map(|_| ())) }
            };
            exit_code(service.run(nth(1), nth(2)).await)
        });
        // A file on a volume that does not answer may still be being read. Nothing waits for it.
        runtime.shutdown_background();
        code
    }
}

fn exit_code(ended: Ended) -> ExitCode {
    for error in &ended.failed_inputs {
        eprintln!("apsara-bridge: {error}");
    }
    if ended.without_outcome > 0 {
        return fail(format!("{} callbacks were left without an outcome", ended.without_outcome));
    }
    if ended.failed_inputs.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Loads the configuration again, and compares it with the one that the service was started with.
fn load(layers: &[Layer], running: &Effective) -> LoadAttempt {
    let config::Attempt { result, files } = config::load_with_files(layers);
    let result = result.map_err(|errors| errors.iter().map(ToString::to_string).collect());
    let result = result.map(|loaded| Candidate {
        restart_keys: restart_keys(running.changed_keys(&loaded.effective), |input| running.input_kind(input)),
        settings: loaded.settings,
        warnings: loaded.warnings,
        rereads: loaded.rereads,
    });
    LoadAttempt { result, files }
}
