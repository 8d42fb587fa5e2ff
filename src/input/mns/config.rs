//! Settings of an MNS input: the section of the configuration, its checks, and the checked settings.

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use super::client::QueueAddress;
use super::credentials::{CredentialsConfig, GivenKey};
use super::lease::MAX_VISIBILITY;
use super::signature::SignatureVersion;
use crate::bridge::Sender;
use crate::common::address::{host, is_loopback};
use crate::common::units::{Span, one_or_many, one_or_many_schema};
use crate::common::validation::Validation;
use crate::dialect::Dialect;
use crate::input::{InputConfig, InputContext, InputSettings};

/// Longest that the server waits for a message (Alibaba's page on ReceiveMessage).
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Longest name of a queue (Alibaba's page on CreateQueue).
const MAX_NAME: usize = 120;

/// Most long polls at a time: Alibaba throttles those of one account.
const MAX_RECEIVERS: usize = 64;

/// Callbacks from a queue of Alibaba's Message Service (MNS, also called SMQ).
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
#[schemars(extend("required" = ["endpoint", "queue"]))]
pub struct MnsConfig {
    /// The endpoint of the account's queues, without a path, for example
    /// `https://1833220977560000.mns.cn-shanghai.aliyuncs.com`.
    #[schemars(regex(pattern = "^[Hh][Tt][Tt][Pp][Ss]?://"))]
    pub endpoint: String,
    /// The name of the queue: at most 120 letters, digits and `-`, starting with a letter or digit.
    #[schemars(regex(pattern = "^[A-Za-z0-9][A-Za-z0-9-]{0,119}$"))]
    pub queue: String,
    /// The access key. It needs the permissions to receive, delete and change the visibility of messages, and to read the
    /// attributes of the queue. Default: the first that is found of `ALIBABA_CLOUD_ACCESS_KEY_ID` and
    /// `ALIBABA_CLOUD_ACCESS_KEY_SECRET` in the environment, the role of a Kubernetes service account, and the role of the
    /// instance. Set the key here or in the environment, not in both.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsConfig>,
    /// The algorithm that signs the requests.
    pub signature: SignatureVersion,
    /// The region of the queue, for example `cn-shanghai`. Requests signed with `v4` need it. Together with `account_id` it
    /// also becomes part of `source`. `source` must not depend on how a callback arrived: set both keys in the same way for
    /// all inputs, or for none. Default: none.
    pub region: Option<String>,
    /// The id of the Alibaba Cloud account of the callbacks. Together with `region` it becomes part of `source`. Default:
    /// none.
    pub account_id: Option<String>,
    /// The products whose callbacks are accepted. Others become dead letters. An empty list accepts both.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "one_or_many_schema::<Dialect>")]
    pub dialects: Vec<Dialect>,
    /// How many requests wait for messages at the same time: 1 to 64. Each gets up to 16 messages.
    #[schemars(range(min = 1, max = MAX_RECEIVERS))]
    pub receivers: usize,
    /// How long the server waits for a message before it answers that there is none: 1s to 30s, whole seconds.
    pub wait: Span,
    /// How many messages the bridge works on at the same time: at least 1. It pauses polling while there is no room for
    /// another batch.
    #[schemars(range(min = 1))]
    pub max_in_flight: usize,
    /// How long the lease of a message is extended, each time that half of it has passed: 1s to 12h, whole seconds, at least
    /// `delivery.deadline`. The first lease is the visibility timeout of the queue.
    pub visibility: Span,
    /// How long the outputs have to acknowledge a message before it is stored in the spool: at least `delivery.deadline`.
    /// The lease is kept during this time. Without a spool, the message is left in the queue and comes again.
    pub deadline: Span,
    /// How often a message can be received: at least 1. A message that was received more often and cannot be published
    /// becomes a dead letter.
    #[schemars(range(min = 1))]
    pub max_receives: u32,
}

impl Default for MnsConfig {
    fn default() -> Self {
        MnsConfig {
            endpoint: String::new(),
            queue: String::new(),
            credentials: None,
            signature: SignatureVersion::V1,
            region: None,
            account_id: None,
            dialects: Vec::new(),
            receivers: 2,
            wait: Span(MAX_WAIT),
            max_in_flight: 256,
            visibility: Span(Duration::from_secs(30)),
            deadline: Span(Duration::from_secs(60)),
            max_receives: 100,
        }
    }
}

impl InputConfig for MnsConfig {
    fn validate(&self, context: InputContext<'_>, validation: &mut Validation) -> Option<Box<dyn InputSettings>> {
        let address = self.address(validation);
        self.check_times(context.deadline, validation);
        if self.receivers == 0 || self.receivers > MAX_RECEIVERS {
            let message = format!("{} is out of range: expected 1 to {MAX_RECEIVERS}", self.receivers);
            validation.wrong("receivers", message);
        }
        if self.max_in_flight == 0 || self.max_in_flight > Semaphore::MAX_PERMITS.min(u32::MAX as usize) {
            let message = format!("{} is out of range: expected at least 1", self.max_in_flight);
            validation.wrong("max_in_flight", message);
        }
        if self.max_receives == 0 {
            validation.wrong("max_receives", "expected at least 1");
        }
        if self.signature == SignatureVersion::V4 && self.region.as_ref().is_none_or(String::is_empty) {
            validation.wrong("region", "needed for signature = \"v4\", for example \"cn-shanghai\"");
        }
        let credentials = self.credentials.as_ref().and_then(|key| key.validate(validation));
        let address = address.filter(|_| validation.is_ok())?;
        Some(Box::new(MnsSettings {
            name: context.name.to_owned(),
            address,
            credentials,
            sender: Arc::new(self.sender()),
            receivers: self.receivers,
            wait: self.wait.0,
            max_in_flight: self.max_in_flight,
            visibility: self.visibility.0,
            deadline: self.deadline.0,
            max_receives: self.max_receives,
        }))
    }

    fn senders(&self) -> Vec<Sender> {
        vec![self.sender()]
    }

    fn warnings(&self, name: &str) -> Vec<String> {
        let is_plain = !self.endpoint.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
        if !is_plain || is_loopback(host(&self.endpoint)) {
            return Vec::new();
        }
        vec![format!(
            "input `{name}`: endpoint: over http://, others can read messages, signatures of the access key and security \
             tokens, and change answers; set the endpoint with https://"
        )]
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

impl MnsConfig {
    fn sender(&self) -> Sender {
        Sender {
            // Signing needs the region alone. `source` must not depend on how a callback came.
            region: self.account_id.as_ref().and(self.region.clone()),
            account_id: self.account_id.clone(),
            dialects: self.dialects.clone(),
        }
    }

    /// Where the queue is.
    pub(super) fn address(&self, validation: &mut Validation) -> Option<QueueAddress> {
        let is_legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.queue.is_empty()
            || self.queue.len() > MAX_NAME
            || self.queue.starts_with('-')
            || !self.queue.chars().all(is_legal)
        {
            let message = format!(
                "invalid name `{}`: expected at most {MAX_NAME} letters, digits and `-`, starting with a letter or digit",
                self.queue
            );
            validation.wrong("queue", message);
        }
        let endpoint = self.endpoint.parse::<Uri>().ok().and_then(|uri| {
            match (uri.scheme_str(), uri.authority(), uri.path_and_query().map(|path| path.as_str())) {
                (Some(scheme @ ("http" | "https")), Some(authority), None | Some("/" | ""))
                    if !authority.as_str().contains('@') =>
                {
                    Some((scheme.to_owned(), authority.to_string()))
                }
                _ => None,
            }
        });
        let Some((scheme, authority)) = endpoint else {
            let message = format!(
                "invalid endpoint `{}`: expected one of MNS, for example \
                 https://1833220977560000.mns.cn-shanghai.aliyuncs.com",
                self.endpoint
            );
            validation.wrong("endpoint", message);
            return None;
        };
        Some(QueueAddress {
            scheme,
            authority,
            queue: self.queue.clone(),
            signature: self.signature,
            region: self.region.clone().unwrap_or_default(),
        })
    }

    fn check_times(&self, delivery_deadline: Duration, validation: &mut Validation) {
        let is_whole = |span: Span| span.0.subsec_nanos() == 0 && !span.0.is_zero();
        if !is_whole(self.wait) || self.wait.0 > MAX_WAIT {
            validation.wrong("wait", format!("{} is out of range: expected whole seconds from 1s to 30s", self.wait));
        }
        if !is_whole(self.visibility) || self.visibility.0 > MAX_VISIBILITY {
            let message = format!("{} is out of range: expected whole seconds from 1s to 12h", self.visibility);
            validation.wrong("visibility", message);
        } else if self.visibility.0 < delivery_deadline {
            let deadline = humantime::format_duration(delivery_deadline);
            let message = format!(
                "{} is shorter than delivery.deadline ({deadline}): a lease would end before its callback does",
                self.visibility
            );
            validation.wrong("visibility", message);
        }
        if self.deadline.0 < delivery_deadline {
            validation.wrong("deadline", format!("{} is shorter than delivery.deadline", self.deadline));
        }
    }
}

/// Checked settings of an MNS input.
#[derive(Debug)]
pub(super) struct MnsSettings {
    pub(super) name: String,
    pub(super) address: QueueAddress,
    /// The key that is given; without one the usual chain.
    pub(super) credentials: Option<GivenKey>,
    pub(super) sender: Arc<Sender>,
    pub(super) receivers: usize,
    pub(super) wait: Duration,
    pub(super) max_in_flight: usize,
    pub(super) visibility: Duration,
    pub(super) deadline: Duration,
    pub(super) max_receives: u32,
}
