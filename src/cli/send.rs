//! `send`: posts a signed callback as Alibaba does, and can check that it was counted.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode, Uri};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{fail, print, read, shown};
use crate::bridge::Outcome;
use crate::common::http::HttpClient;
use crate::common::secret::{Secret, SecretSource};
use crate::input::http::signature::sign;
use crate::telemetry::metrics::PREFIX;

/// How long VOD waits for an answer (Alibaba's page on VOD callbacks); IMS gives up earlier.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exits with 0 if the answer is 200, which is success for Alibaba, and else with 1.
Without FILE it posts an upload event with a new id.

Examples:
  CALLBACK_KEY=… apsara-bridge send https://media.example.com/callbacks --key-env CALLBACK_KEY
  apsara-bridge send http://127.0.0.1:8080/callbacks --url https://media.example.com/callbacks --key-file key
  apsara-bridge send http://127.0.0.1:8080/callbacks callback.json --metrics http://127.0.0.1:9464/metrics
")]
pub(super) struct Send {
    /// URL to post the callback to.
    target: String,
    /// File with the callback. `-` is standard input.
    file: Option<PathBuf>,
    /// URL to sign, exactly as it was entered at Alibaba. Default: the URL to post to.
    #[arg(long)]
    url: Option<String>,
    /// File with the authentication key. Without a key the callback is not signed.
    #[arg(long, value_name = "FILE", conflicts_with = "key_env")]
    key_file: Option<PathBuf>,
    /// Environment variable with the authentication key.
    #[arg(long, value_name = "NAME")]
    key_env: Option<String>,
    /// Also check that the callback was counted, by the metrics of the bridge at this http:// URL. If the host name stands
    /// for several replicas, all of them are asked.
    #[arg(long, value_name = "URL")]
    metrics: Option<String>,
}

impl Send {
    pub(super) fn run(self) -> ExitCode {
        let now = OffsetDateTime::now_utc();
        let body = match &self.file {
            Some(file) => match read(file) {
                Ok(body) => body,
                Err(error) => return fail(format!("{} cannot be read: {error}", shown(file))),
            },
            None => sample(now).into_bytes(),
        };
        let source = match (&self.key_file, &self.key_env) {
            (Some(file), _) => Some(SecretSource::File(file.clone())),
            (None, Some(name)) => Some(SecretSource::Env(name.clone())),
            (None, None) => None,
        };
        let key = match source.as_ref().map(Secret::read).transpose() {
            Ok(key) => key,
            Err(error) => return fail(error),
        };
        match super::block_on(self.send(body, key, now)) {
            Ok(Ok(told)) => {
                print(told);
                ExitCode::SUCCESS
            }
            Ok(Err(error)) => fail(error),
            Err(error) => fail(error),
        }
    }

    async fn send(&self, body: Vec<u8>, key: Option<Secret>, now: OffsetDateTime) -> Result<String, String> {
        let http = HttpClient::new().map_err(|error| error.to_string())?;
        let before = match &self.metrics {
            Some(metrics) => Some(counted(&http, metrics).await?),
            None => None,
        };
        let mut request = Request::post(&self.target).header(CONTENT_TYPE, "application/json");
        if let Some(key) = key {
            // IMS nests its content under this key, and has its own headers.
            let is_ims =
                serde_json::from_slice::<serde_json::Value>(&body).is_ok_and(|body| body["MessageBody"].is_object());
            let family = if is_ims { "ICE" } else { "VOD" };
            let time = now.unix_timestamp().to_string();
            let signature = sign(self.url.as_deref().unwrap_or(&self.target), &time, &key.value());
            request = request
                .header(format!("X-{family}-TIMESTAMP"), time)
                .header(format!("X-{family}-SIGNATURE"), signature);
        }
        let request =
            request.body(Full::new(Bytes::from(body))).map_err(|error| format!("{}: {error}", self.target))?;
        let answer = fetch(&http, &self.target, request).await?;
        let words = String::from_utf8_lossy(answer.body()).into_owned();
        if answer.status() != StatusCode::OK {
            return Err(format!("answered with {}: {}", answer.status(), words.trim()));
        }
        if let (Some(metrics), Some(before)) = (&self.metrics, before) {
            let after = counted(&http, metrics).await?;
            if after <= before {
                return Err(format!("answered with 200, but {metrics} did not count it: {after} before and after"));
            }
            return Ok(format!("answered with 200, and counted: {before} before, {after} after\n"));
        }
        Ok("answered with 200\n".to_owned())
    }
}

async fn fetch(http: &HttpClient, url: &str, request: Request<Full<Bytes>>) -> Result<hyper::Response<Bytes>, String> {
    http.exchange(request, TIMEOUT).await.map_err(|error| format!("{url}: {error}"))
}

/// How many callbacks all replicas together have answered with 200, by their metrics.
async fn counted(http: &HttpClient, metrics: &str) -> Result<u64, String> {
    let uri: Uri = metrics.parse().map_err(|error| format!("{metrics}: {error}"))?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
    let authority = authority.ok_or_else(|| format!("{metrics}: expected http://host:port/metrics"))?;
    let place = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let addresses: HashSet<SocketAddr> =
        tokio::net::lookup_host(place).await.map_err(|error| format!("{metrics}: {error}"))?.collect();
    let mut count = 0;
    for address in addresses {
        let url = format!("http://{address}{}", uri.path());
        let request = Request::get(&url).header(HOST, authority.as_str()).body(Full::default());
        let answer = fetch(http, &url, request.map_err(|error| format!("{url}: {error}"))?).await?;
        if !answer.status().is_success() {
            return Err(format!("{url}: answered with {}", answer.status()));
        }
        count += count_in(&String::from_utf8_lossy(answer.body()));
    }
    Ok(count)
}

fn count_in(text: &str) -> u64 {
    let name = format!("{PREFIX}callbacks_total{{");
    let taken = Outcome::LABELS.iter().filter(|label| !matches!(**label, "refused" | "not_accepted"));
    let taken: Vec<String> = taken.map(|label| format!("outcome=\"{label}\"")).collect();
    let counts = text.lines().filter(|line| line.starts_with(&name) && taken.iter().any(|label| line.contains(label)));
    let counts = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    counts.map(|count| count as u64).sum()
}

/// A VOD callback with a new id.
fn sample(now: OffsetDateTime) -> String {
    let time = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    let id = format!("apsara-bridge-send-{}", now.unix_timestamp_nanos());
    format!(
        r#"{{"EventType":"FileUploadComplete","EventTime":"{time}","Status":"success","VideoId":"{id}","Size":"42"}}"#
    )
}
