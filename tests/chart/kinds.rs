//! The chart knows kinds and reloadable keys only from the files that the program generates.

use std::path::{Path, PathBuf};

use apsara_bridge::service::is_reloadable;
use apsara_bridge::{input, output};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::rendered::{CHART, NAMESPACE, RELEASE, Values};
use crate::support::kubernetes::{Ran, helm};

/// Stands where a secret should be read from a file.
const TEXT: &str = "hunter2";

/// Changes of the values, each with the key of the configuration that it changes.
const CHANGES: &[(&str, &str)] = &[
    ("routes", r#"config.routes=[{"name": "all", "to": {"output": "kafka", "topic": "all"}}]"#),
    ("event.type_prefix", r#"config.event.type_prefix="com.example""#),
    ("catalogue.files", r#"config.catalogue={"files": ["/etc/catalogue.toml"]}"#),
    ("dead_letters.max_bytes", r#"config.dead_letters.max_bytes="1GiB""#),
    ("spool.max_bytes", r#"config.spool.max_bytes="2GiB""#),
    ("delivery.give_up_after", r#"config.delivery.give_up_after="1h""#),
    ("dedupe.window", r#"config.dedupe.window="1m""#),
    ("admin.page", r#"config.admin.page="off""#),
    ("admin.show_payloads", "config.admin.show_payloads=true"),
    ("log.filter", r#"config.log.filter="debug""#),
    (
        "inputs.http.endpoints",
        r#"config.inputs.http.endpoints=[{"path": "/other", "urls": ["https://a/other"], "keys": [{"env": "KEY"}]}]"#,
    ),
    ("inputs.http.max_body", r#"config.inputs.http.max_body="1MiB""#),
    ("inputs.http.max_connections", "config.inputs.http.max_connections=100"),
    ("inputs.queue.kind", r#"config.inputs.queue={"kind": "mns", "endpoint": "https://a", "queue": "b"}"#),
    ("outputs.kafka.brokers", r#"config.outputs.kafka.brokers=["other:9093"]"#),
    ("outputs.nats.kind", r#"config.outputs.nats={"kind": "nats"}"#),
    ("delivery.deadline", r#"config.delivery.deadline="2s""#),
    ("log.format", r#"config.log.format="text""#),
    ("shutdown.drain", r#"config.shutdown.drain="30s""#),
    ("admin.listen", "listen.admin=19464"),
    ("inputs.http.listen", "listen.callbacks=18080"),
];

#[test]
fn only_a_key_that_needs_a_restart_rolls_the_pods() {
    let good = Values::named("kafka");
    let checksum = |flags: &[&str]| {
        let rendered = good.template(NAMESPACE, flags).quietly().unwrap_or_else(|error| panic!("{error}")).out;
        let line = rendered.lines().find_map(|line| line.trim().strip_prefix("checksum/config: "));
        line.expect("the pods have a checksum").to_owned()
    };
    let before = checksum(&[]);
    let kind = |name: &str| match name {
        "http" => Some("http"),
        "queue" => Some("mns"),
        _ => None,
    };
    let mut rolling = 0;
    for (key, change) in CHANGES {
        let parts: Vec<String> = key.split('.').map(str::to_owned).collect();
        let rolls = checksum(&["--set-json", change]) != before;
        assert_eq!(rolls, !is_reloadable(&parts, kind), "whether {key} rolls the pods");
        rolling += usize::from(rolls);
    }
    assert_eq!(rolling, 9, "changes that roll the pods");

    let always = ["--set", "rollOnConfigChange=true"];
    assert_ne!(checksum(&[&always[..], &["--set-json", CHANGES[0].1]].concat()), checksum(&always), "with `true`");
    let unknown = ["--set-json", r#"config.outputs.later={"kind": "later"}"#];
    assert_ne!(checksum(&unknown), before, "a kind that the chart does not know");
}

#[test]
fn text_is_refused_in_every_secret_key_of_every_kind() {
    let inputs = input::KINDS.iter().map(|kind| ("inputs", kind.name, kind.keys));
    let outputs = output::KINDS.iter().map(|kind| ("outputs", kind.name, kind.keys));
    let mut checked = 0;
    for (section, kind, keys) in inputs.chain(outputs) {
        for pattern in keys.secrets {
            let error = render(Path::new(CHART), &with_plugin(section, kind, pattern, json!(TEXT))).refused();
            let error = error.unwrap_or_else(|error| panic!("{kind} {pattern}: {error}"));
            assert!(error.contains(&format!("config.{section}.other.")), "{kind} {pattern}: {error}");
            assert!(error.contains("a secret as text") && !error.contains(TEXT), "{kind} {pattern}: {error}");
            let sourced = render(Path::new(CHART), &with_plugin(section, kind, pattern, json!({ "env": "SECRET" })));
            // The Service leads to one input that listens, whatever its secrets are.
            let refused = sourced.refused().unwrap_or_default();
            assert!(!refused.contains("a secret as text"), "{kind} {pattern}: {refused}");
            checked += 1;
        }
    }
    assert!(checked > 5, "only {checked} keys");
}

#[test]
fn a_new_kind_needs_no_change_of_the_templates() {
    let chart = copy_with_kinds(
        "  feed: {listeners: [bind.address], addresses: [], secrets: [], cloud_key: null}\n",
        "  later: {listeners: [], addresses: [{key: \"targets[].url\", port: 4443}], secrets: [headers.*], \
         cloud_key: access_key}\n",
    );
    let mut values = with_plugin("outputs", "later", "headers.*", json!({ "env": "SECRET" }));
    values["config"]["outputs"]["other"]["targets"] =
        json!([{ "url": "https://a.example.com/x" }, { "url": "b.example.com" }, { "url": "http://c:8080/?d" }]);
    values["networkPolicy"] = json!({ "enabled": true, "gatewayNamespaces": ["gateways"] });
    let rendered = render(chart.path(), &values).quietly().unwrap_or_else(|error| panic!("{error}")).out;
    for port in [443, 4443, 8080, 9093] {
        assert!(rendered.contains(&format!("- port: {port}\n")), "{port}: {rendered}");
    }
    assert!(rendered.contains("cidr: 100.100.100.200/32"), "{rendered}");

    let refused = render(chart.path(), &with_plugin("outputs", "later", "headers.*", json!(TEXT))).refused();
    assert!(
        refused.as_ref().is_ok_and(|error| error.contains("config.outputs.other.headers.x is a secret")),
        "{refused:?}"
    );

    let mut values = with_plugin("inputs", "feed", "endpoints", json!([{ "path": "/feed" }]));
    values["config"]["inputs"]["http"] = Value::Null;
    let rendered = render(chart.path(), &values).quietly().unwrap_or_else(|error| panic!("{error}")).out;
    assert!(rendered.contains("      other:\n        bind:\n          address: 0.0.0.0:8080\n"), "{rendered}");
    assert!(rendered.contains("- name: callbacks\n"), "{rendered}");
}

/// Good values with one more plug-in, which has this value at a key. `[]` in the key makes a list.
fn with_plugin(section: &str, kind: &str, key: &str, value: Value) -> Value {
    let nested = key.replace('*', "x").rsplit('.').fold(value, |value, part| match part.strip_suffix("[]") {
        Some(part) => json!({ part: [value] }),
        None => json!({ part: value }),
    });
    let mut values = json!({ "config": { section: { "other": nested } } });
    values["config"][section]["other"]["kind"] = json!(kind);
    values
}

/// Renders a chart with the values of `ci/kafka-values.yaml` and others over them.
fn render(chart: &Path, values: &Value) -> Ran {
    let file = tempfile::NamedTempFile::new().expect("the folder for temporary files is writable");
    std::fs::write(file.path(), values.to_string()).expect("the temporary file is writable");
    let good = Values::named("kafka");
    let [chart, file] = [chart, file.path()].map(|path| path.to_str().expect("UTF-8"));
    helm(&["template", RELEASE, chart, "--namespace", NAMESPACE, "--values", good.file(), "--values", file])
}

/// A copy of the chart that knows one more kind of input and one more of output.
fn copy_with_kinds(input: &str, output: &str) -> TempDir {
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    copy(Path::new(CHART), folder.path());
    let path = folder.path().join("files/kinds.yaml");
    let kinds = std::fs::read_to_string(&path).expect("the chart knows kinds");
    let (inputs, outputs) = kinds.split_once("outputs:\n").expect("kinds of outputs come last");
    std::fs::write(&path, format!("{inputs}{input}outputs:\n{outputs}{output}")).expect("the copy is writable");
    folder
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("the copy is writable");
    for entry in std::fs::read_dir(from).expect("the chart can be read") {
        let from: PathBuf = entry.expect("the chart can be read").path();
        let to = to.join(from.file_name().expect("an entry has a name"));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(&from, &to).expect("the copy is writable");
        }
    }
}
