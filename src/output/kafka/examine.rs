//! What `doctor` checks: the login, the topics, and how safely the brokers store records. Nothing is published, and no
//! topic is created.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::config::{KafkaSettings, rejected};
use super::errors::kind_of;
use super::producer::Producer;
use super::{Context, Status};
use crate::common::findings::Findings;
use crate::common::text::listed;
use crate::output::{ErrorKind, NeededTopic, Needs, PublishError, limits};
use crate::telemetry::metrics::Metrics;

/// How long the brokers have to answer for the first time.
const LOGIN: Duration = Duration::from_secs(5);

/// How long one question waits before the reason for the silence is looked at.
const QUESTION: Duration = Duration::from_millis(1_200);

/// How long the brokers have to say how topics are configured, and each broker to answer at the address that it
/// advertises.
const DESCRIBE: Duration = Duration::from_millis(2_500);

/// How long a refusal of the producer may take after the brokers have answered.
const REFUSAL: Duration = Duration::from_secs(1);

/// What the brokers say about the cluster.
#[derive(Debug, Default)]
struct Cluster {
    brokers: Vec<(i32, String)>,
    topics: BTreeMap<String, Topic>,
    /// How many brokers there are, also those that are down, as far as it is known.
    size: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Topic {
    error: Option<RDKafkaErrorCode>,
    /// The replicas of each partition, and how many of them are in sync.
    partitions: Vec<(usize, usize)>,
    has_leaders: bool,
}

impl Cluster {
    fn of(metadata: &Metadata) -> Cluster {
        let brokers = metadata.brokers().iter();
        let partitions = || metadata.topics().iter().flat_map(MetadataTopic::partitions);
        let ids: BTreeSet<i32> = brokers
            .clone()
            .map(|broker| broker.id())
            .chain(partitions().flat_map(|each| each.replicas().to_vec()))
            .collect();
        Cluster {
            brokers: brokers.map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port()))).collect(),
            topics: metadata.topics().iter().map(|topic| (topic.name().to_owned(), Topic::of(topic))).collect(),
            size: ids.len(),
        }
    }
}

impl Topic {
    fn of(topic: &MetadataTopic) -> Topic {
        let partitions = topic.partitions();
        Topic {
            error: topic.error().map(RDKafkaErrorCode::from),
            partitions: partitions.iter().map(|each| (each.replicas().len(), each.isr().len())).collect(),
            has_leaders: partitions.iter().all(|partition| partition.leader() >= 0),
        }
    }

    /// The fewest replicas of a partition.
    fn replicas(&self) -> usize {
        self.partitions.iter().map(|(replicas, _)| *replicas).min().unwrap_or_default()
    }

    /// Whether all replicas are in sync.
    fn is_in_sync(&self) -> bool {
        self.partitions.iter().all(|(replicas, in_sync)| in_sync >= replicas)
    }

    /// A partition whose replicas in sync are fewer than `min.insync.replicas`: how many there are, how many are in
    /// sync, and how many are needed. More than there are is not needed: see [`Weakness::TooMany`].
    fn refusing(&self, least: usize) -> Option<(usize, usize, usize)> {
        let needed = |replicas: usize| least.min(replicas);
        let refusing = self.partitions.iter().find(|(replicas, in_sync)| *in_sync < needed(*replicas));
        refusing.map(|(replicas, in_sync)| (*replicas, *in_sync, needed(*replicas)))
    }
}

/// The commands of Kafka for remedies.
struct Tools {
    /// The address of a broker.
    server: String,
    /// Whether they need a login or certificates.
    needs_login: bool,
}

impl Tools {
    fn new(cluster: &Cluster, client: &ClientConfig) -> Tools {
        let server = cluster.brokers.first().map_or("HOST:PORT", |(_, address)| address).to_owned();
        let protocol = client.get("security.protocol").unwrap_or("plaintext");
        Tools { server, needs_login: !protocol.eq_ignore_ascii_case("plaintext") }
    }

    fn command(&self, program: &str, arguments: &str) -> String {
        let login = if self.needs_login { " --command-config FILE" } else { "" };
        let note = if self.needs_login { " (FILE has the login of an administrator)" } else { "" };
        format!("{program} --bootstrap-server {}{login} {arguments}{note}", self.server)
    }

    /// Sets a property of a topic.
    fn alter(&self, topic: &str, property: &str) -> String {
        let arguments = format!("--alter --entity-type topics --entity-name {topic} --add-config {property}");
        self.command("kafka-configs.sh", &arguments)
    }
}

/// Checks an output.
pub(super) async fn examine(settings: &KafkaSettings, needs: &Needs, findings: &Findings) {
    let (mut client, _) = settings.present();
    // A question about a topic must not create it.
    client.set("allow.auto.create.topics", "false");
    let Ok(metrics) = Metrics::new() else { return };
    let status = Status::new(&settings.name, &metrics);
    let producer = match Producer::new(&client, Context(status.clone())) {
        Ok(producer) => producer,
        Err(error) => return findings.problem("client", rejected(&error), "fix the properties under `client`"),
    };
    let asked = producer.clone();
    let for_question = status.clone();
    let cluster = tokio::task::spawn_blocking(move || ask(&asked, &for_question)).await;
    let cluster = match cluster {
        Ok(Ok(cluster)) => cluster,
        Ok(Err(error)) => return findings.problem("login", error.message, login_remedy(error.kind)),
        Err(error) => return findings.not_checked("login", error.to_string()),
    };
    let wanted: BTreeSet<&str> = needs.topics.iter().flat_map(|topic| topic.names.iter()).map(String::as_str).collect();
    let known = wanted.iter().copied().filter(|name| cluster.topics.contains_key(*name)).collect();
    let configs = match Configs::ask(&client, known, &cluster).await {
        Ok(configs) => configs,
        Err(error) => return findings.problem("client", rejected(&error), "fix the properties under `client`"),
    };
    reachable(&cluster, &configs.unreachable, findings);
    let tools = Tools::new(&cluster, &client);
    let size = cluster.size.max(client.get("bootstrap.servers").unwrap_or_default().split(',').count());
    for topic in &needs.topics {
        exists(topic, &cluster, size, configs.creates_topics, &tools, findings);
    }
    let found: Vec<(&str, &Topic)> =
        wanted.iter().filter_map(|name| Some((*name, cluster.topics.get(*name)?))).collect();
    availability(&found, &configs, findings);
    durability(&found, &configs, &tools, settings.is_local(), findings);
    limits(&found, &configs, needs, &tools, findings);
    may_write(&producer, findings).await;
}

/// Whether each broker answers at the address that it advertises. Clients get these addresses from the first broker,
/// and publish to them.
fn reachable(cluster: &Cluster, unreachable: &BTreeMap<i32, String>, findings: &Findings) {
    let (away, there): (Vec<_>, Vec<_>) = cluster.brokers.iter().partition(|(id, _)| unreachable.contains_key(id));
    let there: Vec<&str> = there.iter().map(|(_, address)| address.as_str()).collect();
    if !there.is_empty() {
        let answer = match there.len() {
            1 => "1 broker answers".to_owned(),
            number => format!("{number} brokers answer"),
        };
        findings.ok("login", format!("{answer}: {}", listed(&there)));
    }
    let Some((id, _)) = away.first() else { return };
    let addresses: Vec<&str> = away.iter().map(|(_, address)| address.as_str()).collect();
    let reason = unreachable.get(id).map(String::as_str).unwrap_or_default();
    let seen = format!("the brokers advertise {}, which cannot be reached from here: {reason}", listed(&addresses));
    let remedy = "start the broker; or set advertised.listeners of the broker to an address that this machine can \
                  resolve and connect to, and open the port";
    if there.is_empty() {
        findings.problem("advertised addresses", seen, remedy);
    } else {
        findings.warning("advertised addresses", seen, remedy);
    }
}

/// Asks for the cluster until there is an answer, or a login was refused, or time is over. Blocks.
fn ask(producer: &Producer, status: &Status) -> Result<Cluster, PublishError> {
    let start = Instant::now();
    loop {
        match producer.client().fetch_metadata(None, QUESTION) {
            Ok(metadata) => return Ok(Cluster::of(&metadata)),
            Err(_) => {
                // What was asked for does not arrive, but the client has reported why.
                let reason = status.last_error();
                if reason.kind == ErrorKind::Unauthorized || start.elapsed() > LOGIN {
                    return Err(reason);
                }
            }
        }
    }
}

fn login_remedy(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unauthorized => {
            "check sasl.username, sasl.password and sasl.mechanism in `client`, and that the user exists"
        }
        _ => "check `brokers`, the network, and security.protocol and the certificates in `client`",
    }
}

/// How topics and brokers are configured, as far as the user may know.
#[derive(Debug, Default)]
struct Configs {
    topics: BTreeMap<String, TopicConfig>,
    /// Why nothing is known about any topic.
    silence: Option<String>,
    /// Whether a missing topic is created when it is first written to.
    creates_topics: Option<bool>,
    /// The brokers that do not answer at the address that they advertise, each with the reason.
    unreachable: BTreeMap<i32, String>,
}

#[derive(Debug, Default)]
struct TopicConfig {
    min_insync: Option<usize>,
    is_compacted: bool,
    retention: Option<Duration>,
    max_message: Option<u64>,
}

/// What librdkafka reports about connections.
#[derive(Default)]
struct Reasons(Mutex<Vec<String>>);

impl ClientContext for Reasons {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}

    fn error(&self, _: KafkaError, reason: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(reason.to_owned());
    }
}

impl Reasons {
    /// The last one about a broker.
    fn about(&self, address: &str) -> Option<String> {
        let reasons = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // librdkafka writes `ssl://host:port/id: reason`.
        let place = format!("{address}/");
        reasons.iter().rev().find(|reason| reason.contains(&place)).cloned()
    }
}

impl Configs {
    /// Asks a broker about the topics, and each broker about itself, at the same time.
    async fn ask(client: &ClientConfig, topics: Vec<&str>, cluster: &Cluster) -> Result<Configs, KafkaError> {
        let admin: AdminClient<Reasons> = client.create_with_context(Reasons::default())?;
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE));
        let specifiers: Vec<ResourceSpecifier<'_>> =
            topics.iter().map(|topic| ResourceSpecifier::Topic(topic)).collect();
        let of_topics = async {
            if specifiers.is_empty() { Ok(Vec::new()) } else { admin.describe_configs(&specifiers, &options).await }
        };
        // A question about a broker is sent to this broker.
        let of_brokers = cluster.brokers.iter().map(async |(id, address)| {
            let described = admin.describe_configs(&[ResourceSpecifier::Broker(*id)], &options).await;
            (*id, address, described)
        });
        let (of_topics, of_brokers) = futures_util::join!(of_topics, join_all(of_brokers));
        let mut configs = Configs::default();
        // One that the user may not describe is an error of its own.
        match of_topics {
            Ok(resources) => resources.into_iter().flatten().for_each(|resource| configs.take(&resource)),
            Err(error) => configs.silence = Some(error.to_string()),
        }
        for (id, address, described) in of_brokers {
            match described {
                Ok(resources) => resources.into_iter().flatten().for_each(|resource| configs.take(&resource)),
                Err(error) if is_no_answer(&error) => {
                    let reason = admin.inner().context().about(address);
                    configs.unreachable.insert(id, reason.unwrap_or_else(|| "no answer in time".to_owned()));
                }
                Err(_) => {}
            }
        }
        // Its end waits for threads.
        tokio::task::spawn_blocking(move || drop(admin));
        Ok(configs)
    }

    fn take(&mut self, resource: &ConfigResource) {
        let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
        match &resource.specifier {
            OwnedResourceSpecifier::Topic(topic) => {
                let config = TopicConfig {
                    min_insync: value("min.insync.replicas").and_then(|value| value.parse().ok()),
                    is_compacted: value("cleanup.policy").is_some_and(|value| value.contains("compact")),
                    // -1 is forever. Without `delete`, nothing is deleted by its age.
                    retention: value("retention.ms")
                        .filter(|_| value("cleanup.policy").is_none_or(|policy| policy.contains("delete")))
                        .and_then(|value| value.parse().ok())
                        .map(Duration::from_millis),
                    max_message: value("max.message.bytes").and_then(|value| value.parse().ok()),
                };
                self.topics.insert(topic.clone(), config);
            }
            OwnedResourceSpecifier::Broker(_) => {
                let creates = value("auto.create.topics.enable").map(|value| value == "true");
                self.creates_topics = self.creates_topics.or(creates);
            }
            OwnedResourceSpecifier::Group(_) => {}
        }
    }

    fn min_insync(&self, topic: &str) -> Option<usize> {
        self.topics.get(topic)?.min_insync
    }
}

/// Whether an error says that a broker did not answer, and not that it refuses.
fn is_no_answer(error: &KafkaError) -> bool {
    let Some(code) = error.rdkafka_error_code() else { return true };
    matches!(kind_of(code), ErrorKind::TimedOut)
        || matches!(
            code,
            RDKafkaErrorCode::BrokerTransportFailure
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::Resolve
                | RDKafkaErrorCode::SSL
                | RDKafkaErrorCode::UnknownBroker
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::DestroyBroker
        )
}

/// Whether the topics of a destination exist.
fn exists(
    topic: &NeededTopic,
    cluster: &Cluster,
    size: usize,
    creates_topics: Option<bool>,
    tools: &Tools,
    findings: &Findings,
) {
    let (check, from) = (format!("topic {}", topic.written), topic.from.join(", "));
    let names: Vec<&str> = topic.names.iter().map(String::as_str).collect();
    let missing: Vec<&str> = names.iter().copied().filter(|name| !cluster.topics.contains_key(*name)).collect();
    let refused = names.iter().find_map(|name| Some((name, cluster.topics.get(*name)?.error?)));
    if let Some((name, error)) = refused {
        findings.problem(&check, format!("the brokers say about {name}: {error}"), "see what the message says");
    }
    match missing.first() {
        Some(first) => absent(&check, &from, &missing, &create(first, &missing, size, tools), creates_topics, findings),
        None if names.is_empty() || refused.is_some() => {}
        None => {
            let seen = match (names.len(), topic.others) {
                (1, None) => "exists".to_owned(),
                (_, None) => "all its topics exist".to_owned(),
                (number, Some(_)) => format!("its topics for known event types exist: {number}"),
            };
            findings.ok(&check, format!("{seen} ({from})"));
        }
    }
    if let Some(others) = topic.others {
        let fitting = cluster.topics.keys().filter(|name| fits(&topic.pattern, name)).count();
        let why = format!("{} ({from}), so not all its topics can be known; {fitting} fit it now", others.reason());
        findings.not_checked(&check, why);
    }
}

/// How to create a topic.
fn create(topic: &str, missing: &[&str], size: usize, tools: &Tools) -> String {
    let (replication, note) = match size {
        0 | 1 => ("--replication-factor 1", ""),
        2 => ("--replication-factor 3 --config min.insync.replicas=2", "; this needs three brokers"),
        _ => ("--replication-factor 3 --config min.insync.replicas=2", ""),
    };
    let command = tools.command("kafka-topics.sh", &format!("--create --topic {topic} --partitions 3 {replication}"));
    format!("create {}: {command}{note}", if missing.len() == 1 { "it" } else { "them, for example" })
}

fn absent(check: &str, from: &str, missing: &[&str], create: &str, creates_topics: Option<bool>, findings: &Findings) {
    let seen = format!("{} not exist ({from}): {}", if missing.len() == 1 { "does" } else { "do" }, listed(missing));
    match creates_topics {
        Some(true) => {
            let seen = format!("{seen}; the brokers create a missing topic, with their defaults");
            findings.warning(check, seen, create);
        }
        Some(false) => findings.problem(check, seen, create),
        None => findings.problem(
            check,
            format!("{seen}, or the user may not see them"),
            format!("{create}; or grant the user Describe and Write"),
        ),
    }
}

/// Whether a name fits a pattern with `*`.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts = parts.peekable();
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.is_empty()
}

/// Whether the topics can be written to at the moment.
fn availability(topics: &[(&str, &Topic)], configs: &Configs, findings: &Findings) {
    let named = |is_meant: &dyn Fn(&Topic) -> bool| {
        topics.iter().filter(|(_, topic)| is_meant(topic)).map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let leaderless = named(&|topic| topic.error.is_none() && !topic.has_leaders);
    if !leaderless.is_empty() {
        let seen = format!("partitions without a leader cannot be written to: {}", listed(&leaderless));
        findings.problem("leaders", seen, "start the brokers that have their replicas");
    }
    let refusing = |name: &str, topic: &Topic| topic.refusing(configs.min_insync(name)?);
    let refused = topics.iter().filter_map(|(name, topic)| Some((*name, refusing(name, topic)?)));
    let refused: Vec<(&str, (usize, usize, usize))> = refused.collect();
    if let Some((_, (replicas, in_sync, needed))) = refused.first() {
        let names: Vec<&str> = refused.iter().map(|(name, _)| *name).collect();
        let seen = format!(
            "every record is refused now, because {in_sync} of {replicas} replicas are in sync and min.insync.replicas \
             asks for {needed}: {}",
            listed(&names)
        );
        findings.problem("replicas in sync", seen, "start the brokers that have the other replicas");
    }
    let mut behind = named(&|topic| !topic.is_in_sync());
    behind.retain(|name| !refused.iter().any(|(other, _)| other == name));
    if !behind.is_empty() {
        let seen = format!("some replicas are not in sync: {}", listed(&behind));
        findings.warning("replicas in sync", seen, "find out which broker is down or slow");
    }
}

/// How safely the brokers store records.
fn durability(topics: &[(&str, &Topic)], configs: &Configs, tools: &Tools, is_local: bool, findings: &Findings) {
    let mut weak: BTreeMap<Weakness, Vec<(&str, usize)>> = BTreeMap::new();
    let mut unknown = Vec::new();
    let mut safe = 0;
    for (name, topic) in topics {
        match configs.min_insync(name).map(|least| weakness(topic.replicas(), least)) {
            None => unknown.push(*name),
            Some(Some(weakness)) => weak.entry(weakness).or_default().push((name, topic.replicas())),
            // Otherwise, `availability` has a finding.
            Some(None) => safe += usize::from(topic.is_in_sync() && topic.has_leaders),
        }
    }
    if !unknown.is_empty() {
        let why = match &configs.silence {
            Some(reason) => format!("the brokers do not say it: {reason}"),
            None => format!(
                "the brokers do not say it, maybe because the user may not describe the configuration of {}",
                listed(&unknown)
            ),
        };
        findings.not_checked("min.insync.replicas", why);
    }
    for (weakness, names) in &weak {
        let shown: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let seen = format!("{}: {}", weakness.words(), listed(&shown));
        let (first, replicas) = names.first().copied().unwrap_or_default();
        let remedy = weakness.remedy(tools, first, replicas);
        match weakness {
            Weakness::OneReplica if is_local => {
                findings.ok("replicas", format!("{seen}; the brokers are on this machine"))
            }
            _ => findings.warning("replicas", seen, remedy),
        }
    }
    if safe > 0 {
        findings.ok("replicas", format!("topics that survive the loss of one broker: {safe}"));
    }
}

/// Whether the topics keep what is published.
fn limits(topics: &[(&str, &Topic)], configs: &Configs, needs: &Needs, tools: &Tools, findings: &Findings) {
    let topics = || topics.iter().filter_map(|(name, _)| Some((*name, configs.topics.get(*name)?)));
    let compacted: Vec<&str> = topics().filter(|(_, config)| config.is_compacted).map(|(name, _)| name).collect();
    if let Some(first) = compacted.first() {
        let seen = format!(
            "cleanup.policy has `compact`: of all events with the same key, only the last one is kept: {}",
            listed(&compacted)
        );
        findings.warning("cleanup.policy", seen, tools.alter(first, "cleanup.policy=delete"));
    }
    // Topics are often configured alike: one finding for each value.
    let mut by_retention: BTreeMap<Duration, Vec<&str>> = BTreeMap::new();
    let mut by_size: BTreeMap<u64, Vec<&str>> = BTreeMap::new();
    for (name, config) in topics() {
        if let Some(retention) = config.retention {
            by_retention.entry(retention).or_default().push(name);
        }
        if let Some(size) = config.max_message {
            by_size.entry(size).or_default().push(name);
        }
    }
    for (retention, names) in by_retention {
        let remedy = tools.alter(names.first().copied().unwrap_or_default(), "retention.ms=604800000");
        limits::kept(&format!("retention.ms of {}", listed(&names)), retention, &remedy, findings);
    }
    for (size, names) in by_size {
        let remedy = tools.alter(names.first().copied().unwrap_or_default(), "max.message.bytes=1048588");
        limits::size(&format!("max.message.bytes of {}", listed(&names)), size, needs, &remedy, findings);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weakness {
    TooMany,
    OneReplica,
    OneInSync,
    AllInSync,
}

fn weakness(replicas: usize, least: usize) -> Option<Weakness> {
    match (replicas, least) {
        _ if least > replicas => Some(Weakness::TooMany),
        (1, _) => Some(Weakness::OneReplica),
        (_, 1) => Some(Weakness::OneInSync),
        _ if least == replicas => Some(Weakness::AllInSync),
        _ => None,
    }
}

impl Weakness {
    fn words(self) -> &'static str {
        match self {
            Weakness::TooMany => {
                "min.insync.replicas is more than there are replicas: Kafka counts it as the number of replicas, and \
                 older versions refuse every record"
            }
            Weakness::OneReplica => "there is one replica, so that losing one broker loses events",
            Weakness::OneInSync => {
                "min.insync.replicas is 1, so that a broker can acknowledge an event alone, and losing it loses the event"
            }
            Weakness::AllInSync => {
                "min.insync.replicas is the number of replicas, so that one broker that is down stops them"
            }
        }
    }

    /// What to do. The command is that for a topic with so many replicas.
    fn remedy(self, tools: &Tools, topic: &str, replicas: usize) -> String {
        let alter = |least: usize| tools.alter(topic, &format!("min.insync.replicas={least}"));
        match self {
            Weakness::OneReplica => {
                "create the topics with 3 replicas and min.insync.replicas=2, or reassign their partitions".to_owned()
            }
            Weakness::TooMany => format!("add replicas, best 3, or lower it: {}", alter(replicas.div_ceil(2))),
            Weakness::OneInSync | Weakness::AllInSync if replicas < 3 => {
                "create the topics with 3 replicas and min.insync.replicas=2, or reassign their partitions".to_owned()
            }
            Weakness::OneInSync => alter(2),
            Weakness::AllInSync => alter(replicas - 1),
        }
    }
}

/// What is known about the right to write. Brokers can say it, but librdkafka's client for Rust cannot ask.
async fn may_write(producer: &Producer, findings: &Findings) {
    // The producer asks by itself, at about the same time, and only a refusal can be seen.
    let until = Instant::now() + REFUSAL;
    let mut refusal = producer.client().fatal_error();
    while refusal.is_none() && Instant::now() < until {
        tokio::time::sleep(REFUSAL / 20).await;
        refusal = producer.client().fatal_error();
    }
    if let Some((code, reason)) = refusal {
        // The producer has asked for its number, which needs the right to write to some topic.
        return findings.problem(
            "write",
            format!("the brokers refuse this producer: {code}: {reason}"),
            "grant the user Write on the topics, or IdempotentWrite on the cluster",
        );
    }
    findings.not_checked(
        "write",
        "this check does not ask whether the user may write to each topic: `--publish-test OUTPUT/TOPIC` publishes \
         one event",
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_fits_names() {
        for name in ["media.a", "media.", "media.a.b"] {
            assert!(fits("media.*", name), "{name}");
        }
        assert!(fits("media.*-x.*.end", "media.a-x.b.end") && !fits("media.*-x.*.end", "media.a.b.end"));
        assert!(!fits("media.*", "other") && fits("media", "media") && !fits("media", "media.a"));
    }

    #[test]
    fn a_topic_with_too_few_replicas_in_sync_refuses() {
        let topic = |partitions: &[(usize, usize)]| Topic { partitions: partitions.to_vec(), ..Topic::default() };
        assert_eq!(topic(&[(3, 3), (3, 1)]).refusing(2), Some((3, 1, 2)));
        assert_eq!(topic(&[(3, 2)]).refusing(2), None);
        assert_eq!(topic(&[(1, 1)]).refusing(2), None, "new brokers need no more replicas than there are");
        assert!(topic(&[(3, 3)]).is_in_sync() && !topic(&[(3, 3), (3, 2)]).is_in_sync());
    }

    #[test]
    fn each_weakness_of_a_topic_is_known() {
        use Weakness::{AllInSync, OneInSync, OneReplica, TooMany};
        for (replicas, least, expected) in [
            (3, 2, None),
            (5, 3, None),
            (3, 1, Some(OneInSync)),
            (3, 3, Some(AllInSync)),
            (1, 1, Some(OneReplica)),
            (1, 2, Some(TooMany)),
        ] {
            assert_eq!(weakness(replicas, least), expected, "{replicas} {least}");
        }
    }
}
