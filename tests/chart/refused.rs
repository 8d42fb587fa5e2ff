//! What the chart refuses, and the message: a sentence that names the key.

use std::path::Path;

use figment::providers::{Format as _, Yaml};
use serde_json::{Value, json};

use crate::rendered::{CHART, NAMESPACE, NO_HOOKS, RELEASE, Values, of_kind, workload};
use crate::support::kubernetes::{Kubernetes, helm};
use crate::support::repository;

/// Flags that make a valid values file invalid, and a part of the expected message.
const MISTAKES: &[(&str, &[&str], &str)] = &[
    ("a key is misspelt", &["--set", "replicasCount=3"], "replicasCount"),
    ("a key inside of a block is misspelt", &["--set", "service.prot=80"], "prot"),
    (
        "a disruption budget has both bounds",
        &[
            "--set",
            "podDisruptionBudget.enabled=true,podDisruptionBudget.minAvailable=1,podDisruptionBudget.maxUnavailable=1",
        ],
        "podDisruptionBudget has both minAvailable and maxUnavailable: ",
    ),
    (
        "a disruption budget has none",
        &["--set", "podDisruptionBudget.enabled=true"],
        "podDisruptionBudget has neither minAvailable nor maxUnavailable: ",
    ),
    (
        "fewer pods at most than at least",
        &["--set", "autoscaling.enabled=true,autoscaling.minReplicas=4,autoscaling.maxReplicas=3"],
        "autoscaling.maxReplicas is 3: expected at least autoscaling.minReplicas, which is 4",
    ),
    (
        "the same with KEDA",
        &["--set", "keda.enabled=true,keda.minReplicas=4,keda.maxReplicas=3"],
        "keda.maxReplicas is 3: expected at least keda.minReplicas, which is 4",
    ),
    ("an ingress has no host", &["--set", "ingress.enabled=true"], "ingress.hosts is empty: "),
    (
        "a route of the gateway has no gateway",
        &["--set", "httpRoutes.main.enabled=true"],
        "httpRoutes.main.parentRefs is empty: ",
    ),
    ("a Secret is named without keys", &["--set-json", "secrets.callback.keys=[]"], "secrets.callback has no keys: "),
    ("a file comes from no Secret", &["--set", "secrets.callback=null"], "but it is not mounted: add secrets.callback"),
    (
        "a secret stands in the configuration",
        &["--set", "config.outputs.kafka.client.password=hunter2"],
        "config.outputs.kafka.client.password is a secret as text",
    ),
    (
        "a secret stands in an argument",
        &["--set-json", r#"extraArgs=["--set", "outputs.kafka.client.ssl.key.password=hunter2"]"#],
        "extraArgs sets outputs.kafka.client.ssl.key.password to a secret as text",
    ),
    (
        "a secret stands in a variable",
        &["--set-json", r#"extraEnv=[{"name": "KAFKA_PASSWORD", "value": "hunter2"}]"#],
        "extraEnv has a secret as text, KAFKA_PASSWORD, ",
    ),
    (
        "there is too little time to stop in",
        &["--set", "terminationGracePeriodSeconds=20"],
        "terminationGracePeriodSeconds is 20, but stopping may take ",
    ),
    (
        "an argument takes the time to stop",
        &["--set-json", r#"extraArgs=["--set", "shutdown.drain=120s"]"#],
        "extraArgs sets shutdown.drain, but the chart needs its value",
    ),
    (
        "a removed pod loses its events",
        &["--set", "persistence.whenScaled=Delete"],
        "persistence.whenScaled is Delete, but the volume of a removed pod may have events",
    ),
    (
        "a share of no request",
        &["--set", "autoscaling.enabled=true,resources=null"],
        "autoscaling.targetCPUUtilizationPercentage is a share of the request, but resources.requests.cpu is empty",
    ),
    ("a number in place of a name", &["--set", "secrets.callback.existingSecret=123"], "got number, want"),
    ("a boolean in place of a text", &["--set", "podLabels.a=true"], "at '/podLabels/a': got boolean, want string"),
    (
        "a threshold is not a number",
        &["--set", "prometheusRule.thresholds.refusals=many"],
        "prometheusRule.thresholds.refusals is \"many\": expected a number of at least 0",
    ),
    (
        "a threshold is a time without a unit",
        &["--set", "prometheusRule.thresholds.spoolOld=900"],
        "prometheusRule.thresholds.spoolOld is 900: expected a number with one of the units s, m, h, d, w",
    ),
    (
        "a share is a percentage",
        &["--set", "prometheusRule.thresholds.deadLettersFull=80"],
        "prometheusRule.thresholds.deadLettersFull is 80: expected a number above 0 and at most 1",
    ),
    (
        "a day has 25 hours",
        &["--set", "prometheusRule.thresholds.noEventsHours=25"],
        "prometheusRule.thresholds.noEventsHours is 25: expected a whole number from 1 to 24",
    ),
    (
        "an objective allows no failure",
        &["--set", "prometheusRule.slo.answered=1"],
        "prometheusRule.slo.answered is 1: expected a number of at least 0.95, ",
    ),
    (
        "an objective is a percentage",
        &["--set-json", "prometheusRule.slo.onBus=99.5"],
        "prometheusRule.slo.onBus is 99.5: expected a number of at least 0.95, ",
    ),
    ("a threshold is unknown", &["--set", "prometheusRule.thresholds.spoolAge=1h"], "'spoolAge' not allowed"),
    (
        "an alert that does not exist is changed",
        &["--set", "prometheusRule.alerts.OutputDown.for=5m"],
        "prometheusRule.alerts has an unknown alert, OutputDown: expected one of ApsaraBridge",
    ),
    (
        "an alert waits for a time without a unit",
        &["--set", "prometheusRule.alerts.ApsaraBridgeOutputDown.for=10"],
        "prometheusRule.alerts.ApsaraBridgeOutputDown.for is 10: expected a time with a unit",
    ),
    (
        "a scrape interval has no unit",
        &["--set", "serviceMonitor.interval=30"],
        "serviceMonitor.interval is \"30\": expected a time with a unit, for example 30s",
    ),
    (
        "everything is scraped twice",
        &["--set", "serviceMonitor.enabled=true,podMonitor.enabled=true"],
        "serviceMonitor.enabled and podMonitor.enabled are both true",
    ),
    (
        "the range of a trigger has no unit",
        &["--set", "keda.prometheus.range=5"],
        "keda.prometheus.range is \"5\": expected a time with a unit, for example 5m",
    ),
    (
        "a namespace is no name",
        &["--set", "podMonitor.namespace=Monitoring"],
        "podMonitor.namespace is \"Monitoring\": expected a name of lower-case letters",
    ),
    (
        "a key of the quick start is too long",
        &["--set", "secrets.callback=null,quickStart.callbackKey=hunter2hunter2hunter2hunter2hunter2"],
        "quickStart.callbackKey is invalid: expected at most 32 characters",
    ),
    (
        "a fallback removes pods with events",
        &[
            "--set",
            "keda.enabled=true,keda.fallback.behavior=static,keda.triggers[0].type=cron,keda.triggers[0].metadata.timezone=UTC",
        ],
        "keda.fallback.behavior is static, which can remove pods",
    ),
    ("a policy lets no callback in", &["--set", "networkPolicy.enabled=true"], "networkPolicy blocks all callbacks: "),
];

#[test]
fn every_invalid_value_fails_the_rendering() {
    let good = Values::named("kafka");
    good.template(NAMESPACE, &[]).quietly().expect("the file is valid");
    let mut wrong = Vec::new();
    for (mistake, flags, said) in MISTAKES {
        match good.template(NAMESPACE, flags).refused() {
            Ok(error) if error.contains("hunter2") => wrong.push(format!("{mistake}: the secret is shown in\n{error}")),
            Ok(error) if error.contains(said) => {}
            Ok(error) => wrong.push(format!("{mistake}: expected `{said}` in\n{error}")),
            Err(_) => wrong.push(format!("{mistake}: rendered anyway")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every key of the reference, with the value that it has there, and the examples.
#[test]
fn no_key_of_the_documentation_is_taken_for_a_secret_as_text() {
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    let examples = std::fs::read_dir(repository("config/examples")).expect("the examples are there");
    let mut files: Vec<_> = examples.map(|file| file.expect("read").path()).collect();
    files.push(repository("config/apsara-bridge.toml"));
    for file in files {
        let text = std::fs::read_to_string(&file).expect("readable");
        let is_key = |line: &str| line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '[' || c == '"');
        let all = text.lines().map(|line| line.strip_prefix('#').filter(|line| is_key(line)).unwrap_or(line));
        let config: Value = toml::from_str(&all.collect::<Vec<_>>().join("\n")).expect("TOML with all keys");
        let path = folder.path().join("values");
        std::fs::write(&path, json!({ "config": config }).to_string()).expect("the temporary folder is writable");
        let ran = Values { name: "reference".to_owned(), path }.template(NAMESPACE, &[]);
        // The reference has more than one input that listens, and addresses that the chart sets.
        let error = ran.refused().unwrap_or_default();
        assert!(!error.contains("secret as text"), "{}: {error}", file.display());
    }
}

#[test]
fn without_an_input_an_output_or_a_route_nothing_is_rendered() {
    let good = std::fs::read_to_string(&Values::named("kafka").path).expect("the file is there");
    let good: Value = Yaml::from_str(&good).expect("it is YAML");
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    for section in ["inputs", "outputs", "routes"] {
        let mut bad = good.clone();
        bad["config"].as_object_mut().expect("a configuration").remove(section).expect("it was there");
        let path = folder.path().join(section);
        std::fs::write(&path, bad.to_string()).expect("the temporary folder is writable");
        let error = Values { name: section.to_owned(), path }.template(NAMESPACE, &[]).refused().expect("refused");
        assert!(error.contains(&format!("config.{section} is empty: ")), "{error}");
    }
}

#[test]
fn without_values_the_chart_reports_what_is_missing() {
    let error = helm(&["template", RELEASE, CHART]).refused().expect("nothing to run");
    assert!(error.contains("config is empty: "), "{error}");
}

#[test]
fn an_upgrade_neither_adds_nor_removes_a_volume() {
    let kubernetes = Kubernetes::shared();
    let with = "persistence.enabled is true, but the release runs as a Deployment";
    let without = "persistence.enabled is false, but the release runs as a StatefulSet";
    for (before, after, said) in [("true", "false", without), ("false", "true", with)] {
        let namespace = kubernetes.namespace("volumes");
        let file = Path::new(CHART).join("ci/kafka-values.yaml");
        let helm = |command: &str, persistence: &str, more: &[&str]| {
            let persistence = format!("persistence.enabled={persistence}");
            let file = file.to_str().expect("UTF-8");
            let arguments =
                [command, RELEASE, CHART, "--namespace", &namespace, "--values", file, "--set", &persistence, NO_HOOKS];
            kubernetes.helm(&[&arguments, more].concat())
        };
        helm("install", before, &[]).quietly().expect("installed");
        let error = helm("upgrade", after, &[]).refused().expect("refused");
        assert!(error.contains(said), "{error}");
        if before == "true" {
            for (change, said) in [
                ("persistence.size=40Gi", "persistence.size is 40Gi, but the volumes were created with 20Gi"),
                ("persistence.storageClassName=fast", "persistence.storageClassName is \"fast\", but"),
                ("persistence.annotations.backup=no", "persistence.annotations is {\"backup\":\"no\"}, but"),
            ] {
                let error = helm("upgrade", before, &["--set", change]).refused().expect("refused");
                assert!(error.contains(said), "{error}");
            }
        }
        // The running release has not changed.
        helm("upgrade", before, &[]).quietly().expect("upgraded");
        let manifest =
            kubernetes.helm(&["get", "manifest", RELEASE, "--namespace", &namespace]).quietly().expect("a manifest");
        let objects = kubernetes.objects(&manifest.out).expect("read");
        assert_eq!(workload(&objects)["kind"], if before == "true" { "StatefulSet" } else { "Deployment" });
        assert_eq!(of_kind(&objects, "StatefulSet").len() + of_kind(&objects, "Deployment").len(), 1);
    }
}
