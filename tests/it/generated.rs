//! The files that are written from the tables of the program.

use std::fmt::Write as _;

use apsara_bridge::common::kind::KindKeys;
use apsara_bridge::service::RELOADABLE;
use apsara_bridge::{input, output};
use serde_json::Value;

use crate::support::generated;

/// The files of the chart.
const FILES: &str = "charts/apsara-bridge/files";

#[test]
fn the_chart_has_the_generated_facts_about_kinds() {
    let mut text = "\
# Written by `make generate` from the tables of kinds of the program. Do not edit.
#
# What the chart must know about each kind. In a key, `[]` stands for each item of a list, or for the one value in its
# place, and `*` for any text.
#
#   listeners   keys whose value is an address to listen on
#   addresses   keys whose value is an address to connect to, and the port of one that has neither a port nor the scheme
#               http or https
#   secrets     keys whose value is a secret
#   cloud_key   the key of the access key, for a kind that asks the cloud for one when it is missing
"
    .to_owned();
    text.push_str("inputs:\n");
    input::KINDS.iter().for_each(|kind| push_kind(&mut text, kind.name, &kind.keys));
    text.push_str("outputs:\n");
    output::KINDS.iter().for_each(|kind| push_kind(&mut text, kind.name, &kind.keys));
    generated::check(&format!("{FILES}/kinds.yaml"), &text);
}

#[test]
fn the_chart_has_the_generated_list_of_reloadable_keys() {
    let mut text = "\
# Written by `make generate` from the list of reloadable keys of the program. Do not edit.
#
# The keys whose changes a running bridge applies. A key stands for all keys below it. `inputs` has the keys of an input
# by its kind. A change of any other key needs a restart.
reloadable:
"
    .to_owned();
    RELOADABLE.iter().for_each(|key| writeln!(text, "  - {key}").expect("a String"));
    text.push_str("inputs:\n");
    for kind in input::KINDS {
        let keys = serde_json::to_value(kind.reloadable).expect("JSON");
        writeln!(text, "  {}: {}", kind.name, flow(&keys)).expect("a String");
    }
    generated::check(&format!("{FILES}/restart-keys.yaml"), &text);
}

fn push_kind(text: &mut String, name: &str, keys: &KindKeys) {
    writeln!(text, "  {name}:").expect("a String");
    let keys = serde_json::to_value(keys).expect("JSON");
    for (field, value) in keys.as_object().expect("a struct") {
        writeln!(text, "    {field}: {}", flow(value)).expect("a String");
    }
}

/// A value as YAML on one line.
fn flow(value: &Value) -> String {
    let joined = |items: Vec<String>| items.join(", ");
    match value {
        Value::Array(items) => format!("[{}]", joined(items.iter().map(flow).collect())),
        Value::Object(fields) => {
            format!("{{{}}}", joined(fields.iter().map(|(key, value)| format!("{key}: {}", flow(value))).collect()))
        }
        scalar => scalar.to_string(),
    }
}
