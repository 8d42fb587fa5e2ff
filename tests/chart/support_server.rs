//! Tests of the Kubernetes server that the tests use: it refuses and warns like a real one.

use serde_json::json;

use crate::rendered::{CHART, NO_HOOKS, RELEASE, Values};
use crate::support::kubernetes::Kubernetes;

#[test]
fn a_pod_below_the_standard_is_refused_and_a_workload_causes_a_warning() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("server");
    let container = json!({ "name": "main", "image": "image:1" });
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "lax" },
        "spec": { "containers": [container] },
    });
    let create = ["create", "--namespace", &namespace, "--filename=-"];
    let refused = kubernetes.kubectl_with(&create, &pod.to_string()).refused().unwrap();
    assert!(refused.contains(r#"violates PodSecurity "restricted:latest""#), "{refused}");

    let labels = json!({ "app": "lax" });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": { "name": "lax" },
        "spec": {
            "selector": { "matchLabels": labels },
            "template": { "metadata": { "labels": labels }, "spec": pod["spec"] },
        },
    });
    let warned = kubernetes.kubectl_with(&create, &deployment.to_string()).quietly().unwrap_err();
    assert!(warned.contains(r#"would violate PodSecurity "restricted:latest""#), "{warned}");
}

#[test]
fn an_unknown_field_is_refused_in_custom_resources_too() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("server");
    let monitor = |field: &str| {
        json!({
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "ServiceMonitor",
            "metadata": { "name": "monitor" },
            "spec": { "selector": {}, "endpoints": [{ "port": "admin", field: "30s" }] },
        })
        .to_string()
    };
    let apply = ["apply", "--server-side", "--validate=strict", "--namespace", &namespace, "--filename=-"];
    let refused = kubernetes.kubectl_with(&apply, &monitor("intervall")).refused().unwrap();
    assert!(refused.contains("intervall"), "{refused}");
    kubernetes.kubectl_with(&apply, &monitor("interval")).quietly().unwrap();
    let kinds = kubernetes.resources().unwrap();
    for kind in
        ["httproutes.gateway.networking.k8s.io", "prometheusrules.monitoring.coreos.com", "scaledobjects.keda.sh"]
    {
        assert!(kinds.iter().any(|known| known == kind), "{kind} is missing");
    }
}

#[test]
fn helm_prints_warnings_of_the_server() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("server");
    let values = Values::named("kafka");
    let lax = ["--set", "podSecurityContext=null,securityContext=null", "--values", values.file()];
    let arguments = [&["install", RELEASE, CHART, "--namespace", &namespace, NO_HOOKS], &lax[..]].concat();
    let warned = kubernetes.helm(&arguments).quietly().unwrap_err();
    assert!(warned.contains("would violate PodSecurity"), "{warned}");
}
