//! What `doctor` checks: the login, the topics, and how safely the brokers store records. Nothing is published, and no
//! topic is created.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, ConfigResource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::config::ClientConfig;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::metadata::{Metadata, MetadataTopic};

use super::config::{KafkaSettings, rejected};
use super::producer::Producer;
use super::{Context, Status};
use crate::common::findings::Findings;
use crate::common::text::listed;
use crate::output::{ErrorKind, NeededTopic, Needs, PublishError};
use crate::telemetry::metrics::Metrics;

/// How long the brokers have to answer for the first time.
const LOGIN: Duration = Duration::from_secs(5);

/// How long one question waits before the reason for the silence is looked at.
const QUESTION: Duration = Duration::from_millis(1_200);

/// How long the brokers have to say how topics are configured.
const DESCRIBE: Duration = Duration::from_secs(2);

/// How long a refusal of the producer may take after the brokers have answered.
const REFUSAL: Duration = Duration::from_secs(1);

/// What the brokers say about the cluster.
#[derive(Debug, Default)]
struct Cluster {
    brokers: Vec<(i32, String)>,
    topics: BTreeMap<String, Topic>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Topic {
    error: Option<RDKafkaErrorCode>,
    partitions: usize,
    /// The fewest replicas of a partition.
    replicas: usize,
    has_leaders: bool,
    /// Whether all replicas are in sync.
    is_in_sync: bool,
}

impl Cluster {
    fn of(metadata: &Metadata) -> Cluster {
        let brokers = metadata.brokers().iter();
        Cluster {
            brokers: brokers.map(|broker| (broker.id(), format!("{}:{}", broker.host(), broker.port()))).collect(),
            topics: metadata.topics().iter().map(|topic| (topic.name().to_owned(), Topic::of(topic))).collect(),
        }
    }

    /// An address for commands.
    fn first_address(&self) -> &str {
        self.brokers.first().map_or("HOST:PORT", |(_, address)| address)
    }
}

impl Topic {
    fn of(topic: &MetadataTopic) -> Topic {
        let partitions = topic.partitions();
        Topic {
            error: topic.error().map(RDKafkaErrorCode::from),
            partitions: partitions.len(),
            replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or_default(),
            has_leaders: partitions.iter().all(|partition| partition.leader() >= 0),
            is_in_sync: partitions.iter().all(|partition| partition.isr().len() >= partition.replicas().len()),
        }
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
    let addresses: Vec<&str> = cluster.brokers.iter().map(|(_, address)| address.as_str()).collect();
    let answer = match addresses.len() {
        1 => "1 broker answers".to_owned(),
        number => format!("{number} brokers answer"),
    };
    findings.ok("login", format!("{answer}: {}", listed(&addresses)));
    let wanted: BTreeSet<&str> =
        needs.topics.iter().flat_map(|topic| topic.names.iter().flatten()).map(String::as_str).collect();
    let known = wanted.iter().copied().filter(|name| cluster.topics.contains_key(*name)).collect();
    let configs = Configs::ask(&client, status.clone(), known, cluster.brokers.first().map(|(id, _)| *id)).await;
    for topic in &needs.topics {
        exists(topic, &cluster, configs.creates_topics, findings);
    }
    let found: Vec<(&str, &Topic)> =
        wanted.iter().filter_map(|name| Some((*name, cluster.topics.get(*name)?))).collect();
    availability(&found, findings);
    durability(&found, &configs, cluster.first_address(), settings.is_local(), findings);
    may_write(&producer, findings).await;
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
    /// `min.insync.replicas` by topic.
    min_insync: BTreeMap<String, usize>,
    /// Whether a missing topic is created when it is first written to.
    creates_topics: Option<bool>,
}

impl Configs {
    async fn ask(client: &ClientConfig, status: Arc<Status>, topics: Vec<&str>, broker: Option<i32>) -> Configs {
        let mut configs = Configs::default();
        let Ok(admin) = client.create_with_context::<_, AdminClient<Context>>(Context(status)) else { return configs };
        let specifiers = topics.iter().map(|topic| ResourceSpecifier::Topic(topic));
        let specifiers: Vec<ResourceSpecifier<'_>> = specifiers.chain(broker.map(ResourceSpecifier::Broker)).collect();
        let options = AdminOptions::new().request_timeout(Some(DESCRIBE));
        if let Ok(described) = admin.describe_configs(&specifiers, &options).await {
            // One that the user may not describe is an error of its own.
            described.into_iter().flatten().for_each(|resource| configs.take(&resource));
        }
        // Its end waits for threads.
        tokio::task::spawn_blocking(move || drop(admin));
        configs
    }

    fn take(&mut self, resource: &ConfigResource) {
        let value = |name: &str| resource.get(name).and_then(|entry| entry.value.as_deref());
        match &resource.specifier {
            OwnedResourceSpecifier::Topic(topic) => {
                let least = value("min.insync.replicas").and_then(|value| value.parse().ok());
                self.min_insync.extend(least.map(|least| (topic.clone(), least)));
            }
            OwnedResourceSpecifier::Broker(_) => {
                self.creates_topics = value("auto.create.topics.enable").map(|value| value == "true");
            }
            OwnedResourceSpecifier::Group(_) => {}
        }
    }
}

/// Whether the topics of a destination exist.
fn exists(topic: &NeededTopic, cluster: &Cluster, creates_topics: Option<bool>, findings: &Findings) {
    let (check, from) = (format!("topic {}", topic.written), topic.from.join(", "));
    let Some(names) = &topic.names else {
        let fits = |name: &&String| fits(&topic.pattern, name);
        let fitting = cluster.topics.keys().filter(fits).count();
        let why =
            format!("senders choose a part of it ({from}), so all its topics can't be known; {fitting} fit it now");
        return findings.not_checked(&check, why);
    };
    let missing: Vec<&str> =
        names.iter().map(String::as_str).filter(|name| !cluster.topics.contains_key(*name)).collect();
    let refused = names.iter().find_map(|name| Some((name, cluster.topics.get(name)?.error?)));
    if let Some((name, error)) = refused {
        findings.problem(&check, format!("the brokers say about {name}: {error}"), "see what the message says");
    }
    let Some(first) = missing.first() else {
        if refused.is_none() {
            findings
                .ok(&check, format!("{} ({from})", if names.len() == 1 { "exists" } else { "all its topics exist" }));
        }
        return;
    };
    let seen = format!("{} not exist ({from}): {}", if missing.len() == 1 { "does" } else { "do" }, listed(&missing));
    let create = format!(
        "create {}: kafka-topics.sh --bootstrap-server {} --create --topic {first} --partitions 3 --replication-factor {}",
        if missing.len() == 1 { "it" } else { "them, for example" },
        cluster.first_address(),
        cluster.brokers.len().clamp(1, 3)
    );
    match creates_topics {
        Some(true) => {
            let seen = format!("{seen}; the brokers create a missing topic, with their defaults");
            findings.warning(&check, seen, create);
        }
        Some(false) => findings.problem(&check, seen, create),
        None => findings.problem(
            &check,
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
fn availability(topics: &[(&str, &Topic)], findings: &Findings) {
    let named = |is_meant: &dyn Fn(&Topic) -> bool| {
        topics.iter().filter(|(_, topic)| is_meant(topic)).map(|(name, _)| *name).collect::<Vec<_>>()
    };
    let leaderless = named(&|topic| topic.error.is_none() && !topic.has_leaders);
    if !leaderless.is_empty() {
        let seen = format!("partitions without a leader cannot be written to: {}", listed(&leaderless));
        findings.problem("leaders", seen, "start the brokers that have their replicas");
    }
    let behind = named(&|topic| !topic.is_in_sync);
    if !behind.is_empty() {
        let seen = format!("some replicas are not in sync: {}", listed(&behind));
        findings.warning("replicas in sync", seen, "find out which broker is down or slow");
    }
}

/// How safely the brokers store records.
fn durability(topics: &[(&str, &Topic)], configs: &Configs, server: &str, is_local: bool, findings: &Findings) {
    let mut weak: BTreeMap<Weakness, Vec<(&str, usize)>> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, topic) in topics {
        match configs.min_insync.get(*name) {
            None => unknown.push(*name),
            Some(least) => {
                if let Some(weakness) = weakness(topic.replicas, *least) {
                    weak.entry(weakness).or_default().push((name, topic.replicas));
                }
            }
        }
    }
    if !unknown.is_empty() {
        let why = format!(
            "the brokers do not say it, maybe because the user may not describe the configuration of {}",
            listed(&unknown)
        );
        findings.not_checked("min.insync.replicas", why);
    }
    for (weakness, names) in &weak {
        let shown: Vec<&str> = names.iter().map(|(name, _)| *name).collect();
        let seen = format!("{}: {}", weakness.words(), listed(&shown));
        let (first, replicas) = names.first().copied().unwrap_or_default();
        let remedy = weakness.remedy(server, first, replicas);
        match weakness {
            Weakness::NeverEnough => findings.problem("replicas", seen, remedy),
            Weakness::OneReplica if is_local => {
                findings.ok("replicas", format!("{seen}; the brokers are on this machine"))
            }
            _ => findings.warning("replicas", seen, remedy),
        }
    }
    let safe = topics.len() - unknown.len() - weak.values().map(Vec::len).sum::<usize>();
    if safe > 0 {
        findings.ok("replicas", format!("topics that survive the loss of one broker: {safe}"));
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weakness {
    NeverEnough,
    OneReplica,
    OneInSync,
    AllInSync,
}

fn weakness(replicas: usize, least: usize) -> Option<Weakness> {
    match (replicas, least) {
        _ if least > replicas => Some(Weakness::NeverEnough),
        (1, _) => Some(Weakness::OneReplica),
        (_, 1) => Some(Weakness::OneInSync),
        _ if least == replicas => Some(Weakness::AllInSync),
        _ => None,
    }
}

impl Weakness {
    fn words(self) -> &'static str {
        match self {
            Weakness::NeverEnough => {
                "min.insync.replicas is more than there are replicas, so that every record is refused"
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
    fn remedy(self, server: &str, topic: &str, replicas: usize) -> String {
        let alter = |least: usize| {
            format!(
                "kafka-configs.sh --bootstrap-server {server} --alter --entity-type topics --entity-name {topic} --add-config \
                 min.insync.replicas={least}"
            )
        };
        match self {
            Weakness::OneReplica => "create the topics with 3 replicas, or reassign their partitions".to_owned(),
            Weakness::NeverEnough => format!("add replicas, best 3, or lower it: {}", alter(replicas.div_ceil(2))),
            Weakness::OneInSync | Weakness::AllInSync if replicas < 3 => {
                "create the topics with 3 replicas and min.insync.replicas=2, or reassign their partitions".to_owned()
            }
            Weakness::OneInSync => alter(2),
            Weakness::AllInSync => alter(replicas - 1),
        }
    }
}

/// What is known about the right to write, which no question answers.
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
        "whether the user may write to a topic shows only when it does: `--publish-test OUTPUT/TOPIC` publishes one event",
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
    fn each_weakness_of_a_topic_is_known() {
        use Weakness::{AllInSync, NeverEnough, OneInSync, OneReplica};
        for (replicas, least, expected) in [
            (3, 2, None),
            (5, 3, None),
            (3, 1, Some(OneInSync)),
            (3, 3, Some(AllInSync)),
            (1, 1, Some(OneReplica)),
            (1, 2, Some(NeverEnough)),
        ] {
            assert_eq!(weakness(replicas, least), expected, "{replicas} {least}");
        }
    }
}
