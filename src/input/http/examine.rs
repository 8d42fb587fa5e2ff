//! What `doctor` checks: the address, the certificate, and whether the configured URLs can lead to this listener. A URL is asked by GET,
//! which an endpoint answers with 405: no callback is posted.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, StatusCode, Uri};

use super::config::{Endpoint, HttpSettings};
use super::problem::Problem;
use crate::common::address::{authority, host};
use crate::common::findings::Findings;
use crate::common::http::{HttpClient, HttpError};
use crate::common::{clock, server, tls};

/// How long a name server and a URL may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The longest key that Alibaba accepts (its pages on callback authentication).
const MAX_KEY: usize = 32;

/// A certificate that expires sooner is reported.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 24 * 3600);

/// Checks an input.
pub(super) async fn examine(settings: &HttpSettings, findings: &Findings) {
    let http = match HttpClient::new() {
        Ok(http) => http,
        Err(error) => return findings.not_checked("urls", error.to_string()),
    };
    let is_running = listener(settings, &http, findings).await;
    certificate(settings, findings);
    let urls = settings.reloadable.endpoints.iter().flat_map(|endpoint| {
        keys(endpoint, findings);
        endpoint.verifier.urls.iter().map(move |url| (endpoint, url))
    });
    let checks = urls.map(|(endpoint, url)| Url { settings, endpoint, url, is_running }.examine(&http, findings));
    futures_util::future::join_all(checks).await;
}

/// Checks the address. True if a bridge listens on it, or may.
async fn listener(settings: &HttpSettings, http: &HttpClient, findings: &Findings) -> bool {
    let path = settings.reloadable.endpoints.first().map_or("/", |endpoint| endpoint.path.as_str());
    let is_bridge = async |place: String| {
        // A certificate is for a name that is not the address.
        if settings.tls.is_some() {
            return None;
        }
        let answer = get(http, &format!("http://{place}{path}")).await;
        Some(answer.is_ok_and(|answer| problem_of(&answer).is_some()))
    };
    server::examine("listen", &settings.listen, findings, is_bridge).await
}

/// Checks when the certificate expires, and whether it is one for the hosts of the URLs.
fn certificate(settings: &HttpSettings, findings: &Findings) {
    let Some(files) = settings.tls.as_ref().map(|tls| tls.settings()) else { return };
    let file = &files.cert_file;
    let Ok(pem) = tls::read_file(file) else { return };
    // Clients that show a certificate are a proxy, which has the certificate for Alibaba.
    if files.client_ca_file.is_none() {
        let urls = settings.reloadable.endpoints.iter().flat_map(|endpoint| &endpoint.verifier.urls);
        let hosts: BTreeSet<&str> =
            urls.filter(|url| url.starts_with("https://")).map(|url| host(url).trim_matches(['[', ']'])).collect();
        for host in hosts.into_iter().filter(|host| tls::is_for(&pem, host) == Some(false)) {
            findings.warning(
                "certificate",
                format!("{} is not for {host}: Alibaba cannot connect, unless a proxy has another one", file.display()),
                "get a certificate with this name, or let the proxy in front pass callbacks on over HTTP",
            );
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let Some(expiry) = tls::first_expiry(&pem) else { return };
    let left = expiry.saturating_sub(now);
    let days = left.as_secs() / (24 * 3600);
    let file = file.display();
    if left.is_zero() {
        findings.problem("certificate", format!("{file} has expired: Alibaba cannot connect"), "renew it");
    } else if left < EXPIRES_SOON {
        findings.warning(
            "certificate",
            format!("{file} expires in {days} days"),
            "renew it; the bridge reads it again",
        );
    } else {
        findings.ok("certificate", format!("{file} is valid for {days} days"));
    }
}

/// Checks whether the keys of an endpoint can be those that were entered at Alibaba.
fn keys(endpoint: &Endpoint, findings: &Findings) {
    for (position, key) in endpoint.verifier.keys.iter().enumerate() {
        let key = key.value();
        let has = |is_wanted: fn(&char) -> bool| key.chars().any(|c| is_wanted(&c));
        let is_mixed = has(char::is_ascii_uppercase) && has(char::is_ascii_lowercase) && has(char::is_ascii_digit);
        if key.chars().count() > MAX_KEY || !is_mixed {
            findings.warning(
                "keys",
                format!("key {} of {} cannot be one of Alibaba", position + 1, endpoint.path),
                "Alibaba takes at most 32 characters, with upper-case letters, lower-case letters and digits; copy the \
                 key that was entered there",
            );
        }
    }
}

/// The problem in an answer of a bridge; none if the answer is not one.
fn problem_of(answer: &Response<Bytes>) -> Option<Problem> {
    let body = std::str::from_utf8(answer.body()).ok()?;
    Problem::ALL.iter().copied().find(|problem| body.contains(&format!("\"{}\"", problem.urn())))
}

async fn get(http: &HttpClient, url: &str) -> Result<Response<Bytes>, HttpError> {
    let request =
        Request::get(url).body(Full::default()).map_err(|error| HttpError::NotConnected(error.to_string()))?;
    http.exchange(request, TIMEOUT).await
}

/// A URL that callbacks are signed with.
struct Url<'s> {
    settings: &'s HttpSettings,
    endpoint: &'s Endpoint,
    url: &'s str,
    is_running: bool,
}

/// Where the addresses of a host are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    ThisMachine,
    Private,
    Public,
}

impl Url<'_> {
    async fn examine(self, http: &HttpClient, findings: &Findings) {
        let check = format!("url {}", self.url);
        let Ok(uri) = self.url.parse::<Uri>() else { return };
        if uri.path() != self.endpoint.path {
            findings.warning(
                &check,
                format!("its path is {}, and the path of the endpoint {}", uri.path(), self.endpoint.path),
                "set the same path, unless a proxy in front changes it",
            );
        }
        let is_secure = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let is_name = host.parse::<IpAddr>().is_err();
        let found = tokio::time::timeout(TIMEOUT, tokio::net::lookup_host((host, port))).await;
        let addresses: Vec<SocketAddr> = match found {
            Ok(Ok(addresses)) => addresses.collect(),
            Ok(Err(error)) => {
                let why = format!("{host} cannot be resolved here ({error}); Alibaba has to resolve it");
                return findings.not_checked(&check, why);
            }
            Err(_) => return findings.not_checked(&check, format!("no name server has answered for {host} in time")),
        };
        match addresses.iter().map(|address| reach(address.ip())).max_by_key(|reach| *reach as u8) {
            Some(Reach::ThisMachine) if self.listens_locally() => {}
            Some(Reach::ThisMachine) => {
                findings.warning(&check, format!("{host} is this machine: Alibaba cannot reach it"), PUBLIC);
            }
            Some(Reach::Private) if !is_name => {
                findings.warning(&check, format!("{host} is a private address: Alibaba cannot reach it"), PUBLIC);
            }
            Some(Reach::Private) => {
                let why = format!("{host} has a private address here; it must have a public one for Alibaba");
                findings.not_checked(&check, why);
            }
            Some(Reach::Public) if !is_secure => findings.warning(
                &check,
                "over http://, others can read callbacks and post their own with a captured signature",
                "use https:// here and at Alibaba, with a certificate at a proxy or at the input",
            ),
            Some(Reach::Public) => {}
            None => return findings.not_checked(&check, format!("{host} has no address")),
        }
        self.ask(http, &check, findings).await;
    }

    /// Whether only this machine can reach the input: then nothing is meant to come from outside.
    fn listens_locally(&self) -> bool {
        self.settings.listen.iter().all(|address| address.ip().is_loopback())
    }

    /// Asks the URL, to see what answers there.
    async fn ask(&self, http: &HttpClient, check: &str, findings: &Findings) {
        let answer = match get(http, self.url).await {
            Ok(answer) => answer,
            Err(error) if error.to_string().contains("certificate") => {
                let remedy = "install a certificate of a public authority for this name, with its chain";
                return findings.problem(check, format!("its certificate is not accepted: {error}"), remedy);
            }
            Err(error) if self.is_running => {
                return findings.warning(
                    check,
                    format!("a bridge is running, but nothing answers here: {error}"),
                    if self.listens_locally() {
                        "the input listens only on this machine: set `listen`, or let a proxy here pass callbacks on"
                    } else {
                        "check the proxy or load balancer in front, its port and the firewall; from outside it may differ"
                    },
                );
            }
            Err(error) => {
                let why =
                    format!("nothing answers ({error}), and no bridge is running here; run doctor again while it runs");
                return findings.not_checked(check, why);
            }
        };
        let (status, problem) = (answer.status(), problem_of(&answer));
        // A bridge here has the clock of this machine.
        if problem.is_none()
            && let Some(ahead) = clock::ahead(answer.headers())
        {
            findings.clock(authority(self.url), ahead);
        }
        match problem {
            Some(Problem::NoSuchPath) => findings.problem(
                check,
                "a bridge answers, but it has no endpoint at the path that arrives",
                "set `path` to what the proxy passes on, or correct the proxy",
            ),
            Some(_) => findings.ok(check, "an endpoint of a bridge answers"),
            None if status.is_redirection() => findings.problem(
                check,
                format!("it redirects ({status}): for Alibaba this is a failure"),
                "enter the final URL at Alibaba and here, or switch the redirect off for it",
            ),
            None if status.is_success() || status == StatusCode::NOT_FOUND => findings.warning(
                check,
                format!("something answers that is not a bridge, with {status}"),
                "check the name, the port, and what the proxy passes on to the bridge",
            ),
            None => {
                let why = format!("a proxy answers GET with {status}, so it is unknown what is behind it");
                findings.not_checked(check, why);
            }
        }
    }
}

const PUBLIC: &str = "enter a URL at Alibaba that is reachable from the internet, and set the same text here";

fn reach(ip: IpAddr) -> Reach {
    let is_private = match ip.to_canonical() {
        IpAddr::V4(ip) => {
            let [first, second, ..] = ip.octets();
            // Shared addresses of carriers, RFC 6598.
            ip.is_private() || ip.is_link_local() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_unicast_link_local(),
    };
    match ip.to_canonical() {
        ip if ip.is_loopback() || ip.is_unspecified() => Reach::ThisMachine,
        _ if is_private => Reach::Private,
        _ => Reach::Public,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sorted_by_who_can_reach_them() {
        for (ip, expected) in [
            ("127.0.0.1", Reach::ThisMachine),
            ("::1", Reach::ThisMachine),
            ("0.0.0.0", Reach::ThisMachine),
            ("10.0.0.5", Reach::Private),
            ("::ffff:192.168.1.1", Reach::Private),
            ("100.64.0.1", Reach::Private),
            ("fd00::1", Reach::Private),
            ("100.128.0.1", Reach::Public),
            ("203.0.113.7", Reach::Public),
            ("2001:db8::1", Reach::Public),
        ] {
            assert_eq!(reach(ip.parse().expect("an address")), expected, "{ip}");
        }
    }

    #[test]
    fn a_bridge_is_known_by_its_answers() {
        let answer = |body: &'static str| Response::new(Bytes::from_static(body.as_bytes()));
        let body = r#"{"type":"urn:apsara-bridge:problem:no-such-path","title":"x"}"#;
        assert_eq!(problem_of(&answer(body)), Some(Problem::NoSuchPath));
        assert_eq!(problem_of(&answer("<html>no-such-path")), None);
    }
}
