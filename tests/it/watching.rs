//! What operators watch: the alerts, the dashboard, the runbook. Every metric and label that they name exists, every
//! metric is shown, and every panel shows something: a real Prometheus scrapes the running program while everything
//! happens that the panels are for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use apsara_bridge::telemetry::metrics::{METRICS, Metrics, PREFIX};
use figment::providers::{Format as _, Yaml};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::task::JoinSet;

use crate::docs::anchors;
use crate::support::bridge::{Client, URL, headers_signed_at, now, raw, signed_headers};
use crate::support::certificates::Certificates;
use crate::support::config::{Config, Route};
use crate::support::kafka::mock;
use crate::support::mns::queue::QueueAttributes;
use crate::support::mns::{Fault, Mns, MnsOptions, Operation};
use crate::support::nats::{Nats, NatsOptions};
use crate::support::process::Process;
use crate::support::program::{self, Program};
use crate::support::wait::SOON;
use crate::support::{eventually, free_port, generated, repository, repository_text, tool};

const ALERTS: &str = "charts/apsara-bridge/files/alerts/apsara-bridge.yaml";
const ALERTS_TESTS: [&str; 3] = [
    "charts/apsara-bridge/files/alerts/tests/apsara-bridge_test.yaml",
    "charts/apsara-bridge/files/alerts/tests/apsara-bridge_days_test.yaml",
    "charts/apsara-bridge/files/alerts/tests/apsara-bridge_offset_test.yaml",
];
const DASHBOARD: &str = "charts/apsara-bridge/files/dashboards/apsara-bridge.json";
const RUNBOOK: &str = "docs/runbook.md";
const OBJECTIVES: &str = "docs/slo.md";
const METRICS_DOCS: &str = "docs/metrics.md";

/// The prefix of the link in an alert.
const RUNBOOK_URL: &str = "https://github.com/apsara-bridge/apsara-bridge/blob/main/docs/runbook.md#";

/// Metrics of other programs: of Prometheus itself, and of kube-state-metrics.
const FOREIGN: [&str; 8] = [
    "up",
    "kube_pod_status_ready",
    "kube_pod_info",
    "kube_node_labels",
    "kube_node_status_condition",
    "kube_deployment_spec_replicas",
    "kube_horizontalpodautoscaler_info",
    "kube_job_failed",
];

/// Labels that a scrape or a record adds, or that the metrics of other programs have.
const TARGET_LABELS: [&str; 12] = [
    "cluster",
    "namespace",
    "pod",
    "job",
    "instance",
    "node",
    "condition",
    "status",
    "label_topology_kubernetes_io_zone",
    "workload",
    "horizontalpodautoscaler",
    "job_name",
];

/// The variables of the dashboard that select targets. Each query uses all of them.
const TARGET_VARIABLES: [&str; 5] = ["cluster", "namespace", "job", "pod", "instance"];

const QUEUE: &str = "ice-callback-watched";

fn yaml(name: &str) -> Value {
    Yaml::from_str(&repository_text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn string<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_else(|| panic!("no {key} in {value}"))
}

fn items<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no {key} in {value}"))
}

/// Every metric of the running service, by its name in queries, with its labels.
fn exported() -> BTreeMap<String, Vec<&'static str>> {
    let mut exported = BTreeMap::new();
    for metric in METRICS {
        let name = format!("{PREFIX}{}", metric.name);
        if metric.kind != "histogram" {
            exported.insert(name, metric.labels.to_vec());
            continue;
        }
        for part in ["sum", "count"] {
            exported.insert(format!("{name}_{part}"), metric.labels.to_vec());
        }
        exported.insert(format!("{name}_bucket"), [metric.labels, &["le"]].concat());
    }
    let text = Metrics::new().expect("a valid table").text().expect("can be written");
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE process_")?.split(' ').next());
    exported.extend(types.map(|name| (format!("process_{name}"), Vec::new())));
    exported
}

/// The metric in the table for a name in a query.
fn of_table(name: &str) -> &str {
    let name = name.strip_prefix(PREFIX).unwrap_or(name);
    let is_histogram = |name: &str| METRICS.iter().any(|metric| metric.name == name && metric.kind == "histogram");
    let whole = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
    whole.filter(|whole| is_histogram(whole)).unwrap_or(name)
}

/// The names in a query: metrics with the labels that select them, and the labels for grouping and joining.
#[derive(Debug, Default, PartialEq)]
struct Names {
    metrics: Vec<(String, Vec<String>)>,
    labels: Vec<String>,
}

impl Names {
    /// Finds the names in a valid query. Prometheus checks whether it is valid.
    fn of(query: &str) -> Names {
        const OPERATORS: [&str; 6] = ["and", "or", "unless", "offset", "bool", "inf"];
        const BEFORE_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
        let is_word = |token: &str| token.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let tokens = tokens(query);
        let mut names = Names::default();
        let mut at = 0;
        while let Some(token) = tokens.get(at) {
            at += 1;
            // The words between two brackets, if the brackets come next.
            let mut inside = |open: &str, close: &str| {
                if tokens.get(at) != Some(&open) {
                    return Vec::new();
                }
                let end = at + tokens[at..].iter().position(|token| *token == close).expect("the bracket is closed");
                let words = tokens[at..end].iter().filter(|token| is_word(token)).map(ToString::to_string).collect();
                at = end;
                words
            };
            if BEFORE_LABELS.contains(token) {
                names.labels.extend(inside("(", ")"));
            } else if is_word(token) && !OPERATORS.contains(token) {
                let labels = inside("{", "}");
                let next = tokens.get(at).copied().unwrap_or_default();
                if next != "(" && next != "by" && next != "without" {
                    names.metrics.push((token.to_string(), labels));
                }
            }
        }
        names
    }

    /// Finds the names in Grafana's query for the values of a variable: `label_values(selector, label)`.
    fn of_variable(query: &str) -> (Names, &str, &str) {
        let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(")"));
        let (selector, label) = inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(selector, label)");
        let mut names = Names::of(selector);
        names.labels.push(label.to_owned());
        (names, selector, label)
    }

    fn check(&self, place: &str, exported: &BTreeMap<String, Vec<&str>>) {
        assert!(!self.metrics.is_empty(), "{place}: uses no metric");
        let mut known: Vec<&str> = TARGET_LABELS.to_vec();
        for (name, labels) in &self.metrics {
            let own = exported.get(name);
            assert!(own.is_some() || FOREIGN.contains(&name.as_str()), "{place}: there is no metric {name}");
            known.extend(own.into_iter().flatten());
            for label in labels {
                let is_own = own.is_some_and(|own| own.contains(&label.as_str()));
                assert!(is_own || TARGET_LABELS.contains(&label.as_str()), "{place}: {name} has no label {label}");
            }
        }
        for label in &self.labels {
            assert!(known.contains(&label.as_str()), "{place}: none of its metrics has the label {label}");
        }
    }
}

/// Splits a query without its comments into words, numbers, quoted texts, windows in brackets, and single characters.
fn tokens(query: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = query.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => {
                rest = rest.split_once('\n').map_or("", |(_, next)| next).trim_start();
                continue;
            }
            '"' => 2 + rest[1..].find('"').expect("the quotes are closed"),
            '[' => 1 + rest.find(']').expect("the bracket is closed"),
            _ if first.is_ascii_alphanumeric() || first == '_' => {
                rest.find(|next: char| !(next.is_ascii_alphanumeric() || "_.:".contains(next))).unwrap_or(rest.len())
            }
            _ => first.len_utf8(),
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// The queries of the dashboard, each with the title of its panel. Collapsed rows contain panels too.
fn panels(of: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in items(of, "panels") {
        let title = string(panel, "title");
        if panel["type"] == "row" {
            queries.extend(panels(panel));
            continue;
        }
        assert!(!string(panel, "description").is_empty(), "{title} has no description");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        for target in items(panel, "targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{title}");
            queries.push((title.to_owned(), string(target, "expr").to_owned()));
        }
    }
    queries
}

fn variables(dashboard: &Value) -> Vec<&str> {
    let variables = items(&dashboard["templating"], "list");
    variables
        .iter()
        .filter(|variable| variable["type"] == "query")
        .map(|each| string(&each["query"], "query"))
        .collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&repository_text(DASHBOARD)).expect("JSON")
}

/// The rules of a kind with their names: `alert` or `record`.
fn rules<'v>(file: &'v Value, kind: &str) -> Vec<(&'v str, &'v Value)> {
    let rules = items(file, "groups").iter().flat_map(|group| items(group, "rules"));
    rules.filter_map(|rule| Some((rule[kind].as_str()?, rule))).collect()
}

/// The queries in a document: its code blocks in PromQL.
fn documented_queries(text: &str) -> Vec<&str> {
    text.split("```promql\n").skip(1).map(|after| after.split("```").next().unwrap_or_default().trim()).collect()
}

#[test]
fn names_are_found_in_queries() {
    let query = r#"sum by (le, pod) (rate(a_bucket{b="x) c", d=~"e"}[5m])) # h
        / on (f) group_left () g > bool 2.5e3"#;
    let names = Names::of(query);
    let metric = |name: &str, labels: &[&str]| (name.to_owned(), labels.iter().map(ToString::to_string).collect());
    assert_eq!(names.metrics, [metric("a_bucket", &["b", "d"]), metric("g", &[])]);
    assert_eq!(names.labels, ["le", "pod", "f"]);
}

#[test]
fn every_named_metric_exists_and_every_metric_is_shown() {
    let exported = exported();
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    for (title, query) in panels(&dashboard) {
        let names = Names::of(&query);
        names.check(&format!("panel {title}"), &exported);
        shown.extend(names.metrics.iter().map(|(name, _)| of_table(name).to_owned()));
    }
    for query in variables(&dashboard) {
        Names::of_variable(query).0.check(query, &exported);
    }
    for metric in METRICS {
        assert!(shown.contains(metric.name), "the dashboard does not show {}", metric.name);
    }

    // A record has the labels of what it is computed from.
    let file = yaml(ALERTS);
    let mut known = exported.clone();
    for (record, rule) in rules(&file, "record") {
        let names = Names::of(string(rule, "expr"));
        names.check(record, &known);
        let labels = names.metrics.iter().filter_map(|(name, _)| known.get(name)).flatten().copied().collect();
        known.insert(record.to_owned(), labels);
    }
    for (alert, rule) in rules(&file, "alert") {
        Names::of(string(rule, "expr")).check(alert, &known);
    }

    let runbook = repository_text(RUNBOOK);
    for query in documented_queries(&runbook) {
        Names::of(query).check("the runbook", &known);
    }
    for query in documented_queries(&repository_text(OBJECTIVES)) {
        Names::of(query).check(OBJECTIVES, &known);
    }
    for row in runbook.split("row *").skip(1).filter_map(|after| after.split_once('*')) {
        let rows = items(&dashboard, "panels").iter().filter(|panel| panel["type"] == "row");
        assert!(rows.into_iter().any(|panel| panel["title"] == row.0), "the dashboard has no row {}", row.0);
    }
    for word in runbook.split(|each: char| !(each.is_ascii_alphanumeric() || each == '_')) {
        let is_known =
            exported.contains_key(word) || METRICS.iter().any(|metric| word == format!("{PREFIX}{}", metric.name));
        assert!(!word.starts_with(PREFIX) || is_known, "the runbook names {word}");
    }
}

/// docs/metrics.md is generated from the table.
#[test]
fn generated_the_docs_list_every_metric() {
    let mut docs = String::new();
    let mut section = "";
    for metric in METRICS {
        if metric.section != section {
            section = metric.section;
            write!(docs, "\n## {section}\n\n| metric | kind | labels | meaning |\n|---|---|---|---|\n").expect("text");
        }
        let labels: Vec<String> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let help = metric.help.trim_end_matches('.');
        writeln!(docs, "| `{PREFIX}{}` | {} | {} | {help} |", metric.name, metric.kind, labels.join(", "))
            .expect("text");
    }
    docs.push('\n');
    generated::check_part(METRICS_DOCS, &docs);
}

fn promtool(arguments: &[&str]) {
    let output = Command::new(tool("promtool", "promtool"))
        .args(arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("promtool runs");
    let told = [output.stdout, output.stderr].map(|told| String::from_utf8_lossy(&told).into_owned()).concat();
    assert!(output.status.success(), "{arguments:?}:\n{told}");
}

/// The cases of a test that are about an alert.
fn cases_of<'v>(test: &'v Value, alert: &str) -> Vec<&'v Value> {
    items(test, "alert_rule_test").iter().filter(|case| string(case, "alertname") == alert).collect()
}

fn fires(case: &Value) -> bool {
    !items(case, "exp_alerts").is_empty()
}

#[test]
fn alerts_are_valid_explained_and_tested_both_ways() {
    promtool(&["check", "rules", ALERTS]);
    for tests in ALERTS_TESTS {
        promtool(&["test", "rules", tests]);
    }
    let (file, runbook) = (yaml(ALERTS), repository_text(RUNBOOK));
    let tests: Vec<Value> = ALERTS_TESTS.iter().flat_map(|name| items(&yaml(name), "tests").to_vec()).collect();
    let anchors = anchors(&runbook);
    let alerts = rules(&file, "alert");
    for (alert, rule) in &alerts {
        let annotation = |name: &str| string(&rule["annotations"], name);
        let severity = string(&rule["labels"], "severity");
        assert!(["critical", "warning"].contains(&severity), "{alert}");
        assert!(!annotation("summary").is_empty() && !annotation("description").is_empty(), "{alert}");
        let anchor = annotation("runbook_url").strip_prefix(RUNBOOK_URL).expect("a link to the runbook");
        assert_eq!(anchor, alert.to_lowercase());
        assert!(anchors.contains(anchor), "the runbook has no section {anchor}");
        let row = format!("| [{alert}](#{anchor}) | {severity} |\n");
        assert!(runbook.contains(&row), "the runbook's table has no row {row}");
        let is_tested =
            |expected: bool| tests.iter().flat_map(|test| cases_of(test, alert)).any(|case| fires(case) == expected);
        assert!(is_tested(true), "no test shows that {alert} fires");
        assert!(is_tested(false), "no test shows that {alert} stays silent");
    }
    for case in tests.iter().flat_map(|test| items(test, "alert_rule_test")) {
        assert!(alerts.iter().any(|(alert, _)| string(case, "alertname") == *alert), "no alert of this name: {case}");
    }
}

/// The same series in another cluster.
fn in_cluster(series: &Value, cluster: &str) -> Value {
    let name = string(series, "series").replace("cluster=\"east\", ", "");
    let name = name.replacen('{', &format!("{{cluster=\"{cluster}\", "), 1);
    json!({ "series": name, "values": series["values"] })
}

/// Each case in which an alert fires is repeated while another cluster has the series of a case in which it stays
/// silent. It must fire all the same, with its cluster, and for nothing else.
#[test]
fn alerts_name_the_cluster_and_no_cluster_hides_another_one() {
    let file = yaml(ALERTS);
    let folder = tempfile::tempdir().expect("a folder");
    for (alert, _) in rules(&file, "alert") {
        // The records and this alert alone, because evaluating all rules takes long.
        let mut alone = file.clone();
        for group in alone["groups"].as_array_mut().expect("groups") {
            let rules = group["rules"].as_array_mut().expect("rules");
            rules.retain(|rule| rule["alert"].is_null() || rule["alert"] == alert);
        }
        let groups = alone["groups"].as_array_mut().expect("groups");
        groups.retain(|group| !items(group, "rules").is_empty());
        let write = |name: &str, content: &Value| {
            let path = folder.path().join(name);
            std::fs::write(&path, content.to_string()).expect("the temporary folder is writable");
            path.to_str().expect("UTF-8").to_owned()
        };
        let rules = write(&format!("{alert}.json"), &alone);
        let mut pairs = 0;
        for name in ALERTS_TESTS {
            let tests = yaml(name);
            let of_alert = || items(&tests, "tests").iter().filter(|test| !cases_of(test, alert).is_empty());
            let mut merged = Vec::new();
            for firing in of_alert().filter(|test| cases_of(test, alert).into_iter().any(fires)) {
                let mut series = items(firing, "input_series").iter().map(|each| string(each, "series"));
                let is_named = series.any(|series| series.contains("cluster="));
                for case in cases_of(firing, alert) {
                    for fired in items(case, "exp_alerts") {
                        assert_eq!(fired["exp_labels"]["cluster"] == "east", is_named, "{alert}: {case}");
                    }
                }
                for silent in of_alert().filter(|test| !cases_of(test, alert).into_iter().any(fires)) {
                    let others = items(silent, "input_series").iter().map(|each| in_cluster(each, "west"));
                    let series: Vec<Value> = items(firing, "input_series").iter().cloned().chain(others).collect();
                    merged.push(json!({
                        "name": format!("{}; in another cluster: {}", string(firing, "name"), string(silent, "name")),
                        "interval": firing["interval"],
                        "input_series": series,
                        "alert_rule_test": cases_of(firing, alert),
                    }));
                }
            }
            if !merged.is_empty() {
                pairs += merged.len();
                let interval = &tests["evaluation_interval"];
                let merged = json!({ "rule_files": [rules], "evaluation_interval": interval, "tests": merged });
                promtool(&["test", "rules", &write(&format!("{alert}_test.json"), &merged)]);
            }
        }
        assert!(pairs > 0, "{alert} has no case in which it fires next to one in which it stays silent");
    }
}

/// Rules of Grafana's dashboard-linter, by their names there. Its other rules are those of the tests above.
#[test]
fn the_dashboard_follows_the_rules_of_dashboard_linter() {
    const UNITS: [&str; 8] = ["short", "percentunit", "bytes", "s", "h", "reqps", "cps", "none"];
    let dashboard = dashboard();
    assert_eq!(dashboard["editable"], false, "uneditable-dashboard");
    let list = items(&dashboard["templating"], "list");
    let variable = |name: &str| list.iter().find(|each| each["name"] == name).unwrap_or_else(|| panic!("no {name}"));
    let datasource = variable("datasource");
    let is_templated = datasource["type"] == "datasource" && datasource["query"] == "prometheus";
    assert!(is_templated && datasource["label"] == "Data source", "template-datasource-rule");
    for (name, label) in [("job", "Job"), ("instance", "Instance")] {
        let variable = variable(name);
        let is_selectable = variable["multi"] == true && variable["allValue"] == ".+" && variable["type"] == "query";
        assert!(is_selectable && variable["label"] == label, "template-{name}-rule: {variable}");
        assert_eq!(variable["datasource"]["uid"], "${datasource}", "template-{name}-rule");
    }
    for variable in list.iter().filter(|variable| variable["type"] == "query") {
        assert_eq!(variable["refresh"], 2, "template-on-time-change-reload-rule: {variable}");
    }

    for (title, query) in panels(&dashboard) {
        let names = Names::of(&query);
        for name in TARGET_VARIABLES {
            // Also target-job-rule and target-instance-rule.
            let matcher = format!("{name}=~\"${name}\"");
            assert_eq!(query.matches(&matcher).count(), names.metrics.len(), "{title}: each metric needs {matcher}");
        }
        let of_rate = query.split("rate(").skip(1).filter_map(|after| after.split_once('[')?.1.split(']').next());
        for window in of_rate {
            assert_eq!(window, "$__rate_interval", "target-rate-interval-rule: {title}");
        }
        for (name, _) in names.metrics.iter().filter(|(name, _)| name.ends_with("_total")) {
            let uses: Vec<_> = query.match_indices(name.as_str()).collect();
            let is_aggregated = |at: usize| query[..at].ends_with("rate(") || query[..at].ends_with("increase(");
            assert!(uses.iter().all(|(at, _)| is_aggregated(*at)), "target-counter-agg-rule: {title}: {name}");
        }
    }
    for panel in items(&dashboard, "panels").iter().filter(|panel| panel["type"] != "row") {
        let (title, kind) = (string(panel, "title"), string(panel, "type"));
        assert!(!title.is_empty() && !string(panel, "description").is_empty(), "panel-title-description-rule: {panel}");
        assert!(!items(panel, "targets").is_empty(), "panel-no-targets-rule: {title}");
        let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
        assert!(kind == "state-timeline" || UNITS.contains(&unit), "panel-units-rule: {title} has the unit {unit:?}");
    }
}

/// A Prometheus server that scrapes one address every second, as a pod of a cluster, with the alerts as its rules.
struct Prometheus {
    address: SocketAddr,
    process: Process,
}

impl Prometheus {
    async fn start(folder: &Path, target: SocketAddr) -> Prometheus {
        let port = free_port();
        let file = folder.join("prometheus.yaml");
        let configuration = format!(
            "global: {{ scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s }}\n\
             rule_files: ['{}']\nscrape_configs:\n- job_name: bridge\n  static_configs:\n\
             \x20 - targets: ['{target}']\n    labels: {{ cluster: east, namespace: media, pod: bridge-0 }}\n",
            repository(ALERTS).display()
        );
        std::fs::write(&file, configuration).expect("the temporary folder is writable");
        let mut command = Command::new(tool("prometheus", "promtool"));
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("prometheus").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        let process = Process::start("prometheus", &command, &folder.join("prometheus.log"), Some(folder));
        process.wait_log("Server is ready to receive web requests", SOON);
        Prometheus { address: SocketAddr::from(([127, 0, 0, 1], port)), process }
    }

    /// The data in an answer of its API.
    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Value {
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let parameters: Vec<String> =
            parameters.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let target = format!("/api/v1/{path}?{}", parameters.join("&"));
        let answer = Client::connect(self.address).await.request("GET", &target, "", &[]).await;
        let mut answer: Value = serde_json::from_slice(&answer.body).expect("JSON");
        assert_eq!(answer["status"], "success", "{parameters:?}: {answer}\n{}", self.process.log_tail());
        answer["data"].take()
    }

    /// The result of a query for every second from a time until now: the series with their values.
    async fn range(&self, query: &str, from: SystemTime) -> Vec<(Value, Vec<f64>)> {
        let seconds = |time: SystemTime| {
            let since = time.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
            since.as_secs_f64().to_string()
        };
        let (start, end) = (seconds(from), seconds(SystemTime::now()));
        let parameters = [("query", query), ("start", &start), ("end", &end), ("step", "1")];
        let data = self.get("query_range", &parameters).await;
        let value = |sample: &Value| sample[1].as_str().and_then(|text| text.parse().ok()).expect("a number");
        let series = items(&data, "result").iter();
        series.map(|series| (series["metric"].clone(), items(series, "values").iter().map(value).collect())).collect()
    }

    /// Waits until a query has a result.
    async fn sees(&self, query: &str) {
        eventually(&format!("Prometheus sees {query}"), SOON, async || {
            let data = self.get("query", &[("query", query)]).await;
            (!items(&data, "result").is_empty()).then_some(())
        })
        .await;
    }
}

fn event(id: &str, status: &str) -> String {
    let now = OffsetDateTime::now_utc().replace_nanosecond(0).expect("in range").format(&Rfc3339).expect("RFC 3339");
    format!(
        r#"{{"EventType":"FileUploadComplete","EventTime":"{now}","Status":"{status}","VideoId":"{id}","Size":"42"}}"#
    )
}

/// Posts callbacks and puts messages with every kind of outcome, until it is aborted.
async fn load(worker: u32, input: SocketAddr, mns: Arc<Mns>) {
    let mut client = Client::connect(input).await;
    let mut beat = tokio::time::interval(Duration::from_millis(40));
    for number in 0_u32.. {
        beat.tick().await;
        let id = format!("{worker}-{number}");
        let good = event(&id, if number.is_multiple_of(3) { "fail" } else { "success" });
        client.post("/callbacks", good.clone(), &signed_headers("VOD")).await;
        match number % 8 {
            0 => drop(client.post("/callbacks", good, &signed_headers("VOD")).await),
            1 => {
                client.post("/callbacks", good, &headers_signed_at("VOD", URL, now(), "AnotherKey1")).await;
            }
            2 => drop(client.post("/callbacks", good, &[]).await),
            3 => drop(client.post("/elsewhere", good, &signed_headers("VOD")).await),
            4 => drop(client.post("/callbacks", "{}", &signed_headers("VOD")).await),
            5 => drop(client.post("/callbacks", event(&format!("drop-{id}"), "success"), &signed_headers("VOD")).await),
            6 if number < 20 => {
                client.post("/callbacks", event(&format!("letter-{id}"), "success"), &signed_headers("VOD")).await;
            }
            _ => drop(mns.put(QUEUE, event(&format!("queue-{id}"), "success"))),
        }
    }
}

fn dead_letters(folder: &Path, arguments: &[&str]) -> i32 {
    let mut command = program::command(&["dead-letters"]);
    command.args(arguments).arg("--path").arg(folder.join("spool"));
    program::run(command).0
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_shows_something() {
    let folder = tempfile::tempdir().expect("a folder");
    let mns = Arc::new(Mns::start(MnsOptions::default()));
    let visibility_timeout = Duration::from_secs(2);
    mns.create_queue(QUEUE, QueueAttributes { visibility_timeout, ..QueueAttributes::default() });
    mns.set_clock_offset(30);
    // The bridge asks once a minute how many messages the queue has. Put some before the first time.
    mns.put_all(QUEUE, (0..40).map(|number| event(&format!("early-{number}"), "success")));
    mns.fail_next(Operation::RECEIVES, 1, Fault::bad_gateway());
    let cluster = mock(&["watched"]);
    let nats = Nats::start(NatsOptions::default()).await;
    let certificates = Certificates::make(&folder.path().join("certificates"));
    let config = Config::http()
        .set("inputs.http.max_body = '2MiB'")
        .mns(&mns, QUEUE)
        .set("inputs.queue = { wait = '1s', visibility = '2s', deadline = '3s' }")
        .kafka(&cluster.bootstrap_servers())
        .nats(nats.url())
        .stream("WATCHED", "watched.>")
        .set(&format!("outputs.kafka.client.\"ssl.ca.location\" = '{}'", certificates.authority.display()))
        .route(Route::new("dropped").when("mediaid = 'drop-*'").set("drop = true"))
        .route(Route::new("kept").when("mediaid = 'letter-*'").set("dead_letter = true"))
        .route(Route::new("all").to("kafka", "watched").to("nats", "watched.{status}"))
        .spool(folder.path().join("spool"))
        .set("delivery.deadline = '500ms'\nspool.max_bytes = '128KiB'\ndead_letters.max_bytes = '1MiB'");
    let bridge = Program::start(folder.path(), config);
    let input = bridge.input;
    let began = SystemTime::now();
    let prometheus = Prometheus::start(folder.path(), bridge.admin).await;

    let mut workers = JoinSet::new();
    for worker in 0..4 {
        workers.spawn(load(worker, input, mns.clone()));
    }
    for output in ["kafka", "nats"] {
        prometheus.sees(&format!(r#"rate(apsara_bridge_published_total{{output="{output}"}}[5s]) > 0"#)).await;
    }
    // A record that the bus refuses, and a body that is not a callback and too large to be kept.
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_INVALID_RECORD]);
    Client::connect(input).await.post("/callbacks", vec![b'x'; 1_200_000], &signed_headers("VOD")).await;
    prometheus.sees(r#"apsara_bridge_dead_letters_total{reason="rejected"} > 0"#).await;
    // Who does not speak HTTP, and holds a connection.
    assert!(raw(input, "hello\r\n\r\n").await.starts_with("HTTP/1.1 400 "));
    let _idle = Client::connect(input).await;

    // A bus goes down. The spool fills until it is full. The lease of a message is extended, and then it is deleted too
    // late.
    nats.kill();
    prometheus.sees("apsara_bridge_output_up == 0").await;
    let late = mns.put(QUEUE, event("late", "success"));
    mns.fail_deletes(QUEUE, &late, 1, "MessageNotExist");
    prometheus.sees("rate(apsara_bridge_mns_lease_extensions_total[5s]) > 0").await;
    prometheus.sees(r#"rate(apsara_bridge_callbacks_total{outcome="refused"}[5s]) > 0"#).await;
    prometheus.sees(r#"rate(apsara_bridge_spool_failures_total{reason="spool_full"}[5s]) > 0"#).await;

    // The bus is up again, and an operator replays what can be replayed.
    nats.restart().await;
    prometheus.sees("apsara_bridge_spool_events == 0").await;
    prometheus.sees("apsara_bridge_mns_late_deletes_total > 0").await;
    assert_eq!(dead_letters(folder.path(), &["replay", "--reason", "rejected"]), 0);
    assert_eq!(dead_letters(folder.path(), &["replay", "--reason", "routed"]), 1);
    let configuration = bridge.configuration().to_string();
    bridge.reload(&configuration);
    bridge.process().wait_log("the configuration was reloaded", SOON);
    bridge.reload(&configuration.replace("[[routes]]", "[[rutes]]"));
    bridge.process().wait_log("nothing has changed", SOON);

    let filled = |query: &str| {
        let query = query.replace("$namespace", "media").replace("$pod", "bridge-0").replace("$input", "http|queue");
        let query = query.replace("$cluster", "east").replace("$job", "bridge").replace("$instance", ".+");
        let query = query.replace("$__rate_interval", "5s");
        assert!(!query.contains('$'), "a variable is left: {query}");
        query
    };
    // No result may be empty or all zero, because something has happened for each panel.
    let dashboard = dashboard();
    for (title, query) in panels(&dashboard) {
        let query = filled(&query);
        eventually(&format!("panel {title} to show something: {query}"), SOON, async || {
            let series = prometheus.range(&query, began).await;
            let shows = series.iter().any(|(_, values)| values.iter().any(|value| value.is_finite() && *value != 0.0));
            shows.then_some(())
        })
        .await;
    }
    let scraped = prometheus.get("label/__name__/values", &[]).await;
    for name in exported().keys() {
        assert!(scraped.as_array().expect("an array").iter().any(|known| known == name), "{name} is not exported");
    }
    for variable in variables(&dashboard) {
        let (_, selector, label) = Names::of_variable(variable);
        let values = prometheus.get(&format!("label/{label}/values"), &[("match[]", &filled(selector))]).await;
        assert!(!values.as_array().expect("an array").is_empty(), "{variable}");
    }
    for query in documented_queries(&repository_text(RUNBOOK)) {
        prometheus.get("query", &[("query", query)]).await;
    }

    // The alerts can be evaluated, and those for the events above fire or are pending.
    let loaded = prometheus.get("rules", &[]).await;
    for rule in items(&loaded, "groups").iter().flat_map(|group| items(group, "rules")) {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    for alert in ["EventsRefused", "SpoolWriteFailures", "DeadLettersGrowing", "OutputDown", "SignatureFailures"] {
        let query = format!(r#"ALERTS{{alertname="ApsaraBridge{alert}"}}"#);
        assert!(!prometheus.range(&query, began).await.is_empty(), "{alert} has not begun to fire");
    }
    prometheus.sees(r#"ALERTS{alertname="ApsaraBridgeConfigReloadFailed"}"#).await;
    assert!(workers.try_join_next().is_none(), "the load ended early");
    workers.shutdown().await;
    bridge.stop();
}
