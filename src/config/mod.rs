//! The configuration: layers merged by figment, then checked as a whole.
//!
//! The layers, later ones over earlier ones: the defaults, the files in the order given (TOML, or YAML by their
//! ending), `APSARA_BRIDGE__SECTION__KEY` in the environment, and `--set section.key=value`. What they amount to is
//! read into structures ([`raw`]) and then made into [`Settings`]. All mistakes are told at once, each with the file
//! and the key; an unknown key is one of them.

mod lint;
pub mod raw;
mod read;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::time::Duration;

use crate::bridge::{DedupeSettings, Delivery};
use crate::common::suggest::nearest;
use crate::dialect::{Catalogue, Normalizer};
use crate::input::http::HttpConfig;
use crate::input::mns::MnsConfig;
use crate::output::console::ConsoleConfig;
use crate::output::kafka::KafkaConfig;
use crate::output::nats::NatsConfig;
use crate::output::{self, check_topic};
use crate::route::{Action, Destination, Filter, Route, Router, Template, parse_match};
use crate::service::{InputSettings, OutputSettings, Settings};
use crate::setting::Mistake;
use crate::store::StoreSettings;
use crate::telemetry::logs;
use raw::{Raw, RawAdmin, RawCatalogue, RawDeadLetters, RawDestination, RawEvent, RawRoute, RawSpool};
use read::Reader;

/// What every environment variable of the configuration starts with.
pub const ENV_PREFIX: &str = "APSARA_BRIDGE__";

/// IMS waits three seconds for an answer (Alibaba's page on IMS callbacks), VOD five: the deadline stays below both.
const LONGEST_DEADLINE: Duration = Duration::from_millis(2900);

/// A layer of the configuration.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A file, TOML or YAML by its ending.
    File(PathBuf),
    /// TOML text under a name, for a configuration that the program makes itself.
    Text(String, String),
    /// The environment.
    Environment,
    /// One `section.key=value`.
    Set(String),
}

/// A mistake in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConfigError {
    /// File, variable or flag the value came from, where it is known.
    pub source: Option<String>,
    /// The key, from the root.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(formatter, "{source}: ")?;
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)
    }
}

/// A configuration that holds.
#[derive(Debug)]
pub struct Loaded {
    /// What the service is built from.
    pub settings: Settings,
    /// What it amounts to, as TOML, secrets hidden.
    pub effective: String,
    /// What is valid but looks like a mistake.
    pub warnings: Vec<String>,
}

/// Loads and checks a configuration.
///
/// # Errors
/// Every mistake that was found.
pub fn load(layers: &[Layer]) -> Result<Loaded, Vec<ConfigError>> {
    load_parts(layers, true)
}

/// Loads and checks a configuration without its inputs, which may be missing, or wrong, or need secrets that are not
/// there.
///
/// # Errors
/// Every mistake that was found in the rest.
pub fn load_without_inputs(layers: &[Layer]) -> Result<Loaded, Vec<ConfigError>> {
    load_parts(layers, false)
}

fn load_parts(layers: &[Layer], with_inputs: bool) -> Result<Loaded, Vec<ConfigError>> {
    let mut reader = Reader::new(layers)?;
    let raw: Raw = reader.section(&[]);
    let inputs = if with_inputs { plugins(&mut reader, "inputs", &raw.inputs, read_input) } else { Vec::new() };
    let outputs = plugins(&mut reader, "outputs", &raw.outputs, read_output);
    let effective = effective(&raw, &inputs, &outputs);

    let mut check = Check { errors: Vec::new() };
    let type_prefix = raw.event.type_prefix.clone();
    check.type_prefix(&type_prefix);
    let catalogue = check.catalogue(&raw.catalogue.files);
    let deadline = raw.delivery.deadline.0;
    if deadline.is_zero() || deadline > LONGEST_DEADLINE {
        check.wrong(
            "delivery.deadline",
            format!(
                "{} is out of range; expected more than 0s and at most {}, for IMS waits 3s for an answer",
                raw.delivery.deadline,
                humantime::format_duration(LONGEST_DEADLINE)
            ),
        );
    }
    if raw.delivery.max_in_flight == 0 || raw.delivery.max_in_flight > tokio::sync::Semaphore::MAX_PERMITS {
        check.wrong("delivery.max_in_flight", "expected at least 1");
    }
    let spool = &raw.spool;
    if spool.enabled && spool.path.as_os_str().is_empty() {
        check.wrong("spool.path", "expected a folder");
    }
    if !(spool.lane_share > 0.0 && spool.lane_share <= 1.0) {
        check.wrong(
            "spool.lane_share",
            format!("{} is out of range; expected more than 0 and at most 1", spool.lane_share),
        );
    }
    if raw.delivery.give_up_after.0.is_zero() {
        check.wrong("delivery.give_up_after", "expected more than 0s, for example \"1h\"");
    }
    for (key, size) in [
        ("spool.max_bytes", spool.max_bytes),
        ("dead_letters.max_bytes", raw.dead_letters.max_bytes),
        ("delivery.max_in_flight_bytes", raw.delivery.max_in_flight_bytes),
    ] {
        if size.0 == 0 || i64::try_from(size.0).is_err() {
            check.wrong(key, format!("{size} is out of range; expected more than 0B"));
        }
    }
    if raw.dead_letters.max_age.is_some_and(|age| age.0.is_zero()) {
        check.wrong("dead_letters.max_age", "expected more than 0s, for example \"30d\"; leave it out to keep them");
    }
    if raw.dedupe.max_ids == 0 {
        check.wrong("dedupe.max_ids", "expected at least 1; dedupe.window = \"0s\" remembers no ids");
    }
    let store = spool.enabled.then(|| store_settings(spool, &raw.dead_letters));
    let dedupe = DedupeSettings { window: raw.dedupe.window.0, max_ids: raw.dedupe.max_ids };
    let admin_listen = match raw.admin.listen.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            check.wrong("admin.listen", format!("`{}` is no host:port: {error}", raw.admin.listen));
            Vec::new()
        }
    };
    if let Err(error) = logs::check_filter(&raw.log.filter) {
        check.wrong("log.filter", error);
    }

    let kinds: HashMap<&str, &str> = outputs.iter().map(|(name, output)| (name.as_str(), output.kind())).collect();
    let known = raw.outputs.keys().map(String::as_str).collect::<Vec<_>>();
    let topics = Topics { kinds: &kinds, known: &known, type_prefix: &type_prefix };
    let routes = check.routes(&raw.routes, &topics);
    let dead_letters = raw.dead_letters.to.as_ref().and_then(|to| check.destination("dead_letters.to", to, &topics));
    if raw.inputs.is_empty() && with_inputs {
        check.wrong("inputs", "expected at least one, as [inputs.http] with kind = \"http\"");
    }
    if raw.outputs.is_empty() {
        check.wrong("outputs", "expected at least one, as [outputs.kafka] with kind = \"kafka\"");
    }
    if raw.routes.is_empty() {
        check.wrong("routes", "expected at least one, as [[routes]] with name and to");
    }

    let mut input_settings = Vec::new();
    for (name, input) in inputs {
        let settings = match input {
            InputConfig::Http(http) => http.validate(&name).map(|http| InputSettings::Http(Box::new(http))),
            InputConfig::Mns(mns) => mns.validate(&name, deadline).map(|mns| InputSettings::Mns(Box::new(mns))),
        };
        match settings {
            Ok(settings) => input_settings.push(settings),
            Err(errors) => check.below(&format!("inputs.{name}"), errors),
        }
    }
    let mut output_warnings = Vec::new();
    let mut output_settings = Vec::new();
    for (name, output) in outputs {
        let settings = match output {
            OutputConfig::Kafka(kafka) => kafka.validate(&name, deadline).map(OutputSettings::Kafka),
            OutputConfig::Nats(nats) => {
                let destinations = routes.iter().flat_map(destinations_of).chain(&dead_letters);
                let topics = destinations.filter(|to| to.output == name).map(|to| &to.topic);
                output_warnings.append(&mut nats.warnings(&name, topics));
                nats.validate(&name).map(|nats| OutputSettings::Nats(Box::new(nats)))
            }
            OutputConfig::Console(_) => Ok(OutputSettings::Console(name.clone())),
        };
        match settings {
            Ok(settings) => output_settings.push(settings),
            Err(errors) => check.below(&format!("outputs.{name}"), errors),
        }
    }

    let router = Router::new(routes).map_err(|error| check.wrong("routes", error.to_string())).ok();
    for (key, message) in check.errors {
        reader.wrong(&key, message);
    }
    let (Some(catalogue), Some(router), true) = (catalogue, router, reader.errors.is_empty()) else {
        return Err(reader.into_errors());
    };
    let mut warnings = lint::routes(&router, &catalogue, &type_prefix);
    warnings.append(&mut output_warnings);
    warnings.extend(store.iter().flat_map(StoreSettings::warnings));
    let keeps_letters = store.is_some() || dead_letters.is_some();
    warnings.extend(leaves_unrouted(&router, keeps_letters));
    if !keeps_letters {
        let letters = router.routes().iter().filter(|route| route.action == Action::DeadLetter);
        warnings.extend(letters.map(|route| {
            format!(
                "route `{}` makes dead letters, but without a spool and dead_letters.to there is no place for them: its \
                 events are answered with 503",
                route.name
            )
        }));
    }
    Ok(Loaded {
        settings: Settings {
            inputs: input_settings,
            outputs: output_settings,
            router,
            catalogue,
            type_prefix,
            delivery: Delivery {
                deadline,
                give_up_after: raw.delivery.give_up_after.0,
                max_in_flight: raw.delivery.max_in_flight,
                max_in_flight_bytes: raw.delivery.max_in_flight_bytes.0,
                dedupe,
            },
            dead_letters,
            store,
            admin_listen,
            log: (raw.log.format, raw.log.filter),
            shutdown_delay: raw.shutdown.delay.0,
            shutdown_drain: raw.shutdown.drain.0,
        },
        effective,
        warnings,
    })
}

/// Loads what of a configuration concerns the making of events alone: `event` and `catalogue`. The rest may be
/// missing, or wrong.
///
/// # Errors
/// Every mistake in those two sections, and files that can't be read.
pub fn load_normalizer(layers: &[Layer]) -> Result<Normalizer, Vec<ConfigError>> {
    let mut reader = Reader::new(layers)?;
    let event: RawEvent = reader.section(&["event"]);
    let files: RawCatalogue = reader.section(&["catalogue"]);
    let mut check = Check { errors: Vec::new() };
    check.type_prefix(&event.type_prefix);
    let catalogue = check.catalogue(&files.files);
    for (key, message) in check.errors {
        reader.wrong(&key, message);
    }
    match catalogue {
        Some(catalogue) if reader.errors.is_empty() => Ok(Normalizer::new(catalogue, event.type_prefix)),
        _ => Err(reader.into_errors()),
    }
}

/// Loads what of a configuration tells where the spool lies: `spool` and `dead_letters`. The rest may be missing, or
/// wrong.
///
/// # Errors
/// Every mistake in those two sections, and files that can't be read.
pub fn load_store(layers: &[Layer]) -> Result<StoreSettings, Vec<ConfigError>> {
    let mut reader = Reader::new(layers)?;
    let spool: RawSpool = reader.section(&["spool"]);
    let dead_letters: RawDeadLetters = reader.section(&["dead_letters"]);
    if reader.errors.is_empty() { Ok(store_settings(&spool, &dead_letters)) } else { Err(reader.into_errors()) }
}

/// Loads the outputs with their kinds. The rest of the configuration may be missing, or wrong, and so may the rest of
/// the outputs.
///
/// # Errors
/// Files that cannot be read.
pub fn load_output_kinds(layers: &[Layer]) -> Result<BTreeMap<String, String>, Vec<ConfigError>> {
    let mut reader = Reader::new(layers)?;
    let named: BTreeMap<String, figment::value::Value> = reader.section(&["outputs"]);
    let kind = |name: String| {
        let kind = reader.take_string(&["outputs", &name, "kind"])?;
        Some((name, kind))
    };
    Ok(named.into_keys().filter_map(kind).collect())
}

/// Loads the address of the admin listener. The rest of the configuration may be missing, or wrong.
///
/// # Errors
/// Every mistake in that section, and files that can't be read.
pub fn load_admin_listen(layers: &[Layer]) -> Result<String, Vec<ConfigError>> {
    let mut reader = Reader::new(layers)?;
    let admin: RawAdmin = reader.section(&["admin"]);
    if reader.errors.is_empty() { Ok(admin.listen) } else { Err(reader.into_errors()) }
}

fn store_settings(spool: &RawSpool, dead_letters: &RawDeadLetters) -> StoreSettings {
    StoreSettings {
        path: spool.path.clone(),
        spool_max_bytes: spool.max_bytes.0,
        // Not NaN, not negative: checked before, or cut here.
        lane_max_bytes: (spool.max_bytes.0 as f64 * spool.lane_share) as u64,
        dead_letters_max_bytes: dead_letters.max_bytes.0,
        dead_letters_max_age: dead_letters.max_age.map(|age| age.0),
    }
}

/// The keys whose values differ between two configurations as [`Loaded::effective`] gives them, without those that a
/// running service can take over: routes, `event`, `catalogue`, `dead_letters.to`, and the endpoints of inputs. A
/// secret that stands in the configuration itself is hidden there, so that a change of one isn't seen.
pub fn needs_restart(running: &str, wanted: &str) -> Vec<String> {
    let read = |text: &str| toml::from_str::<toml::Table>(text).unwrap_or_default();
    let mut keys = Vec::new();
    differing("", &read(running), &read(wanted), &mut keys);
    keys.retain(|key| {
        let parts: Vec<&str> = key.split('.').collect();
        !matches!(
            parts.as_slice(),
            ["routes" | "event" | "catalogue", ..] | ["dead_letters", "to", ..] | ["inputs", _, "endpoints", ..]
        )
    });
    keys
}

/// Keys that only one of two tables has, or both with other values.
fn differing(above: &str, one: &toml::Table, other: &toml::Table, keys: &mut Vec<String>) {
    let names: std::collections::BTreeSet<&String> = one.keys().chain(other.keys()).collect();
    for name in names {
        let key = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
        match (one.get(name), other.get(name)) {
            (Some(toml::Value::Table(one)), Some(toml::Value::Table(other))) => differing(&key, one, other, keys),
            (one, other) if one == other => {}
            _ => keys.push(key),
        }
    }
}

/// Where a route publishes to.
fn destinations_of(route: &Route) -> &[Destination] {
    match &route.action {
        Action::To(destinations) => destinations,
        Action::Drop | Action::DeadLetter => &[],
    }
}

fn leaves_unrouted(router: &Router, dead_letters: bool) -> Option<String> {
    let catches_all = router.routes().iter().any(|route| route.matches.is_empty() && route.filter.is_none());
    (!catches_all && !dead_letters).then(|| {
        "no route takes everything, and without a spool and dead_letters.to there is no place for dead letters: what no \
         route takes is answered with 503 and lost when Alibaba gives up"
            .to_owned()
    })
}

/// Settings of an input of any kind.
#[derive(Debug)]
enum InputConfig {
    Http(HttpConfig),
    Mns(Box<MnsConfig>),
}

impl InputConfig {
    fn kind(&self) -> &'static str {
        match self {
            InputConfig::Http(_) => "http",
            InputConfig::Mns(_) => "mns",
        }
    }
}

/// Settings of an output of any kind.
#[derive(Debug)]
enum OutputConfig {
    Kafka(KafkaConfig),
    Nats(Box<NatsConfig>),
    Console(ConsoleConfig),
}

impl OutputConfig {
    fn kind(&self) -> &'static str {
        match self {
            OutputConfig::Kafka(_) => "kafka",
            OutputConfig::Nats(_) => "nats",
            OutputConfig::Console(_) => "console",
        }
    }
}

fn read_input(reader: &mut Reader, kind: &str, path: &[&str]) -> Result<InputConfig, &'static [&'static str]> {
    match kind {
        "http" => Ok(InputConfig::Http(reader.section(path))),
        "mns" => Ok(InputConfig::Mns(Box::new(reader.section(path)))),
        _ => Err(crate::input::KINDS),
    }
}

fn read_output(reader: &mut Reader, kind: &str, path: &[&str]) -> Result<OutputConfig, &'static [&'static str]> {
    match kind {
        "kafka" => Ok(OutputConfig::Kafka(reader.section(path))),
        "nats" => Ok(OutputConfig::Nats(Box::new(reader.section(path)))),
        "console" => Ok(OutputConfig::Console(reader.section(path))),
        _ => Err(output::KINDS),
    }
}

type ReadPlugin<T> = fn(&mut Reader, &str, &[&str]) -> Result<T, &'static [&'static str]>;

/// Reads the named plug-ins of a section, each by its `kind`.
fn plugins<T>(
    reader: &mut Reader,
    section: &str,
    named: &BTreeMap<String, figment::value::Value>,
    read: ReadPlugin<T>,
) -> Vec<(String, T)> {
    let mut plugins = Vec::new();
    for name in named.keys() {
        let key = format!("{section}.{name}");
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')) {
            reader.wrong(&key, "is no name; letters, digits, `-` and `_` can stand in one");
            continue;
        }
        let Some(kind) = reader.take_string(&[section, name, "kind"]) else {
            reader.wrong(&format!("{key}.kind"), "missing; it tells what this is");
            continue;
        };
        match read(reader, &kind, &[section, name]) {
            Ok(plugin) => plugins.push((name.clone(), plugin)),
            Err(kinds) => {
                let hint = nearest(&kind, kinds.iter().copied())
                    .map_or_else(String::new, |kind| format!("; did you mean `{kind}`?"));
                reader.wrong(&format!("{key}.kind"), format!("`{kind}` is none of {}{hint}", kinds.join(", ")));
            }
        }
    }
    plugins
}

/// What destinations are checked against.
struct Topics<'a> {
    kinds: &'a HashMap<&'a str, &'a str>,
    known: &'a [&'a str],
    type_prefix: &'a str,
}

/// Gathers mistakes by key.
struct Check {
    errors: Vec<Mistake>,
}

impl Check {
    fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push((key.to_owned(), message.into()));
    }

    fn below(&mut self, key: &str, errors: Vec<Mistake>) {
        self.errors.extend(errors.into_iter().map(|(below, message)| (format!("{key}.{below}"), message)));
    }

    fn type_prefix(&mut self, prefix: &str) {
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if prefix.is_empty() || !prefix.chars().all(legal) {
            self.wrong("event.type_prefix", format!("`{prefix}` is no prefix; expected one as com.example.media."));
        }
    }

    fn catalogue(&mut self, files: &[PathBuf]) -> Option<Catalogue> {
        let mut texts = Vec::new();
        for file in files {
            match std::fs::read_to_string(file) {
                Ok(text) => texts.push((file.display().to_string(), text)),
                Err(error) => self.wrong("catalogue.files", format!("{} can't be read: {error}", file.display())),
            }
        }
        match Catalogue::load(&texts) {
            Ok(catalogue) => Some(catalogue),
            Err(error) => {
                self.wrong("catalogue.files", error.to_string());
                None
            }
        }
    }

    fn routes(&mut self, raw: &[RawRoute], topics: &Topics<'_>) -> Vec<Route> {
        let mut names = HashSet::new();
        let mut routes = Vec::new();
        for (index, route) in raw.iter().enumerate() {
            let key = |field: &str| format!("routes[{index}].{field}");
            if route.name.is_empty() {
                self.wrong(&key("name"), "missing; a route's name stands in metrics and logs");
            } else if !names.insert(route.name.as_str()) {
                self.wrong(&key("name"), format!("two routes are named `{}`", route.name));
            }
            let matches = parse_match(&route.matches, topics.type_prefix).unwrap_or_else(|errors| {
                for error in errors {
                    self.wrong(&key(&format!("match.{}", error.attribute)), error.to_string());
                }
                Vec::new()
            });
            let mut filters = Vec::new();
            for filter in &route.filter {
                match Filter::compile(filter) {
                    Ok(filter) => filters.push(filter),
                    Err(errors) => errors.into_iter().for_each(|error| self.wrong(&key("filter"), error.to_string())),
                }
            }
            let filter = if filters.len() > 1 { Some(Filter::All(filters)) } else { filters.pop() };
            let said = [!route.to.is_empty(), route.drop, route.dead_letter];
            if said.into_iter().filter(|said| *said).count() != 1 {
                let message = "expected one of `to` with at least one destination, `drop = true`, `dead_letter = true`";
                self.wrong(&format!("routes[{index}]"), format!("{message} in route `{}`", route.name));
            }
            let action = if route.drop {
                Action::Drop
            } else if route.dead_letter {
                Action::DeadLetter
            } else {
                let destinations = route.to.iter().enumerate();
                Action::To(
                    destinations
                        .filter_map(|(position, to)| self.destination(&key(&format!("to[{position}]")), to, topics))
                        .collect(),
                )
            };
            routes.push(Route {
                name: route.name.clone(),
                matches,
                filter,
                action,
                continue_matching: route.continue_matching,
            });
        }
        routes
    }

    fn destination(&mut self, key: &str, raw: &RawDestination, topics: &Topics<'_>) -> Option<Destination> {
        if !topics.known.contains(&raw.output.as_str()) {
            let hint = nearest(&raw.output, topics.known.iter().copied()).map_or_else(
                || match topics.known {
                    [] => "; there are no outputs".to_owned(),
                    known => format!("; outputs are {}", known.join(", ")),
                },
                |name| format!("; did you mean `{name}`?"),
            );
            self.wrong(&format!("{key}.output"), format!("there is no output `{}`{hint}", raw.output));
            return None;
        }
        // An output that is there but could not be read has its own error.
        let kind = *topics.kinds.get(raw.output.as_str())?;
        let topic = match (&raw.topic, kind) {
            (Some(topic), _) => topic.as_str(),
            (None, "console") => "console",
            (None, _) => {
                self.wrong(&format!("{key}.topic"), "missing; it names where on the output the event goes");
                return None;
            }
        };
        let topic = match Template::parse_topic(topic) {
            Ok(topic) => topic,
            Err(error) => {
                self.wrong(&format!("{key}.topic"), error.to_string());
                return None;
            }
        };
        if let Err(error) = check_topic(kind, &topic, topics.type_prefix) {
            self.wrong(&format!("{key}.topic"), error);
        }
        if raw.key.is_some() && kind != "kafka" {
            self.wrong(&format!("{key}.key"), format!("an output of kind {kind} has no keys; leave it out"));
        }
        let template = raw.key.as_deref().unwrap_or("{partitionkey}");
        let record_key = match Template::parse(template) {
            Ok(record_key) => record_key,
            Err(error) => {
                self.wrong(&format!("{key}.key"), error.to_string());
                return None;
            }
        };
        Some(Destination { output: raw.output.clone(), topic, key: record_key, mode: raw.mode })
    }
}

/// What the configuration amounts to, as TOML.
fn effective(raw: &Raw, inputs: &[(String, InputConfig)], outputs: &[(String, OutputConfig)]) -> String {
    let mut root = toml::Table::new();
    let mut put = |section: &str, name: &str, kind: &str, table: Result<toml::Table, toml::ser::Error>| {
        let Ok(table) = table else { return };
        let mut plugin = toml::Table::from_iter([("kind".to_owned(), kind.into())]);
        plugin.extend(table);
        if let toml::Value::Table(section) =
            root.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()))
        {
            section.insert(name.to_owned(), toml::Value::Table(plugin));
        }
    };
    for (name, input) in inputs {
        let table = match input {
            InputConfig::Http(http) => toml::Table::try_from(http),
            InputConfig::Mns(mns) => toml::Table::try_from(mns),
        };
        put("inputs", name, input.kind(), table);
    }
    for (name, output) in outputs {
        let table = match output {
            OutputConfig::Kafka(kafka) => toml::Table::try_from(kafka),
            OutputConfig::Nats(nats) => toml::Table::try_from(nats),
            OutputConfig::Console(console) => toml::Table::try_from(console),
        };
        put("outputs", name, output.kind(), table);
    }
    let rest = Raw { inputs: BTreeMap::new(), outputs: BTreeMap::new(), ..raw.clone() };
    if let Ok(rest) = toml::Table::try_from(&rest) {
        root.extend(rest);
    }
    toml::to_string_pretty(&root).unwrap_or_default()
}
