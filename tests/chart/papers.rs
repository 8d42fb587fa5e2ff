//! What is next to the templates: lint, unit tests, README, schema, rules and dashboards.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use figment::providers::{Format as _, Yaml};
use serde_json::{Value, json};

use crate::rendered::{CHART, NAMESPACE, RELEASE, for_all, identity, of_kind};
use crate::support::kubernetes::{Kubernetes, helm, helm3, run};
use crate::support::{generated, tool};

/// Keys with a meaning in helm itself, which need no default.
const OF_HELM: &[&str] = &["global", "enabled", "tags"];

#[test]
fn lint_has_no_complaints() {
    for_all(|values| helm(&["lint", "--strict", "--values", values.file(), CHART]).quietly().map(drop));
}

#[test]
fn helm_3_renders_the_same_and_refuses_a_mistake_below_config() {
    for_all(|values| {
        let arguments = ["template", RELEASE, CHART, "--namespace", NAMESPACE, "--values", values.file()];
        let (older, newer) = (helm3(&arguments).quietly()?.out, helm(&arguments).quietly()?.out);
        let differing = older.lines().zip(newer.lines()).find(|(older, newer)| older != newer);
        if older != newer {
            return Err(format!("a line that differs: {differing:?}"));
        }
        let refused = helm3(&[&arguments[..], &["--set", "config.delivery.deadlin=1s"]].concat()).refused()?;
        if refused.contains("deadlin") { Ok(()) } else { Err(refused) }
    });
}

#[test]
fn unit_tests_pass() {
    let mut command = Command::new(tool("helm-unittest", "chart"));
    command.args(["--strict", "--file", "unittests/*_test.yaml", CHART]);
    let ran = run(command, "").quietly().unwrap_or_else(|error| panic!("{error}"));
    let tests = ran.out.lines().find_map(|line| line.strip_prefix("Tests:")).unwrap_or_default().trim();
    assert!(tests.ends_with(" total") && !tests.starts_with("0 "), "no test was found:\n{}", ran.out);
}

#[test]
fn the_readme_is_generated_from_the_values() {
    let mut command = Command::new(tool("helm-docs", "chart"));
    command.args(["--dry-run", "--log-level", "warning", "--chart-search-root", CHART]);
    let made = run(command, "").quietly().unwrap_or_else(|error| panic!("{error}")).out;
    generated::check("charts/apsara-bridge/README.md", &format!("{}\n", made.trim()));
}

#[test]
fn the_schema_knows_the_values_and_no_others() {
    let schema = std::fs::read_to_string(Path::new(CHART).join("values.schema.json")).expect("the chart has a schema");
    let schema: Value = serde_json::from_str(&schema).expect("it is JSON");
    let values = read_yaml("values.yaml");
    assert!(!schema["properties"]["global"].is_null(), "without `global` the chart cannot be part of another one");
    let reference = concat!(env!("CARGO_MANIFEST_DIR"), "/config/apsara-bridge.toml");
    let reference = std::fs::read_to_string(reference).expect("the reference is there");
    let reference: BTreeMap<String, Value> = toml::from_str(&reference).expect("it is TOML");
    let sections = schema["definitions"]["generatedConfig"]["properties"].as_object().expect("`config` has sections");
    assert_eq!(sections.keys().collect::<BTreeSet<_>>(), reference.keys().collect(), "sections of `config`");
    let mut wrong = Vec::new();
    differ(&schema, &schema, &values, "", &mut wrong);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Where values and schema know different keys. What is empty by default is the user's to fill, and a block without
/// `properties` is free-form.
fn differ(root: &Value, schema: &Value, values: &Value, path: &str, wrong: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        // Definitions elsewhere, for example the kinds of Kubernetes, are not listed by the chart.
        let Some(schema) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else { return };
        return differ(root, schema, values, path, wrong);
    }
    let (Some(properties), Some(values)) = (schema["properties"].as_object(), values.as_object()) else { return };
    if values.is_empty() {
        return;
    }
    // Other charts have their own keys there.
    if schema["additionalProperties"] != false && path != ".global" {
        wrong.push(format!("{path}: a misspelt key is not refused"));
    }
    for (key, schema) in properties {
        match values.get(key) {
            Some(values) => differ(root, schema, values, &format!("{path}.{key}"), wrong),
            None if path.is_empty() && OF_HELM.contains(&key.as_str()) => {}
            None => wrong.push(format!("{path}.{key} is only in the schema")),
        }
    }
    let unknown = values.keys().filter(|key| !properties.contains_key(*key));
    wrong.extend(unknown.map(|key| format!("{path}.{key} is only in the values")));
}

#[test]
fn rendered_rules_and_dashboards_can_be_read() {
    let kubernetes = Kubernetes::shared();
    let (rules, dashboards) = (std::sync::Mutex::new(0), std::sync::Mutex::new(0));
    for_all(|values| {
        let objects = values.objects(kubernetes, NAMESPACE)?;
        for rule in of_kind(&objects, "PrometheusRule") {
            let file = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
            std::fs::write(&file, rule["spec"].to_string()).map_err(|error| error.to_string())?;
            let mut command = Command::new(tool("promtool", "promtool"));
            command.args(["check", "rules"]).arg(file.path());
            run(command, "").quietly().map_err(|error| format!("{}: {error}", identity(rule)))?;
            *rules.lock().expect("no panic") += rule["spec"]["groups"].as_array().map_or(0, Vec::len);
        }
        for map in of_kind(&objects, "ConfigMap") {
            let files = map["data"].as_object().into_iter().flatten();
            for (name, text) in files.filter(|(name, _)| name.ends_with(".json")) {
                let text = text.as_str().unwrap_or_default();
                let dashboard: Value =
                    serde_json::from_str(text).map_err(|error| format!("{} {name}: {error}", identity(map)))?;
                if dashboard["panels"].as_array().is_none_or(Vec::is_empty) {
                    return Err(format!("{} {name} has no panels", identity(map)));
                }
                *dashboards.lock().expect("no panic") += 1;
            }
        }
        Ok(())
    });
    for (what, count) in [("rules", rules), ("dashboards", dashboards)] {
        assert!(*count.lock().expect("no panic") > 0, "no values file renders {what}");
    }
}

#[test]
fn the_package_can_be_part_of_another_chart_and_contains_no_tests() {
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    let charts = folder.path().join("charts");
    helm(&["package", CHART, "--destination", charts.to_str().expect("UTF-8")]).quietly().expect("packed");
    let packed: Vec<_> = std::fs::read_dir(&charts).expect("made").map(|entry| entry.expect("read").path()).collect();
    let mut command = Command::new("tar");
    command.arg("-tzf").args(&packed);
    let files = run(command, "").quietly().expect("listed").out;
    for wanted in ["values.schema.json", "README.md", "files/alerts/apsara-bridge.yaml", "templates/NOTES.txt"] {
        assert!(files.contains(&format!("apsara-bridge/{wanted}\n")), "{wanted} is missing:\n{files}");
    }
    for folder in ["ci", "unittests", "files/alerts/tests"] {
        assert!(!files.contains(&format!("apsara-bridge/{folder}/")), "{folder} is packed:\n{files}");
    }

    let chart = read_yaml("Chart.yaml");
    let around = json!({
        "apiVersion": "v2",
        "name": "umbrella",
        "version": "1.0.0",
        "dependencies": [{
            "name": "apsara-bridge",
            "version": chart["version"],
            "condition": "apsara-bridge.enabled",
            "tags": ["events"],
        }],
    });
    let write = |name: &str, content: Value| {
        std::fs::write(folder.path().join(name), content.to_string()).expect("the temporary folder is writable");
    };
    write("Chart.yaml", around);
    let values = |is_enabled: bool| {
        let mut inner = read_yaml("ci/kafka-values.yaml");
        inner["enabled"] = json!(is_enabled);
        json!({ "global": { "imageRegistry": "registry.example.com", "others": 1 }, "apsara-bridge": inner })
    };
    for is_enabled in [true, false] {
        write("values.yaml", values(is_enabled));
        let rendered = helm(&["template", RELEASE, folder.path().to_str().expect("UTF-8")]).quietly();
        let rendered = rendered.unwrap_or_else(|error| panic!("{error}")).out;
        assert_eq!(rendered.contains("image: \"registry.example.com/"), is_enabled, "{rendered}");
    }
}

fn read_yaml(name: &str) -> Value {
    let text = std::fs::read_to_string(Path::new(CHART).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
    Yaml::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
}
