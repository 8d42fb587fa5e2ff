//! Settings of an HTTP output: the section of the configuration, its checks, and the checked settings.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::Semaphore;

use crate::common::address::{authority, is_loopback};
use crate::common::secret::{Secret, SecretSource};
use crate::common::tls::{ClientTls, TlsConfig, TlsFiles as _};
use crate::common::validation::Validation;
use crate::common::watch::{Fingerprint, Reread};
use crate::event::Mode;
use crate::output::{Bus, DestinationRules, OutputConfig, OutputContext, OutputSettings, TopicRule};

/// The one lane of an output. It stands where other outputs have a topic.
const LANE: &str = "http";

/// Enough for some thousand events per second from a receiver that takes 10 ms for each.
const MAX_IN_FLIGHT: usize = 64;

/// Headers that belong to the event or to the connection.
const RESERVED: [&str; 12] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// CloudEvents over HTTP. Each event is a POST to one URL.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["url"]))]
pub struct HttpConfig {
    /// The URL to post to, `http://` or `https://`, without a user and a password. `check` prints it: a secret belongs in
    /// `request_headers`. Redirects are not followed. Required.
    #[schemars(regex(pattern = "^[Hh][Tt][Tt][Pp][Ss]?://[^/?#@]+([/?][^#]*)?$"))]
    pub url: String,
    /// The layout of the requests, by the CloudEvents binding for HTTP.
    pub mode: Mode,
    /// Headers to add to each request. Each value is a secret. Headers of the event and of the connection are not allowed,
    /// for example `ce-id`, `content-type` and `host`. Default: none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub request_headers: BTreeMap<String, SecretSource>,
    /// The files for TLS, for a URL with `https://`. Default: none.
    pub tls: Option<TlsConfig>,
    /// How many requests wait for their answers at the same time: at least 1. Each uses one connection. With 1, the
    /// receiver gets the events in the order in which the bridge sends them.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        HttpConfig {
            url: String::new(),
            mode: Mode::Structured,
            request_headers: BTreeMap::new(),
            tls: None,
            max_in_flight: MAX_IN_FLIGHT,
        }
    }
}

impl HttpConfig {
    fn url(&self, validation: &mut Validation) -> Option<Uri> {
        const EXPECTED: &str = "expected http:// or https://, for example https://events.example.com/";
        let rest = self.url.split_once("://").map_or(self.url.as_str(), |(_, rest)| rest);
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let message = if self.url.is_empty() {
            format!("missing; {EXPECTED}")
        } else if authority.contains('@') {
            "a login in a url would be shown in logs; set `request_headers.authorization` instead".to_owned()
        } else if let Some(url) = self.url.parse().ok().filter(is_absolute).filter(|_| !self.url.contains('#')) {
            return Some(url);
        } else {
            // A query may be a secret.
            let shown = self.url.split(['?', '#']).next().unwrap_or_default();
            format!("invalid url `{shown}`: {EXPECTED}")
        };
        validation.wrong("url", message);
        None
    }

    fn headers(&self, validation: &mut Validation) -> Vec<(HeaderName, Arc<Secret>)> {
        let mut headers: Vec<(HeaderName, Arc<Secret>)> = Vec::new();
        for (written, source) in &self.request_headers {
            let key = format!("request_headers.{written}");
            let Ok(name) = HeaderName::from_bytes(written.as_bytes()) else {
                validation.wrong(&key, "invalid name of a header: expected letters, digits and `-`");
                continue;
            };
            if RESERVED.contains(&name.as_str()) || name.as_str().starts_with("ce-") {
                validation.wrong(&key, "cannot be set here: the bridge sets it, or it belongs to the connection");
                continue;
            }
            if headers.iter().any(|(known, _)| *known == name) {
                validation.wrong(&key, "the same header is set twice: upper and lower case do not differ");
                continue;
            }
            let Some(secret) = validation.secret(&key, source) else { continue };
            if let Err(fault) = secret.require(|value| header_value(value).map(|_| ()).ok_or(NOT_A_VALUE)) {
                for (path, found) in secret.files() {
                    validation.unusable_file(&path, found);
                }
                validation.wrong(&key, fault);
            }
            headers.push((name, secret));
        }
        headers
    }

    /// The TLS of an `https` URL.
    fn tls(&self, url: &Uri, validation: &mut Validation) -> Option<Arc<ClientTls>> {
        if url.scheme_str() != Some("https") {
            if self.tls.is_some() {
                validation.wrong("tls", "the url begins with http://, which has no TLS; leave it out or use https://");
            }
            return None;
        }
        let files = self.tls.clone().unwrap_or_default();
        let mut checked = Validation::of("");
        files.check(&mut checked);
        if !checked.is_ok() {
            files.check(validation);
            return None;
        }
        let found: Vec<_> = files.files().iter().map(|path| (path.to_path_buf(), Fingerprint::of_file(path))).collect();
        match ClientTls::read(&files) {
            Ok(tls) => {
                let tls = Arc::new(tls);
                validation.watch(tls.clone());
                Some(tls)
            }
            Err(error) => {
                found.iter().for_each(|(path, found)| validation.unusable_file(path, *found));
                validation.wrong("tls", error.to_string());
                None
            }
        }
    }
}

/// Whether a URL says how to connect to which host.
fn is_absolute(url: &Uri) -> bool {
    let Some(authority) = url.authority() else { return false };
    let has_legal_port = authority.as_str() == authority.host() || authority.port_u16().is_some();
    matches!(url.scheme_str(), Some("http" | "https")) && !authority.host().is_empty() && has_legal_port
}

/// What is wrong with the value of a header. The value itself may be a secret.
pub(super) const NOT_A_VALUE: &str = "the value contains characters that a header cannot have";

/// A text as the value of a header that is not printed.
pub(super) fn header_value(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

impl OutputConfig for HttpConfig {
    fn validate(&self, context: OutputContext<'_>, validation: &mut Validation) -> Option<Box<dyn OutputSettings>> {
        let url = self.url(validation);
        let headers = self.headers(validation);
        let tls = url.as_ref().and_then(|url| self.tls(url, validation));
        if self.max_in_flight == 0 || self.max_in_flight > Semaphore::MAX_PERMITS {
            let message = format!("{} is out of range: expected at least 1", self.max_in_flight);
            validation.wrong("max_in_flight", message);
        }
        let url = url.filter(|_| validation.is_ok())?;
        Some(Box::new(HttpSettings {
            name: context.name.to_owned(),
            url,
            mode: self.mode,
            headers,
            tls,
            max_in_flight: self.max_in_flight,
        }))
    }

    fn destination_rules(&self) -> DestinationRules {
        DestinationRules { has_keys: false, topic: TopicRule::None(LANE) }
    }

    fn warnings(&self, name: &str, _: &[String]) -> Vec<String> {
        let mut warnings: Vec<String> = self.tls.iter().filter_map(TlsConfig::warning).collect();
        let is_plain = self
            .url
            .parse::<Uri>()
            .is_ok_and(|url| url.scheme_str() == Some("http") && !url.host().is_some_and(is_loopback));
        if is_plain && !self.request_headers.is_empty() {
            warnings.push(
                "request_headers: over http://, others can read their values; set a url with https://".to_owned(),
            );
        }
        warnings.into_iter().map(|warning| format!("output `{name}`: {warning}")).collect()
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

/// Checked settings of an HTTP output.
#[derive(Clone)]
pub struct HttpSettings {
    pub(super) name: String,
    pub(super) url: Uri,
    pub(super) mode: Mode,
    /// Further headers, with their present values.
    pub(super) headers: Vec<(HeaderName, Arc<Secret>)>,
    /// None if the URL has no TLS.
    pub(super) tls: Option<Arc<ClientTls>>,
    pub(super) max_in_flight: usize,
}

impl HttpSettings {
    /// Where the requests go. Path and query can be secrets.
    pub(super) fn bus(&self) -> Bus {
        Bus {
            hosts: vec![authority(&self.url.to_string()).to_owned()],
            protocol: if self.tls.is_some() { "https" } else { "http" },
            notes: vec!["The bridge posts each event to one URL of this server. Its path is not shown.".to_owned()],
            other_headers: &[],
            message_bindings: |_| None,
            channel_bindings: None,
            operation_bindings: Some(json!({ "http": { "method": "POST", "bindingVersion": "0.3.0" } })),
        }
    }
}

impl fmt::Debug for HttpSettings {
    // Without the URL, whose query may be a secret.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("HttpSettings")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}
