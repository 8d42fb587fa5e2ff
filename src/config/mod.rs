//! The configuration: layers merged by figment, then checked as a whole.
//!
//! The layers, later ones over earlier ones: the defaults; the files in the order given (TOML, or YAML by their ending);
//! `APSARA_BRIDGE__SECTION__KEY` in the environment; `--set section.key=value`. The result is read into structures
//! ([`raw`]) and checked into [`Settings`]. All errors are reported at once, each with its file and key. An unknown key
//! is an error.
//!
//! # Layout
//!
//! - `layers`: merges the layers and reads sections
//! - [`raw`]: the keys and their defaults; `kinds`: the sections of inputs and outputs
//! - `check`: checks; `lint`: warnings
//! - [`route_tests`]: tests of the routes, in the configuration or in files of their own
//! - `effective`: what a configuration results in; `schema`: its JSON Schema

mod bounds;
mod check;
mod effective;
mod kinds;
mod layers;
mod lint;
pub mod raw;
pub mod route_tests;
mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::bridge::Delivery;
use crate::common::validation::{Validated, Validation};
use crate::common::watch::{Fingerprint, Reread};
use crate::dialect::{Catalogue, Normalizer};
use crate::output::OutputConfig;
use crate::route::{Destination, Route, Router};
use crate::service::Settings;
use crate::store::StoreSettings;
use crate::telemetry::logs;
pub use bounds::descriptors_needed;
use check::Destinations;
pub use check::{output_hint, topic_fault};
use kinds::Named;
pub use layers::{ConfigError, ENV_PREFIX, Layer};
use layers::{Reader, Unreadable};
use raw::{Raw, RawAdmin, RawCatalogue, RawDeadLetters, RawEvent, RawSpool};
use route_tests::{RouteRules, RouteTests};
pub use schema::json_schema;

/// A valid configuration.
#[derive(Debug)]
pub struct Loaded {
    /// What the service is built from.
    pub settings: Settings,
    /// The configuration with its defaults, secrets hidden.
    pub effective: Effective,
    /// What is valid but looks like a mistake.
    pub warnings: Vec<String>,
    /// What is read again when its files change: secrets and certificates.
    pub rereads: Vec<Arc<dyn Reread>>,
    /// Bytes of memory that the service takes at its bounds.
    pub memory: u64,
}

/// The configuration with its defaults, secrets hidden but known.
#[derive(Debug)]
pub struct Effective {
    table: toml::Table,
    inline_secrets: InlineSecrets,
}

/// The secrets in the configuration itself, by their keys. Never printed.
struct InlineSecrets(BTreeMap<String, Arc<str>>);

impl fmt::Debug for InlineSecrets {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl Effective {
    /// As TOML, secrets hidden.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.table).unwrap_or_default()
    }

    /// The value of a key as text, a string without quotes, a secret hidden. None if there is no such key.
    pub fn text(&self, key: &str) -> Option<String> {
        let value = effective::at(&self.table, key)?;
        Some(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// The kind of an input.
    pub fn input_kind(&self, name: &str) -> Option<&str> {
        self.table.get("inputs")?.get(name)?.get("kind")?.as_str()
    }

    /// The keys whose values differ from those of another configuration. A secret in the configuration itself is
    /// compared by its value.
    pub fn changed_keys(&self, other: &Effective) -> Vec<Vec<String>> {
        let mut keys = effective::changed_keys(&self.table, &other.table);
        for (key, secret) in &self.inline_secrets.0 {
            if other.inline_secrets.0.get(key).is_some_and(|other| other != secret) {
                keys.push(key.split('.').map(str::to_owned).collect());
            }
        }
        keys
    }
}

/// A configuration, valid or not, and the files that it was read from.
#[derive(Debug)]
pub struct Attempt {
    /// The configuration, or every error that was found.
    pub result: Result<Loaded, Vec<ConfigError>>,
    /// Its files and those of the catalogue, and the files of secrets and certificates that could not be used, with the
    /// contents that were read.
    pub files: Vec<(PathBuf, Fingerprint)>,
}

/// Loads and checks a configuration. Blocks.
///
/// # Errors
/// Every error that was found.
pub fn load(layers: &[Layer]) -> Result<Loaded, Vec<ConfigError>> {
    load_parts(layers, true).result
}

/// Loads and checks a configuration, and reports which files it was read from. Blocks.
pub fn load_with_files(layers: &[Layer]) -> Attempt {
    load_parts(layers, true)
}

/// Loads and checks a configuration without its inputs. They may be missing, or wrong, or need secrets that are not
/// there. Blocks.
///
/// # Errors
/// Every error that was found in the rest.
pub fn load_without_inputs(layers: &[Layer]) -> Result<Loaded, Vec<ConfigError>> {
    load_parts(layers, false).result
}

fn load_parts(layers: &[Layer], with_inputs: bool) -> Attempt {
    let mut reader = match Reader::new(layers) {
        Ok(reader) => reader,
        Err(Unreadable { errors, files }) => return Attempt { result: Err(errors), files },
    };
    let mut files = std::mem::take(&mut reader.files);
    let result = check_all(&mut reader, with_inputs, &mut files);
    Attempt { result: result.ok_or_else(|| reader.into_errors()), files }
}

/// Checks everything. Gives none when there are errors, which are noted in the reader.
fn check_all(reader: &mut Reader, with_inputs: bool, files: &mut Vec<(PathBuf, Fingerprint)>) -> Option<Loaded> {
    let raw: Raw = reader.section(&[]);
    let inputs = if with_inputs { kinds::inputs(reader, &raw.inputs) } else { Vec::new() };
    let outputs = kinds::outputs(reader, &raw.outputs);
    let table = effective::effective(&raw, &inputs, &outputs);

    let mut validation = Validation::of("");
    let sections = Sections::check(&raw, &outputs, with_inputs, files, &mut validation);
    let Sections { type_prefix, catalogue, delivery, store, destinations, routes, dead_letters } = sections;
    let admin = check::admin(&raw.admin, &mut validation);
    let (checked_inputs, input_warnings) = kinds::check_inputs(&inputs, delivery.deadline, &mut validation);
    check::listeners(&admin, &checked_inputs, &mut validation);
    let to: Vec<&Destination> = routes.iter().flat_map(Route::destinations).chain(&dead_letters).collect();
    let (checked_outputs, output_warnings) = kinds::check_outputs(&outputs, delivery.deadline, &to, &mut validation);
    let router = Router::new(routes).map_err(|error| validation.wrong("routes", error.to_string())).ok();
    let Validated { errors, secrets, mut rereads, unusable } = validation.finish();
    files.extend(unusable);
    for error in errors {
        reader.wrong(&error.key, error.message);
    }
    if !reader.errors.is_empty() {
        return None;
    }
    let (catalogue, router) = (catalogue?, router?);
    let keeps_dead_letters = store.is_some() || dead_letters.is_some();
    let mut warnings = lint::all(&router, &catalogue, type_prefix, keeps_dead_letters);
    let has_topics = |output: &str| destinations.has_topics(output);
    warnings.extend(lint::open_topics(&router, &catalogue, type_prefix, dead_letters.as_ref(), has_topics));
    warnings.extend(lint::admin(&admin));
    warnings.extend(input_warnings.into_iter().chain(output_warnings));
    warnings.extend(secrets.iter().filter_map(|(key, secret)| Some(format!("{key}: {}", secret.warning()?))));
    let memory = bounds::memory(&checked_inputs, &delivery);
    warnings.extend(bounds::warnings(&checked_inputs, memory));
    warnings.extend(store.iter().flat_map(StoreSettings::warnings));
    let inline = secrets.iter().filter(|(_, secret)| secret.is_inline());
    let inline_secrets = InlineSecrets(inline.map(|(key, secret)| (key.clone(), secret.value())).collect());
    rereads.extend(secrets.iter().map(|(_, secret)| secret.clone() as Arc<dyn Reread>));
    Some(Loaded {
        settings: Settings {
            inputs: checked_inputs,
            outputs: checked_outputs,
            router,
            catalogue,
            type_prefix: type_prefix.to_owned(),
            delivery,
            dead_letters,
            store,
            admin,
            log: (raw.log.format, raw.log.filter),
            shutdown_delay: raw.shutdown.delay.0,
            shutdown_drain: raw.shutdown.drain.0,
        },
        effective: Effective { table, inline_secrets },
        warnings,
        memory,
        rereads,
    })
}

/// The sections that can be checked alike on every machine. Secrets, certificates and addresses are not among them.
struct Sections<'a> {
    type_prefix: &'a str,
    catalogue: Option<Catalogue>,
    delivery: Delivery,
    store: Option<StoreSettings>,
    destinations: Destinations<'a>,
    routes: Vec<Route>,
    dead_letters: Option<Destination>,
}

impl<'a> Sections<'a> {
    /// Checks them, and that nothing is missing. Adds the files of the catalogue to `files`.
    fn check(
        raw: &'a Raw,
        outputs: &'a [Named<dyn OutputConfig>],
        with_inputs: bool,
        files: &mut Vec<(PathBuf, Fingerprint)>,
        validation: &mut Validation,
    ) -> Sections<'a> {
        let type_prefix = raw.event.type_prefix.as_str();
        check::type_prefix(type_prefix, validation);
        let catalogue = check::catalogue(&raw.catalogue, files, validation);
        let delivery = check::delivery(&raw.delivery, &raw.dedupe, validation);
        let store = check::store(&raw.spool, &raw.dead_letters, validation);
        if let Err(error) = logs::check_filter(&raw.log.filter) {
            validation.wrong("log.filter", error.to_string());
        }
        let rules = |output: &Named<dyn OutputConfig>| (output.kind, output.config.destination_rules());
        let destinations = Destinations {
            rules: outputs.iter().map(|output| (output.name.as_str(), rules(output))).collect(),
            outputs: raw.outputs.keys().map(String::as_str).collect(),
            type_prefix,
        };
        let routes = destinations.routes(&raw.routes, validation);
        let dead_letters = raw.dead_letters.to.as_ref();
        let dead_letters = dead_letters.and_then(|to| destinations.check("dead_letters.to", to, validation));
        check::presence(raw, with_inputs, validation);
        Sections { type_prefix, catalogue, delivery, store, destinations, routes, dead_letters }
    }
}

/// Loads the routes of a configuration, the tests in it, and those in files of their own. Inputs may be missing. Secrets
/// and certificates are not read. Blocks.
///
/// # Errors
/// Every error in the configuration; if there is none, every error in the tests.
pub fn load_route_tests(layers: &[Layer], files: &[PathBuf]) -> Result<RouteTests, Vec<ConfigError>> {
    let mut reader = Reader::new(layers).map_err(|unreadable| unreadable.errors)?;
    let raw: Raw = reader.section(&[]);
    let inputs = kinds::inputs(&mut reader, &raw.inputs);
    let outputs = kinds::outputs(&mut reader, &raw.outputs);
    let mut validation = Validation::of("");
    let sections = Sections::check(&raw, &outputs, false, &mut Vec::new(), &mut validation);
    let router = Router::new(sections.routes).map_err(|error| validation.wrong("routes", error.to_string())).ok();
    for error in validation.errors() {
        reader.wrong(&error.key, error.message.clone());
    }
    let (Some(catalogue), Some(router), true) = (sections.catalogue, router, reader.errors.is_empty()) else {
        return Err(reader.into_errors());
    };
    let outputs = sections.destinations.rules.into_iter().map(|(name, rules)| (name.to_owned(), rules));
    let senders = inputs.iter().flat_map(|input| {
        let max_body = input.config.max_body();
        input.config.senders().into_iter().map(move |sender| (sender, max_body))
    });
    let rules = RouteRules {
        normalizer: Normalizer::new(catalogue, sections.type_prefix),
        router,
        senders: senders.collect(),
        outputs: outputs.collect(),
    };
    RouteTests::read(reader, files, rules)
}

/// Loads the part of a configuration that events are built by: `event` and `catalogue`. The rest may be missing, or
/// wrong. Blocks.
///
/// # Errors
/// Every error in those two sections, and files that cannot be read.
pub fn load_normalizer(layers: &[Layer]) -> Result<Normalizer, Vec<ConfigError>> {
    let mut reader = Reader::new(layers).map_err(|unreadable| unreadable.errors)?;
    let event: RawEvent = reader.section(&["event"]);
    let files: RawCatalogue = reader.section(&["catalogue"]);
    let mut validation = Validation::of("");
    check::type_prefix(&event.type_prefix, &mut validation);
    let catalogue = check::catalogue(&files, &mut Vec::new(), &mut validation);
    for error in validation.errors() {
        reader.wrong(&error.key, error.message.clone());
    }
    match catalogue {
        Some(catalogue) if reader.errors.is_empty() => Ok(Normalizer::new(catalogue, event.type_prefix)),
        _ => Err(reader.into_errors()),
    }
}

/// Loads the part of a configuration that says where the spool is: `spool` and `dead_letters`. The rest may be missing,
/// or wrong. Gives a store even if `spool.enabled` is false. Blocks.
///
/// # Errors
/// Every error in those two sections, and files that cannot be read.
pub fn load_store(layers: &[Layer]) -> Result<StoreSettings, Vec<ConfigError>> {
    let mut reader = Reader::new(layers).map_err(|unreadable| unreadable.errors)?;
    let spool: RawSpool = reader.section(&["spool"]);
    let dead_letters: RawDeadLetters = reader.section(&["dead_letters"]);
    let mut validation = Validation::of("");
    let store = check::store(&RawSpool { enabled: true, ..spool }, &dead_letters, &mut validation);
    for error in validation.errors() {
        reader.wrong(&error.key, error.message.clone());
    }
    store.filter(|_| reader.errors.is_empty()).ok_or_else(|| reader.into_errors())
}

/// Loads the kinds of the outputs. Everything else in the configuration may be missing, or wrong. Blocks.
///
/// # Errors
/// Files that cannot be read.
pub fn load_output_kinds(layers: &[Layer]) -> Result<BTreeMap<String, String>, Vec<ConfigError>> {
    let mut reader = Reader::new(layers).map_err(|unreadable| unreadable.errors)?;
    let named: BTreeMap<String, figment::value::Value> = reader.section(&["outputs"]);
    let kind = |name: String| {
        let kind = reader.take_string(&["outputs", &name, "kind"])?;
        Some((name, kind))
    };
    Ok(named.into_keys().filter_map(kind).collect())
}

/// Loads the address of the admin listener. The rest of the configuration may be missing, or wrong. Blocks.
///
/// # Errors
/// Every error in that section, and files that cannot be read.
pub fn load_admin_listen(layers: &[Layer]) -> Result<String, Vec<ConfigError>> {
    let mut reader = Reader::new(layers).map_err(|unreadable| unreadable.errors)?;
    let admin: RawAdmin = reader.section(&["admin"]);
    if reader.errors.is_empty() { Ok(admin.listen) } else { Err(reader.into_errors()) }
}
