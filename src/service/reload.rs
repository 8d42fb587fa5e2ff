//! Changing a running service: which keys it takes over, when their files are read again, and how.
//!
//! The files of the configuration and of the catalogue are read together and applied all or nothing. Each secret and
//! each certificate pair is read alone; while it cannot be used, the last good one stays. A change is applied within
//! five seconds, and at once when it is asked for. A reload that fails is logged and counted, and is tried again when
//! one of the files changes again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::mpsc;

use super::Settings;
use crate::admin::CurrentPage;
use crate::bridge::{Bridge, Rules};
use crate::common::file;
use crate::common::tls;
use crate::common::validation::FieldError;
use crate::common::watch::{Fingerprint, Reread, WatchedFiles};
use crate::dialect::Normalizer;
use crate::input::{self, InputReload};
use crate::route::Route;
use crate::telemetry::logs::LogFilter;
use crate::telemetry::metrics::Metrics;

/// The keys that a running service takes over, without those of inputs, which are in [`input::KINDS`]. A key stands for
/// all keys below it. Every other key needs a restart.
pub const RELOADABLE: &[&str] = &[
    "routes",
    "event",
    "catalogue",
    "dead_letters",
    "spool.max_bytes",
    "spool.lane_share",
    "delivery.give_up_after",
    "delivery.max_in_flight",
    "delivery.max_in_flight_bytes",
    "dedupe",
    "admin.page",
    "admin.show_payloads",
    "log.filter",
    // A running service ignores them.
    "tests",
];

/// How often files are looked at. A change is applied at the second look that finds it.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The words of the label `result` of reloads.
const RESULTS: [&str; 2] = ["success", "failure"];

/// Whether a running service takes over a key. `kind` gives the kind of the input with a name.
pub fn is_reloadable<'k>(key: &[String], kind: impl Fn(&str) -> Option<&'k str>) -> bool {
    let parts: Vec<&str> = key.iter().map(String::as_str).collect();
    let starts_with = |known: &str| known.split('.').zip(&parts).filter(|(one, other)| one == *other).count();
    let covers = |known: &&&str| starts_with(known) == known.split('.').count();
    if let ["inputs", name, rest @ ..] = parts.as_slice() {
        let kind = kind(name).and_then(|kind| input::KINDS.iter().find(|known| known.name == kind));
        return kind.is_some_and(|kind| rest.first().is_some_and(|key| kind.reloadable.contains(&without_index(key))));
    }
    RELOADABLE.iter().any(|known| covers(&known))
}

/// A key without the index of an item.
fn without_index(key: &str) -> &str {
    key.split('[').next().unwrap_or(key)
}

/// Those of some keys that need a restart, as they are written.
pub fn restart_keys<'k>(keys: Vec<Vec<String>>, kind: impl Fn(&str) -> Option<&'k str>) -> Vec<String> {
    keys.into_iter().filter(|key| !is_reloadable(key, &kind)).map(|key| key.join(".")).collect()
}

/// A configuration to take over.
#[derive(Debug)]
pub struct Candidate {
    /// The settings.
    pub settings: Settings,
    /// Keys that have changed and need a restart.
    pub restart_keys: Vec<String>,
    /// What is valid but looks like a mistake.
    pub warnings: Vec<String>,
    /// What is read again when its files change.
    pub rereads: Vec<Arc<dyn Reread>>,
}

/// A configuration that was read again, valid or not.
#[derive(Debug)]
pub struct LoadAttempt {
    /// The configuration, or every error that was found.
    pub result: Result<Candidate, Vec<String>>,
    /// The files it depends on, with the contents that were read.
    pub files: Vec<(PathBuf, Fingerprint)>,
}

/// Reads the configuration again. Blocks.
pub type Load = Arc<dyn Fn() -> LoadAttempt + Send + Sync>;

/// Changes a running service.
#[derive(Debug)]
pub struct Reloader {
    bridge: Arc<Bridge>,
    /// The kinds of the running outputs, by their names.
    output_kinds: BTreeMap<String, &'static str>,
    inputs: Vec<(String, Arc<dyn InputReload>)>,
    page: CurrentPage,
}

/// Something that is read again when its files change.
struct Watched {
    reread: Weak<dyn Reread>,
    files: WatchedFiles,
    /// Whether the certificates in the files have been looked at.
    is_known: bool,
}

impl Watched {
    fn new(reread: &Arc<dyn Reread>) -> Watched {
        Watched { reread: Arc::downgrade(reread), files: WatchedFiles::new(reread.files()), is_known: false }
    }
}

/// The files that are watched.
struct Files {
    configuration: WatchedFiles,
    rereads: Vec<Watched>,
}

impl Reloader {
    pub(super) fn new(
        bridge: Arc<Bridge>,
        output_kinds: BTreeMap<String, &'static str>,
        inputs: Vec<(String, Arc<dyn InputReload>)>,
        page: CurrentPage,
    ) -> Reloader {
        for result in RESULTS {
            bridge.metrics().config_reloads_total.with_label_values(&[result]);
        }
        Reloader { bridge, output_kinds, inputs, page }
    }

    /// Watches the files, and applies what changed, until the runtime ends. Every message of `requests` has everything
    /// read again at once. `files` and `rereads` are those of the running configuration.
    pub async fn run(
        self,
        load: Load,
        log_filter: LogFilter,
        files: Vec<(PathBuf, Fingerprint)>,
        rereads: Vec<Arc<dyn Reread>>,
        mut requests: mpsc::Receiver<()>,
    ) {
        let mut files =
            Files { configuration: WatchedFiles::new(files), rereads: rereads.iter().map(Watched::new).collect() };
        // Only the running parts keep what they read; this holds nothing else alive.
        drop(rereads);
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let is_requested = tokio::select! {
                _ = looks.tick() => false,
                request = requests.recv() => match request {
                    Some(()) => true,
                    None => return,
                },
            };
            let (load, metrics) = (load.clone(), self.bridge.metrics().clone());
            // Reading files can block for long, for example on a network volume.
            let looked = tokio::task::spawn_blocking(move || {
                let results = files.read_again(is_requested);
                files.look_for_certificates(&metrics);
                let is_due = files.configuration.has_changed() || is_requested;
                let attempt = is_due.then(|| load());
                (files, results, attempt)
            });
            let (looked, results, attempt) = match looked.await {
                Ok(looked) => looked,
                Err(error) => {
                    tracing::error!(%error, "files are not watched any more: restart to apply changes");
                    return;
                }
            };
            files = looked;
            results.into_iter().for_each(|is_success| self.count(is_success));
            let Some(attempt) = attempt else { continue };
            files.configuration = WatchedFiles::new(attempt.files);
            match attempt.result {
                Ok(candidate) => {
                    files.rereads.extend(candidate.rereads.iter().map(Watched::new));
                    self.take_over(candidate, &log_filter);
                }
                Err(errors) => {
                    for error in errors {
                        tracing::error!(error, "configuration");
                    }
                    tracing::error!("the configuration was not reloaded: nothing has changed");
                    self.count(false);
                }
            }
        }
    }

    /// Takes over the reloadable part of a configuration: all of it or nothing.
    fn take_over(&self, candidate: Candidate, log_filter: &LogFilter) {
        for warning in &candidate.warnings {
            tracing::warn!(warning, "configuration");
        }
        match self.apply(candidate.settings, log_filter) {
            Ok(()) => {
                tracing::info!("the configuration was reloaded");
                if !candidate.restart_keys.is_empty() {
                    tracing::warn!(keys = candidate.restart_keys.join(", "), "changed keys need a restart");
                }
                self.count(true);
            }
            Err(error) => {
                tracing::error!(%error, "the configuration was not reloaded: nothing has changed");
                self.count(false);
            }
        }
    }

    /// Nothing has changed if this fails.
    fn apply(&self, settings: Settings, log_filter: &LogFilter) -> Result<(), NotApplied> {
        self.check(&settings)?;
        let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
        let rules = Rules::new(normalizer, settings.router, settings.dead_letters, self.bridge.metrics());
        let bounds = settings.store.map(|store| store.bounds);
        let prefix_before = self.bridge.type_prefix();
        self.bridge.reconfigure(rules, &settings.delivery, bounds);
        let is_running = |name: &String| self.inputs.iter().any(|(running, _)| running == name);
        let places = settings.inputs.iter().filter(|input| is_running(&input.name));
        self.bridge.describe_places(places.map(|input| (input.name.clone(), input.places())));
        for input in settings.inputs {
            if let Some((_, running)) = self.inputs.iter().find(|(name, _)| *name == input.name) {
                running.apply(input.settings, self.bridge.metrics());
            }
        }
        let has_page_changed = self.page.set(settings.admin.page);
        let have_payloads_changed = self.bridge.feed().show_payloads(settings.admin.show_payloads);
        // Other changes do not matter to who watches, and to end the streams would lose entries.
        if has_page_changed || have_payloads_changed || self.bridge.type_prefix() != prefix_before {
            self.bridge.feed().reloaded();
        }
        log_filter.set(&settings.log.1);
        Ok(())
    }

    /// Whether settings that are valid by themselves fit what runs.
    fn check(&self, settings: &Settings) -> Result<(), NotApplied> {
        let destinations = settings.router.routes().iter().flat_map(Route::destinations).chain(&settings.dead_letters);
        for destination in destinations {
            let name = &destination.output;
            let wanted = settings.outputs.iter().find(|output| output.name == *name).map(|output| output.kind);
            match (self.output_kinds.get(name), wanted) {
                (None, _) => return Err(NotApplied::OutputNotRunning(name.clone())),
                // Its routes were checked by the rules of the other kind.
                (Some(running), Some(wanted)) if *running != wanted => {
                    return Err(NotApplied::OtherKind { name: name.clone(), running, wanted });
                }
                (Some(_), _) => {}
            }
        }
        for input in &settings.inputs {
            if let Some((_, running)) = self.inputs.iter().find(|(name, _)| *name == input.name) {
                running.check(&*input.settings)?;
            }
        }
        Ok(())
    }

    fn count(&self, is_success: bool) {
        let result = RESULTS[usize::from(!is_success)];
        self.bridge.metrics().config_reloads_total.with_label_values(&[result]).inc();
    }
}

/// Why a valid configuration cannot be applied to what runs.
#[derive(Debug, thiserror::Error)]
enum NotApplied {
    #[error("events are to go to output `{0}`, which is not running: restart to add it")]
    OutputNotRunning(String),
    #[error("output `{name}` runs as {running}, and is {wanted} in the new configuration: restart to change it")]
    OtherKind { name: String, running: &'static str, wanted: &'static str },
    #[error("{0}")]
    Input(#[from] FieldError),
}

impl Files {
    /// Reads secrets and certificates again whose files changed, or all of them. Returns which of these reads
    /// succeeded.
    fn read_again(&mut self, all: bool) -> Vec<bool> {
        self.rereads.retain(|watched| watched.reread.strong_count() > 0);
        let mut results = Vec::new();
        for watched in &mut self.rereads {
            let has_changed = watched.files.has_changed();
            let Some(reread) = watched.reread.upgrade() else { continue };
            let paths: Vec<String> = watched.files.paths().map(|path| path.display().to_string()).collect();
            if paths.is_empty() || !(has_changed || all) {
                continue;
            }
            let (what, files) = (reread.name(), paths.join(", "));
            if !has_changed {
                // Contents that cannot be used are not tried again. Taken before they are read, because they may change
                // in between.
                watched.files.acknowledge();
            }
            let result = reread.reread();
            if result.is_ok() {
                watched.files = WatchedFiles::new(reread.files());
                watched.is_known = false;
            }
            match &result {
                Ok(()) if has_changed => tracing::info!(what, files, "read again, because its file changed"),
                Ok(()) => {}
                Err(error) => tracing::error!(what, %error, "cannot be read again; the last good one stays"),
            }
            if has_changed || result.is_err() {
                results.push(result.is_ok());
            }
        }
        results
    }
}

impl Files {
    /// Exports when the certificates in use expire.
    fn look_for_certificates(&mut self, metrics: &Metrics) {
        for watched in self.rereads.iter_mut().filter(|watched| !watched.is_known) {
            watched.is_known = true;
            for path in watched.files.paths() {
                let expiry = file::read(path).ok().and_then(|pem| tls::first_expiry(&pem));
                if let (Some(expiry), Some(path)) = (expiry, path.to_str()) {
                    metrics.certificate_expiry_timestamp_seconds.with_label_values(&[path]).set(expiry.as_secs_f64());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_reloadable_by_the_one_list() {
        let is = |key: &str| {
            let key: Vec<String> = key.split('.').map(str::to_owned).collect();
            is_reloadable(&key, |name| (name == "web").then_some("http"))
        };
        for key in ["routes", "event.type_prefix", "dead_letters.to.topic", "spool.max_bytes", "dedupe.window"] {
            assert!(is(key), "{key}");
        }
        for key in ["inputs.web.endpoints", "inputs.web.max_body", "inputs.web.endpoints[0].keys[0]"] {
            assert!(is(key), "{key}");
        }
        for key in
            ["spool.path", "delivery.deadline", "outputs.kafka.brokers", "inputs.web.listen", "inputs.new.endpoints"]
        {
            assert!(!is(key), "{key}");
        }
    }
}
