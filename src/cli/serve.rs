//! `serve`: runs the bridge.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::{ConfigArgs, fail};
use crate::service::Service;
use crate::telemetry::logs;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
SIGTERM or SIGINT stops it gently: what is in flight is finished first. A second
signal stops it at once.

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
            let (count, signals) = tokio::sync::watch::channel(0);
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                        _ = hangup.recv() => {
                            tracing::warn!("SIGHUP: the configuration is read at start only; restart to change it");
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
