//! The life cycle of a release on a real server: install, upgrade, rollback, uninstall.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use figment::providers::{Format as _, Yaml};
use serde_json::{Value, json};

use crate::rendered::{CHART, NO_HOOKS, RELEASE, Values, for_all, identity, of_kind, workload};
use crate::support::kubernetes::Kubernetes;

/// What the upgrade changes: an annotation of the pod.
const CHANGE: &[&str] = &["--set-string", "podAnnotations.changed=by-the-upgrade"];

/// Helm does not need to wait, because no controller runs. If it waits by mistake, then not for its default of five
/// minutes.
const TIMEOUT: &str = "--timeout=30s";

#[test]
fn every_values_file_is_installed_upgraded_rolled_back_and_uninstalled() {
    let kubernetes = Kubernetes::shared();
    for_all(|values| live(kubernetes, values));
}

/// A warning of the server is printed on standard error, so it is an error here.
fn live(kubernetes: &Kubernetes, values: &Values) -> Result<(), String> {
    let namespace = kubernetes.namespace("life");
    let before = left(kubernetes, &namespace)?;

    let text = values.template(&namespace, &[]).quietly()?.out;
    let rendered = kubernetes.objects(&text)?;
    are_inside(&namespace, &rendered)?;
    let strict = ["apply", "--server-side", "--validate=strict", "--dry-run=server", "--output=json", "--filename=-"];
    let taken = kubernetes.kubectl_with(&strict, &text).quietly()?;
    is_whole(&rendered, &Kubernetes::read(&taken.out)?)?;
    pods_are_let_in(kubernetes, &rendered, &namespace)?;

    let arguments = [RELEASE, CHART, "--namespace", &namespace, "--values", values.file(), TIMEOUT, NO_HOOKS];
    let notes = kubernetes.helm(&[&["install"], &arguments[..]].concat()).quietly()?.out;
    notes_name_urls(&urls(&rendered)?, &notes)?;
    let installed = stored(kubernetes, &namespace)?;
    is_whole(&without_hooks(&rendered), &installed)?;
    if annotation(&installed).is_some() {
        return Err("the change changes nothing".to_owned());
    }

    kubernetes.helm(&[&["upgrade"], &arguments[..], CHANGE].concat()).quietly()?;
    let changed = kubernetes.objects(&values.template(&namespace, CHANGE).quietly()?.out)?;
    let upgraded = stored(kubernetes, &namespace)?;
    is_whole(&without_hooks(&changed), &upgraded)?;
    if annotation(&upgraded) != Some("by-the-upgrade") {
        return Err("the upgrade has not changed the pods".to_owned());
    }

    kubernetes.helm(&["rollback", RELEASE, "1", "--namespace", &namespace, TIMEOUT]).quietly()?;
    let rolled_back = stored(kubernetes, &namespace)?;
    for (was, is) in installed.iter().zip(&rolled_back) {
        if settled(was) != settled(is) {
            return Err(format!("the rollback gives\n{}\nin place of\n{}", settled(is), settled(was)));
        }
    }

    kubernetes.helm(&["uninstall", RELEASE, "--namespace", &namespace, TIMEOUT]).quietly()?;
    let after = left(kubernetes, &namespace)?;
    let forgotten: Vec<_> =
        after.difference(&before).filter(|name| !name.starts_with("persistentvolumeclaim/")).collect();
    if forgotten.is_empty() { Ok(()) } else { Err(format!("left behind: {forgotten:?}")) }
}

/// A feature that one file switches on is switched off again by the next, while the release exists.
#[test]
fn one_release_is_upgraded_with_each_values_file() {
    // Fields that a StatefulSet cannot change: see `refused`.
    const SAME: &str =
        "persistence.enabled=true,persistence.size=20Gi,persistence.storageClassName=,persistence.annotations=null";
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("turn");
    let before = left(kubernetes, &namespace).unwrap();
    for values in Values::all() {
        let arguments = ["upgrade", "--install", RELEASE, CHART, "--namespace", &namespace, TIMEOUT, NO_HOOKS];
        let flags = ["--values", values.file(), "--set", SAME];
        let taken = kubernetes.helm(&[&arguments[..], &flags].concat()).quietly().and_then(|_| {
            let rendered = kubernetes.objects(&values.template(&namespace, &flags[2..]).quietly()?.out)?;
            is_whole(&without_hooks(&rendered), &stored(kubernetes, &namespace)?)
        });
        taken.unwrap_or_else(|error| panic!("{}: {error}", values.name));
    }
    kubernetes.helm(&["uninstall", RELEASE, "--namespace", &namespace, TIMEOUT]).quietly().unwrap();
    assert_eq!(left(kubernetes, &namespace).unwrap(), before);
}

/// A claim whose pod does not run gets a Job, also when the number of pods is reduced; the present number of pods stays when
/// an autoscaler is enabled.
#[test]
fn what_the_server_knows_decides_about_drains_and_the_number_of_pods() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("known");
    for number in [0, 2] {
        let claim = json!({
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": { "name": format!("spool-{RELEASE}-apsara-bridge-{number}"), "namespace": namespace },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "20Gi" } } },
        });
        kubernetes.kubectl_with(&["create", "--filename=-"], &claim.to_string()).quietly().expect("created");
    }
    let values = Values::named("autoscaling-hpa");
    let upgrade = |flags: &[&str]| {
        let arguments = ["upgrade", "--install", RELEASE, CHART, "--namespace", &namespace, TIMEOUT, NO_HOOKS];
        let values = ["--values", values.file()];
        kubernetes.helm(&[&arguments[..], &values, flags].concat()).quietly().expect("upgraded");
        stored(kubernetes, &namespace).expect("stored")
    };
    let drained = |objects: &[Value]| {
        let claims = of_kind(objects, "Job").into_iter().flat_map(|job| {
            let volumes = job["spec"]["template"]["spec"]["volumes"].as_array().cloned().unwrap_or_default();
            volumes
                .into_iter()
                .filter_map(|volume| Some(volume["persistentVolumeClaim"]["claimName"].as_str()?.to_owned()))
        });
        claims.collect::<Vec<_>>()
    };
    let claim = |number: u32| format!("spool-{RELEASE}-apsara-bridge-{number}");

    let three = upgrade(&["--set", "autoscaling.enabled=false,replicaCount=3"]);
    assert_eq!(drained(&three), [""; 0]);
    let two = upgrade(&["--set", "autoscaling.enabled=false,replicaCount=2"]);
    assert_eq!(drained(&two), [claim(2)]);
    let kept = upgrade(&["--set", "autoscaling.enabled=false,replicaCount=2,drain.enabled=false"]);
    assert_eq!(drained(&kept), [""; 0]);
    upgrade(&["--set", "autoscaling.enabled=false,replicaCount=4"]);
    let scaled = upgrade(&[]);
    assert_eq!((&workload(&scaled)["spec"]["replicas"], drained(&scaled).len()), (&json!(4), 0));
    // A change of the pods' number by the autoscaler stays, too.
    let name = format!("statefulset/{RELEASE}-apsara-bridge");
    let scale = ["patch", &name, "--namespace", &namespace, "--subresource=scale", "--type=merge", "--patch"];
    let patched = kubernetes.kubectl(&[&scale[..], &[r#"{"spec": {"replicas": 5}}"#]].concat());
    patched.quietly().expect("scaled");
    assert_eq!(workload(&upgrade(CHANGE))["spec"]["replicas"], 5);
    // The autoscaler starts the pods that a raised minimum asks for. The field is its own.
    assert_eq!(workload(&upgrade(&["--set", "autoscaling.minReplicas=7"]))["spec"]["replicas"], 5);
}

/// A Job reads the configuration once, so a corrected one must make a new Job.
#[test]
fn a_changed_configuration_replaces_a_job_that_drains() {
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("drains");
    let file = |text: &str| {
        let map = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "ours", "namespace": namespace },
            "data": { "bridge.yaml": text },
        });
        kubernetes.kubectl_with(&["apply", "--server-side", "--filename=-"], &map.to_string()).quietly().expect("made");
    };
    let values = Values::named("kafka");
    let job = |flags: &[&str]| {
        let arguments = ["upgrade", "--install", RELEASE, CHART, "--namespace", &namespace, TIMEOUT, NO_HOOKS];
        let always = ["--values", values.file(), "--set", "drain.ordinals={2}"];
        kubernetes.helm(&[&arguments[..], &always, flags].concat()).quietly().expect("upgraded");
        let list = ["get", "jobs", "--namespace", &namespace, "--output=name"];
        let jobs = kubernetes.kubectl(&list).quietly().expect("listed").out;
        assert_eq!(jobs.lines().count(), 1, "the old Job stays: {jobs}");
        jobs
    };
    file("delivery: {deadline: 1s}");
    let first = job(&[]);
    assert_eq!(job(&["--set", "replicaCount=1,podAnnotations.a=b"]), first, "the pods do not belong to the Job");
    let moved = job(&["--set", "config.outputs.kafka.brokers={kafka-9.kafka.svc:9093}"]);
    assert_ne!(moved, first);
    let ours = ["--set", "existingConfigMap.name=ours"];
    let with_ours = job(&ours);
    file("delivery: {deadline: 2s}");
    assert_ne!(job(&ours), with_ours);
    assert_eq!(job(&[]), first);
}

/// Values that are merged with defaults which would not fit.
#[test]
fn a_value_in_place_of_a_default_is_taken() {
    const CHANGES: &[&str] = &[
        "persistence.enabled=false,deploymentStrategy.type=Recreate",
        "updateStrategy.type=OnDelete,updateStrategy.rollingUpdate.partition=1",
        "livenessProbe.tcpSocket.port=admin,startupProbe.exec.command={/apsara-bridge,version}",
        "readinessProbe.grpc.port=9464,terminationGracePeriodSeconds=1000000",
        "keda.enabled=true,keda.fallback.replicas=2,keda.fallback.failureThreshold=3,keda.triggers[0].type=cron,\
         keda.triggers[0].metadata.timezone=UTC",
    ];
    let kubernetes = Kubernetes::shared();
    let namespace = kubernetes.namespace("place");
    for change in CHANGES {
        let text = Values::named("kafka").template(&namespace, &["--set", change]).quietly().expect("rendered").out;
        let strict = ["apply", "--server-side", "--validate=strict", "--dry-run=server", "--filename=-"];
        kubernetes.kubectl_with(&strict, &text).quietly().unwrap_or_else(|error| panic!("{change}: {error}"));
    }
}

/// The URLs whose signatures the rendered configuration checks.
fn urls(objects: &[Value]) -> Result<Vec<String>, String> {
    let texts = of_kind(objects, "ConfigMap").into_iter().filter_map(|map| map["data"]["bridge.yaml"].as_str());
    let mut urls = Vec::new();
    for text in texts {
        let config: Value = Yaml::from_str(text).map_err(|error| error.to_string())?;
        for input in config["inputs"].as_object().into_iter().flat_map(|inputs| inputs.values()) {
            for endpoint in input["endpoints"].as_array().into_iter().flatten() {
                urls.extend(
                    endpoint["urls"].as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned),
                );
            }
        }
    }
    Ok(urls)
}

/// The notes say what to enter at Alibaba, and what to do next.
fn notes_name_urls(urls: &[String], notes: &str) -> Result<(), String> {
    for wanted in urls.iter().map(String::as_str).chain(["\nNEXT\n"]) {
        if !notes.contains(wanted) {
            return Err(format!("the notes do not contain {wanted:?}:\n{notes}"));
        }
    }
    Ok(())
}

/// Everything that is in a namespace.
fn left(kubernetes: &Kubernetes, namespace: &str) -> Result<BTreeSet<String>, String> {
    let kinds = kubernetes.resources()?.join(",");
    let listed = kubernetes.kubectl(&["get", &kinds, "--namespace", namespace, "--output=name", "--ignore-not-found"]);
    Ok(listed.quietly()?.out.lines().map(str::to_owned).collect())
}

/// The objects of the release as the server has them.
fn stored(kubernetes: &Kubernetes, namespace: &str) -> Result<Vec<Value>, String> {
    let manifest = kubernetes.helm(&["get", "manifest", RELEASE, "--namespace", namespace]).quietly()?.out;
    Kubernetes::read(&kubernetes.kubectl_with(&["get", "--output=json", "--filename=-"], &manifest).quietly()?.out)
}

fn without_hooks(objects: &[Value]) -> Vec<Value> {
    let is_hook = |object: &&Value| !object["metadata"]["annotations"]["helm.sh/hook"].is_null();
    objects.iter().filter(|object| !is_hook(object)).cloned().collect()
}

/// Objects outside the namespace of the release could not be created by a user with permissions only in this namespace.
/// They are also not searched for at the end. kubectl gives no namespace to a cluster-wide kind.
fn are_inside(namespace: &str, objects: &[Value]) -> Result<(), String> {
    let outside = objects.iter().filter(|object| object["metadata"]["namespace"] != namespace);
    let outside: Vec<_> = outside.map(identity).collect();
    if outside.is_empty() { Ok(()) } else { Err(format!("not in {namespace}: {outside:?}")) }
}

/// No controller creates the pods of the workload here, and the server enforces "restricted" only on pods. So a pod
/// with the template of the workload is sent to the server, and one for each Job.
fn pods_are_let_in(kubernetes: &Kubernetes, objects: &[Value], namespace: &str) -> Result<(), String> {
    for workload in of_kind(objects, "Job").into_iter().chain([workload(objects)]) {
        pod_is_let_in(kubernetes, workload, namespace)?;
    }
    Ok(())
}

fn pod_is_let_in(kubernetes: &Kubernetes, workload: &Value, namespace: &str) -> Result<(), String> {
    let template = &workload["spec"]["template"];
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": template["metadata"],
        "spec": template["spec"],
    });
    pod["metadata"]["name"] = json!("template");
    for claim in workload["spec"]["volumeClaimTemplates"].as_array().into_iter().flatten() {
        let name = &claim["metadata"]["name"];
        let volume = json!({ "name": name, "persistentVolumeClaim": { "claimName": name } });
        match pod["spec"]["volumes"].as_array_mut() {
            Some(volumes) => volumes.push(volume),
            None => pod["spec"]["volumes"] = json!([volume]),
        }
    }
    let create = ["create", "--dry-run=server", "--validate=strict", "--namespace", namespace, "--filename=-"];
    kubernetes.kubectl_with(&create, &pod.to_string()).quietly().map(drop)
}

fn annotation(objects: &[Value]) -> Option<&str> {
    workload(objects)["spec"]["template"]["metadata"]["annotations"]["changed"].as_str()
}

/// An object without the fields that the server sets by itself.
fn settled(object: &Value) -> Value {
    let mut object = object.clone();
    object.as_object_mut().map(|object| object.remove("status"));
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "labels" | "annotations"));
    }
    object
}

/// Whether the server has every field of every object with the value that was rendered.
fn is_whole(rendered: &[Value], stored: &[Value]) -> Result<(), String> {
    let mut wrong = Vec::new();
    for object in rendered {
        let name = identity(object);
        match stored.iter().find(|stored| identity(stored) == name && stored["apiVersion"] == object["apiVersion"]) {
            Some(stored) => compare(object, stored, &name, &mut wrong),
            None => wrong.push(format!("{name} is missing")),
        }
    }
    if stored.len() != rendered.len() {
        wrong.push(format!("{} objects in place of {}", stored.len(), rendered.len()));
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

fn compare(rendered: &Value, stored: &Value, path: &str, wrong: &mut Vec<String>) {
    match (rendered, stored) {
        (Value::Object(rendered), Value::Object(stored)) => {
            for (key, value) in rendered {
                let path = format!("{path}.{key}");
                match stored.get(key) {
                    // The texts of a Secret are stored encoded, under another key.
                    None if key == "stringData" => compare(&encoded(value), &json!(stored["data"]), &path, wrong),
                    None if !is_empty(value) => wrong.push(format!("{path} was dropped: {value}")),
                    None => {}
                    Some(stored) => compare(value, stored, &path, wrong),
                }
            }
        }
        (Value::Array(rendered), Value::Array(stored)) if rendered.len() == stored.len() => {
            for (index, (rendered, stored)) in rendered.iter().zip(stored).enumerate() {
                compare(rendered, stored, &format!("{path}[{index}]"), wrong);
            }
        }
        (rendered, stored) if rendered == stored => {}
        (rendered, stored) => wrong.push(format!("{path} is {stored} in place of {rendered}")),
    }
}

/// Values that the server may leave out, because they mean the same as no value.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Bool(true) => false,
    }
}

fn encoded(texts: &Value) -> Value {
    let fields = texts.as_object().into_iter().flatten();
    fields.map(|(key, text)| (key.clone(), json!(STANDARD.encode(text.as_str().unwrap_or_default())))).collect()
}
