//! What `doctor` checks: the login, JetStream, the stream of each subject, and how safely it stores messages. Nothing is
//! published, and no stream is created.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use async_nats::ServerInfo;
use async_nats::jetstream::Context;
use async_nats::jetstream::account::{Account, Limits};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, State, StorageType};
use serde::Deserialize;
use serde_json::json;

use super::config::{NatsDelivery, NatsSettings};
use super::link::Link;
use super::stream::{self, differences, get_error, is_missing, losing, refusing};
use super::stream_config::{StreamConfig, StreamStorage, covers, overlap};
use crate::common::address::is_loopback;
use crate::common::findings::{Findings, Verdict};
use crate::common::text::listed;
use crate::common::units::{Size, Span};
use crate::output::{NeededTopic, Needs, PublishError, limits};

/// How long JetStream has for one answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A stream with a shorter duplicate window is reported. It is the default of the server. The tries of Alibaba, which are
/// over within seconds, and a message of a queue that is delivered once more fit into it.
const LEAST_WINDOW: Duration = Duration::from_secs(120);

/// With fewer free bytes, a stream counts as full: the smallest event, with its headers.
const LEAST_ROOM: u64 = 1024;

/// Checks an output.
pub(super) async fn examine(settings: &NatsSettings, needs: &Needs, findings: &Findings) {
    let link = match Link::connect(settings, &settings.present().login).await {
        Ok(link) => link,
        Err(fault) => {
            let remedy = if fault.is_login {
                "check the login of the output: `user` and `password`, `token`, `nkey` or `credentials_file`"
            } else {
                "check `servers`, the network, and the files under `tls`"
            };
            let servers = settings.bus().hosts.join(", ");
            return findings.problem("login", format!("{servers}: {}", fault.message), remedy);
        }
    };
    let server = link.client.server_info();
    findings.ok("login", format!("the server {} answers, version {}", server.server_name, server.version));
    if let Ok(limit @ 1..) = u64::try_from(server.max_payload) {
        limits::size("max_payload of the server", limit, needs, "raise max_payload of the server", findings);
    }
    if settings.delivery == NatsDelivery::Core {
        return findings.ok("stream", "core NATS has no streams");
    }
    let api = Api { link: &link, context: link.jetstream(ANSWER) };
    let mut examination = Examination {
        api: &api,
        settings,
        needs,
        findings,
        is_local: settings.servers.iter().all(|server| is_loopback(server.host())),
        known: BTreeMap::new(),
    };
    examination.streams(&server).await;
    if let Some(refusal) = link.inbox_refusal() {
        let remedy = format!("let the user subscribe to {}.>", settings.inbox_prefix);
        findings.problem("permissions", refusal.message, remedy);
    }
}

/// Why JetStream did not say something.
enum Silence {
    /// The user may not ask for it.
    Forbidden(PublishError),
    /// An error, or no answer.
    Failed(String),
}

impl Silence {
    fn words(self) -> String {
        match self {
            Silence::Forbidden(error) => error.message,
            Silence::Failed(words) => words,
        }
    }
}

/// Questions to JetStream.
struct Api<'l> {
    link: &'l Link,
    context: Context,
}

/// A stream as JetStream describes it.
struct Found {
    config: Config,
    state: State,
}

/// Part of the answer to a question for names.
#[derive(Deserialize)]
struct Names {
    streams: Option<Vec<String>>,
}

/// The subject on which JetStream is asked about a stream.
fn info_subject(stream: &str) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

impl Api<'_> {
    async fn account(&self) -> Result<Account, Silence> {
        let asked = self.link.unless_refused(self.context.query_account()).await.map_err(Silence::Forbidden)?;
        asked.map_err(|error| Silence::Failed(format!("JetStream does not answer: {error}")))
    }

    /// A stream; none if there is no such stream.
    async fn stream(&self, name: &str) -> Result<Option<Found>, Silence> {
        let asked = self.link.unless_refused(self.context.get_stream(name)).await.map_err(Silence::Forbidden)?;
        match asked {
            Ok(stream) => {
                let info = stream.cached_info();
                Ok(Some(Found { config: info.config.clone(), state: info.state.clone() }))
            }
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(Silence::Failed(get_error(&error))),
        }
    }

    /// The streams that have a subject in common with this one.
    async fn names(&self, subject: &str) -> Result<Vec<String>, Silence> {
        let question = json!({ "subject": subject });
        let request = self.context.request("STREAM.NAMES", &question);
        let asked: Result<Response<Names>, _> = self.link.unless_refused(request).await.map_err(Silence::Forbidden)?;
        match asked {
            Ok(Response::Ok(names)) => Ok(names.streams.unwrap_or_default()),
            Ok(Response::Err { error }) => Err(Silence::Failed(error.to_string())),
            Err(error) => Err(Silence::Failed(error.to_string())),
        }
    }
}

struct Examination<'e> {
    api: &'e Api<'e>,
    settings: &'e NatsSettings,
    needs: &'e Needs,
    findings: &'e Findings,
    is_local: bool,
    /// Streams by their names; without what the user may not ask for.
    known: BTreeMap<String, Option<Found>>,
}

enum Configured {
    /// It exists, or maybe.
    Asked,
    /// The bridge creates it.
    Planned,
    Unusable,
}

impl Examination<'_> {
    /// Checks JetStream, the stream that is configured, and the stream of each subject.
    async fn streams(&mut self, server: &ServerInfo) {
        let findings = self.findings;
        let mut planned = None;
        match &self.settings.stream {
            None => match self.api.account().await {
                Ok(account) => {
                    findings.ok("jetstream", "JetStream answers");
                    room(&account, findings);
                }
                Err(Silence::Forbidden(_)) if self.api.link.inbox_refusal().is_some() => return,
                Err(Silence::Forbidden(error)) => needed("$JS.API.INFO", error, findings),
                Err(Silence::Failed(words)) => {
                    let remedy = "switch JetStream on at the server and for the account of the user";
                    return findings.problem("jetstream", words, remedy);
                }
            },
            Some(wanted) => match self.configured(wanted, server).await {
                Configured::Asked => {}
                Configured::Planned => planned = Some(wanted),
                Configured::Unusable => return,
            },
        }
        for topic in &self.needs.topics {
            self.accepts(topic, planned).await;
        }
        if self.api.link.inbox_refusal().is_some() {
            return;
        }
        if let Some(wanted) = planned {
            self.durability(&stream::settings(wanted), None);
        }
        for (name, found) in &self.known {
            match found {
                Some(found) => self.durability(&found.config, Some(&found.state)),
                None if self.settings.stream.as_ref().is_some_and(|wanted| wanted.name == *name) => {}
                None => {
                    let subject = info_subject(name);
                    let seen = format!(
                        "the user may not ask for the configuration of stream `{name}`, which the bridge does not need"
                    );
                    let remedy = format!("to check it, let the user publish on {subject}");
                    findings.add(Verdict::NotChecked, "stream", seen, remedy);
                }
            }
        }
        findings.not_checked(
            "write",
            "whether the user may publish shows only when it does: `--publish-test OUTPUT/SUBJECT` publishes one event",
        );
    }

    /// Checks whether the stream that is configured exists, or can be created.
    async fn configured(&mut self, wanted: &StreamConfig, server: &ServerInfo) -> Configured {
        let (name, findings) = (&wanted.name, self.findings);
        match self.api.stream(name).await {
            Ok(Some(found)) => {
                findings.ok("stream", format!("`{name}` exists"));
                for difference in differences(wanted, &found.config) {
                    let remedy = "change the stream, or the keys under `stream` if it is meant so";
                    findings.warning("stream", format!("stream `{name}` {difference}"), remedy);
                }
                self.known.insert(name.clone(), Some(found));
                Configured::Asked
            }
            Ok(None) if wanted.create => {
                let obstacles = self.obstacles(wanted, server).await;
                if obstacles.is_empty() {
                    let seen = format!(
                        "`{name}` does not exist yet; the bridge creates it when it starts, if its user may publish on \
                         $JS.API.STREAM.CREATE.{name}"
                    );
                    findings.ok("stream", seen);
                }
                for (obstacle, remedy) in obstacles {
                    let seen = format!("`{name}` does not exist, and the bridge cannot create it: {obstacle}");
                    findings.problem("stream", seen, remedy);
                }
                Configured::Planned
            }
            Ok(None) => {
                let remedy = "create it, or set `stream.create = true`";
                findings.problem("stream", format!("`{name}` does not exist"), remedy);
                Configured::Unusable
            }
            Err(Silence::Forbidden(_)) if self.api.link.inbox_refusal().is_some() => Configured::Unusable,
            Err(Silence::Forbidden(error)) => {
                needed(&info_subject(name), error, findings);
                self.known.insert(name.clone(), None);
                Configured::Asked
            }
            Err(Silence::Failed(words)) => {
                let seen = format!("JetStream does not say whether `{name}` exists: {words}");
                findings.problem("stream", seen, "switch JetStream on at the server and for the account of the user");
                Configured::Unusable
            }
        }
    }

    /// Why the bridge can't create a stream, as far as it shows without trying: reasons with remedies.
    async fn obstacles(&mut self, wanted: &StreamConfig, server: &ServerInfo) -> Vec<(String, String)> {
        let mut obstacles = Vec::new();
        let replicas = wanted.replicas.unwrap_or(1);
        // A server without JetStream of its own passes requests on to others.
        if replicas > 1 && server.cluster.is_none() && server.jetstream {
            let obstacle = format!("it needs {replicas} replicas, and the server is not part of a cluster");
            obstacles.push((obstacle, "set `stream.replicas = 1`, or use a cluster".to_owned()));
        }
        let servers = server.connect_urls.len();
        if server.cluster.is_some() && (1..replicas).contains(&servers) {
            let seen = format!("it needs {replicas} replicas, and the cluster names only {servers} servers");
            self.findings.warning("stream", seen, "set `stream.replicas` to at most the number of servers");
        }
        for subject in &wanted.subjects {
            let names = match self.api.names(subject).await {
                Ok(names) => names,
                Err(silence) => {
                    let seen = format!("whether another stream has subjects of `{}`: {}", wanted.name, silence.words());
                    self.findings.not_checked("stream", seen);
                    break;
                }
            };
            for name in names {
                let is_sure = match self.look_up(&name).await {
                    Ok(Some(found)) => found.config.subjects.iter().any(|other| overlap(other, subject)),
                    // The server says so.
                    Ok(None) | Err(_) => true,
                };
                if is_sure {
                    let obstacle = format!("its subject `{subject}` overlaps those of stream `{name}`");
                    let remedy = format!("set `stream.name = \"{name}\"`, or other `stream.subjects`");
                    obstacles.push((obstacle, remedy));
                }
            }
        }
        match self.api.account().await {
            Ok(account) => obstacles.extend(over_limits(wanted, &account)),
            Err(silence) => {
                self.findings.not_checked("limits", format!("the limits of the account: {}", silence.words()));
            }
        }
        if let Some(bytes) = wanted.max_bytes {
            let seen =
                format!("whether the servers have {bytes} for `stream.max_bytes`: they tell only their operators");
            self.findings.not_checked("limits", seen);
        }
        obstacles
    }

    /// A stream, asked for once; none if the user may not.
    async fn look_up(&mut self, name: &str) -> Result<Option<&Found>, Silence> {
        if !self.known.contains_key(name) {
            let found = match self.api.stream(name).await {
                Ok(found) => found,
                Err(Silence::Forbidden(_)) => None,
                Err(failed) => return Err(failed),
            };
            self.known.insert(name.to_owned(), found);
        }
        Ok(self.known.get(name).and_then(Option::as_ref))
    }

    /// Checks whether streams accept all subjects of a destination. `planned` does not exist yet.
    async fn accepts(&mut self, topic: &NeededTopic, planned: Option<&StreamConfig>) {
        let (check, from) = (format!("subject {}", topic.written), topic.from.join(", "));
        let findings = self.findings;
        let all = with_wildcards(&topic.pattern);
        let mut by = BTreeSet::new();
        let mut rest = None;
        if let Some(others) = topic.others {
            match self.of(&all, planned).await {
                Ok(Some(name)) => return findings.ok(&check, format!("accepted by stream `{name}` ({from})")),
                Ok(None) => rest = Some(others),
                Err(silence) => {
                    return findings.not_checked(&check, format!("which stream accepts it: {}", silence.words()));
                }
            }
        }
        let mut missing = Vec::new();
        for subject in &topic.names {
            match self.of(subject, planned).await {
                Ok(Some(name)) => drop(by.insert(name)),
                Ok(None) => missing.push(subject.as_str()),
                Err(silence) => {
                    return findings.not_checked(&check, format!("which stream accepts it: {}", silence.words()));
                }
            }
        }
        if missing.is_empty() && !by.is_empty() {
            let by: Vec<String> = by.iter().map(|name| format!("`{name}`")).collect();
            let of = if rest.is_some() { "for known event types, " } else { "" };
            findings.ok(&check, format!("{of}accepted by stream {} ({from})", by.join(", ")));
        }
        if !missing.is_empty() {
            let seen = if topic.names.len() == 1 {
                "no stream accepts it".to_owned()
            } else {
                format!("no stream accepts {}", listed(&missing))
            };
            let remedy = "add the subject to a stream, or set `stream` with `create = true` and subjects that cover it";
            findings.problem(&check, format!("{seen} ({from})"), remedy);
        }
        if let Some(others) = rest {
            let why = format!("{} ({from}), and no stream accepts all of {all}", others.reason());
            findings.not_checked(&check, why);
        }
    }

    /// The stream that accepts a subject, or all of a pattern.
    async fn of(&mut self, subject: &str, planned: Option<&StreamConfig>) -> Result<Option<String>, Silence> {
        if let Some(wanted) = planned.filter(|wanted| wanted.subjects.iter().any(|outer| covers(outer, subject))) {
            return Ok(Some(wanted.name.clone()));
        }
        let accepts = |found: &Found| found.config.subjects.iter().any(|outer| covers(outer, subject));
        let known = self.known.iter().find(|(_, found)| found.as_ref().is_some_and(accepts));
        if let Some((name, _)) = known {
            return Ok(Some(name.clone()));
        }
        for name in self.api.names(subject).await? {
            let is_accepted = match self.look_up(&name).await? {
                Some(found) => accepts(found),
                // A subject without wildcards has all in common that it has.
                None => !subject.contains('*'),
            };
            if is_accepted {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// How safely a stream stores messages. `state` is none for a stream that does not exist yet. What the
    /// configuration says about it was compared before.
    fn durability(&self, config: &Config, state: Option<&State>) {
        let (name, findings) = (&config.name, self.findings);
        let is_configured = self.settings.stream.as_ref().is_some_and(|wanted| wanted.name == *name);
        let what = if state.is_some() { format!("stream `{name}`") } else { format!("the planned stream `{name}`") };
        for sentence in refusing(config) {
            findings.problem("stream", format!("{what} {sentence}"), "change the stream, or use another one");
        }
        for sentence in losing(config) {
            findings.warning("stream", format!("{what} {sentence}"), "change the stream if it is not meant so");
        }
        if !is_configured && config.storage == StorageType::Memory {
            let seen = format!("{what} keeps its messages in memory only: a restart of its servers loses them");
            findings.warning("stream", seen, "use a stream with file storage");
        }
        if let Some(state) = state {
            full(config, state, findings);
        }
        if let Ok(limit @ 1..) = u64::try_from(config.max_message_size) {
            let remedy = format!("nats stream edit {name} --max-msg-size=-1");
            limits::size(&format!("max_msg_size of {what}"), limit, self.needs, &remedy, findings);
        }
        let edit = |option: &str, key: &str| match state {
            Some(_) => format!("nats stream edit {name} {option}"),
            None => format!("set `stream.{key}`"),
        };
        if !config.max_age.is_zero() {
            limits::kept(&what, config.max_age, &edit("--max-age 7d", "max_age = \"7d\""), findings);
        }
        self.replicas(&what, config.num_replicas, state.is_some());
        self.window(&what, config, state.is_some());
    }

    fn replicas(&self, what: &str, replicas: usize, exists: bool) {
        let has = if exists { "has" } else { "gets" };
        match (replicas, self.is_local) {
            (2.., _) => self.findings.ok("replicas", format!("{what} {has} {replicas} replicas")),
            (_, true) => {
                self.findings.ok("replicas", format!("{what} {has} one replica; the servers are on this machine"));
            }
            (_, false) => self.findings.warning(
                "replicas",
                format!("{what} {has} one replica, so that losing one server loses events"),
                if exists {
                    "with a cluster: nats stream edit STREAM --replicas 3"
                } else {
                    "with a cluster: set `stream.replicas = 3`"
                },
            ),
        }
    }

    fn window(&self, what: &str, config: &Config, exists: bool) {
        let name = &config.name;
        let of_server = if config.max_age.is_zero() { LEAST_WINDOW } else { config.max_age.min(LEAST_WINDOW) };
        // A stream that does not exist yet gets the default of the server.
        let window = if config.duplicate_window.is_zero() && !exists { of_server } else { config.duplicate_window };
        let shown = Span(window);
        if window >= LEAST_WINDOW {
            let seen = format!("{what} recognizes a repeat for {shown}; after a longer outage it is stored twice");
            return self.findings.ok("duplicate window", seen);
        }
        let seen = format!("{what} recognizes a repeat only for {shown}; later it is stored twice");
        let least = Span(LEAST_WINDOW);
        let is_too_young = !config.max_age.is_zero() && config.max_age < LEAST_WINDOW;
        let remedy = match (exists, is_too_young) {
            (true, false) => format!(
                "nats stream edit {name} --dupe-window {least}, or longer: best, longer than outages that the spool \
                 has to bridge"
            ),
            // The window can't be longer than the age.
            (true, true) => {
                format!("nats stream edit {name} --max-age 7d, then nats stream edit {name} --dupe-window {least}")
            }
            (false, false) => format!("set `stream.duplicate_window = \"{least}\"`, or longer"),
            (false, true) => {
                format!("set `stream.max_age = \"7d\"` and `stream.duplicate_window = \"{least}\"`, or longer")
            }
        };
        self.findings.warning("duplicate window", seen, remedy);
    }
}

/// A permission that the bridge needs too.
fn needed(subject: &str, error: PublishError, findings: &Findings) {
    let remedy = format!("let the user publish on {subject}; it does not need the rest of $JS.API.>");
    findings.problem("permissions", error.message, remedy);
}

/// Whether a stream has room.
fn full(config: &Config, state: &State, findings: &Findings) {
    if config.discard != DiscardPolicy::New {
        return;
    }
    let name = &config.name;
    let limit = |limit: i64| u64::try_from(limit).ok().filter(|limit| *limit > 0);
    let (messages, bytes) = (limit(config.max_messages), limit(config.max_bytes));
    let is_full = messages.is_some_and(|most| state.messages >= most)
        || bytes.is_some_and(|most| state.bytes.saturating_add(LEAST_ROOM) > most);
    let is_nearly = |used: u64, most: Option<u64>| most.is_some_and(|most| used > most / 10 * 9);
    let has = format!("{} messages, {}", state.messages, Size(state.bytes));
    let remedy = format!("let consumers acknowledge or delete messages, or raise the limits: nats stream edit {name}");
    if is_full {
        let seen = format!("stream `{name}` is full ({has}) and refuses more (discard new)");
        findings.problem("room", seen, remedy);
    } else if is_nearly(state.messages, messages) || is_nearly(state.bytes, bytes) {
        let seen = format!("more than 90% of stream `{name}` is used ({has}); when it is full, it refuses more");
        findings.warning("room", seen, remedy);
    }
}

/// Whether the account has room.
fn room(account: &Account, findings: &Findings) {
    // With tiers, each has its own limits.
    if account.tiers.is_empty() && account.limits.max_storage.is_some_and(|most| account.storage >= bytes(most)) {
        let seen = format!("the account has used all its storage for streams: {}", Size(account.storage));
        findings.problem("room", seen, "raise the limit of the account, or delete messages");
    }
}

fn bytes(number: i64) -> u64 {
    u64::try_from(number).unwrap_or_default()
}

/// The limits of the account that a new stream would break, with remedies.
fn over_limits(wanted: &StreamConfig, account: &Account) -> Vec<(String, String)> {
    let replicas = wanted.replicas.unwrap_or(1);
    let tier = account.tiers.get(&format!("R{replicas}"));
    if tier.is_none() && !account.tiers.is_empty() {
        let tiers: Vec<&str> = account.tiers.keys().map(String::as_str).collect();
        let obstacle = format!("the account has no streams with {replicas} replicas, only {}", tiers.join(", "));
        return vec![(obstacle, "set `stream.replicas`, or change the limits of the account".to_owned())];
    }
    let (limits, streams, reserved_memory, reserved_storage): (&Limits, usize, u64, u64) = match tier {
        Some(tier) => (&tier.limits, tier.streams, tier.reserved_memory, tier.reserved_storage),
        None => (&account.limits, account.streams, account.reserved_memory, account.reserved_storage),
    };
    let (most, reserved, of_one) = match wanted.storage {
        StreamStorage::File => (limits.max_storage, reserved_storage, limits.storage_max_stream_bytes),
        StreamStorage::Memory => (limits.max_memory, reserved_memory, limits.memory_max_stream_bytes),
    };
    let mut obstacles = Vec::new();
    if let Some(most) = limits.max_streams.filter(|most| *most > 0 && streams as u64 >= bytes(*most)) {
        let obstacle = format!("the account has {streams} streams and may have {most}");
        obstacles.push((obstacle, "raise the limit of the account, or use a stream that exists".to_owned()));
    }
    let size = wanted.max_bytes.map_or(0, |size| size.0);
    if size == 0 && limits.max_bytes_required {
        let obstacle = "the account asks for a limit of its size".to_owned();
        obstacles.push((obstacle, "set `stream.max_bytes`".to_owned()));
    }
    if let Some(most) = of_one.filter(|most| *most > 0 && size > bytes(*most)) {
        let obstacle = format!("the account allows {} for a stream, not {}", Size(bytes(most)), Size(size));
        obstacles.push((obstacle, "lower `stream.max_bytes`, or raise the limit of the account".to_owned()));
    }
    if let Some(most) = most.filter(|most| reserved.saturating_add(size.max(1)) > bytes(*most)) {
        let obstacle = format!(
            "the account may have {} in streams, {} of it is reserved, and stream.max_bytes is {}",
            Size(bytes(most)),
            Size(reserved),
            Size(size)
        );
        obstacles.push((obstacle, "lower `stream.max_bytes`, or raise the limit of the account".to_owned()));
    }
    obstacles
}

/// A pattern of topics as a subject of NATS: a token with a value that senders choose can be any token.
fn with_wildcards(pattern: &str) -> String {
    let tokens = pattern.split('.').map(|token| if token.contains('*') { "*" } else { token });
    tokens.collect::<Vec<_>>().join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> StreamConfig {
        toml::from_str(&format!("name = 'S'\nsubjects = ['a.>']\ncreate = true\n{text}")).expect("valid")
    }

    #[test]
    fn a_pattern_becomes_a_subject() {
        assert_eq!(with_wildcards("media.*-x.com.aliyun.media.*"), "media.*.com.aliyun.media.*");
    }

    #[test]
    fn limits_of_an_account_are_obstacles() {
        let free = Limits::default();
        let account = |limits: Limits| Account { streams: 2, reserved_storage: 1 << 20, limits, ..Account::default() };
        let over = |text: &str, limits: Limits| {
            let obstacles = over_limits(&wanted(text), &account(limits)).into_iter();
            obstacles.map(|(obstacle, _)| obstacle).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(over("max_bytes = '1GiB'", free), "");
        assert_eq!(over("", Limits { max_streams: Some(2), ..free }), "the account has 2 streams and may have 2");
        assert!(over("", Limits { max_bytes_required: true, ..free }).contains("asks for a limit"));
        let storage = Limits { max_storage: Some(2 << 20), ..free };
        assert_eq!(over("max_bytes = '1MiB'", storage), "");
        assert_eq!(over("storage = 'memory'\nmax_bytes = '2MiB'", storage), "");
        assert!(over("max_bytes = '2MiB'", storage).contains("1MiB of it is reserved, and stream.max_bytes is 2MiB"));
        let of_one = Limits { storage_max_stream_bytes: Some(1 << 20), ..free };
        assert!(over("max_bytes = '2MiB'", of_one).contains("allows 1MiB for a stream, not 2MiB"));
    }
}
