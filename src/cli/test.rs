//! `test`: runs the tests of the routes.

use std::collections::BTreeSet;
use std::fmt;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;

use super::explain::verdict;
use super::terminal::{print, print_json, table};
use super::{ConfigArgs, FAILED, USAGE, config_errors};
use crate::common::units::Size;
use crate::common::visible;
use crate::config::raw::ExpectedWord;
use crate::config::route_tests::{Expected, Given, RouteRules, RouteTest, RouteTests};
use crate::config::{self, ConfigError};
use crate::dialect::{NotACallback, Origin, Sender};
use crate::event::{Attribute, Event};
use crate::output::Record;
use crate::route::{Action, Decision, Destination, Fate, Route};

/// With more routes, the report of a failed test leaves out those that have nothing to do with it.
const MOST_ROUTES: usize = 20;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Runs the [[tests]] of the configuration and of the files after --tests. It uses
the routes as `serve` does, needs no secrets, and connects to nothing. It also
lists the routes that no test reaches.

  [[tests]]
  name = \"a failed transcode goes to the failures too\"
  callback = { file = \"transcode-failed.json\" }      # or its JSON as a text
  # or event = { type = \"TranscodeComplete\", status = \"failure\" }
  expect = { status = \"failure\", to = [\"kafka/media.failed\", \"kafka/media.vod\"] }
  # or expect = { to = \"kafka/media.failed\", dead_letter = true }
  # or expect = \"dropped\", \"dead_letter\", \"unrouted\"

Exit codes: 0 all tests passed, 1 a test failed, 2 the configuration or a test
is invalid, or there are no tests.

Examples:
  apsara-bridge test --config bridge.toml
  apsara-bridge test --config bridge.toml --tests routes/*.toml
  apsara-bridge test --config bridge.toml --json | jq -r '.unreached_routes[]'
")]
pub(super) struct Test {
    /// Files with [[tests]] and nothing else, TOML or YAML. `-` is standard input.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    tests: Vec<PathBuf>,
    /// Print the results as JSON, with all tests.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Test {
    pub(super) fn run(self) -> ExitCode {
        let RouteTests { rules, tests } = match config::load_route_tests(&self.config.layers(), &self.tests) {
            Ok(loaded) => loaded,
            Err(errors) => return config_errors(&errors),
        };
        if tests.is_empty() {
            eprintln!("there are no tests: add [[tests]] to the configuration, or name files after --tests");
            return ExitCode::from(USAGE);
        }
        let results = match run_all(&rules, &tests) {
            Ok(results) => results,
            Err(errors) => return config_errors(&errors),
        };
        let reached: BTreeSet<usize> =
            results.iter().filter_map(Checked::decision).flat_map(|it| it.matched.clone()).collect();
        let routes = rules.router.routes().iter().enumerate();
        let unreached =
            routes.filter(|(position, _)| !reached.contains(position)).map(|(_, route)| route.name.as_str());
        let unreached: Vec<&str> = unreached.collect();
        if self.json {
            print_json(format!("{:#}\n", report_json(&rules, &results, &unreached)));
        } else {
            print(report(&rules, &results, &unreached));
        }
        if results.iter().all(Checked::has_passed) { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
    }
}

/// Runs the tests.
///
/// # Errors
/// Every callback that cannot be read or is not a callback.
fn run_all<'r>(rules: &'r RouteRules, tests: &'r [RouteTest]) -> Result<Vec<Checked<'r>>, Vec<ConfigError>> {
    let mut results = Vec::new();
    let mut errors = Vec::new();
    for test in tests {
        match event(rules, test) {
            Ok(event) => results.push(Checked::new(rules, test, event)),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(results) } else { Err(errors) }
}

/// What is wrong with the callbacks of tests: those that cannot be read or are not callbacks.
pub(super) fn wrong_callbacks(RouteTests { rules, tests }: &RouteTests) -> Vec<ConfigError> {
    tests.iter().filter_map(|test| event(rules, test).err()).collect()
}

/// The event of a test, or the reason why no input accepts its callback.
fn event(rules: &RouteRules, test: &RouteTest) -> Result<Result<Arc<Event>, String>, ConfigError> {
    let body = match (&test.given, test.callback().transpose()?) {
        (Given::Event(event), _) => return Ok(Ok(Arc::new(event.clone()))),
        (Given::File(_) | Given::Text(_), body) => body.unwrap_or_default(),
    };
    let at = OffsetDateTime::now_utc();
    let anyone = [(Sender::UNKNOWN.clone(), None)];
    let senders = if rules.senders.is_empty() { &anyone[..] } else { &rules.senders };
    let mut refused = String::new();
    // The first endpoint or queue that accepts it.
    for (sender, max_body) in senders {
        let origin = Origin { sender, ..Origin::at(at) };
        match rules.normalizer.normalize(&body, &origin) {
            Ok(normalized) => match max_body.filter(|max| body.len() as u64 > max.0) {
                None => return Ok(Ok(Arc::new(normalized.event))),
                Some(max) => refused = too_large(body.len(), max),
            },
            // An input that takes its dialect says more.
            Err(error @ NotACallback::DialectNotAccepted(_)) if refused.is_empty() => refused = error.to_string(),
            Err(NotACallback::DialectNotAccepted(_)) => {}
            Err(error) => {
                let file = match &test.given {
                    Given::File(path) => format!("{}: ", path.display()),
                    Given::Text(_) | Given::Event(_) => String::new(),
                };
                return Err(test.error("callback", format!("{file}not a callback: {error}")));
            }
        }
    }
    Ok(Err(refused))
}

fn too_large(bytes: usize, max: Size) -> String {
    format!("its body has {bytes} bytes, and max_body of the input is {max}")
}

/// A test that has run.
struct Checked<'r> {
    test: &'r RouteTest,
    happened: Result<Happened<'r>, String>,
    differences: Vec<Difference>,
}

/// What the routes do with an event.
struct Happened<'r> {
    event: Arc<Event>,
    decision: Decision<'r>,
    records: Vec<Published<'r>>,
}

struct Published<'r> {
    route: &'r Route,
    /// See [`RouteRules::address`].
    address: String,
    /// Whether it can have a key.
    has_keys: bool,
    key: Option<String>,
}

impl fmt::Display for Published<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} by route `{}`", self.address, self.route.name)
    }
}

/// What a test expects and did not get.
struct Difference {
    what: &'static str,
    expected: Value,
    actual: Value,
    /// The same for people: a word and a text.
    rows: Vec<(&'static str, String)>,
}

impl<'r> Happened<'r> {
    fn new(rules: &'r RouteRules, event: Arc<Event>) -> Happened<'r> {
        let decision = rules.router.decide(&event);
        let published = |(route, destination): &(&'r Route, &'r Destination)| {
            let record = Record::new(&event, destination, rules.normalizer.type_prefix());
            Published {
                route,
                address: rules.address(destination, &record.topic),
                has_keys: rules.has_keys(&destination.output),
                key: record.key.filter(|_| rules.has_keys(&destination.output)),
            }
        };
        let records = decision.destinations.iter().map(published).collect();
        Happened { event, decision, records }
    }

    fn addresses(&self) -> BTreeSet<String> {
        self.records.iter().map(|record| record.address.clone()).collect()
    }

    fn outcome(&self) -> &'static str {
        match self.decision.fate() {
            Fate::Unrouted => ExpectedWord::Unrouted.as_str(),
            Fate::DeadLetter(_) => ExpectedWord::DeadLetter.as_str(),
            Fate::Dropped(_) => ExpectedWord::Dropped.as_str(),
            Fate::Published => "published",
        }
    }

    /// What came instead of the expected outcome.
    fn outcome_rows(&self) -> Vec<(&'static str, String)> {
        let row = |text: String| ("came", text);
        match self.decision.fate() {
            Fate::Unrouted => vec![row("unrouted, because no route matches".to_owned())],
            Fate::DeadLetter(route) => vec![row(format!("dead_letter by route `{}`", route.name))],
            Fate::Dropped(route) => vec![row(format!("dropped by route `{}`", route.name))],
            Fate::Published => self.records.iter().map(|record| row(record.to_string())).collect(),
        }
    }

    /// Compares it with what a test expects.
    fn differences(&self, expected: &Expected) -> Vec<Difference> {
        match expected {
            Expected::Word(word) if word.as_str() == self.outcome() => Vec::new(),
            Expected::Word(word) => vec![self.other_outcome(word.as_str())],
            Expected::Records { status, to, key, dead_letter } => {
                let status = status.as_ref().and_then(|status| self.other_status(status));
                let is_missed = *dead_letter && !self.is_dead_letter();
                let outcome = is_missed.then(|| self.other_outcome(ExpectedWord::DeadLetter.as_str()));
                let to = to.as_ref().and_then(|to| self.other_destinations(to, *dead_letter));
                let key = key.as_ref().and_then(|key| self.other_keys(key));
                status.into_iter().chain(outcome).chain(to).chain(key).collect()
            }
        }
    }

    fn other_outcome(&self, expected: &str) -> Difference {
        Difference {
            what: "outcome",
            expected: expected.into(),
            actual: self.outcome().into(),
            rows: std::iter::once(("expected", expected.to_owned())).chain(self.outcome_rows()).collect(),
        }
    }

    fn other_status(&self, expected: &str) -> Option<Difference> {
        let status = self.event.get(Attribute::Status);
        (status != Some(expected)).then(|| Difference {
            what: "status",
            expected: expected.into(),
            actual: status.into(),
            rows: vec![("expected", expected.to_owned()), ("came", status.unwrap_or("(none)").to_owned())],
        })
    }

    fn is_dead_letter(&self) -> bool {
        matches!(self.decision.fate(), Fate::DeadLetter(_))
    }

    fn other_destinations(&self, expected: &BTreeSet<String>, dead_letter: bool) -> Option<Difference> {
        let actual = self.addresses();
        if actual == *expected {
            return (self.is_dead_letter() && !dead_letter).then(|| self.other_outcome("published"));
        }
        let mut rows: Vec<_> = expected.difference(&actual).map(|address| ("missing", address.clone())).collect();
        for record in self.records.iter().filter(|record| !expected.contains(&record.address)) {
            rows.push(("not expected", record.to_string()));
        }
        if !dead_letter && !matches!(self.decision.fate(), Fate::Published) {
            rows.append(&mut self.outcome_rows());
        }
        Some(Difference { what: "to", expected: json!(expected), actual: json!(actual), rows })
    }

    fn other_keys(&self, expected: &str) -> Option<Difference> {
        let with_keys: Vec<&Published<'_>> = self.records.iter().filter(|record| record.has_keys).collect();
        let others = with_keys.iter().filter(|record| record.key.as_deref() != Some(expected));
        let mut rows: Vec<_> = others
            .map(|record| {
                let key = record.key.as_deref().unwrap_or("(none)");
                ("came", format!("{key} for {record}"))
            })
            .collect();
        if with_keys.is_empty() {
            rows.push(("came", "no record that can have a key".to_owned()));
        } else if rows.is_empty() {
            return None;
        }
        rows.insert(0, ("expected", expected.to_owned()));
        let actual = with_keys.iter().map(|record| &record.key).collect::<Vec<_>>();
        Some(Difference { what: "key", expected: expected.into(), actual: json!(actual), rows })
    }
}

impl<'r> Checked<'r> {
    fn new(rules: &'r RouteRules, test: &'r RouteTest, event: Result<Arc<Event>, String>) -> Checked<'r> {
        let happened = event.map(|event| Happened::new(rules, event));
        let differences = match &happened {
            Ok(happened) => happened.differences(&test.expected),
            Err(refused) => vec![Difference {
                what: "outcome",
                expected: Value::Null,
                actual: NOT_ACCEPTED.into(),
                rows: vec![("came", format!("no input accepts it: {refused}"))],
            }],
        };
        Checked { test, happened, differences }
    }

    fn decision(&self) -> Option<&Decision<'r>> {
        self.happened.as_ref().ok().map(|happened| &happened.decision)
    }

    fn has_passed(&self) -> bool {
        self.differences.is_empty()
    }

    /// Routes in their order, each with whether it matches and why not. With many routes only those that match, and those
    /// that would do what the test expects.
    fn verdicts(&self, rules: &'r RouteRules) -> Vec<(&'r Route, bool, String)> {
        let Ok(Happened { event, decision, records }) = &self.happened else { return Vec::new() };
        let routes = rules.router.routes();
        let is_wanted = |route: &Route| match (&self.test.expected, &route.action) {
            (Expected::Word(word), Action::Drop) => *word == ExpectedWord::Dropped,
            (Expected::Word(word), Action::DeadLetter) => *word == ExpectedWord::DeadLetter,
            (Expected::Records { dead_letter, .. }, Action::DeadLetter) => *dead_letter,
            (Expected::Records { to: Some(to), .. }, Action::To(destinations)) => {
                let address = |destination: &Destination| {
                    rules.address(destination, &destination.topic.topic(event, rules.normalizer.type_prefix()))
                };
                let mut missing = destinations.iter().map(address).filter(|address| to.contains(address));
                missing.any(|address| records.iter().all(|record| record.address != address))
            }
            _ => false,
        };
        let mut verdicts = Vec::new();
        for (position, route) in routes.iter().enumerate() {
            let matches = decision.matched.contains(&position);
            if matches || routes.len() <= MOST_ROUTES || is_wanted(route) {
                verdicts.push((route, matches, verdict(&rules.router, decision, position, event)));
            }
        }
        verdicts
    }
}

/// Why a test fails whose callback no input accepts.
const NOT_ACCEPTED: &str = "not_accepted";

/// The failed tests, the routes that no test reaches, and the numbers of tests, for people.
fn report(rules: &RouteRules, results: &[Checked<'_>], unreached: &[&str]) -> String {
    let mut text = String::new();
    let failed: Vec<&Checked<'_>> = results.iter().filter(|result| !result.has_passed()).collect();
    for result in &failed {
        let (source, line) = result.test.place();
        let line = line.map(|line| format!(":{line}")).unwrap_or_default();
        let _ = writeln!(text, "FAILED  {}  ({source}{line})", visible::line(&result.test.name));
        let mut rows = Vec::new();
        for Difference { what, rows: found, .. } in &result.differences {
            for (index, (word, value)) in found.iter().enumerate() {
                let what = if index == 0 { *what } else { "" };
                rows.push(vec![format!("  {what}"), (*word).to_owned(), value.clone()]);
            }
        }
        text.push_str(&table(&rows));
        let verdicts = result.verdicts(rules);
        if !verdicts.is_empty() {
            text.push_str("  routes\n");
        }
        let left_out = rules.router.routes().len() - verdicts.len();
        let rows = verdicts.into_iter().map(|(route, _, verdict)| vec![format!("    {}", route.name), verdict]);
        text.push_str(&table(&rows.collect::<Vec<_>>()));
        if result.happened.is_ok() && left_out > 0 {
            let _ = writeln!(text, "    and {left_out} others that do not match");
        }
        text.push('\n');
    }
    if !unreached.is_empty() {
        text.push_str("Routes that no test reaches:\n");
        text.push_str(&table(&unreached.iter().map(|name| vec![format!("  {name}")]).collect::<Vec<_>>()));
        text.push('\n');
    }
    let _ = writeln!(text, "{} passed, {} failed", results.len() - failed.len(), failed.len());
    text
}

/// The same for programs, with all tests.
fn report_json(rules: &RouteRules, results: &[Checked<'_>], unreached: &[&str]) -> Value {
    let tests = results.iter().map(|result| {
        let (source, line) = result.test.place();
        let happened = result.happened.as_ref().ok();
        let records = happened.map(|happened| {
            let records = happened.records.iter();
            let record = |it: &Published<'_>| json!({ "to": it.address, "route": it.route.name, "key": it.key });
            records.map(record).collect::<Vec<_>>()
        });
        let mut test = json!({
            "name": result.test.name,
            "source": source,
            "line": line,
            "passed": result.has_passed(),
            "outcome": happened.map_or(NOT_ACCEPTED, Happened::outcome),
            "status": happened.and_then(|happened| happened.event.get(Attribute::Status)),
            "records": records.unwrap_or_default(),
        });
        if !result.has_passed() {
            let differences = result.differences.iter();
            let difference =
                |it: &Difference| json!({ "what": it.what, "expected": it.expected, "actual": it.actual });
            test["differences"] = differences.map(difference).collect();
            let verdicts = result.verdicts(rules).into_iter();
            let route =
                |(route, matches, why): (&Route, bool, String)| json!({ "name": route.name, "matches": matches, "why": why });
            test["routes"] = verdicts.map(route).collect();
        }
        test
    });
    let failed = results.iter().filter(|result| !result.has_passed()).count();
    json!({
        "passed": results.len() - failed,
        "failed": failed,
        "unreached_routes": unreached,
        "tests": tests.collect::<Vec<_>>(),
    })
}
