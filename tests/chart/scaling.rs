//! The query with which KEDA keeps pods while a spool has events.

use std::process::Command;

use serde_json::json;

use crate::rendered::{NAMESPACE, Values, of_kind};
use crate::support::kubernetes::{Kubernetes, run};
use crate::support::tool;

/// Events in the spools of three pods, one value per minute, and the number of pods to keep at the end of the twelfth.
const CASES: &[(&str, [&str; 3], f64)] = &[
    ("every pod is scraped", ["9x20", "0x20", "0x20"], 3.0),
    ("the target of a pod is lost", ["9x20", "9x20", "9x5"], 3.0),
    ("the target of the only pod with events is lost", ["0x20", "0x20", "9x5"], 3.0),
    ("the spools are empty", ["9x5 0x15", "0x20", "0x20"], 0.0),
];

#[test]
fn a_lost_target_does_not_lower_the_number_of_pods_that_are_kept() {
    let objects = Values::named("keda").objects(Kubernetes::shared(), NAMESPACE).expect("rendered");
    let triggers = of_kind(&objects, "ScaledObject")[0]["spec"]["triggers"].as_array().expect("triggers").clone();
    let query = triggers.iter().find(|trigger| trigger["name"] == "spool").expect("a trigger on the spool");
    let tests: Vec<_> = CASES
        .iter()
        .map(|(name, pods, expected)| {
            let series = |(number, values): (usize, &&str)| {
                let pod = format!("media-apsara-bridge-{number}");
                let labels = format!(r#"namespace="{NAMESPACE}", pod="{pod}", instance="{number}", output="kafka""#);
                json!({ "series": format!("apsara_bridge_spool_events{{{labels}}}"), "values": values })
            };
            json!({
                "name": name,
                "interval": "1m",
                "input_series": pods.iter().enumerate().map(series).collect::<Vec<_>>(),
                "promql_expr_test": [{
                    "expr": query["metadata"]["query"],
                    "eval_time": "12m",
                    "exp_samples": [{ "labels": "{}", "value": expected }],
                }],
            })
        })
        .collect();
    let file = tempfile::NamedTempFile::new().expect("the folder for temporary files is writable");
    std::fs::write(&file, json!({ "tests": tests }).to_string()).expect("the temporary folder is writable");
    let mut command = Command::new(tool("promtool", "promtool"));
    command.args(["test", "rules"]).arg(file.path());
    let ran = run(command, "");
    assert!(ran.code == 0, "{}", ran.told());
}
