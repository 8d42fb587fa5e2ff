//! Settings of an HTTP input: the section of the configuration, its checks, and the checked settings.

use std::collections::HashSet;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::signature::Verifier;
use super::tls::TlsFiles;
use crate::bridge::Sender;
use crate::common::address::{host, is_loopback};
use crate::common::secret::{Secret, SecretSource, exposed};
use crate::common::tls::{Tls, TlsFiles as _};
use crate::common::units::{Size, Span, one_or_many, one_or_many_schema};
use crate::common::validation::Validation;
use crate::common::watch::Fingerprint;
use crate::dialect::Dialect;
use crate::input::{InputConfig, InputContext, InputSettings};

/// The shortest key without a warning. Who has seen one signature tries all shorter keys of letters and digits in about
/// 30 seconds with one graphics card, at 10^11 MD5 hashes per second.
const LEAST_KEY: usize = 8;

/// The longest age of a signature without a warning. Alibaba posts a callback for a few seconds.
const LONGEST_AGE: Duration = Duration::from_secs(3600);

/// Callbacks that Alibaba posts over HTTP.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["endpoints"]))]
pub struct HttpConfig {
    /// The address to listen on, as `host:port`. If other machines can reach it, every endpoint needs `keys` or
    /// `allow_unsigned = true`.
    pub listen: String,
    /// The largest body: more than 0B. Larger bodies get 413.
    pub max_body: Size,
    /// How many requests can wait for their answer at the same time: at least 1. Further requests get 503.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// How many connections can be open at the same time: at least 1. A further one gets the place of the connection that
    /// has been idle longest, first among those whose last request was not accepted. If all of them wait for the outcome of
    /// a callback, it gets 503 and is closed.
    #[schemars(range(min = 1))]
    pub max_connections: usize,
    /// How many connections one address can have open at the same time: at least 1. Further ones get 503 and are closed. A
    /// proxy or a load balancer is one address. All of an IPv6 /64 is one address. Default: no limit.
    #[schemars(range(min = 1))]
    pub max_connections_per_address: Option<usize>,
    /// The longest time for the head of a request, from its first byte, and for a TLS handshake: more than 0s. After that
    /// a request gets 408, and a connection is closed. An idle connection is kept for 75s, longer than proxies keep
    /// theirs.
    pub header_timeout: Span,
    /// The longest time for the body of a request: more than 0s. After that the request gets 408.
    pub body_timeout: Span,
    /// The certificate for HTTPS. Default: HTTP without TLS.
    pub tls: Option<TlsFiles>,
    /// The paths that callbacks are posted to: at least one.
    #[schemars(length(min = 1))]
    pub endpoints: Vec<EndpointConfig>,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            listen: "127.0.0.1:8080".to_owned(),
            max_body: Size(256 << 10),
            max_in_flight: 2048,
            max_connections: 4096,
            max_connections_per_address: None,
            header_timeout: Span(Duration::from_secs(5)),
            body_timeout: Span(Duration::from_secs(5)),
            tls: None,
            endpoints: Vec::new(),
        }
    }
}

/// Settings of one path.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointConfig {
    /// The path of the request, without a query. Each endpoint of an input has its own path.
    #[schemars(regex(pattern = r"^/[^?# ]*$"))]
    pub path: String,
    /// The callback URLs, exactly as they were entered at Alibaba, because Alibaba signs this text. They are needed
    /// together with `keys`. What a proxy changes about the request does not matter.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<String>")]
    pub urls: Vec<String>,
    /// The authentication keys, exactly as they were entered at Alibaba. While a key is being changed, list the old one and
    /// the new one. Without keys, callbacks are accepted from anyone who can reach the address.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<SecretSource>")]
    pub keys: Vec<SecretSource>,
    /// The largest difference between the time in a signature and the present time, in either direction. Callbacks with a
    /// larger difference get 401. The signature does not cover the body, so a captured signature can be used with another
    /// body for this long.
    pub max_age: Span,
    /// Also accept callbacks without a signature. A signature that is present must still be right if there are keys.
    pub allow_unsigned: bool,
    /// The products whose callbacks are accepted. Others get 400. An empty list accepts both.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<Dialect>")]
    pub dialects: Vec<Dialect>,
    /// The region of the Alibaba service, for example `cn-shanghai`. Region and account together become part of `source`,
    /// for example `acs:vod:cn-shanghai:1833220977560000`. Default: none.
    pub region: Option<String>,
    /// The id of the Alibaba Cloud account. If an IMS callback contains an account, that one is used. Default: none.
    pub account_id: Option<String>,
}

impl Default for EndpointConfig {
    fn default() -> Self {
        EndpointConfig {
            path: "/callbacks".to_owned(),
            urls: Vec::new(),
            keys: Vec::new(),
            max_age: Span(Duration::from_secs(300)),
            allow_unsigned: false,
            dialects: Vec::new(),
            region: None,
            account_id: None,
        }
    }
}

impl InputConfig for HttpConfig {
    fn validate(&self, context: InputContext<'_>, validation: &mut Validation) -> Option<Box<dyn InputSettings>> {
        let listen: Vec<SocketAddr> = match self.listen.to_socket_addrs() {
            Ok(addresses) => addresses.collect(),
            Err(error) => {
                validation.wrong("listen", format!("invalid address `{}`: expected host:port ({error})", self.listen));
                Vec::new()
            }
        };
        self.check_bounds(validation);
        let tls = self.tls.as_ref().and_then(|files| {
            // Taken before the files are read, because they may change in between.
            let found: Vec<_> = files.files().into_iter().map(|path| (Fingerprint::of_file(&path), path)).collect();
            match Tls::read(files) {
                Ok(tls) => {
                    let tls = Arc::new(tls);
                    validation.watch(tls.clone());
                    Some(tls)
                }
                Err(error) => {
                    found.into_iter().for_each(|(found, path)| validation.unusable_file(&path, found));
                    validation.wrong("tls", error.to_string());
                    None
                }
            }
        });
        if self.endpoints.is_empty() {
            validation.wrong("endpoints", "expected at least one, with its path");
        }
        let is_local = listen.iter().all(|address| address.ip().is_loopback());
        let mut paths = HashSet::new();
        let mut endpoints = Vec::new();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let section = format!("endpoints[{index}]");
            if !paths.insert(&endpoint.path) {
                validation
                    .wrong(&format!("{section}.path"), format!("two endpoints have the path `{}`", endpoint.path));
            }
            if endpoint.keys.is_empty() && !endpoint.allow_unsigned && !is_local {
                let message = format!(
                    "{} is reachable from other machines: set keys, or allow_unsigned = true to accept callbacks from \
                     anyone",
                    self.listen
                );
                validation.wrong(&format!("{section}.keys"), message);
            }
            endpoints.push(endpoint.validate(&section, validation));
        }
        validation.is_ok().then(|| {
            Box::new(HttpSettings {
                name: context.name.to_owned(),
                listen,
                max_connections: self.max_connections,
                max_connections_per_address: self.max_connections_per_address,
                header_timeout: self.header_timeout.0,
                body_timeout: self.body_timeout.0,
                tls,
                reloadable: Reloadable { endpoints, max_body: self.max_body, max_in_flight: self.max_in_flight },
            }) as Box<dyn InputSettings>
        })
    }

    fn senders(&self) -> Vec<Sender> {
        self.endpoints.iter().map(EndpointConfig::sender).collect()
    }

    fn max_body(&self) -> Option<Size> {
        Some(self.max_body)
    }

    fn warnings(&self, name: &str) -> Vec<String> {
        let exposed = self.tls.as_ref().and_then(|tls| exposed(&tls.key_file));
        let mut warnings: Vec<String> = exposed.map(|warning| format!("tls.key_file: {warning}")).into_iter().collect();
        for (index, endpoint) in self.endpoints.iter().enumerate() {
            let is_local = is_loopback(host(&self.listen)) && endpoint.urls.iter().all(|url| is_loopback(host(url)));
            if !is_local {
                warnings.extend(endpoint.warnings().map(|warning| format!("endpoints[{index}].{warning}")));
            }
        }
        warnings.into_iter().map(|warning| format!("input `{name}`: {warning}")).collect()
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

impl HttpConfig {
    fn check_bounds(&self, validation: &mut Validation) {
        for (key, value) in [
            ("max_in_flight", self.max_in_flight),
            ("max_connections", self.max_connections),
            ("max_connections_per_address", self.max_connections_per_address.unwrap_or(1)),
        ] {
            if value == 0 || value > Semaphore::MAX_PERMITS {
                validation.wrong(key, format!("{value} is out of range: expected at least 1"));
            }
        }
        for (key, span) in [("header_timeout", self.header_timeout), ("body_timeout", self.body_timeout)] {
            if span.0.is_zero() {
                validation.wrong(key, "expected more than 0s");
            }
        }
        if self.max_body.0 == 0 {
            validation.wrong("max_body", "expected more than 0B");
        }
    }
}

impl EndpointConfig {
    /// What is weak about the signatures, each with its key.
    fn warnings(&self) -> impl Iterator<Item = String> {
        let is_short =
            |source: &SecretSource| Secret::read(source).is_ok_and(|key| key.value().chars().count() < LEAST_KEY);
        let keys = self.keys.iter().enumerate().filter(move |(_, source)| is_short(source)).map(|(position, _)| {
            format!(
                "keys[{position}]: the key has fewer than {LEAST_KEY} characters, and one captured signature is enough to \
                 find it by trying; set a random key of 32 characters here and at Alibaba"
            )
        });
        let is_long = !self.keys.is_empty() && self.max_age.0 > LONGEST_AGE;
        let age = is_long.then(|| {
            format!(
                "max_age: for {}, who has seen one signature can post any body with it; set at most 1h",
                self.max_age
            )
        });
        keys.chain(age)
    }

    /// Checks the settings of an endpoint whose key is `section`.
    fn validate(&self, section: &str, validation: &mut Validation) -> Endpoint {
        let key = |field: &str| format!("{section}.{field}");
        if !self.path.starts_with('/') || self.path.contains(['?', '#', ' ']) {
            let message =
                format!("invalid path `{}`: expected one that starts with `/`, for example /callbacks", self.path);
            validation.wrong(&key("path"), message);
        }
        for url in &self.urls {
            let scheme = url.parse::<Uri>().ok().and_then(|uri| uri.scheme_str().map(str::to_owned));
            if !matches!(scheme.as_deref(), Some("http" | "https")) {
                validation.wrong(&key("urls"), format!("invalid url `{url}`: expected http:// or https://"));
            }
        }
        if !self.keys.is_empty() && self.urls.is_empty() {
            let message = "needed together with keys: Alibaba signs the url exactly as it was entered there";
            validation.wrong(&key("urls"), message);
        }
        let mut keys = Vec::new();
        for (position, source) in self.keys.iter().enumerate() {
            keys.extend(validation.secret(&key(&format!("keys[{position}]")), source));
        }
        let verifier =
            Verifier { urls: self.urls.clone(), keys, max_age: self.max_age.0, allow_unsigned: self.allow_unsigned };
        Endpoint { path: self.path.clone(), verifier, sender: Arc::new(self.sender()) }
    }

    fn sender(&self) -> Sender {
        Sender { region: self.region.clone(), account_id: self.account_id.clone(), dialects: self.dialects.clone() }
    }
}

/// Checked settings of an HTTP input.
#[derive(Debug)]
pub(super) struct HttpSettings {
    pub(super) name: String,
    /// Addresses, of which one is bound.
    pub(super) listen: Vec<SocketAddr>,
    pub(super) max_connections: usize,
    pub(super) max_connections_per_address: Option<usize>,
    pub(super) header_timeout: Duration,
    pub(super) body_timeout: Duration,
    pub(super) tls: Option<Arc<Tls<TlsFiles>>>,
    pub(super) reloadable: Reloadable,
}

/// Those settings that a running input takes over.
#[derive(Debug)]
pub(super) struct Reloadable {
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) max_body: Size,
    pub(super) max_in_flight: usize,
}

/// The keys of [`Reloadable`].
pub(super) const RELOADABLE: &[&str] = &["endpoints", "max_body", "max_in_flight"];

/// Checked settings of one path.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) path: String,
    pub(super) verifier: Verifier,
    pub(super) sender: Arc<Sender>,
}
