//! `health`: asks the admin listener of a running bridge.

use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;

use super::terminal::{fail, print};
use super::{ConfigArgs, config_errors};
use crate::common::address::reachable;
use crate::common::http::HttpClient;
use crate::config;

/// The longest time for the answer: shorter than the three seconds that health checks of containers allow a command.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 if the answer is 200, and else with 1.

Examples:
  apsara-bridge health --config bridge.toml
  apsara-bridge health --config bridge.toml --ready
")]
pub(super) struct Health {
    #[command(flatten)]
    config: ConfigArgs,
    /// Ask whether the bridge is ready for callbacks, not only whether it is alive.
    #[arg(long)]
    ready: bool,
}

impl Health {
    pub(super) fn run(self) -> ExitCode {
        let listen = match config::load_admin_listen(&self.config.layers()) {
            Ok(listen) => listen,
            Err(errors) => return config_errors(&errors),
        };
        let path = if self.ready { "/readyz" } else { "/healthz" };
        match super::block_on(ask(&format!("http://{}{path}", reachable(&listen)))) {
            Ok(Ok(answer)) => {
                print(answer);
                ExitCode::SUCCESS
            }
            Ok(Err(error)) => fail(error),
            Err(error) => fail(error),
        }
    }
}

/// Whether a bridge answers on an address of an admin listener.
pub(super) async fn is_alive(address: &str) -> bool {
    ask(&format!("http://{address}/healthz")).await.is_ok_and(|answer| answer.starts_with(b"ok"))
}

async fn ask(url: &str) -> Result<Bytes, String> {
    let request = Request::get(url).body(Full::default()).map_err(|error| format!("{url}: {error}"))?;
    let client = HttpClient::new().map_err(|error| error.to_string())?;
    let answer = client.exchange(request, TIMEOUT).await.map_err(|error| format!("{url}: {error}"))?;
    if answer.status().is_success() {
        return Ok(answer.into_body());
    }
    Err(format!("{url}: {}: {}", answer.status(), String::from_utf8_lossy(answer.body()).trim()))
}
