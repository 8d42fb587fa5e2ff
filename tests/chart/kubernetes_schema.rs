//! The schema of the values knows the types of the fields of Kubernetes that values are passed on to, so that a wrong type
//! is reported with its key, and not by the server after half of an upgrade.
//!
//! The definitions come from the server. They accept unknown fields and words, which a newer server may know, and null,
//! which removes a default.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde_json::{Map, Value, json};

use crate::config_schema;
use crate::rendered::{NAMESPACE, Values};
use crate::support::generated;
use crate::support::kubernetes::Kubernetes;

/// The definition before the last one of the schema of the values, which is generated.
const NAME: &str = "    \"kubernetes\": ";

/// Where a definition is.
const DEFINITIONS: &str = "#/definitions/kubernetes/definitions/";

/// Wrong types, and what is said about each.
const MISTAKES: &[(&str, &str)] = &[
    (r#"extraEnv=[{"name": "A", "value": 1}]"#, "/extraEnv/0/value': got number, want null or string"),
    (
        r#"dnsConfig.options=[{"name": "ndots", "value": 2}]"#,
        "/dnsConfig/options/0/value': got number, want null or string",
    ),
    (r#"tolerations=[{"key": "a", "value": true}]"#, "/tolerations/0/value': got boolean, want null or string"),
    (r#"podSecurityContext.runAsUser="root""#, "/podSecurityContext/runAsUser': got string, want null or integer"),
    (
        r#"securityContext.capabilities.drop="ALL""#,
        "/securityContext/capabilities/drop': got string, want null or array",
    ),
    (r#"resources.limits.memory=["1Gi"]"#, "/resources/limits/memory': got array, want null or"),
    (r#"resources.limits.memory="plenty""#, "/resources/limits/memory': 'plenty' does not match pattern"),
    (r#"livenessProbe.periodSeconds="10""#, "/livenessProbe/periodSeconds': got string, want null or integer"),
    (r#"readinessProbe.httpGet.port=true"#, "/readinessProbe/httpGet/port': got boolean, want null or"),
    (r#"updateStrategy.rollingUpdate.partition="1""#, "/updateStrategy/rollingUpdate/partition': got string"),
    (r#"updateStrategy.type="Recreate""#, "/updateStrategy/type': value must be one of 'RollingUpdate', 'OnDelete'"),
    (r#"deploymentStrategy.rollingUpdate=1"#, "/deploymentStrategy/rollingUpdate': got number, want null or object"),
    (r#"affinity.nodeAffinity=[]"#, "/affinity/nodeAffinity': got array, want null or object"),
    (r#"topologySpreadConstraints=[{"topologyKey": "a", "whenUnsatisfiable": "b"}]"#, "missing property 'maxSkew'"),
    (
        r#"hostAliases=[{"ip": "10.0.0.1", "hostnames": "a"}]"#,
        "/hostAliases/0/hostnames': got string, want null or array",
    ),
    (r#"lifecycle.preStop.sleep.seconds="5""#, "/lifecycle/preStop/sleep/seconds': got string, want null or integer"),
    (
        r#"extraVolumes=[{"name": "a", "configMap": "b"}]"#,
        "/extraVolumes/0/configMap': got string, want null or object",
    ),
    (r#"extraContainers=[{"name": "a", "image": "b", "args": [1]}]"#, "/extraContainers/0/args/0': got number, want"),
    (r#"autoscaling.behavior.scaleDown.policies=[{"type": "Pods", "value": "1", "periodSeconds": 5}]"#, "/value': got"),
    (r#"networkPolicy.extraEgress=[{"ports": [{"protocol": 6}]}]"#, "/extraEgress/0/ports/0/protocol': got number"),
    (r#"keda.triggers=[{"type": "cron", "metadata": {"desiredReplicas": 4}}]"#, "/desiredReplicas': got number, want"),
    (r#"keda.fallback={"failureThreshold": 3, "replicas": "4"}"#, "/keda/fallback/replicas': got string, want integer"),
    (r#"keda.fallback={"failureTreshold": 3, "replicas": 4}"#, "additional properties 'failureTreshold' not allowed"),
];

/// What a values file may say, although the definitions of the server do not show it at once.
const ACCEPTED: &[&str] = &[
    r#"podSecurityContext={"runAsUser": null, "fsGroup": 1, "fieldOfTomorrow": {"a": [1]}}"#,
    r#"securityContext={"capabilities": null}"#,
    r#"resources={"limits": {"cpu": 1, "memory": "1.5Gi", "example.com/device": 1}}"#,
    r#"tolerations=[{"operator": "WordOfTomorrow", "tolerationSeconds": null}]"#,
    r#"extraEnv=[{"name": "A"}, {"name": "B", "value": "{{ .Release.Name }}"}, {"name": "C", "value": null}]"#,
    r#"deploymentStrategy={"rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}}"#,
    r#"startupProbe={"httpGet": {"port": 9464}}"#,
    r#"extraVolumes=[{"name": "a", "emptyDir": {"sizeLimit": "{{ \"1Gi\" }}"}}]"#,
];

#[test]
fn the_types_of_kubernetes_are_generated() {
    let path = "charts/apsara-bridge/values.schema.json";
    let _one = config_schema::FILE.lock();
    let present = std::fs::read_to_string(crate::support::repository(path)).expect("the chart has a schema");
    let before = present.find(NAME).expect("the schema has the types of Kubernetes");
    let after = present.find(config_schema::NAME).expect("it ends in the schema of the configuration");
    let definitions: Vec<_> =
        definitions().iter().map(|(name, schema)| format!("        \"{name}\": {schema}")).collect();
    let definitions = format!("{{\n      \"definitions\": {{\n{}\n      }}\n    }},\n", definitions.join(",\n"));
    generated::check(path, &format!("{}{NAME}{definitions}{}", &present[..before], &present[after..]));
}

#[test]
fn a_wrong_type_is_reported_with_its_key() {
    let good = Values::named("kafka");
    let mut wrong = Vec::new();
    for (mistake, said) in MISTAKES {
        match good.template(NAMESPACE, &["--set-json", mistake]).refused() {
            Ok(error) if error.contains(said) => {}
            Ok(error) => wrong.push(format!("{mistake}: expected `{said}` in\n{error}")),
            Err(_) => wrong.push(format!("{mistake}: rendered anyway")),
        }
    }
    for values in ACCEPTED {
        wrong.extend(good.template(NAMESPACE, &["--set-json", values]).quietly().err());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The types that the schema of the values refers to, and those that they refer to.
fn definitions() -> BTreeMap<String, Value> {
    let kubernetes = Kubernetes::shared();
    let mut known = Map::new();
    for api in ["apis/apps/v1", "apis/autoscaling/v2", "apis/networking.k8s.io/v1"] {
        let schemas = kubernetes.kubectl(&["get", "--raw", &format!("/openapi/v3/{api}")]).quietly().expect("schemas");
        let mut schemas: Value = serde_json::from_str(&schemas.out).expect("JSON");
        for (name, schema) in schemas["components"]["schemas"].as_object_mut().expect("schemas") {
            let name = name.rsplit('.').next().expect("a name");
            known.insert(name.to_owned(), schema.take());
        }
    }
    let by_hand = std::fs::read_to_string(crate::support::repository("charts/apsara-bridge/values.schema.json"));
    let by_hand = by_hand.expect("the chart has a schema");
    let (by_hand, _) = by_hand.split_once(NAME).expect("the schema has the types of Kubernetes");
    let named = by_hand.split(DEFINITIONS).skip(1).filter_map(|rest| rest.split('"').next());
    let mut wanted: Vec<String> = named.map(str::to_owned).collect();
    let mut definitions = BTreeMap::new();
    while let Some(name) = wanted.pop() {
        if let Entry::Vacant(place) = definitions.entry(name) {
            let schema = known.get(place.key()).unwrap_or_else(|| panic!("the server has no type {}", place.key()));
            place.insert(simple(schema, &mut wanted));
        }
    }
    definitions
}

/// The type of a field, or of everything below it, without descriptions.
fn simple(schema: &Value, wanted: &mut Vec<String>) -> Value {
    let reference = schema["$ref"].as_str().or_else(|| schema["allOf"][0]["$ref"].as_str());
    let name = reference.and_then(|reference| reference.rsplit('.').next());
    match (name, schema["type"].as_str()) {
        (Some("Quantity"), _) => {
            let pattern = r"^[+-]?[0-9.]+([eE][+-]?[0-9]+|[numkMGTPE]|[KMGTPE]i)?$|\{\{";
            json!({ "type": ["string", "number", "null"], "pattern": pattern })
        }
        (Some("IntOrString"), _) => json!({ "type": ["integer", "string", "null"] }),
        (Some("ObjectMeta"), _) => json!({ "type": ["object", "null"] }),
        (Some(name), _) => {
            wanted.push(name.to_owned());
            json!({ "$ref": format!("{DEFINITIONS}{name}") })
        }
        (None, Some("array")) => json!({ "type": ["array", "null"], "items": simple(&schema["items"], wanted) }),
        (None, Some("object")) => {
            let mut object = json!({ "type": ["object", "null"] });
            for keyword in ["properties", "additionalProperties"] {
                let Some(below) = schema[keyword].as_object() else { continue };
                object[keyword] = if keyword == "properties" {
                    below.iter().map(|(key, schema)| (key.clone(), simple(schema, wanted))).collect()
                } else {
                    simple(&schema[keyword], wanted)
                };
            }
            if let Some(required) = schema.get("required") {
                object["required"] = required.clone();
            }
            object
        }
        (None, Some(word)) => json!({ "type": [word, "null"] }),
        (None, None) => json!({}),
    }
}
