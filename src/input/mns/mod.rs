//! Callbacks from a queue of Alibaba's Message Service (MNS, also called SMQ).
//!
//! A message stays in the queue until it is deleted; whoever receives it has it for the time of a lease. It is handed
//! to the bridge, its lease extended for as long as that takes, and deleted when a bus or the disk has it. What is
//! refused is left alone and comes again. As many messages are in the bridge as may be; more stay where they are.
//!
//! Layout: here, settings; `consume` the way of a message; `client` the calls; [`signature`], `answer`, `body` the
//! protocol; `credentials` the access key.

mod answer;
mod body;
mod client;
mod consume;
mod credentials;
pub mod signature;

use std::sync::Arc;
use std::time::Duration;

use hyper::Uri;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;

use crate::bridge::Sender;
use crate::dialect::Dialect;
use crate::setting::{Mistake, Span, one_or_many};
pub use answer::{MnsError, MnsErrorKind};
use client::Place;
pub use consume::{MnsInput, RECEIVE_RESULTS};
pub use credentials::CredentialsConfig;
use credentials::GivenKey;
use signature::SignatureVersion;

/// Longest that the server waits for a message (Alibaba's page on ReceiveMessage).
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Longest lease (Alibaba's page on ChangeMessageVisibility).
const MAX_VISIBILITY: Duration = Duration::from_secs(43_200);

/// Longest name of a queue (Alibaba's page on CreateQueue).
const MAX_NAME: usize = 120;

/// Most long polls at a time: Alibaba throttles those of one account.
const MAX_RECEIVERS: usize = 64;

/// Settings of an MNS input.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MnsConfig {
    /// Address of the account's queues.
    pub endpoint: String,
    /// Name of the queue.
    pub queue: String,
    /// The access key; without it the usual chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<CredentialsConfig>,
    /// How requests are signed.
    pub signature: SignatureVersion,
    /// Region of the queue: signed by V4, and with `account_id` part of `source`.
    pub region: Option<String>,
    /// Account of the callbacks: with `region` part of `source`.
    pub account_id: Option<String>,
    /// The dialects that are taken; empty takes both.
    #[serde(deserialize_with = "one_or_many")]
    pub dialects: Vec<Dialect>,
    /// Long polls at a time.
    pub receivers: usize,
    /// How long the server waits for a message.
    pub wait: Span,
    /// Messages in the bridge at a time.
    pub max_in_flight: usize,
    /// What a lease is extended to.
    pub visibility: Span,
    /// How long the buses have for a message before it is spooled.
    pub deadline: Span,
    /// A message that is received more often becomes a dead letter if it can't be published.
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

impl MnsConfig {
    /// Checks the settings against the delivery deadline, and reads the access key where it is given.
    ///
    /// # Errors
    /// Key below the input and what is wrong with it, for every mistake.
    pub fn validate(&self, name: &str, delivery_deadline: Duration) -> Result<MnsSettings, Vec<Mistake>> {
        let mut errors: Vec<Mistake> = Vec::new();
        let mut wrong = |key: &str, message: String| errors.push((key.to_owned(), message));
        const FORM: &str = "expected one as https://1833220977560000.mns.cn-shanghai.aliyuncs.com";
        let mut place = None;
        match self.endpoint.parse::<Uri>() {
            Ok(uri) => match (uri.scheme_str(), uri.authority(), uri.path_and_query().map(|path| path.as_str())) {
                (Some(scheme @ ("http" | "https")), Some(authority), None | Some("/" | ""))
                    if !authority.as_str().contains('@') =>
                {
                    place = Some((scheme.to_owned(), authority.to_string()));
                }
                _ => wrong("endpoint", format!("`{}` is no address of MNS; {FORM}", self.endpoint)),
            },
            Err(_) => wrong("endpoint", format!("`{}` is no address; {FORM}", self.endpoint)),
        }
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        if self.queue.is_empty()
            || self.queue.len() > MAX_NAME
            || self.queue.starts_with('-')
            || !self.queue.chars().all(legal)
        {
            wrong(
                "queue",
                format!(
                    "`{}` is no name of a queue: letters, digits and `-`, at most {MAX_NAME}, beginning with a letter \
                     or digit",
                    self.queue
                ),
            );
        }
        let is_whole = |span: Span| span.0.subsec_nanos() == 0 && !span.0.is_zero();
        if !is_whole(self.wait) || self.wait.0 > MAX_WAIT {
            wrong("wait", format!("{} is out of range; expected whole seconds from 1s to 30s", self.wait));
        }
        if !is_whole(self.visibility) || self.visibility.0 > MAX_VISIBILITY {
            wrong("visibility", format!("{} is out of range; expected whole seconds from 1s to 12h", self.visibility));
        } else if self.visibility.0 < delivery_deadline {
            let deadline = humantime::format_duration(delivery_deadline);
            wrong(
                "visibility",
                format!(
                    "{} is shorter than delivery.deadline ({deadline}): leases would end in between",
                    self.visibility
                ),
            );
        }
        if self.deadline.0 < delivery_deadline {
            wrong("deadline", format!("{} is shorter than delivery.deadline", self.deadline));
        }
        if self.receivers == 0 || self.receivers > MAX_RECEIVERS {
            wrong("receivers", format!("{} is out of range; expected 1 to {MAX_RECEIVERS}", self.receivers));
        }
        if self.max_in_flight == 0 || self.max_in_flight > Semaphore::MAX_PERMITS.min(u32::MAX as usize) {
            wrong("max_in_flight", format!("{} is out of range; expected at least 1", self.max_in_flight));
        }
        if self.max_receives == 0 {
            wrong("max_receives", "expected at least 1".to_owned());
        }
        if self.signature == SignatureVersion::V4 && self.region.as_ref().is_none_or(String::is_empty) {
            wrong("region", "needed for signature = \"v4\", as \"cn-shanghai\"".to_owned());
        }
        let credentials = self.credentials.as_ref().map(CredentialsConfig::validate).transpose();
        let credentials = credentials.map_err(|mut mistakes| errors.append(&mut mistakes)).ok().flatten();
        let (Some((scheme, authority)), true) = (place, errors.is_empty()) else {
            return Err(errors);
        };
        Ok(MnsSettings {
            name: name.to_owned(),
            place: Place {
                scheme,
                authority,
                queue: self.queue.clone(),
                signature: self.signature,
                region: self.region.clone().unwrap_or_default(),
            },
            credentials,
            sender: Arc::new(Sender {
                // Signing needs the region alone; `source` must not depend on how a callback came.
                region: self.account_id.as_ref().and(self.region.clone()),
                account_id: self.account_id.clone(),
                dialects: self.dialects.clone(),
            }),
            receivers: self.receivers,
            wait: self.wait.0,
            max_in_flight: self.max_in_flight,
            visibility: self.visibility.0,
            deadline: self.deadline.0,
            max_receives: self.max_receives,
        })
    }
}

/// Checked settings of an MNS input.
#[derive(Debug)]
pub struct MnsSettings {
    name: String,
    place: Place,
    /// The key that is given; without one the usual chain.
    credentials: Option<GivenKey>,
    sender: Arc<Sender>,
    receivers: usize,
    wait: Duration,
    max_in_flight: usize,
    visibility: Duration,
    deadline: Duration,
    max_receives: u32,
}

impl MnsSettings {
    /// Name of the input.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Name of the queue.
    pub fn queue(&self) -> &str {
        &self.place.queue
    }

    /// What is known of who sends to the queue.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }
}
