//! What `doctor` checks: the login, JetStream, the stream of each subject, and how safely it stores messages. Nothing is
//! published, and no stream is created.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamByNameErrorKind;
use async_nats::jetstream::stream::{Config, StorageType};

use super::config::{NatsDelivery, NatsSettings};
use super::link::Link;
use super::stream::{get_error, is_missing, losing, warnings};
use super::stream_config::{StreamConfig, covers};
use crate::common::address::is_loopback;
use crate::common::findings::Findings;
use crate::common::text::listed;
use crate::common::units::Span;
use crate::output::{NeededTopic, Needs};

/// How long JetStream has for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A stream with a shorter duplicate window is reported. It is the default of the server. The tries of Alibaba, which are
/// over within seconds, and a message of a queue that is delivered once more fit into it.
const LEAST_WINDOW: Duration = Duration::from_secs(120);

/// Checks an output.
pub(super) async fn examine(settings: &NatsSettings, needs: &Needs, findings: &Findings) {
    let link = match Link::connect(settings, &settings.present().login).await {
        Ok(link) => link,
        Err(error) => {
            let is_login = error.contains("uthorization");
            let remedy = if is_login {
                "check the login of the output: `user` and `password`, `token`, `nkey` or `credentials_file`"
            } else {
                "check `servers`, the network, and the files under `tls`"
            };
            let servers = settings.bus().hosts.join(", ");
            return findings.problem("login", format!("{servers}: {error}"), remedy);
        }
    };
    let server = link.client.server_info();
    findings.ok("login", format!("the server {} answers, version {}", server.server_name, server.version));
    if settings.delivery == NatsDelivery::Core {
        return findings.ok("stream", "core NATS has no streams");
    }
    let context = link.jetstream(ANSWER);
    if let Err(refusal) = link.unless_refused(streams(settings, needs, &context, findings)).await {
        findings.problem(
            "permissions",
            refusal.message,
            "grant the user $JS.API.> and the inbox, or a part of it that is enough",
        );
    }
}

/// Checks JetStream, the stream that is configured, and the stream of each subject.
async fn streams(settings: &NatsSettings, needs: &Needs, context: &Context, findings: &Findings) {
    let mut streams = Streams { context, known: BTreeMap::new() };
    let mut planned = None;
    match &settings.stream {
        None => match context.query_account().await {
            Ok(_) => findings.ok("jetstream", "JetStream answers"),
            Err(error) => {
                let remedy = "switch JetStream on at the server and for the account of the user";
                return findings.problem("jetstream", format!("JetStream does not answer: {error}"), remedy);
            }
        },
        Some(wanted) => match configured(wanted, &mut streams, findings).await {
            Configured::Exists => {}
            Configured::Planned => planned = Some(wanted),
            Configured::Unusable => return,
        },
    }
    for topic in &needs.topics {
        streams.accepts(topic, planned, findings).await;
    }
    let is_local = settings.servers.iter().all(|server| is_loopback(server.host()));
    if let Some(wanted) = planned {
        replicas(&wanted.name, wanted.replicas.unwrap_or(1), is_local, findings);
    }
    for found in streams.known.values() {
        durability(found, settings.stream.as_ref(), is_local, findings);
    }
    findings.not_checked(
        "write",
        "whether the user may publish shows only when it does: `--publish-test OUTPUT/SUBJECT` publishes one event",
    );
}

enum Configured {
    Exists,
    /// The bridge creates it.
    Planned,
    Unusable,
}

async fn configured(wanted: &StreamConfig, streams: &mut Streams<'_>, findings: &Findings) -> Configured {
    let name = &wanted.name;
    match streams.context.get_stream(name).await {
        Ok(stream) => {
            let found = stream.cached_info().config.clone();
            findings.ok("stream", format!("`{name}` exists"));
            for warning in warnings(wanted, &found) {
                findings.warning("stream", warning, "change the stream, or the keys under `stream` if it is meant so");
            }
            streams.known.insert(name.clone(), found);
            Configured::Exists
        }
        Err(error) if is_missing(&error) && wanted.create => {
            findings.ok("stream", format!("`{name}` does not exist yet; the bridge creates it when it starts"));
            Configured::Planned
        }
        Err(error) if is_missing(&error) => {
            let remedy = "create it, or set `stream.create = true`";
            findings.problem("stream", format!("`{name}` does not exist"), remedy);
            Configured::Unusable
        }
        Err(error) => {
            let seen = format!("JetStream does not say whether `{name}` exists: {}", get_error(&error));
            findings.problem("stream", seen, "switch JetStream on at the server and for the account of the user");
            Configured::Unusable
        }
    }
}

/// Streams that were found, by their names.
struct Streams<'c> {
    context: &'c Context,
    known: BTreeMap<String, Config>,
}

impl Streams<'_> {
    /// Checks whether streams accept all subjects of a destination. `planned` does not exist yet.
    async fn accepts(&mut self, topic: &NeededTopic, planned: Option<&StreamConfig>, findings: &Findings) {
        let (check, from) = (format!("subject {}", topic.written), topic.from.join(", "));
        let subjects = match &topic.names {
            Some(names) => names.clone(),
            None => BTreeSet::from([with_wildcards(&topic.pattern)]),
        };
        let (mut missing, mut by) = (Vec::new(), BTreeSet::new());
        for subject in &subjects {
            let is_planned = planned.filter(|wanted| wanted.subjects.iter().any(|outer| covers(outer, subject)));
            let found = match is_planned {
                Some(wanted) => Ok(Some(wanted.name.clone())),
                None => self.of(subject).await,
            };
            match found {
                Ok(Some(name)) => drop(by.insert(name)),
                Ok(None) => missing.push(subject.as_str()),
                Err(error) => {
                    return findings
                        .not_checked(&check, format!("JetStream does not say which stream accepts it: {error}"));
                }
            }
        }
        let by: Vec<String> = by.iter().map(|name| format!("`{name}`")).collect();
        if missing.is_empty() {
            return findings.ok(&check, format!("accepted by stream {} ({from})", by.join(", ")));
        }
        let Some(names) = &topic.names else {
            let why =
                format!("senders choose a part of it ({from}), and no stream accepts all of {}", missing.join(", "));
            return findings.not_checked(&check, why);
        };
        let seen = if names.len() == 1 {
            "no stream accepts it".to_owned()
        } else {
            format!("no stream accepts {}", listed(&missing))
        };
        let remedy = "add the subject to a stream, or set `stream` with `create = true` and subjects that cover it";
        findings.problem(&check, format!("{seen} ({from})"), remedy);
    }

    /// The stream that accepts a subject, or all of a pattern.
    async fn of(&mut self, subject: &str) -> Result<Option<String>, String> {
        let accepts = |config: &Config| config.subjects.iter().any(|outer| covers(outer, subject));
        if let Some((name, _)) = self.known.iter().find(|(_, config)| accepts(config)) {
            return Ok(Some(name.clone()));
        }
        let name = match self.context.stream_by_subject(subject).await {
            Ok(name) => name,
            Err(error) if error.kind() == GetStreamByNameErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
        };
        let stream = self.context.get_stream(&name).await.map_err(|error| get_error(&error))?;
        let config = stream.cached_info().config.clone();
        let is_accepted = accepts(&config);
        self.known.insert(name.clone(), config);
        Ok(is_accepted.then_some(name))
    }
}

/// A pattern of topics as a subject of NATS: a token with a value that senders choose can be any token.
fn with_wildcards(pattern: &str) -> String {
    let tokens = pattern.split('.').map(|token| if token.contains('*') { "*" } else { token });
    tokens.collect::<Vec<_>>().join(".")
}

/// How safely a stream stores messages. What the configuration says about it was compared before.
fn durability(found: &Config, wanted: Option<&StreamConfig>, is_local: bool, findings: &Findings) {
    let name = &found.name;
    let is_configured = wanted.is_some_and(|wanted| wanted.name == *name);
    if !is_configured {
        for sentence in losing(found) {
            findings.warning(
                "stream",
                format!("stream `{name}` {sentence}"),
                "change the stream if it is not meant so",
            );
        }
        if found.storage == StorageType::Memory {
            let seen =
                format!("stream `{name}` keeps its messages in memory only: a restart of its servers loses them");
            findings.warning("stream", seen, "use a stream with file storage");
        }
    }
    replicas(name, found.num_replicas, is_local, findings);
    let window = Span(found.duplicate_window);
    if found.duplicate_window < LEAST_WINDOW {
        findings.warning(
            "duplicate window",
            format!("stream `{name}` recognizes a repeat only for {window}; later it is stored twice"),
            format!(
                "nats stream edit {name} --dupe-window {}, or longer: best, longer than outages that the spool has to bridge",
                Span(LEAST_WINDOW)
            ),
        );
    } else {
        let seen =
            format!("stream `{name}` recognizes a repeat for {window}; after a longer outage it is stored twice");
        findings.ok("duplicate window", seen);
    }
}

fn replicas(name: &str, replicas: usize, is_local: bool, findings: &Findings) {
    match (replicas, is_local) {
        (2.., _) => findings.ok("replicas", format!("stream `{name}` has {replicas} replicas")),
        (_, true) => {
            findings.ok("replicas", format!("stream `{name}` has one replica; the servers are on this machine"));
        }
        (_, false) => findings.warning(
            "replicas",
            format!("stream `{name}` has one replica, so that losing one server loses events"),
            format!("with a cluster: nats stream edit {name} --replicas 3; set `stream.replicas = 3` if the bridge creates it"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_becomes_a_subject() {
        assert_eq!(with_wildcards("media.*-x.com.aliyun.media.*"), "media.*.com.aliyun.media.*");
    }
}
