//! What `doctor` checks: the endpoint, the queue, and what the key may do. No message is received.

use std::time::Duration;

use super::answer::{Attributes, MnsError, MnsErrorKind};
use super::client::{Clock, NOT_MNS, Queue};
use super::config::MnsSettings;
use super::credentials::Credentials;
use crate::common::clock::LIMIT;
use crate::common::findings::Findings;
use crate::common::http::HttpClient;
use crate::common::units::{Size, Span};

/// A receipt handle that no queue has given to anybody.
const NO_HANDLE: &str = "apsara-bridge-doctor";

/// A queue that keeps its messages for less loses them in the outage of a night.
const LEAST_RETENTION: Duration = Duration::from_secs(24 * 3600);

/// The largest message that the service can have (its page on limits). Larger callbacks do not arrive in smaller ones.
const MAX_MESSAGE: u64 = 65_536;

/// Checks the queue.
pub(super) async fn examine(settings: &MnsSettings, findings: &Findings) {
    let http = match HttpClient::new() {
        Ok(http) => http,
        Err(error) => {
            return findings.problem("endpoint", error.to_string(), "install the certificates of your system");
        }
    };
    let credentials = Credentials::new(settings.credentials.clone(), http.clone());
    let queue = Queue { address: settings.address.clone(), credentials, http, clock: Clock::default() };
    let attributes = queue.attributes().await;
    let server = &settings.address.authority;
    match &attributes {
        Ok(attributes) => found(&settings.address.queue, *attributes, findings),
        Err(error) if error.code == TIME_EXPIRED => return expired(server, queue.clock.offset(), error, findings),
        Err(error) if error.kind == MnsErrorKind::Unavailable => {
            return findings.problem("endpoint", format!("{server}: {error}"), remedy(error));
        }
        Err(error) => findings.problem("queue", error.to_string(), remedy(error)),
    }
    let is_answer = attributes.as_ref().err().is_none_or(|error| !error.code.is_empty());
    if !is_answer {
        return;
    }
    findings.clock(server, queue.clock.offset());
    if attributes.is_err_and(|error| !is_denied(&error)) {
        return;
    }
    // Whether a key may receive shows only when it receives. A message that was looked at stays as it is.
    match queue.peek().await {
        Ok(()) => findings.ok("receive", "the key may read messages (PeekMessage); none was received, which would take it"),
        Err(error) if is_denied(&error) => findings.not_checked(
            "receive",
            "the key may not look at messages (PeekMessage), which the bridge does not need; whether it may receive them \
             shows only when it does",
        ),
        Err(error) => findings.not_checked("receive", error.to_string()),
    }
    let deleted = queue.delete(&[NO_HANDLE.to_owned()]).await.map(|_| ());
    permission("delete", "DeleteMessage", deleted, findings);
    let changed = queue.change_visibility(NO_HANDLE, Duration::from_secs(1)).await.map(|_| ());
    permission("extend leases", "ChangeMessageVisibility", changed, findings);
}

/// The code for a request whose time is too far from that of the server.
const TIME_EXPIRED: &str = "TimeExpired";

/// The server refuses the time of the request. It has said its own time, unless a proxy removed it.
fn expired(server: &str, ahead: time::Duration, error: &MnsError, findings: &Findings) {
    findings.clock(server, ahead);
    if ahead.unsigned_abs() >= LIMIT {
        // The difference is a problem of its own.
        findings.not_checked("queue", format!("{server} refuses requests until the clock is right: {error}"));
    } else {
        findings.problem("clock", format!("{server}: {error}"), remedy(error));
    }
}

fn found(name: &str, attributes: Attributes, findings: &Findings) {
    let Attributes { active, inactive, delayed, retention, max_message } = attributes;
    let messages = active + inactive + delayed;
    findings.ok("queue", format!("{name} exists, with {messages} messages; the key may read its attributes"));
    if let Some(retention) = retention.filter(|retention| *retention < LEAST_RETENTION) {
        findings.warning(
            "retention",
            format!("{name} keeps messages for {}: an outage that is longer loses them", Span(retention)),
            "set the retention time of the queue to several days",
        );
    }
    if let Some(size) = max_message.filter(|size| *size < MAX_MESSAGE) {
        findings.warning(
            "message size",
            format!("{name} accepts messages of at most {}: larger callbacks do not arrive", Size(size)),
            "set the maximum message size of the queue to 64 KiB",
        );
    }
}

/// An action with a receipt handle that does not exist: the service checks the permission before the handle.
fn permission(check: &str, action: &str, done: Result<(), MnsError>, findings: &Findings) {
    match done {
        Err(error) if is_denied(&error) => {
            let grant = format!("grant the key {action} on the queue");
            findings.problem(check, format!("the key may not do it: {error}"), grant);
        }
        Err(error) if error.kind != MnsErrorKind::Gone => findings.not_checked(check, error.to_string()),
        // The handle was refused, and nothing was changed.
        Ok(()) | Err(_) => findings.ok(check, format!("the key may do it ({action})")),
    }
}

fn is_denied(error: &MnsError) -> bool {
    error.code.starts_with("AccessDenied")
}

fn remedy(error: &MnsError) -> &'static str {
    match error.code.as_str() {
        "QueueNotExist" => "create the queue, or fix `queue` and the account and the region in `endpoint`",
        "InvalidAccessKeyId" => "check the id of the access key: it does not exist, or it was disabled",
        "SignatureDoesNotMatch" => "check the secret of the access key; for signature = \"v4\" also `region`",
        TIME_EXPIRED => "set the clock of this machine, for example with NTP",
        code if code.starts_with("AccessDenied") => {
            "grant the key GetQueueAttributes, ReceiveMessage, DeleteMessage and ChangeMessageVisibility on the queue"
        }
        "" if error.kind == MnsErrorKind::Misconfigured => {
            "set `credentials`, or ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET"
        }
        "" if error.message.starts_with(NOT_MNS) => "set `endpoint` to that of MNS for your account and region",
        "" => "check `endpoint`, the network, and where the access key comes from",
        _ => "see what the message says",
    }
}
