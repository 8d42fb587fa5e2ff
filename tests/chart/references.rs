//! Everything that the objects refer to exists. The server accepts an object whose selector matches nothing, and a
//! route to a Service that does not exist, but on a cluster they would have no effect.

use serde_json::Value;

use crate::pod::{list, text};
use crate::rendered::{NAMESPACE, for_all, identity, of_kind, workload};
use crate::support::kubernetes::Kubernetes;

/// The name of the public port, in the container and in the Service.
const CALLBACKS: &str = "callbacks";

#[test]
fn everything_that_the_objects_refer_to_exists() {
    let kubernetes = Kubernetes::shared();
    for_all(|values| are_there(&values.objects(kubernetes, NAMESPACE)?));
}

fn are_there(objects: &[Value]) -> Result<(), String> {
    let workload = workload(objects);
    let labels = &workload["spec"]["template"]["metadata"]["labels"];
    let selectors = [
        ("Service", "/spec/selector"),
        ("PodDisruptionBudget", "/spec/selector/matchLabels"),
        ("NetworkPolicy", "/spec/podSelector"),
    ];
    for (kind, pointer) in selectors {
        for object in of_kind(objects, kind) {
            let selector = object.pointer(pointer).unwrap_or(&Value::Null);
            if !fits(selector, labels) {
                return Err(format!("{} does not select the pods: {selector}", identity(object)));
            }
            let tests = of_kind(objects, "Pod").into_iter().find(|pod| fits(selector, &pod["metadata"]["labels"]));
            if let Some(test) = tests {
                return Err(format!("{} also selects {}", identity(object), identity(test)));
            }
        }
    }
    if workload["kind"] == "StatefulSet" {
        let name = text(&workload["spec"], "serviceName")?;
        if service(objects, name)?["spec"]["clusterIP"] != "None" {
            return Err(format!("{name} gives the pods no names: it is not headless"));
        }
    }
    for kind in ["HorizontalPodAutoscaler", "ScaledObject"] {
        for scaler in of_kind(objects, kind) {
            let target = &scaler["spec"]["scaleTargetRef"];
            if target["kind"] != workload["kind"] || target["name"] != workload["metadata"]["name"] {
                return Err(format!("{} scales {target}, not {}", identity(scaler), identity(workload)));
            }
            if !workload["spec"]["replicas"].is_null() {
                return Err(format!(
                    "{} sets the number of pods, and so does {}",
                    identity(workload),
                    identity(scaler)
                ));
            }
        }
    }
    for monitor in of_kind(objects, "ServiceMonitor") {
        let selector = &monitor["spec"]["selector"]["matchLabels"];
        let found =
            of_kind(objects, "Service").into_iter().filter(|found| fits(selector, &found["metadata"]["labels"]));
        let [service] = found.collect::<Vec<_>>()[..] else {
            return Err(format!("{} selects none or several Services: {selector}", identity(monitor)));
        };
        for endpoint in list(&monitor["spec"]["endpoints"]) {
            port(service, &endpoint["port"])?;
        }
    }
    paths_from_outside_end_at_callbacks(objects)
}

/// Each path from outside, through an Ingress or route, ends at the port for callbacks.
fn paths_from_outside_end_at_callbacks(objects: &[Value]) -> Result<(), String> {
    let rules = |kind: &str| of_kind(objects, kind).into_iter().flat_map(|object| list(&object["spec"]["rules"]));
    let paths = rules("Ingress").flat_map(|rule| list(&rule["http"]["paths"]));
    let mut backends = Vec::new();
    for path in paths {
        let backend = &path["backend"]["service"];
        let number = &backend["port"]["number"];
        backends.push((text(backend, "name")?, if number.is_null() { &backend["port"]["name"] } else { number }));
    }
    for backend in rules("HTTPRoute").flat_map(|rule| list(&rule["backendRefs"])) {
        backends.push((text(backend, "name")?, &backend["port"]));
    }
    for (name, wanted) in backends {
        let port = port(service(objects, name)?, wanted)?;
        if port["targetPort"] != CALLBACKS {
            return Err(format!("a path from outside ends at the port {} of {name}", port["targetPort"]));
        }
    }
    for service in of_kind(objects, "Service") {
        let is_inside = service["spec"]["type"] == "ClusterIP" || service["spec"]["type"].is_null();
        if !is_inside && list(&service["spec"]["ports"]).any(|port| port["targetPort"] != CALLBACKS) {
            return Err(format!("{} opens more than the port for callbacks", identity(service)));
        }
    }
    Ok(())
}

/// Whether labels fit a table of labels, or a selector with such a table and expressions that list values.
fn fits(selector: &Value, labels: &Value) -> bool {
    if !selector["matchLabels"].is_null() {
        let mut expressions = list(&selector["matchExpressions"]);
        let is_listed = |expression: &Value| {
            expression["operator"] == "In"
                && list(&expression["values"])
                    .any(|value| Some(value) == labels.get(expression["key"].as_str().unwrap_or_default()))
        };
        return fits(&selector["matchLabels"], labels) && expressions.all(is_listed);
    }
    selector.as_object().is_some_and(|selector| {
        !selector.is_empty() && selector.iter().all(|(label, value)| labels.get(label) == Some(value))
    })
}

fn service<'a>(objects: &'a [Value], name: &str) -> Result<&'a Value, String> {
    let found = of_kind(objects, "Service").into_iter().find(|service| service["metadata"]["name"] == name);
    found.ok_or_else(|| format!("there is no Service {name}"))
}

/// A Service's port by its name or number.
fn port<'a>(service: &'a Value, wanted: &Value) -> Result<&'a Value, String> {
    let found = list(&service["spec"]["ports"]).find(|port| port["name"] == *wanted || port["port"] == *wanted);
    found.ok_or_else(|| format!("{} has no port {wanted}", identity(service)))
}
