//! How many callbacks a bridge has accepted, by its metrics.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Request, Uri};

use crate::bridge::Outcome;
use crate::common::http::HttpClient;
use crate::telemetry::metrics::PREFIX;

/// How long the metrics may take.
const TIMEOUT: Duration = Duration::from_secs(5);

async fn fetch(http: &HttpClient, url: &str, request: Request<Full<Bytes>>) -> Result<hyper::Response<Bytes>, String> {
    http.exchange(request, TIMEOUT).await.map_err(|error| format!("{url}: {error}"))
}

/// How many callbacks all replicas together have answered with 200, by their metrics.
pub(super) async fn counted(http: &HttpClient, metrics: &str) -> Result<u64, String> {
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
