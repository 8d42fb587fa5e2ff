//! The alerts that the chart renders are those of the file, and each value changes what it is said to change.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use figment::providers::{Format as _, Yaml};
use serde_json::{Value, json};

use crate::rendered::{CHART, NAMESPACE, Values};
use crate::support::kubernetes::run;
use crate::support::tool;

/// Makes the chart render every alert of the file, with its number.
const ALL: [&str; 4] = ["--set", "prometheusRule.enabled=true", "--set", "prometheusRule.thresholds.noEvents=3600s"];

fn yaml(text: &str) -> Value {
    Yaml::from_str(text).unwrap_or_else(|error| panic!("{error}:\n{text}"))
}

fn file() -> Value {
    yaml(&std::fs::read_to_string(Path::new(CHART).join("files/alerts/apsara-bridge.yaml")).expect("the file is there"))
}

/// The rendered rules, by group.
fn rendered(flags: &[&str]) -> Value {
    let only = ["--show-only", "templates/prometheusrule.yaml"];
    let ran = Values::named("kafka").template(NAMESPACE, &[&ALL[..], &only, flags].concat());
    yaml(&ran.quietly().unwrap_or_else(|error| panic!("{error}")).out)["spec"].take()
}

fn rules(groups: &Value) -> Vec<&Value> {
    let groups = groups["groups"].as_array().expect("groups");
    groups.iter().flat_map(|group| group["rules"].as_array().expect("rules")).collect()
}

fn name(rule: &Value) -> &str {
    rule["alert"].as_str().or(rule["record"].as_str()).expect("a name")
}

/// The values that an expression names in its comments, with the number or the window before each.
fn markers(rule: &Value) -> Vec<(String, String)> {
    let lines = rule["expr"].as_str().expect("an expression").lines();
    let markers = lines.filter_map(|line| line.split_once(" # "));
    let last = |text: &str| text.rsplit(|each| " (".contains(each)).next().map(str::to_owned).unwrap_or_default();
    let token = |text: &str| match text.rfind('[') {
        Some(at) if text.ends_with(']') => text[at..].to_owned(),
        _ => last(text),
    };
    markers.map(|(before, key)| (key.trim_end_matches(" in seconds").to_owned(), token(before))).collect()
}

/// Without its comments.
fn bare(rule: &Value) -> Value {
    let mut rule = rule.clone();
    let lines = rule["expr"].as_str().expect("an expression").lines();
    let lines: Vec<_> = lines.map(|line| line.split_once(" # ").map_or(line, |(before, _)| before)).collect();
    rule["expr"] = format!("{}\n", lines.join("\n")).into();
    rule
}

#[test]
fn with_the_default_values_the_rules_are_those_of_the_file() {
    let (file, rendered) = (file(), rendered(&[]));
    let (expected, is) = (rules(&file), rules(&rendered));
    assert_eq!(is.len(), expected.len());
    for (is, expected) in is.into_iter().zip(expected) {
        assert_eq!(*is, bare(expected), "{}", name(expected));
    }
}

/// Runs `promtool test rules` on rendered rules.
fn promtool(rules: &Value, tests: &str) {
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    std::fs::write(folder.path().join("apsara-bridge.yaml"), rules.to_string()).expect("writable");
    let path = folder.path().join("test.yaml");
    std::fs::write(&path, tests.replace("../apsara-bridge.yaml", "apsara-bridge.yaml")).expect("writable");
    let mut command = Command::new(tool("promtool", "promtool"));
    command.args(["test", "rules"]).arg(path);
    let ran = run(command, "");
    assert!(ran.code == 0, "{}", ran.told());
}

#[test]
fn the_rendered_rules_pass_the_tests_of_the_file() {
    let rendered = rendered(&[]);
    for name in ["apsara-bridge_test.yaml", "apsara-bridge_offset_test.yaml"] {
        let tests = std::fs::read_to_string(Path::new(CHART).join("files/alerts/tests").join(name));
        promtool(&rendered, &tests.expect("the tests are there"));
    }
}

/// The alerts about more events than a number, each with its threshold and a series that it counts.
const COUNTING: [(&str, &str, &str); 7] = [
    ("EventsRefused", "refusals", r#"callbacks_total{input="http", outcome="refused"}"#),
    ("SpoolWriteFailures", "spoolFailures", r#"spool_failures_total{reason="io"}"#),
    ("DeadLettersGrowing", "deadLetters", r#"dead_letters_total{reason="too_large"}"#),
    ("DeadLettersNotKept", "lettersNotKept", r#"dead_letters_not_kept_total{reason="too_large"}"#),
    ("SignatureFailures", "signatureFailures", r#"unauthorized_total{endpoint="/callbacks", reason="not_signed"}"#),
    ("MnsLateDeletes", "lateDeletes", r#"mns_late_deletes_total{pod="bridge-0"}"#),
    ("ConfigReloadFailed", "reloadFailures", r#"config_reloads_total{result="failure"}"#),
];

/// With a scrape each minute and evaluations between the scrapes, `increase()` has more than there was.
#[test]
fn n_events_are_not_more_than_n_and_one_more_is() {
    let is_counting = |rule: &Value| COUNTING.iter().any(|(alert, ..)| name(rule) == format!("ApsaraBridge{alert}"));
    for rule in rules(&file()) {
        let expr = rule["expr"].as_str().expect("an expression");
        let is_alert = rule["alert"].is_string();
        assert!(!(is_alert && expr.contains("increase(") && expr.contains(" # thresholds.")), "{rule}");
        let is_objective = expr.contains(" # slo.");
        assert_eq!(is_alert && expr.contains(":count") && !is_objective, is_counting(rule), "{rule}");
    }
    // The events come at once, or with a restart.
    for (threshold, pattern) in [(2, "0x5 Nx45"), (40, "0x5 Nx45"), (2, "0x5 N 0x45")] {
        let flags = COUNTING.map(|(_, key, _)| format!("prometheusRule.thresholds.{key}={threshold}")).join(",");
        let mut tests = Vec::new();
        for (alert, _, series) in COUNTING {
            for events in [threshold, threshold + 1] {
                let values = pattern.replace('N', &events.to_string());
                let fired = json!([{ "labels": "{}", "value": 1 }]);
                tests.push(json!({
                    "name": format!("{events} events, {alert}"),
                    "interval": "1m",
                    "input_series": [{ "series": format!("apsara_bridge_{series}"), "values": values }],
                    "promql_expr_test": [{
                        "expr": format!(r#"count(last_over_time(ALERTS{{alertname="ApsaraBridge{alert}"}}[50m]))"#),
                        "eval_time": "45m",
                        "exp_samples": if events > threshold { fired } else { json!([]) },
                    }],
                }));
            }
        }
        let files = ["apsara-bridge.yaml"];
        let tests = json!({ "rule_files": files, "evaluation_interval": "50s", "tests": tests });
        // These alerts and the counts alone, because evaluating all rules takes long.
        let mut rendered = rendered(&["--set", &flags]);
        for group in rendered["groups"].as_array_mut().expect("groups") {
            let rules = group["rules"].as_array_mut().expect("rules");
            rules.retain(|rule| name(rule).contains(":count") || is_counting(rule));
        }
        promtool(&rendered, &tests.to_string());
    }
}

#[test]
fn each_threshold_and_objective_changes_the_rules_that_name_it() {
    let (file, usual) = (file(), rendered(&[]));
    let values = std::fs::read_to_string(Path::new(CHART).join("values.yaml")).expect("the values are there");
    let values = yaml(&values);
    let mut documented = BTreeSet::new();
    for section in ["thresholds", "slo"] {
        let section_values = values["prometheusRule"][section].as_object().expect("a section");
        documented.extend(section_values.keys().map(|key| format!("{section}.{key}")));
    }
    let named: BTreeSet<_> = rules(&file).into_iter().flat_map(markers).map(|(key, _)| key).collect();
    assert_eq!(named, documented, "values and the comments of the rules");

    for key in named {
        let naming: Vec<_> =
            rules(&file).into_iter().filter(|rule| markers(rule).iter().any(|(named, _)| *named == key)).collect();
        let (_, before) = markers(naming[0]).into_iter().find(|(named, _)| *named == key).expect("named");
        let (set, shown) = match key.as_str() {
            "slo.answered" | "slo.onBus" => ("0.97", "0.97"),
            "thresholds.spoolFull" | "thresholds.deadLettersFull" => ("0.5", "0.5"),
            "thresholds.noEventsFromHour" | "thresholds.noEventsHours" => ("7", "7"),
            _ if before.starts_with('[') => ("7h", "[7h]"),
            _ if naming[0]["expr"].as_str().is_some_and(|expr| expr.contains(&format!("{key} in seconds"))) => {
                ("7h", "25200")
            }
            _ => ("77", "77"),
        };
        let flag = format!("prometheusRule.{key}={set}");
        let changed = rendered(&["--set", &flag]);
        for (is, was) in rules(&changed).into_iter().zip(rules(&usual)) {
            let is_named = naming.iter().any(|rule| name(rule) == name(was));
            assert_eq!(*is != *was, is_named, "{flag}: {}", name(was));
            let has_value = is["expr"].as_str().is_some_and(|expr| expr.contains(shown));
            assert!(!is_named || has_value, "{flag} does not show {shown} in {is}");
        }
    }
}

#[test]
fn each_alert_can_be_switched_off_and_changed() {
    let file = file();
    for rule in rules(&file).into_iter().filter(|rule| !rule["alert"].is_null()) {
        let alert = name(rule);
        let without = rendered(&["--set", &format!("prometheusRule.disabled[0]={alert}")]);
        assert_eq!(rules(&without).len() + 1, rules(&file).len(), "{alert}");
        assert!(rules(&without).into_iter().all(|rule| name(rule) != alert), "{alert}");
    }
    let flags = ["--set", "prometheusRule.alerts.ApsaraBridgeSpoolOld.for=1h30m,prometheusRule.ruleLabels.team=media"];
    for rule in rules(&rendered(&flags)) {
        let is_alert = !rule["alert"].is_null();
        assert_eq!(rule["labels"]["team"] == "media", is_alert, "{rule}");
        assert_eq!(rule["for"] == "1h30m", rule["alert"] == "ApsaraBridgeSpoolOld", "{rule}");
    }
}
