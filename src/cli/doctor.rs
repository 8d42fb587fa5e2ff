//! `doctor`: checks a configuration against what is really there.
//!
//! Each input and output checks itself ([`crate::input::InputSettings::examine`], [`crate::output::OutputSettings::examine`]).
//! All checks run at the same time, and each has an end.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::{LocalBoxFuture, join_all};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::Instant;

use super::terminal::{fail, print, print_json};
use super::{ConfigArgs, FAILED, USAGE};
use crate::common::findings::{Finding, Findings, Verdict};
use crate::common::{clock, descriptors, server, visible};
use crate::config::{self, Loaded, output_hint, topic_fault};
use crate::contract;
use crate::dialect::{Normalizer, Origin};
use crate::event::Event;
use crate::output::{CheckedOutput, NeededTopic, Needs, Record, TopicRule};
use crate::route::{Destination, Route, Template};
use crate::service::Settings;
use crate::telemetry::metrics::Metrics;

/// How long the checks of one part may take together.
const LIMIT: Duration = Duration::from_secs(9);

/// How long an output has to connect and to publish the test.
const PUBLISH: Duration = Duration::from_secs(4);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Checks for real what a newcomer gets wrong: outputs, logins, topics, streams, queues and
their permissions, the URLs of the endpoints, the disk, the clock. It changes nothing:
nothing is published or created, and no message is received. To measure the disk, it
writes to a file without a name, which is gone when it is closed. It ends in about ten
seconds, also without a network.

Exits with 0 if nothing was found, with 1 if there are warnings or problems, and with 2
for wrong usage, including an invalid configuration. Run it as the user of the bridge and
with its environment.

--publish-test publishes one event, of the type ApsaraBridgeDoctor.

Examples:
  apsara-bridge doctor --config bridge.toml
  apsara-bridge doctor --config bridge.toml --json | jq '.checks[] | select(.verdict == \"problem\")'
  apsara-bridge doctor --config bridge.toml --publish-test kafka/media.vod
")]
pub(super) struct Doctor {
    #[command(flatten)]
    config: ConfigArgs,
    /// Also publish one marked event there: OUTPUT/TOPIC, a TOPIC that routes of one output lead to, or OUTPUT for an
    /// output without topics.
    #[arg(long, value_name = "TOPIC")]
    publish_test: Option<String>,
    /// Print the checks as JSON.
    #[arg(long)]
    json: bool,
}

/// What belongs together: an output, an input, the spool.
struct Part {
    name: String,
    findings: Findings,
}

impl Part {
    fn new(name: impl Into<String>) -> Part {
        Part { name: name.into(), findings: Findings::default() }
    }
}

impl Doctor {
    pub(super) fn run(self) -> ExitCode {
        let loaded = match self.config.load() {
            Ok(loaded) => loaded,
            Err(code) => return code,
        };
        let test = match self.publish_test.as_deref().map(|target| self.test(target)).transpose() {
            Ok(test) => test,
            Err(code) => return code,
        };
        let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return fail(format!("the runtime cannot be started: {error}")),
        };
        let parts = runtime.block_on(examine(loaded, test));
        // A disk or a name server that does not answer still blocks a thread. Nothing waits for it.
        runtime.shutdown_background();
        let found: Vec<(String, Vec<Finding>)> =
            parts.into_iter().map(|part| (part.name.clone(), part.findings.found())).collect();
        if self.json {
            print_json(format!("{:#}\n", to_json(&found)));
        } else {
            print(to_text(&found));
        }
        let count = count(&found);
        let is_fine = count(Verdict::Problem) + count(Verdict::Warning) == 0;
        if is_fine { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
    }

    /// The test publish, from settings of its own.
    fn test(&self, target: &str) -> Result<Test, ExitCode> {
        Test::new(target, self.config.load()?.settings).map_err(|error| {
            let _ = fail(format!("--publish-test {target}: {error}"));
            ExitCode::from(USAGE)
        })
    }
}

fn count(found: &[(String, Vec<Finding>)]) -> impl Fn(Verdict) -> usize + '_ {
    |verdict| found.iter().flat_map(|(_, findings)| findings).filter(|finding| finding.verdict == verdict).count()
}

/// Runs all checks at the same time.
async fn examine(loaded: Loaded, test: Option<Test>) -> Vec<Arc<Part>> {
    let settings = &loaded.settings;
    let mut needs = contract::needs(settings);
    if let Some(test) = &test {
        // The checks of the output explain why a test fails.
        let topics = &mut needs.entry(test.output.name.clone()).or_default().topics;
        if test.has_topic() && !topics.iter().any(|topic| topic.written == test.record.topic) {
            topics.push(NeededTopic {
                written: test.record.topic.clone(),
                from: vec![TEST.to_owned()],
                names: BTreeSet::from([test.record.topic.clone()]),
                others: None,
                pattern: test.record.topic.clone(),
            });
        }
    }
    let none = Needs::default();
    let failed = OnceLock::new();
    let mut parts = Vec::new();
    let mut checks: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
    let mut part = |name: String| {
        let part = Arc::new(Part::new(name));
        parts.push(part.clone());
        part
    };

    configuration(&loaded, &part("configuration".to_owned()).findings);
    let process = part("process".to_owned());
    process_limits(settings, &process.findings);
    checks.push(Box::pin(admin(settings, process)));
    for input in &settings.inputs {
        let part = part(format!("input {}", input.name));
        checks.push(Box::pin(limited(part.clone(), async move { input.settings.examine(&part.findings).await })));
    }
    for output in &settings.outputs {
        let part = part(format!("output {}", output.name));
        let needs = needs.get(&output.name);
        let is_needed = |needs: &Needs| needs.topics.iter().any(|topic| !is_test_only(topic));
        if !needs.is_some_and(is_needed) {
            let seen = "no event can arrive at it: no route names it, or none of those that do can match";
            part.findings.warning("routes", seen, "remove the output, or fix the routes");
        }
        let needs = needs.unwrap_or(&none);
        checks
            .push(Box::pin(limited(part.clone(), async move { output.settings.examine(needs, &part.findings).await })));
    }
    checks.push(Box::pin(limited_spool(settings, part("spool".to_owned()))));
    if let Some(test) = test {
        let (part, failed) = (part("publish test".to_owned()), &failed);
        let published = {
            let part = part.clone();
            async move {
                if let Err(failure) = test.publish(&part.findings).await {
                    let _ = failed.set((part, failure));
                }
            }
        };
        checks.push(Box::pin(limited(part, published)));
    }
    join_all(checks).await;
    if let Some((part, failure)) = failed.get() {
        failure.report(&parts, &part.findings);
    }

    let seen: Vec<(String, time::Duration)> = parts.iter().flat_map(|part| part.findings.clocks()).collect();
    let clock = Arc::new(Part::new("clock"));
    clocks(&seen, &clock.findings);
    parts.push(clock);
    parts
}

/// A check that ends in time. What it has found until then is kept.
async fn limited(part: Arc<Part>, check: impl Future<Output = ()>) {
    if tokio::time::timeout(LIMIT, check).await.is_err() {
        let seen = format!("no answer within {}; the rest was not checked", humantime::format_duration(LIMIT));
        part.findings.problem("answers", seen, "find out why it is slow: the network, the server, or the disk");
    }
}

/// What `check` says too.
fn configuration(loaded: &Loaded, findings: &Findings) {
    findings.ok("configuration", "it is valid");
    for warning in &loaded.warnings {
        findings.warning("setting", warning, "change the setting, unless it is meant so");
    }
}

/// Limits of this process.
fn process_limits(settings: &Settings, findings: &Findings) {
    let (needed, allowed) = (config::descriptors_needed(&settings.inputs), descriptors::highest());
    // If it is not enough, the configuration has a warning.
    if needed <= allowed {
        findings.ok("descriptors", format!("{allowed} are allowed, and at most {needed} are needed"));
    }
}

/// Checks the address of the admin listener.
async fn admin(settings: &Settings, part: Arc<Part>) {
    let is_bridge = async |place: String| Some(super::health::is_alive(&place).await);
    server::examine("admin.listen", &settings.admin.listen, &part.findings, is_bridge).await;
}

/// Checks the disk of the spool.
async fn limited_spool(settings: &Settings, part: Arc<Part>) {
    let Some(store) = settings.store.clone() else {
        let why = "it is off: an event that no bus takes in time is answered with 503, and Alibaba drops it after three tries";
        return part.findings.not_checked("spool", why);
    };
    let (deadline, blocking) = (settings.delivery.deadline, part.clone());
    let check = tokio::task::spawn_blocking(move || store.examine(deadline, &blocking.findings));
    limited(part, async { drop(check.await) }).await;
}

/// Compares the clocks of servers with the clock of this machine.
fn clocks(seen: &[(String, time::Duration)], findings: &Findings) {
    if seen.is_empty() {
        let why = "no server has said its time: MNS and HTTP receivers do, Kafka and NATS do not. Alibaba's signatures \
                   are accepted within `max_age`";
        return findings.not_checked("clock", why);
    }
    for (server, ahead) in seen {
        let (seconds, away) = (ahead.whole_seconds(), ahead.unsigned_abs());
        let direction = if seconds < 0 { "behind" } else { "ahead of" };
        let words = format!("the clock of {server} is {} s {direction} this machine's", seconds.unsigned_abs());
        let remedy = "set the clock of this machine, for example with NTP";
        if away >= clock::LIMIT {
            findings.problem("clock", format!("{words}: Alibaba refuses requests"), remedy);
        } else if away > clock::TOLERANCE {
            findings.warning("clock", words, remedy);
        } else {
            findings.ok("clock", words);
        }
    }
}

/// What leads to a topic only for the test.
const TEST: &str = "--publish-test";

fn is_test_only(topic: &NeededTopic) -> bool {
    topic.from == [TEST]
}

/// An event to publish, to see whether an output takes it.
struct Test {
    output: CheckedOutput,
    record: Record,
}

/// Why the test was not published.
struct Failure {
    output: String,
    topic: String,
    seen: String,
    remedy: String,
}

impl Failure {
    /// Reports it, with what the checks of the output have found about the topic.
    fn report(&self, parts: &[Arc<Part>], findings: &Findings) {
        let output = parts.iter().find(|part| part.name == format!("output {}", self.output));
        let about = |finding: &Finding| {
            finding.verdict == Verdict::Problem
                && (finding.check.split_once(' ').is_some_and(|(_, topic)| topic == self.topic)
                    || finding.seen.contains(&self.topic))
        };
        let fault = output.and_then(|part| part.findings.found().into_iter().find(about));
        match fault {
            Some(fault) => {
                findings.problem("publish", format!("{}; {}: {}", self.seen, fault.check, fault.seen), fault.remedy);
            }
            None => findings.problem("publish", &self.seen, &self.remedy),
        }
    }
}

impl Test {
    /// A test of `OUTPUT/TOPIC`. The settings are used up: an output is started only once.
    ///
    /// # Errors
    /// What is wrong with the target.
    fn new(target: &str, mut settings: Settings) -> Result<Test, String> {
        let needs = contract::needs(&settings);
        let (name, topic) = match target.split_once('/') {
            Some((name, topic)) => (name, Some(topic)),
            None => match outputs_of(&needs, target)[..] {
                [output] if !settings.outputs.iter().any(|output| output.name == target) => (output, Some(target)),
                _ => (target, None),
            },
        };
        let Some(position) = settings.outputs.iter().position(|output| output.name == name) else {
            let names: Vec<&str> = settings.outputs.iter().map(|output| output.name.as_str()).collect();
            let hint = output_hint(name, &names);
            return Err(match (topic, outputs_of(&needs, target)[..].len()) {
                (Some(_), _) => format!("there is no output `{name}`{hint}"),
                (None, 0) => format!("there is no output `{name}`, and no route leads to such a topic{hint}"),
                (None, _) => format!("several outputs have this topic: expected OUTPUT/{name}"),
            });
        };
        if settings.outputs[position].settings.bus().is_none() {
            return Err(format!("nobody subscribes to `{name}`, so there is nothing to test"));
        }
        let rule = settings.outputs[position].rules.topic;
        let topic = match (topic, &rule) {
            (None | Some(""), TopicRule::Required(_)) => return Err(format!("expected {name}/TOPIC")),
            (Some(topic), TopicRule::Required(_)) => {
                let template = Template::parse_topic(topic).map_err(|error| error.to_string())?;
                if template.attributes().next().is_some() {
                    return Err(format!("expected one topic, found the template `{topic}`"));
                }
                match topic_fault(&template, &rule, &settings.type_prefix) {
                    Some(fault) => return Err(fault),
                    None => topic,
                }
            }
            (Some(_), TopicRule::None(_)) => return Err(format!("`{name}` has no topics: expected {name}")),
            (topic, TopicRule::Optional(word) | TopicRule::None(word)) => topic.unwrap_or(word),
        };
        let topic = topic.to_owned();
        let output = settings.outputs.remove(position);
        let written = needs.get(&output.name).into_iter().flat_map(|needs| &needs.topics);
        let written = written.filter(|needed| needed.names.contains(&topic)).map(|needed| needed.written.as_str());
        let key = key_of(&settings, &output.name, &written.collect::<Vec<_>>())?;
        let event = Arc::new(marked(settings)?);
        // As real events: a compacted topic refuses a record without a key.
        let key = output.rules.has_keys.then(|| key.key(&event).unwrap_or_else(|| event.id().to_owned()));
        Ok(Test { output, record: Record { event, topic, key, mode: None } })
    }

    fn has_topic(&self) -> bool {
        matches!(self.output.rules.topic, TopicRule::Required(_))
    }

    /// Publishes it, and reports success.
    ///
    /// # Errors
    /// Why it was not published.
    async fn publish(self, findings: &Findings) -> Result<(), Failure> {
        let Test { output, record } = self;
        let place = match output.rules.topic {
            TopicRule::None(_) => output.name.clone(),
            _ => format!("{}/{}", output.name, record.topic),
        };
        let checks = format!("see the checks of output {}", output.name);
        let failure = |seen: String, remedy: &str| {
            let remedy = if remedy.is_empty() { checks.clone() } else { remedy.to_owned() };
            Failure { output: output.name.clone(), topic: record.topic.clone(), seen, remedy }
        };
        let Ok(metrics) = Metrics::new() else { return Ok(()) };
        let has_acknowledgements = output.settings.has_acknowledgements();
        let running = output.settings.start(&metrics);
        let running = running.map_err(|error| failure(error.to_string(), "fix the settings of the output"))?;
        if tokio::time::timeout(PUBLISH, running.health().wait_until_up()).await.is_err() {
            return Err(failure(format!("{place}: the output did not connect, so nothing was published"), ""));
        }
        match running.publish(&record, Instant::now() + PUBLISH).await {
            Ok(()) if has_acknowledgements => {
                findings.ok("publish", format!("{place} has acknowledged the event {}", record.event.id()));
            }
            Ok(()) => {
                let seen = format!(
                    "the event {} was sent to {place}; nobody acknowledges it, so whether a subscriber got it is \
                     unknown",
                    record.event.id()
                );
                findings.ok("publish", seen);
            }
            Err(error) => {
                let seen = format!("{place} has not acknowledged the event: {}", error.message);
                return Err(failure(seen, error.kind.remedy()));
            }
        }
        Ok(())
    }
}

/// The template of the keys of records for an output: that of a destination with one of these topics, or else of any.
fn key_of(settings: &Settings, output: &str, written: &[&str]) -> Result<Template, String> {
    let of_routes = settings.router.routes().iter().flat_map(Route::destinations);
    let destinations = of_routes.chain(&settings.dead_letters).filter(|destination| destination.output == output);
    let is_meant = |destination: &&Destination| written.contains(&destination.topic.to_string().as_str());
    let destination = destinations.clone().find(is_meant).or_else(|| destinations.clone().next());
    match destination {
        Some(destination) => Ok(destination.key.clone()),
        None => Template::parse("{partitionkey}").map_err(|error| error.to_string()),
    }
}

/// The outputs to which routes send events with this topic.
fn outputs_of<'n>(needs: &'n BTreeMap<String, Needs>, topic: &str) -> Vec<&'n str> {
    let has = |needs: &Needs| needs.topics.iter().any(|needed| needed.names.contains(topic));
    needs.iter().filter(|(_, needs)| has(needs)).map(|(output, _)| output.as_str()).collect()
}

/// An event that consumers recognize as a test.
fn marked(settings: Settings) -> Result<Event, String> {
    let now = OffsetDateTime::now_utc();
    let time = now.replace_nanosecond(0).unwrap_or(now).format(&Rfc3339).unwrap_or_default();
    let id = format!("apsara-bridge-doctor-{}", now.unix_timestamp_nanos());
    let callback = json!({
        "EventType": "ApsaraBridgeDoctor",
        "EventTime": time,
        "Status": "success",
        "MediaId": id,
        "Message": "a test by `apsara-bridge doctor`; ignore it",
    });
    let normalizer = Normalizer::new(settings.catalogue, settings.type_prefix);
    let normalized = normalizer.normalize(callback.to_string().as_bytes(), &Origin::at(now));
    normalized.map(|normalized| normalized.event).map_err(|error| error.to_string())
}

fn to_json(found: &[(String, Vec<Finding>)]) -> Value {
    let checks = found.iter().flat_map(|(part, findings)| findings.iter().map(move |finding| (part, finding)));
    let checks = checks.map(|(part, Finding { check, verdict, seen, remedy })| {
        let mut json = json!({ "part": part, "check": check, "verdict": verdict.as_str(), "seen": seen });
        if !remedy.is_empty() {
            json["remedy"] = remedy.as_str().into();
        }
        json
    });
    let count = count(found);
    let counts: BTreeMap<&str, usize> = Verdict::ALL.map(|verdict| (verdict.as_str(), count(verdict))).into();
    json!({ "checks": checks.collect::<Vec<_>>(), "counts": counts })
}

fn to_text(found: &[(String, Vec<Finding>)]) -> String {
    let mut text = String::new();
    for (part, findings) in found.iter().filter(|(_, findings)| !findings.is_empty()) {
        let _ = writeln!(text, "{part}");
        for Finding { check, verdict, seen, remedy } in findings {
            let word = verdict.as_str().replace('_', " ");
            // What a server says is one line, and cannot control the terminal.
            let _ = writeln!(text, "  {word:<11}  {}: {}", visible::line(check), visible::line(seen));
            if !remedy.is_empty() {
                let _ = writeln!(text, "  {:<11}  → {}", "", visible::line(remedy));
            }
        }
    }
    let count = count(found);
    let counted = |verdict, one: &str, more: &str| match count(verdict) {
        1 => format!("1 {one}"),
        number => format!("{number} {more}"),
    };
    let _ = writeln!(
        text,
        "\n{}, {}, {} not checked",
        counted(Verdict::Problem, "problem", "problems"),
        counted(Verdict::Warning, "warning", "warnings"),
        count(Verdict::NotChecked)
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> Vec<(String, Vec<Finding>)> {
        let findings = Findings::default();
        findings.ok("login", "1 broker answers");
        findings.problem("topic a", "does not exist\u{1b}[2J\nx", "create it");
        findings.not_checked("write", "unknown");
        vec![("output kafka".to_owned(), findings.found()), ("spool".to_owned(), Vec::new())]
    }

    #[test]
    fn the_list_has_remedies_and_cannot_control_the_terminal() {
        let expected = "\
output kafka
  ok           login: 1 broker answers
  problem      topic a: does not exist\\u{1b}[2J\\u{a}x
               → create it
  not checked  write: unknown

1 problem, 0 warnings, 1 not checked
";
        assert_eq!(to_text(&found()), expected);
    }

    #[test]
    fn json_has_every_check_and_the_counts() {
        let json = to_json(&found());
        assert_eq!(json["checks"][1]["remedy"], "create it");
        assert_eq!(
            json["checks"][2],
            json!({ "part": "output kafka", "check": "write", "verdict": "not_checked", "seen": "unknown" })
        );
        assert_eq!(json["counts"], json!({ "ok": 1, "warning": 0, "problem": 1, "not_checked": 1 }));
    }

    #[test]
    fn clocks_are_compared_with_what_alibaba_accepts() {
        let findings = Findings::default();
        let seen = [2, -90, 901].map(|seconds| ("s".to_owned(), time::Duration::seconds(seconds)));
        clocks(&seen, &findings);
        let verdicts: Vec<Verdict> = findings.found().iter().map(|finding| finding.verdict).collect();
        assert_eq!(verdicts, [Verdict::Ok, Verdict::Warning, Verdict::Problem]);
        assert!(findings.found()[1].seen.contains("90 s behind this machine's"), "{:?}", findings.found()[1]);
    }
}
