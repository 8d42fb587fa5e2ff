//! How many callbacks a bridge has accepted, by its metrics.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::HOST;
use hyper::{Request, Uri};

use crate::bridge::Outcome;
use crate::common::address::is_port_valid;
use crate::common::http::HttpClient;
use crate::telemetry::metrics::PREFIX;

/// How long the metrics may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The metric that says when a process started.
const STARTED: &str = "process_start_time_seconds ";

/// The metrics of a bridge, or of all its replicas.
pub(super) struct Metrics {
    url: String,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

/// What each replica has counted.
#[derive(Debug)]
pub(super) struct Counts(BTreeMap<SocketAddr, Count>);

#[derive(Debug)]
struct Count {
    /// How many callbacks it has answered with 200.
    accepted: u64,
    /// When its process started, as its metrics write it.
    started: Option<String>,
}

impl Metrics {
    /// Reads the URL of metrics.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse(url: &str) -> Result<Metrics, String> {
        let invalid = |why: &str| format!("invalid --metrics `{url}`: {why}");
        let uri: Uri = url.parse().map_err(|error: hyper::http::uri::InvalidUri| invalid(&error.to_string()))?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.ok_or_else(|| invalid("expected http://host:port/metrics"))?;
        if !is_port_valid(authority.as_str()) {
            return Err(invalid("invalid port: expected a number from 1 to 65535"));
        }
        Ok(Metrics {
            url: url.to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            path: uri.path().to_owned(),
        })
    }

    /// The URL as it was given.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// How many callbacks the replicas have answered with 200, by their metrics.
    pub(super) async fn counts(&self, http: &HttpClient) -> Result<Counts, String> {
        let addresses = tokio::net::lookup_host((self.host.as_str(), self.port)).await;
        let addresses: HashSet<SocketAddr> = addresses.map_err(|error| format!("{}: {error}", self.url))?.collect();
        let mut counts = BTreeMap::new();
        for address in addresses {
            let url = format!("http://{address}{}", self.path);
            let cannot = |error: &dyn std::fmt::Display| format!("{url}: {error}");
            let request = Request::get(&url).header(HOST, &self.authority).body(Full::<Bytes>::default());
            let request = request.map_err(|error| cannot(&error))?;
            let answer = http.exchange(request, TIMEOUT).await.map_err(|error| cannot(&error))?;
            if !answer.status().is_success() {
                return Err(format!("{url}: answered with {}", answer.status()));
            }
            let text = String::from_utf8_lossy(answer.body());
            let started = text.lines().find_map(|line| line.strip_prefix(STARTED)).map(str::to_owned);
            counts.insert(address, Count { accepted: count_in(&text), started });
        }
        Ok(Counts(counts))
    }
}

impl Counts {
    /// All replicas together.
    pub(super) fn sum(&self) -> u64 {
        self.0.values().map(|count| count.accepted).sum()
    }

    /// Whether the counts cannot be compared with earlier ones: a bridge has started again, or a replica is another one.
    pub(super) fn began_again(&self, before: &Counts) -> bool {
        let is_same = |(address, count): (&SocketAddr, &Count)| {
            let before = before.0.get(address);
            before.is_some_and(|before| count.started == before.started && count.accepted >= before.accepted)
        };
        self.0.len() != before.0.len() || !self.0.iter().all(is_same)
    }
}

fn count_in(text: &str) -> u64 {
    let name = format!("{PREFIX}callbacks_total{{");
    let taken = Outcome::LABELS.iter().filter(|label| !matches!(**label, "refused" | "not_accepted"));
    let taken: Vec<String> = taken.map(|label| format!("outcome=\"{label}\"")).collect();
    let counts = text.lines().filter(|line| line.starts_with(&name) && taken.iter().any(|label| line.contains(label)));
    let counts = counts.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok());
    counts.map(|count| count as u64).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_at_a_plain_url() {
        let parsed = |url: &str| Metrics::parse(url).map(|metrics| (metrics.host, metrics.port)).map_err(drop);
        assert_eq!(parsed("http://[::1]/metrics"), Ok(("::1".to_owned(), 80)));
        assert_eq!(parsed("http://a:9464/metrics"), Ok(("a".to_owned(), 9464)));
        for invalid in ["https://a/metrics", "a:9464", "http://a:99999/metrics", "http://a:0/", ""] {
            assert_eq!(parsed(invalid), Err(()), "{invalid}");
        }
    }

    #[test]
    fn counters_that_begin_again_are_seen() {
        let counts = |counts: &[(u16, u64, &str)]| {
            let count = |&(port, accepted, started): &(u16, u64, &str)| {
                (([127, 0, 0, 1], port).into(), Count { accepted, started: Some(started.to_owned()) })
            };
            Counts(counts.iter().map(count).collect())
        };
        let before = counts(&[(1, 5, "100"), (2, 7, "100")]);
        for (after, expected) in [
            (counts(&[(1, 5, "100"), (2, 9, "100")]), false),
            (counts(&[(1, 4, "100"), (2, 90, "100")]), true),
            (counts(&[(1, 9, "100"), (2, 9, "101")]), true),
            (counts(&[(1, 9, "100"), (3, 9, "100")]), true),
            (counts(&[(1, 9, "100")]), true),
        ] {
            assert_eq!(after.began_again(&before), expected, "{after:?}");
        }
        assert_eq!(before.sum(), 12);
    }
}
