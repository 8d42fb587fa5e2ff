//! Settings of a Kafka output: the section of the configuration, its checks, and the checked settings.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use figment::value::{Dict, Value};
use rdkafka::ClientContext;
use rdkafka::config::{ClientConfig, NativeClientConfig, RDKafkaLogLevel};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::json;

use super::binding::RepeatedHeaders;
use crate::common::address::{authority, host, is_loopback};
use crate::common::secret::{Secret, SecretSource, exposed};
use crate::common::units::{at_least_one_schema, one_or_many};
use crate::common::validation::Validation;
use crate::common::watch::{Fingerprint, ReadByLibrary};
use crate::event::Mode;
use crate::output::{Bus, DestinationRules, OutputConfig, OutputContext, OutputSettings, TopicRule, TopicSyntax};

/// Longest name of a topic.
const MAX_TOPIC_BYTES: usize = 249;

/// Bound of librdkafka's own queue. Records wait there no longer than the delivery deadline, so this is memory for
/// bursts. With librdkafka's default of 1 GiB a slow broker could use up the memory of the machine.
const QUEUE_KBYTES: u32 = 65_536;

/// The shortest time that a broker may wait for the replicas of a record.
const LEAST_REQUEST_TIMEOUT: Duration = Duration::from_millis(500);

/// Properties that are the bridge's to set, and where their value comes from.
const RESERVED: &[(&str, &str)] = &[
    ("bootstrap.servers", "set `brokers`"),
    ("metadata.broker.list", "set `brokers`"),
    ("message.timeout.ms", "it is `delivery.deadline`"),
    ("delivery.timeout.ms", "it is `delivery.deadline`"),
    ("delivery.report.only.error", "the bridge waits for the reports of success"),
    ("transactional.id", "the bridge publishes without transactions"),
];

/// Topics of Apache Kafka.
#[derive(Clone, Debug, Deserialize, JsonSchema, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaConfig {
    /// The brokers to connect to first, as `host:port`: at least one. They name the other brokers of the cluster.
    #[serde(deserialize_with = "one_or_many")]
    #[schemars(schema_with = "at_least_one_schema::<String>")]
    pub brokers: Vec<String>,
    /// The layout of the records, by the CloudEvents binding for Kafka.
    pub mode: Mode,
    /// Which attributes structured records repeat as headers: "none", "routing" (id, source, type, subject, status,
    /// verdict, dialect) or "all". In binary records all attributes are headers. Dead letters keep those that say why.
    pub headers: RepeatedHeaders,
    /// Properties of librdkafka by their own names, for example `security.protocol`. Write a name in quotes because of its
    /// dots. Each value can be a secret. The bridge keeps these properties and refuses others: `acks = all`,
    /// `enable.idempotence = true`, `bootstrap.servers` (from `brokers`), `message.timeout.ms` (from `delivery.deadline`).
    #[serde(deserialize_with = "properties", serialize_with = "shown_properties")]
    #[schemars(schema_with = "properties_schema")]
    pub client: BTreeMap<String, SecretSource>,
}

impl Default for KafkaConfig {
    fn default() -> Self {
        KafkaConfig {
            brokers: vec!["127.0.0.1:9092".to_owned()],
            mode: Mode::Structured,
            headers: RepeatedHeaders::Routing,
            client: BTreeMap::new(),
        }
    }
}

/// A property whose name contains one of these words is not shown. It may be a secret.
const SECRET_WORDS: [&str; 6] = ["password", "passphrase", "secret", "token", "pem", "jaas"];

/// The properties that are secrets, as keys of the configuration. Certificates and the URL of a token endpoint are not:
/// a deployment may have them as text.
pub(super) const SECRET_KEYS: &[&str] =
    &["client.*password*", "client.*passphrase*", "client.*secret*", "client.*key.pem*", "client.*jaas*"];

/// Reads properties. From the environment and from flags, and from TOML without quotes, a name with dots arrives as
/// tables in tables.
fn properties<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, SecretSource>, D::Error> {
    fn flatten(name: String, value: Value, out: &mut BTreeMap<String, SecretSource>) -> Result<(), String> {
        let is_secret = |table: &Dict| {
            let source = |key: &str| matches!(table.get(key), Some(Value::String(..)));
            table.len() == 1 && (source("file") || source("env"))
        };
        match value {
            Value::Dict(_, table) if !is_secret(&table) => {
                table.into_iter().try_for_each(|(below, value)| flatten(format!("{name}.{below}"), value, out))
            }
            value => {
                out.insert(name, value.deserialize().map_err(|error| error.kind.to_string())?);
                Ok(())
            }
        }
    }
    let mut properties = BTreeMap::new();
    for (name, value) in BTreeMap::<String, Value>::deserialize(deserializer)? {
        flatten(name, value, &mut properties).map_err(serde::de::Error::custom)?;
    }
    Ok(properties)
}

/// The schema of what [`properties`] reads.
fn properties_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<Property>() })
}

/// The schema of a property: a value, or a table that continues a name with dots.
struct Property;

impl JsonSchema for Property {
    fn schema_name() -> Cow<'static, str> {
        "KafkaProperty".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let below = generator.subschema_for::<Property>();
        json_schema!({ "anyOf": [
            { "type": ["string", "number", "boolean"] },
            generator.subschema_for::<SecretSource>(),
            { "type": "object", "additionalProperties": below },
        ] })
    }
}

/// Shows properties, secrets hidden.
fn shown_properties<S: Serializer>(
    properties: &BTreeMap<String, SecretSource>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(properties.iter().map(|(name, source)| match source {
        SecretSource::Inline(value) if !SECRET_WORDS.iter().any(|word| name.contains(word)) => {
            (name, Shown::Plain(value))
        }
        source => (name, Shown::Source(source)),
    }))
}

#[derive(Serialize)]
#[serde(untagged)]
enum Shown<'a> {
    Plain(&'a str),
    Source(&'a SecretSource),
}

impl OutputConfig for KafkaConfig {
    fn validate(&self, context: OutputContext<'_>, validation: &mut Validation) -> Option<Box<dyn OutputSettings>> {
        let deadline = context.deadline;
        if self.brokers.is_empty() {
            validation.wrong("brokers", "expected at least one host:port");
        }
        for broker in self.brokers.iter().filter(|broker| broker.is_empty() || broker.contains([',', ' '])) {
            validation.wrong("brokers", format!("invalid address `{broker}`: expected host:port"));
        }
        let mut client = default_properties(deadline);
        let mut secrets = Vec::new();
        let mut files = Vec::new();
        for (property, source) in &self.client {
            let key = format!("client.\"{property}\"");
            if let Some((_, instead)) = RESERVED.iter().find(|(reserved, _)| reserved == property) {
                validation.wrong(&key, format!("cannot be set here: {instead}"));
                continue;
            }
            let Some(secret) = validation.secret(&key, source) else { continue };
            let value = secret.value();
            if let Some(message) = property_fault(property, &value) {
                validation.wrong(&key, message);
                continue;
            }
            client.set(property, &*value);
            if !secret.is_inline() {
                secrets.push((property.clone(), secret));
            } else if property.ends_with(".location") && Path::new(&*value).is_file() {
                // It can also be a folder, or the word `probe`.
                files.push(PathBuf::from(&*value));
            }
        }
        client
            .set("bootstrap.servers", self.brokers.join(","))
            .set("acks", "all")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", deadline.as_millis().max(1).to_string());
        if validation.is_ok()
            && let Err(error) = refused_together(&client)
        {
            validation.wrong("client", error);
        }
        let files = Arc::new(ReadByLibrary::new("file of a Kafka client", files));
        validation.watch(files.clone());
        validation.is_ok().then(|| {
            let name = context.name.to_owned();
            Box::new(KafkaSettings { name, mode: self.mode, headers: self.headers, client, secrets, files, deadline })
                as Box<dyn OutputSettings>
        })
    }

    fn destination_rules(&self) -> DestinationRules {
        const TOPIC: TopicSyntax = TopicSyntax {
            is_legal: |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'),
            legal: "letters, digits, `.`, `_` and `-`",
            max_bytes: Some(MAX_TOPIC_BYTES),
            fault: |topic| matches!(topic, "." | "..").then_some("Kafka does not allow this name"),
        };
        DestinationRules { has_keys: true, topic: TopicRule::Required(TOPIC) }
    }

    fn warnings(&self, name: &str, _: &[String]) -> Vec<String> {
        let Some(client) = self.native() else { return Vec::new() };
        let is_local = self.brokers.iter().all(|broker| is_loopback(host(broker)));
        let mut warnings = if is_local { Vec::new() } else { weaknesses(&client) };
        for property in ["ssl.key.location", "ssl.keystore.location"] {
            let warning = client.get(property).ok().and_then(|path| exposed(Path::new(&path)));
            warnings.extend(warning.map(|warning| format!("client.\"{property}\": {warning}")));
        }
        warnings.into_iter().map(|warning| format!("output `{name}`: {warning}")).collect()
    }

    fn effective(&self) -> Result<toml::Table, toml::ser::Error> {
        toml::Table::try_from(self)
    }
}

impl KafkaConfig {
    /// The properties as librdkafka understands them: with its defaults, and under its names for those that have several.
    fn native(&self) -> Option<NativeClientConfig> {
        let mut client = ClientConfig::new();
        for (property, source) in &self.client {
            client.set(property, &*Secret::read(source).ok()?.value());
        }
        client.create_native_config().ok()
    }
}

/// Properties that do not protect the connection to the brokers.
fn weaknesses(client: &NativeClientConfig) -> Vec<String> {
    let get = |property: &str| client.get(property).unwrap_or_default();
    let protocol = get("security.protocol");
    let mut weaknesses = Vec::new();
    if protocol == "sasl_plaintext" && get("sasl.mechanisms").eq_ignore_ascii_case("PLAIN") {
        weaknesses.push(
            "client.\"sasl.password\": with SASL_PLAINTEXT and PLAIN, others can read it on its way; set \
             security.protocol = \"SASL_SSL\", or sasl.mechanism = \"SCRAM-SHA-512\""
                .to_owned(),
        );
    }
    let has_tls = protocol == "ssl" || protocol == "sasl_ssl";
    if has_tls && get("enable.ssl.certificate.verification") == "false" {
        weaknesses.push(
            "client.\"enable.ssl.certificate.verification\" = false: anyone between the bridge and the brokers can play \
             the brokers; remove it, and name your authority in ssl.ca.location"
                .to_owned(),
        );
    }
    weaknesses
}

/// The properties that the bridge starts from. The user's come after them.
fn default_properties(deadline: Duration) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("client.id", "apsara-bridge")
        .set("queue.buffering.max.kbytes", QUEUE_KBYTES.to_string())
        .set("reconnect.backoff.max.ms", "2000")
        .set("log.connection.close", "false")
        // A broker answers the requests of a connection one after the other. A request that waits for replicas delays
        // all topics of the connection, by default for 30 s.
        .set("request.timeout.ms", deadline.max(LEAST_REQUEST_TIMEOUT).as_millis().to_string())
        .set("linger.ms", "1")
        .set_log_level(RDKafkaLogLevel::Info);
    client
}

/// What is wrong with a property alone.
fn property_fault(property: &str, value: &str) -> Option<String> {
    match property {
        "acks" | "request.required.acks" if value != "all" && value != "-1" => Some(
            "must stay `all`: otherwise losing one broker could lose events that were answered with 200".to_owned(),
        ),
        "sasl.mechanism" | "sasl.mechanisms" if value.eq_ignore_ascii_case("OAUTHBEARER") => {
            Some("OAUTHBEARER is not supported, because the bridge cannot get tokens: use PLAIN or SCRAM".to_owned())
        }
        "enable.idempotence" if value != "true" => {
            Some("must stay true: otherwise retries could duplicate and reorder records".to_owned())
        }
        _ => {
            // Each property by itself, so that each gets its own error.
            let error = ClientConfig::new().set(property, value).create_native_config().err()?;
            Some(property_error(&error, value))
        }
    }
}

/// What librdkafka refuses about properties that are valid one by one, for example a certificate that it cannot read.
/// Creates a client without brokers, which connects to nothing, and drops it.
fn refused_together(client: &ClientConfig) -> Result<(), String> {
    let mut without_brokers = client.clone();
    without_brokers.remove("bootstrap.servers");
    let created: Result<BaseProducer<Silent>, KafkaError> = without_brokers.create_with_context(Silent);
    created.map(|_| ()).map_err(|error| rejected(&error))
}

pub(super) fn rejected(error: &KafkaError) -> String {
    match error {
        KafkaError::ClientCreation(words) => format!("librdkafka rejects the properties: {words}"),
        other => format!("librdkafka rejects the properties: {other}"),
    }
}

/// A context that logs nothing.
struct Silent;

impl ClientContext for Silent {
    fn log(&self, _: RDKafkaLogLevel, _: &str, _: &str) {}
    fn error(&self, _: KafkaError, _: &str) {}
}

impl ProducerContext for Silent {
    type DeliveryOpaque = ();
    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {}
}

/// What librdkafka says about one property, without the value, which may be a secret.
fn property_error(error: &KafkaError, value: &str) -> String {
    match error {
        KafkaError::ClientConfig(_, message, _, _) if message.contains("No such configuration property") => {
            "librdkafka has no such property".to_owned()
        }
        KafkaError::ClientConfig(_, message, _, _) if !value.is_empty() => {
            format!("librdkafka rejects the value: {}", message.replace(value, "…"))
        }
        _ => "librdkafka rejects the value".to_owned(),
    }
}

/// Checked settings of a Kafka output.
pub struct KafkaSettings {
    pub(super) name: String,
    pub(super) mode: Mode,
    pub(super) headers: RepeatedHeaders,
    client: ClientConfig,
    /// Properties whose values are in files or variables and may change.
    secrets: Vec<(String, Arc<Secret>)>,
    /// Files that properties name.
    files: Arc<ReadByLibrary>,
    /// `delivery.deadline`.
    pub(super) deadline: Duration,
}

/// What a producer was built from and may change.
#[derive(PartialEq, Eq)]
pub(super) struct PresentSecrets {
    values: Vec<Arc<str>>,
    files: Vec<Fingerprint>,
}

impl fmt::Debug for PresentSecrets {
    // Without the values.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("PresentSecrets").field("files", &self.files).finish_non_exhaustive()
    }
}

impl KafkaSettings {
    /// Where subscribers find the records.
    pub(super) fn bus(&self) -> Bus {
        let get = |property: &str| self.client.get(property).unwrap_or_default();
        let hosts = get("bootstrap.servers").split(',').map(|broker| authority(broker).to_owned()).collect();
        let is_secure = get("security.protocol").to_ascii_lowercase().ends_with("ssl");
        let bindings = |key: &serde_json::Value| Some(json!({ "kafka": { "key": key, "bindingVersion": "0.5.0" } }));
        Bus {
            hosts,
            protocol: if is_secure { "kafka-secure" } else { "kafka" },
            notes: Vec::new(),
            other_headers: &[],
            message_bindings: bindings,
            channel_bindings: Some(json!({ "kafka": { "bindingVersion": "0.5.0" } })),
            operation_bindings: None,
        }
    }

    /// Whether all brokers that are named are this machine.
    pub(super) fn is_local(&self) -> bool {
        let brokers = self.client.get("bootstrap.servers").unwrap_or_default();
        brokers.split(',').all(|broker| is_loopback(host(broker)))
    }

    /// The secrets as they are now.
    pub(super) fn secrets(&self) -> PresentSecrets {
        let values = self.secrets.iter().map(|(_, secret)| secret.value()).collect();
        PresentSecrets { values, files: self.files.fingerprints() }
    }

    /// The properties with the secrets as they are now, and those secrets.
    pub(super) fn present(&self) -> (ClientConfig, PresentSecrets) {
        let mut client = self.client.clone();
        let present = self.secrets();
        for ((property, _), value) in self.secrets.iter().zip(&present.values) {
            client.set(property, &**value);
        }
        (client, present)
    }
}

impl fmt::Debug for KafkaSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("KafkaSettings")
            .field("name", &self.name)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::validation::FieldError;

    fn errors(client: &str) -> Vec<String> {
        let config: KafkaConfig = toml::from_str(&format!("[client]\n{client}")).expect("the form is right");
        let mut validation = Validation::of("");
        let context = OutputContext { name: "kafka", deadline: Duration::from_secs(1) };
        assert!(config.validate(context, &mut validation).is_none());
        validation.errors().iter().map(FieldError::to_string).collect()
    }

    #[test]
    fn durability_cannot_be_turned_off_and_every_error_is_reported() {
        let reported = errors(
            "acks = 1\n\"enable.idempotence\" = false\n\"message.timeout.ms\" = 5\n\"linger.sm\" = 1\n\"linger.ms\" = \"soon\"\n\
             \"delivery.report.only.error\" = true\n\"transactional.id\" = \"t\"\n\"sasl.mechanism\" = \"OAUTHBEARER\"",
        );
        assert_eq!(
            reported,
            [
                "client.\"acks\": must stay `all`: otherwise losing one broker could lose events that were answered with 200",
                "client.\"delivery.report.only.error\": cannot be set here: the bridge waits for the reports of success",
                "client.\"enable.idempotence\": must stay true: otherwise retries could duplicate and reorder records",
                "client.\"linger.ms\": librdkafka rejects the value: Invalid value for configuration property \"queue.buffering.max.ms\"",
                "client.\"linger.sm\": librdkafka has no such property",
                "client.\"message.timeout.ms\": cannot be set here: it is `delivery.deadline`",
                "client.\"sasl.mechanism\": OAUTHBEARER is not supported, because the bridge cannot get tokens: use PLAIN or SCRAM",
                "client.\"transactional.id\": cannot be set here: the bridge publishes without transactions",
            ]
        );
    }
}
