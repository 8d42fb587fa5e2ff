//! Who may see the page and read the event stream.
//!
//! With `admin.page = "local"` that is everybody on this machine. Both ends of the connection must be on loopback: the
//! sidecar of a service mesh connects from a loopback address to that of the pod, for peers elsewhere. Web sites that a
//! browser on this machine has open are refused by the headers that browsers send:
//!
//! - `Host` must name this machine. A site whose name an attacker has resolve to 127.0.0.1 (DNS rebinding) has another.
//! - `Origin` and `Sec-Fetch-Site` must not name another site, whatever `admin.page` is.
//! - Headers of a proxy show that the peer is not who asks.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{HOST, HeaderName, ORIGIN};
use hyper::{HeaderMap, Request};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::common::words::words;

/// A header of browsers: how the site that makes a request relates to the one that it asks.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Headers that proxies add to requests. Other programs add `x-request-id` too.
const OF_PROXIES: [&str; 11] = [
    "cf-connecting-ip",
    "fastly-client-ip",
    "forwarded",
    "true-client-ip",
    "via",
    "x-azure-clientip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-original-forwarded-for",
    "x-original-host",
    "x-real-ip",
];

/// What further headers of proxies begin with.
const PREFIXES_OF_PROXIES: [&str; 2] = ["x-envoy-", "x-forwarded"];

words! {
    /// Who may see the page and read the event stream.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema, Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Page {
        /// Everybody on this machine, over loopback.
        #[default]
        Local = "local",
        /// Everybody who can reach the address.
        All = "all",
        /// Nobody.
        Off = "off",
    }
}

/// Checks whether a request may see the page or read the event stream. `peer` and `local` are the ends of its
/// connection.
///
/// # Errors
/// Why not, as a sentence for a person.
pub(super) fn check<B>(
    page: Page,
    peer: IpAddr,
    local: Option<IpAddr>,
    request: &Request<B>,
) -> Result<(), &'static str> {
    let headers = request.headers();
    match page {
        Page::Off => return Err("the page and the event stream are switched off: admin.page is \"off\""),
        Page::All => {}
        Page::Local if ![Some(peer), local].iter().all(is_loopback) => {
            return Err(
                "admin.page is \"local\": the page and the event stream answer only peers on the bridge's own machine, \
                 over loopback; use `kubectl port-forward`, `docker exec CONTAINER /apsara-bridge tail` or an SSH tunnel",
            );
        }
        Page::Local if headers.keys().any(is_of_proxy) => {
            return Err(
                "admin.page is \"local\": the page and the event stream do not answer requests that came through \
                        a proxy",
            );
        }
        Page::Local if !names_this_machine(request) => {
            return Err("admin.page is \"local\": expected a `host` header that names the bridge's own machine: \
                        localhost, 127.0.0.1 or [::1], with any port");
        }
        Page::Local => {}
    }
    if is_of_another_site(headers) {
        return Err(
            "the page and the event stream do not answer requests of other web sites; type or paste the address \
                    of the page instead of following a link",
        );
    }
    Ok(())
}

fn is_loopback(address: &Option<IpAddr>) -> bool {
    address.is_some_and(|address| address.to_canonical().is_loopback())
}

/// Whether proxies add this header.
fn is_of_proxy(name: &HeaderName) -> bool {
    let name = name.as_str();
    OF_PROXIES.contains(&name) || PREFIXES_OF_PROXIES.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether the host that is asked for is this machine.
fn names_this_machine<B>(request: &Request<B>) -> bool {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    // A whole URL in the request line counts more than the header.
    let of_url = request.uri().authority().map(|authority| authority.as_str());
    host.is_some_and(is_local) && of_url.is_none_or(is_local)
}

/// Whether `host` or `host:port` is a name of this machine.
fn is_local(authority: &str) -> bool {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if let Some(rest) = authority.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else { return false };
        let has_port = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
        return has_port && address.parse::<Ipv6Addr>().is_ok_and(|address| address.to_canonical().is_loopback());
    }
    let (host, port) = authority.split_once(':').unwrap_or((authority, ""));
    let is_known = host.eq_ignore_ascii_case("localhost") || host.parse().is_ok_and(|host: IpAddr| host.is_loopback());
    is_known && is_port(port)
}

/// Whether a browser says that the request is made by another site.
fn is_of_another_site(headers: &HeaderMap) -> bool {
    let text = |name: &HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(&HOST).unwrap_or_default();
    let is_own =
        |origin: &str| origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host));
    text(&SEC_FETCH_SITE).is_some_and(|site| site != "same-origin" && site != "none")
        || text(&ORIGIN).is_some_and(|origin| !is_own(origin))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const LOCALHOST: Option<IpAddr> = Some(IpAddr::V4(Ipv4Addr::LOCALHOST));

    fn check_with(page: Page, peer: &str, headers: &[(&str, &str)]) -> Result<(), &'static str> {
        let request =
            headers.iter().fold(Request::get("/events"), |request, (name, value)| request.header(*name, *value));
        check(page, peer.parse().expect("an address"), LOCALHOST, &request.body(()).expect("a request"))
    }

    #[test]
    fn local_is_a_peer_on_loopback_that_names_this_machine() {
        for peer in ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"] {
            for host in
                ["localhost", "LocalHost:9090", "127.0.0.1:9464", "127.0.0.2", "[::1]", "[::1]:9464", "localhost:"]
            {
                assert_eq!(check_with(Page::Local, peer, &[("host", host)]), Ok(()), "{peer} {host}");
            }
        }
        for peer in ["10.0.0.1", "::2", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0", "::"] {
            let refused = check_with(Page::Local, peer, &[("host", "localhost")]).expect_err(peer);
            assert!(refused.contains("over loopback"), "{refused}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "evil.example:9464",
            "localhost@evil.example",
            "evil.example@localhost",
            "127.0.0.1.evil.example",
            "127.1",
            "2130706433",
            "0x7f.0.0.1",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "::1",
            "[::2]",
            "10.0.0.1",
            "localhost:80:80",
            "localhost:x",
            "",
            "[127.0.0.1]",
            "localhost ",
            "\u{ff}",
        ] {
            let refused = check_with(Page::Local, "127.0.0.1", &[("host", host)]).expect_err(host);
            assert!(refused.contains("`host` header"), "{refused}");
        }
        assert!(check_with(Page::Local, "127.0.0.1", &[]).is_err());
        let url = Request::get("http://evil.example/events").header("host", "localhost").body(()).expect("a request");
        assert!(check(Page::Local, Ipv6Addr::LOCALHOST.into(), LOCALHOST, &url).is_err());
    }

    #[test]
    fn both_ends_must_be_on_loopback() {
        let request = Request::get("/events").header("host", "localhost").body(()).expect("a request");
        let checked = |page, local: Option<&str>| {
            let local = local.map(|local| local.parse().expect("an address"));
            check(page, IpAddr::from([127, 0, 0, 6]), local, &request)
        };
        for local in ["127.0.0.1", "127.0.0.6", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(checked(Page::Local, Some(local)), Ok(()), "{local}");
        }
        for local in [Some("10.0.0.1"), Some("2001:db8::1"), Some("::ffff:10.0.0.1"), Some("0.0.0.0"), None] {
            let refused = checked(Page::Local, local).expect_err("not on loopback");
            assert!(refused.contains("over loopback") && refused.contains("docker exec"), "{refused}");
            assert_eq!(checked(Page::All, local), Ok(()));
        }
    }

    #[test]
    fn other_web_sites_and_proxies_are_refused() {
        let with = |page, name, value| check_with(page, "127.0.0.1", &[("host", "localhost:9464"), (name, value)]);
        for page in [Page::Local, Page::All] {
            for (name, value) in [
                ("sec-fetch-site", "cross-site"),
                ("sec-fetch-site", "same-site"),
                ("origin", "http://evil.example"),
                ("origin", "http://localhost:8080"),
                ("origin", "null"),
            ] {
                assert!(with(page, name, value).is_err(), "{value}");
            }
            for (name, value) in
                [("sec-fetch-site", "same-origin"), ("sec-fetch-site", "none"), ("origin", "http://localhost:9464")]
            {
                assert_eq!(with(page, name, value), Ok(()));
            }
        }
        let further =
            ["x-forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-envoy-external-address"];
        for name in OF_PROXIES.into_iter().chain(further) {
            assert!(with(Page::Local, name, "x").is_err(), "{name}");
            assert_eq!(with(Page::All, name, "x"), Ok(()));
        }
        assert_eq!(with(Page::Local, "x-request-id", "x"), Ok(()), "not only proxies add it");
        assert_eq!(check_with(Page::All, "10.0.0.1", &[("host", "bridge.example")]), Ok(()));
        assert!(check_with(Page::Off, "127.0.0.1", &[("host", "localhost")]).is_err());
    }
}
