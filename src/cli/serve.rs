//! `serve`: runs the bridge.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigArgs, fail};
use crate::config::{self, Layer};
use crate::service::{Reloader, Service};
use crate::telemetry::logs;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM or SIGINT stops it gently: what is in flight is finished first. A second
signal stops it at once. SIGHUP reads the configuration again and takes over
routes, event types, and the endpoints of HTTP inputs with their keys, all or
nothing; what else has changed is named and needs a restart.

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
        let loaded = match self.config.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let (format, filter) = &loaded.settings.log;
        logs::start(*format, filter);
        for warning in &loaded.warnings {
            tracing::warn!(warning, "configuration");
        }
        let runtime = match tokio::runtime::Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => return fail(format!("no runtime: {error}")),
        };
        runtime.block_on(async {
            let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) =
                (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()))
            else {
                return fail("signals can't be received");
            };
            let service = match Service::start(loaded.settings).await {
                Ok(service) => service,
                Err(error) => return fail(error),
            };
            let reload =
                Reload { layers: self.config.layers(), running: loaded.effective, reloader: service.reloader() };
            let (count, signals) = tokio::sync::watch::channel(0);
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {
                            reload.run();
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
            let left = service.run(nth(1), nth(2)).await;
            if left == 0 { ExitCode::SUCCESS } else { fail(format!("{left} callbacks were left without an outcome")) }
        })
    }
}

/// What is done on SIGHUP.
struct Reload {
    layers: Vec<Layer>,
    /// The configuration that the service was started with.
    running: String,
    reloader: Reloader,
}

impl Reload {
    /// Reads the configuration again, and takes over of it what a running service can. Blocks for as long as reading
    /// its files takes.
    fn run(&self) {
        let loaded = match config::load(&self.layers) {
            Ok(loaded) => loaded,
            Err(errors) => {
                for error in errors {
                    tracing::error!(%error, "configuration");
                }
                tracing::error!("the configuration is not reloaded: nothing has changed");
                return self.reloader.count(false);
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!(warning, "configuration");
        }
        let needs_restart = config::needs_restart(&self.running, &loaded.effective);
        match self.reloader.apply(loaded.settings) {
            Ok(()) => {
                tracing::info!("the configuration is reloaded: routes, event types, endpoints and keys");
                if !needs_restart.is_empty() {
                    tracing::warn!(keys = needs_restart.join(", "), "what changed here needs a restart");
                }
                self.reloader.count(true);
            }
            Err(error) => {
                tracing::error!(error, "the configuration is not reloaded: nothing has changed");
                self.reloader.count(false);
            }
        }
    }
}
