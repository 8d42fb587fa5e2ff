//! The schema of the values contains the schema of the configuration, so that `helm lint` finds a mistake below `config`.
//!
//! It is less strict than the schema for editors: the chart and the program have sentences for what is missing, a part of
//! the configuration may be in a ConfigMap of the user, and the program checks kinds that the chart does not know.

use std::sync::Mutex;

use apsara_bridge::config;
use serde_json::{Map, Value, json};

use crate::rendered::{CHART, NAMESPACE, Values};
use crate::support::generated;
use crate::support::kubernetes::helm;

/// The last definition of the schema of the values, which is generated.
pub const NAME: &str = "    \"generatedConfig\": ";

/// Held by a test that writes its part of the schema.
pub static FILE: Mutex<()> = Mutex::new(());

/// Mistakes below `config`, and a part of the message.
const MISTAKES: &[(&str, &str)] = &[
    (r#"config.delivery={"deadlin": "1s"}"#, "at '/config/delivery': additional properties 'deadlin' not allowed"),
    (r#"config.delivery={"deadline": 1}"#, "at '/config/delivery/deadline': got number, want string"),
    (r#"config.delivery={"deadline": "1 sek"}"#, "at '/config/delivery/deadline': '1 sek' does not match pattern"),
    (r#"config.log={"format": "jsn"}"#, "at '/config/log/format': value must be one of 'auto', 'text', 'json'"),
    (
        r#"config.inputs.http.max_boddy="1MiB""#,
        "at '/config/inputs/http': additional properties 'max_boddy' not allowed",
    ),
    (
        r#"config.inputs.http.endpoints=[{"pth": "/a"}]"#,
        "at '/config/inputs/http/endpoints/0': additional properties 'pth' not allowed",
    ),
    (r#"config.outputs.kafka.broker="a:1""#, "at '/config/outputs/kafka': additional properties 'broker' not allowed"),
    (
        r#"config.routes=[{"name": "a", "mach": {"type": "x"}, "to": {"output": "kafka", "topic": "a"}}]"#,
        "at '/config/routes/0': additional properties 'mach' not allowed",
    ),
    (r#"config.outputs.kafka.kind=null"#, "at '/config/outputs/kafka/kind': got null, want string"),
];

#[test]
fn the_schema_of_the_configuration_is_generated() {
    let path = "charts/apsara-bridge/values.schema.json";
    let _one = FILE.lock();
    let present = std::fs::read_to_string(crate::support::repository(path)).expect("the chart has a schema");
    let (by_hand, _) = present.split_once(NAME).expect("it ends in the generated definition");
    let schema = serde_json::to_string_pretty(&of_values()).expect("JSON").replace('\n', "\n    ");
    generated::check(path, &format!("{by_hand}{NAME}{schema}\n  }}\n}}\n"));
}

#[test]
fn lint_finds_mistakes_below_config() {
    let good = Values::named("kafka");
    let mut wrong = Vec::new();
    for (mistake, said) in MISTAKES {
        let linted = helm(&["lint", CHART, "--values", good.file(), "--set-json", mistake]);
        let rendered = good.template(NAMESPACE, &["--set-json", mistake]);
        if linted.code == 0 || !(linted.out.clone() + &linted.error).contains(said) {
            wrong.push(format!("{mistake}: expected `{said}` from\n{}", linted.told()));
        }
        if rendered.code == 0 {
            wrong.push(format!("{mistake}: rendered anyway"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The schema of `config`, for the draft that helm's schemas are written in.
fn of_values() -> Value {
    let mut schema = config::json_schema();
    simplify(&mut schema);
    let root = schema.as_object_mut().expect("a schema is an object");
    let definitions = root.remove("$defs").unwrap_or_default();
    for keyword in ["$id", "$schema", "title"] {
        root.remove(keyword);
    }
    root.insert("definitions".to_owned(), definitions);
    let sections = root["properties"].as_object_mut().expect("sections");
    for (name, section) in sections {
        let section = section.as_object_mut().expect("a schema is an object");
        if name == "inputs" || name == "outputs" {
            named_by_kind(section);
        }
        if name == "shutdown" {
            // The chart has a sentence.
            let keys = section["properties"].as_object_mut().expect("keys").values_mut();
            keys.filter_map(Value::as_object_mut).for_each(|key| drop(key.remove("pattern")));
        }
        let kind = section["type"].clone();
        section.insert("type".to_owned(), json!([kind, "null"]));
    }
    schema
}

/// Chooses the schema of a section by its kind, which gives better messages than trying each, and accepts others.
fn named_by_kind(section: &mut Map<String, Value>) {
    let kinds = section["additionalProperties"]["oneOf"].as_array().cloned().expect("a schema for each kind");
    let of_kinds = kinds.into_iter().map(|mut kind| {
        let name = kind["properties"]["kind"]["const"].clone();
        let keys = kind.as_object_mut().expect("a schema is an object");
        keys.remove("type");
        json!({ "if": { "properties": { "kind": { "const": name } }, "required": ["kind"] }, "then": kind })
    });
    section["additionalProperties"] = json!({
        "type": ["object", "null"],
        "required": ["kind"],
        "properties": { "kind": { "type": "string" } },
        "allOf": of_kinds.collect::<Vec<_>>(),
    });
}

/// Leaves out what must be there and what is for editors only, moves references, and accepts templates of helm in texts.
fn simplify(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            for keyword in ["default", "examples", "required", "minItems", "minProperties", "minLength"] {
                // The schema of a key with that name is an object.
                if object.get(keyword).is_some_and(|value| !value.is_object()) {
                    object.remove(keyword);
                }
            }
            // A choice of keys that must be there, which then is none.
            let is_of_keys = |choice: &Value| choice["type"].is_null() && choice["const"].is_null();
            if object.get("oneOf").and_then(Value::as_array).is_some_and(|choices| choices.iter().all(is_of_keys)) {
                object.remove("oneOf");
            }
            if let Some(Value::String(reference)) = object.get_mut("$ref") {
                *reference = reference.replace("#/$defs/", "#/definitions/generatedConfig/definitions/");
            }
            if let Some(Value::String(pattern)) = object.get_mut("pattern") {
                *pattern = format!("({pattern})|\\{{\\{{");
            }
            let words = object.get("oneOf").and_then(Value::as_array).map(|choices| {
                choices.iter().map(|choice| choice.get("const").filter(|word| word.is_string()).cloned()).collect()
            });
            if let Some(Some(words)) = words {
                object.remove("oneOf");
                object.insert("enum".to_owned(), Value::Array(words));
            }
            object.values_mut().for_each(simplify);
        }
        Value::Array(items) => items.iter_mut().for_each(simplify),
        _ => {}
    }
}
