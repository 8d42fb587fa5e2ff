//! Checks of the sections, each of which gives the settings of a part. Everything that is wrong is reported.

use std::collections::{BTreeMap, HashSet};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use super::raw::{
    Raw, RawAdmin, RawCatalogue, RawDeadLetters, RawDedupe, RawDelivery, RawDestination, RawRoute, RawSpool,
};
use crate::admin::AdminSettings;
use crate::bridge::{DedupeSettings, Delivery};
use crate::common::suggest::nearest;
use crate::common::units::Size;
use crate::common::validation::Validation;
use crate::common::watch::Fingerprint;
use crate::common::{address, file};
use crate::dialect::Catalogue;
use crate::input::CheckedInput;
use crate::output::{DestinationRules, TopicRule};
use crate::route::{Action, Destination, Filter, Route, Template, parse_match};
use crate::store::{StoreBounds, StoreSettings};

/// IMS waits three seconds for an answer (Alibaba's page on IMS callbacks), VOD five: the deadline stays below both.
const LONGEST_DEADLINE: Duration = Duration::from_millis(2900);

pub(super) fn type_prefix(prefix: &str, validation: &mut Validation) {
    let is_legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if prefix.is_empty() || !prefix.chars().all(is_legal) {
        let message = format!("invalid prefix `{prefix}`: expected one like com.example.media.");
        validation.wrong("event.type_prefix", message);
    }
}

/// Reads the catalogue. Adds its files to `files`.
pub(super) fn catalogue(
    raw: &RawCatalogue,
    files: &mut Vec<(PathBuf, Fingerprint)>,
    validation: &mut Validation,
) -> Option<Catalogue> {
    let mut texts = Vec::new();
    for path in &raw.files {
        // Taken before the file is read, because it may change in between.
        let found = Fingerprint::of_file(path);
        match file::read_text(path) {
            Ok(text) => {
                files.push((path.clone(), Fingerprint::of(text.as_bytes())));
                texts.push((path.display().to_string(), text));
            }
            Err(error) => {
                files.push((path.clone(), found));
                validation.wrong("catalogue.files", format!("{} cannot be read: {error}", path.display()));
            }
        }
    }
    match Catalogue::load(&texts) {
        Ok(catalogue) => Some(catalogue),
        Err(error) => {
            validation.wrong("catalogue.files", error.to_string());
            None
        }
    }
}

pub(super) fn delivery(raw: &RawDelivery, dedupe: &RawDedupe, validation: &mut Validation) -> Delivery {
    let deadline = raw.deadline.0;
    if deadline.is_zero() || deadline > LONGEST_DEADLINE {
        let message = format!(
            "{} is out of range: expected more than 0s and at most {}, because IMS waits 3s for an answer",
            raw.deadline,
            humantime::format_duration(LONGEST_DEADLINE)
        );
        validation.wrong("delivery.deadline", message);
    }
    if raw.max_in_flight == 0 || raw.max_in_flight > tokio::sync::Semaphore::MAX_PERMITS {
        validation.wrong("delivery.max_in_flight", "expected at least 1");
    }
    if raw.give_up_after.0.is_zero() {
        validation.wrong("delivery.give_up_after", "expected more than 0s, for example \"1h\"");
    }
    if raw.max_in_flight_bytes.0 == 0 || i64::try_from(raw.max_in_flight_bytes.0).is_err() {
        let message = format!("{} is out of range: expected more than 0B", raw.max_in_flight_bytes);
        validation.wrong("delivery.max_in_flight_bytes", message);
    }
    if dedupe.max_ids == 0 {
        validation.wrong("dedupe.max_ids", "expected at least 1; dedupe.window = \"0s\" turns the window off");
    }
    Delivery {
        deadline,
        give_up_after: raw.give_up_after.0,
        max_in_flight: raw.max_in_flight,
        max_in_flight_bytes: raw.max_in_flight_bytes.0,
        dedupe: DedupeSettings { window: dedupe.window.0, max_ids: dedupe.max_ids },
    }
}

/// The settings of the store; none without a spool.
pub(super) fn store(
    spool: &RawSpool,
    dead_letters: &RawDeadLetters,
    validation: &mut Validation,
) -> Option<StoreSettings> {
    if spool.enabled && spool.path.as_os_str().is_empty() {
        validation.wrong("spool.path", "expected a folder");
    }
    for (key, share) in [
        ("spool.lane_share", spool.lane_share),
        ("dead_letters.not_a_callback_share", dead_letters.not_a_callback_share),
    ] {
        if !(share > 0.0 && share <= 1.0) {
            validation.wrong(key, format!("{share} is out of range: expected more than 0 and at most 1"));
        }
    }
    let part = |bytes: Size, share: f64| (bytes.0 as f64 * share) as u64;
    for (key, size) in [("spool.max_bytes", spool.max_bytes), ("dead_letters.max_bytes", dead_letters.max_bytes)] {
        if size.0 == 0 || i64::try_from(size.0).is_err() {
            validation.wrong(key, format!("{size} is out of range: expected more than 0B"));
        }
    }
    if dead_letters.max_age.is_some_and(|age| age.0.is_zero()) {
        validation
            .wrong("dead_letters.max_age", "expected more than 0s, for example \"30d\"; leave it out to keep them");
    }
    spool.enabled.then(|| StoreSettings {
        path: spool.path.clone(),
        bounds: StoreBounds {
            spool_max_bytes: spool.max_bytes.0,
            lane_max_bytes: part(spool.max_bytes, spool.lane_share),
            dead_letters_max_bytes: dead_letters.max_bytes.0,
            not_a_callback_max_bytes: part(dead_letters.max_bytes, dead_letters.not_a_callback_share),
            dead_letters_max_age: dead_letters.max_age.map(|age| age.0),
        },
    })
}

pub(super) fn admin(raw: &RawAdmin, validation: &mut Validation) -> AdminSettings {
    let listen = match raw.listen.to_socket_addrs() {
        Ok(addresses) => addresses.collect(),
        Err(error) => {
            let message = format!("invalid address `{}`: expected host:port ({error})", raw.listen);
            validation.wrong("admin.listen", message);
            Vec::new()
        }
    };
    AdminSettings { listen, page: raw.page, show_payloads: raw.show_payloads }
}

/// Reports listeners that cannot be bound together: inputs that want the address of the admin listener, or of another
/// input.
pub(super) fn listeners(admin: &AdminSettings, inputs: &[CheckedInput], validation: &mut Validation) {
    let inputs = inputs.iter().map(|input| (format!("inputs.{}.listen", input.name), input.settings.listen()));
    let mut earlier: Vec<(String, SocketAddr)> = Vec::new();
    for (key, addresses) in [("admin.listen".to_owned(), &*admin.listen)].into_iter().chain(inputs) {
        // The others are used only where this one cannot be bound.
        let Some(wanted) = addresses.first() else { continue };
        if let Some((other, _)) = earlier.iter().find(|(_, other)| address::overlap(wanted, other)) {
            let message = format!("{wanted} is the address of {other} too: expected another port or address");
            validation.wrong(&key, message);
        }
        earlier.push((key, *wanted));
    }
}

/// What must be there at least.
pub(super) fn presence(raw: &Raw, with_inputs: bool, validation: &mut Validation) {
    if raw.inputs.is_empty() && with_inputs {
        validation.wrong("inputs", "expected at least one, for example [inputs.http] with kind = \"http\"");
    }
    if raw.outputs.is_empty() {
        validation.wrong("outputs", "expected at least one, for example [outputs.kafka] with kind = \"kafka\"");
    }
    if raw.routes.is_empty() {
        validation.wrong("routes", "expected at least one, for example [[routes]] with name and to");
    }
}

/// What destinations are checked against.
pub(super) struct Destinations<'a> {
    /// The rules of the outputs that could be read.
    pub(super) rules: BTreeMap<&'a str, (&'static str, DestinationRules)>,
    /// The names of all outputs.
    pub(super) outputs: Vec<&'a str>,
    pub(super) type_prefix: &'a str,
}

impl Destinations<'_> {
    /// Whether an output has topics that destinations name.
    pub(super) fn has_topics(&self, output: &str) -> bool {
        self.rules.get(output).is_some_and(|(_, rules)| matches!(rules.topic, TopicRule::Required(_)))
    }

    pub(super) fn routes(&self, raw: &[RawRoute], validation: &mut Validation) -> Vec<Route> {
        let mut names = HashSet::new();
        let mut routes = Vec::new();
        for (index, route) in raw.iter().enumerate() {
            let key = |field: &str| format!("routes[{index}].{field}");
            if route.name.is_empty() {
                validation.wrong(&key("name"), "missing; metrics and logs name a route by it");
            } else if !names.insert(route.name.as_str()) {
                validation.wrong(&key("name"), format!("two routes are named `{}`", route.name));
            }
            let matches = parse_match(&route.matches, self.type_prefix).unwrap_or_else(|errors| {
                for error in errors {
                    validation.wrong(&key(&format!("match.{}", error.attribute)), error.to_string());
                }
                Vec::new()
            });
            let filter = Filter::compile_all(&route.filter).unwrap_or_else(|errors| {
                errors.into_iter().for_each(|error| validation.wrong(&key("filter"), error.to_string()));
                None
            });
            let action = self.action(index, route, validation);
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

    fn action(&self, index: usize, route: &RawRoute, validation: &mut Validation) -> Action {
        let given = [!route.to.is_empty(), route.drop, route.dead_letter];
        if given.into_iter().filter(|given| *given).count() != 1 {
            let message = "expected one of `to` with at least one destination, `drop = true`, `dead_letter = true`";
            validation.wrong(&format!("routes[{index}]"), format!("{message} in route `{}`", route.name));
        }
        if route.drop {
            return Action::Drop;
        }
        if route.dead_letter {
            return Action::DeadLetter;
        }
        let key = |position| format!("routes[{index}].to[{position}]");
        let destinations = route.to.iter().enumerate();
        Action::To(destinations.filter_map(|(position, to)| self.check(&key(position), to, validation)).collect())
    }

    /// Checks one destination.
    pub(super) fn check(&self, key: &str, raw: &RawDestination, validation: &mut Validation) -> Option<Destination> {
        if !self.outputs.contains(&raw.output.as_str()) {
            validation.wrong(&format!("{key}.output"), no_output(&raw.output, &self.outputs));
            return None;
        }
        // An output that could not be read has its own error.
        let (kind, rules) = *self.rules.get(raw.output.as_str())?;
        let topic = self.topic(key, raw, kind, rules.topic, validation)?;
        if raw.key.is_some() && !rules.has_keys {
            validation.wrong(&format!("{key}.key"), format!("an output of kind {kind} has no keys; leave it out"));
        }
        let template = raw.key.as_deref().unwrap_or("{partitionkey}");
        match Template::parse(template) {
            Ok(record_key) => Some(Destination { output: raw.output.clone(), topic, key: record_key, mode: raw.mode }),
            Err(error) => {
                validation.wrong(&format!("{key}.key"), error.to_string());
                None
            }
        }
    }

    fn topic(
        &self,
        key: &str,
        raw: &RawDestination,
        kind: &str,
        rule: TopicRule,
        validation: &mut Validation,
    ) -> Option<Template> {
        let key = format!("{key}.topic");
        let text = match (&raw.topic, rule) {
            (Some(_), TopicRule::None(_)) => {
                validation.wrong(&key, format!("an output of kind {kind} has no topics; leave it out"));
                return None;
            }
            (Some(topic), _) => topic.as_str(),
            (None, TopicRule::None(word) | TopicRule::Optional(word)) => word,
            (None, TopicRule::Required(_)) => {
                validation.wrong(&key, "missing; it names where on the output the event goes");
                return None;
            }
        };
        let template = match Template::parse_topic(text) {
            Ok(template) => template,
            Err(error) => {
                validation.wrong(&key, error.to_string());
                return None;
            }
        };
        if let Some(fault) = topic_fault(&template, &rule, self.type_prefix) {
            validation.wrong(&key, fault);
        }
        Some(template)
    }
}

/// That there is no output of a name. `outputs` are the names of all.
pub(super) fn no_output(name: &str, outputs: &[&str]) -> String {
    format!("there is no output `{name}`{}", output_hint(name, outputs))
}

/// The end of an error about an output that does not exist: the similar one, or the list of all.
pub fn output_hint(name: &str, outputs: &[&str]) -> String {
    match nearest(name, outputs.iter().copied()) {
        Some(name) => format!("; did you mean `{name}`?"),
        None if outputs.is_empty() => "; there are no outputs".to_owned(),
        None => format!("; outputs are {}", outputs.join(", ")),
    }
}

/// What is wrong with a topic by the rules of its output.
pub fn topic_fault(topic: &Template, rule: &TopicRule, type_prefix: &str) -> Option<String> {
    let TopicRule::Required(syntax) = rule else { return None };
    if let Some(literal) = topic.literals().find(|literal| !literal.chars().all(syntax.is_legal)) {
        return Some(format!("invalid characters in `{literal}`: expected {}", syntax.legal));
    }
    if let Some(fault) = (syntax.fault)(&topic.to_string()) {
        return Some(format!("invalid topic `{topic}`: {fault}"));
    }
    let longest = topic.longest_topic(type_prefix);
    let limit = syntax.max_bytes.filter(|limit| longest > *limit)?;
    Some(format!("`{topic}` can become {longest} bytes long; the limit is {limit}"))
}

// Only the outputs of these features have rules for topics.
#[cfg(test)]
#[cfg(all(feature = "kafka", feature = "nats"))]
mod tests {
    use super::*;
    use crate::output::KINDS;

    fn is_valid(kind: &str, topic: &str) -> bool {
        let kind = KINDS.iter().find(|known| known.name == kind).expect("known");
        let config = (kind.read)(&figment::value::Dict::new().into()).expect("defaults");
        let topic = Template::parse_topic(topic).expect("valid");
        topic_fault(&topic, &config.destination_rules().topic, "com.aliyun.media.").is_none()
    }

    #[test]
    fn topics_follow_the_rules_of_their_output() {
        assert!(is_valid("kafka", "media.{status}"));
        for wrong in ["media/{status}", "m.{status}.{type}.{subject}.{mediaid}", ".."] {
            assert!(!is_valid("kafka", wrong), "{wrong}");
        }
        assert!(is_valid("nats", "media.{status}"));
        for wrong in ["media.>", "media..x", "media.", "$JS.x", "a b.{status}"] {
            assert!(!is_valid("nats", wrong), "{wrong}");
        }
    }
}
