//! What `doctor` checks: whether the receiver answers, and how. It is asked by OPTIONS, as the running output asks it.

use super::answers::{meaning, words};
use super::{HttpSettings, Shared};
use crate::common::address::authority;
use crate::common::clock;
use crate::common::findings::Findings;
use crate::output::ErrorKind;
use crate::telemetry::metrics::Metrics;

/// Checks an output.
pub(super) async fn examine(settings: &HttpSettings, findings: &Findings) {
    let Ok(metrics) = Metrics::new() else { return };
    let shared = match Shared::new(settings.clone(), &metrics) {
        Ok(shared) => shared,
        Err(error) => return findings.problem("receiver", error.to_string(), "fix the files under `tls`"),
    };
    let url = settings.url.to_string();
    let server = authority(&url);
    let head = match shared.ask().await {
        Ok(head) => head,
        Err(reason) => {
            let remedy = "check `url`, the network, the files under `tls`, and whether the receiver runs";
            return findings.problem("receiver", format!("{server}: {reason}"), remedy);
        }
    };
    if let Some(ahead) = clock::ahead(&head.headers) {
        findings.clock(server, ahead);
    }
    let (kind, remedy) = meaning(head.status);
    let answer = format!("{server} answers OPTIONS with {}", words(head.status));
    let is_about_the_method = matches!(head.status.as_u16(), 405 | 501);
    if head.status.is_success() || is_about_the_method {
        findings.ok("receiver", answer);
        let why = "whether it takes events shows only when one is posted: `--publish-test OUTPUT` posts one";
        return findings.not_checked("post", why);
    }
    match kind {
        ErrorKind::Misconfigured | ErrorKind::Unauthorized | ErrorKind::NoSuchDestination => {
            findings.warning("receiver", format!("{answer}; it may answer events in the same way"), remedy);
        }
        _ => {
            findings.warning("receiver", answer, "see the log of the receiver; `--publish-test OUTPUT` posts one event")
        }
    }
}
