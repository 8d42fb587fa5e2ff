//! The NetworkPolicy of the chart, with an engine on the node: what the bridge needs passes, and the rest is refused.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::process::Command;

use serde_json::{Value, json};

use crate::image::NAME;
use crate::stage::{PATIENCE, Stage};
use crate::support::bridge::KEY;
use crate::support::kubernetes::run;
use crate::support::node::ADDRESS;
use crate::support::wait::try_wait_for;
use crate::support::{free_port, wait_for};

const RELEASE: &str = "guarded";

/// Without an engine a policy does nothing, and with one it does. So everything that is refused must pass before.
pub fn try_them(stage: &Stage) {
    let [namespace, gateway, monitoring, others] =
        ["guarded", "gateways", "monitoring", "others"].map(|name| stage.kubernetes().namespace(name));
    stage.secret(&namespace, &[("key", KEY)]);
    let values = stage.values(json!({
        "replicaCount": 1,
        "networkPolicy": {
            "enabled": true,
            "gatewayNamespaces": [gateway],
            "monitoringNamespaces": [monitoring],
            "egress": {
                "dnsPeers": [{ "ipBlock": { "cidr": format!("{ADDRESS}/32") } }],
                "brokerPeers": [{ "ipBlock": { "cidr": format!("{ADDRESS}/32") } }],
            },
        },
    }));
    stage.helm("install", RELEASE, &namespace, &values).succeeded();
    let bridge = stage.pods_of(RELEASE, &namespace, "bridge")[0].address.expect("it runs");
    let pods = [&gateway, &monitoring, &others].map(|namespace| idle_pod(stage, namespace, json!({})));
    let [from_gateway, from_monitoring, from_others] = pods;
    // Not that pod itself: it ends within a second, before the engine knows its address.
    let from_test = idle_pod(
        stage,
        &namespace,
        json!({
            "app.kubernetes.io/name": "apsara-bridge",
            "app.kubernetes.io/instance": RELEASE,
            "app.kubernetes.io/component": "test",
        }),
    );

    // A server of the machine that is not an output.
    let other = TcpListener::bind((ADDRESS, free_port())).expect("a port");
    let other = other.local_addr().map(|address| (address, other)).expect("it listens");
    let broker: SocketAddr = stage.kafka.reached_at()[0].parse().expect("an address");
    let (callbacks, admin) = (SocketAddr::new(bridge, 8080), SocketAddr::new(bridge, 9464));
    let refused = [
        ("callbacks from another namespace", from_others, callbacks),
        ("metrics for another namespace", from_others, admin),
        ("metrics for the gateway", from_gateway, admin),
        ("callbacks from the monitoring", from_monitoring, callbacks),
        ("a connection of the bridge to what is no output", bridge, other.0),
    ];
    let permitted = [
        ("callbacks from the gateway", from_gateway, callbacks),
        ("metrics for the monitoring", from_monitoring, admin),
        ("callbacks from the pod of helm test", from_test, callbacks),
        ("metrics for the pod of helm test", from_test, admin),
        ("the bus", bridge, broker),
        ("DNS", bridge, SocketAddr::new(ADDRESS, 53)),
    ];
    for (what, from, to) in refused.iter().chain(&permitted) {
        assert!(connects(stage, *from, *to), "without an engine: {what} is refused");
    }

    let engine = stage.node.network_policies();
    for (what, from, to) in refused {
        let is_refused = try_wait_for(PATIENCE, || (!connects(stage, from, to)).then_some(()));
        assert!(is_refused.is_some(), "{what} passes:\n{}", engine.log_tail());
    }
    for (what, from, to) in permitted {
        let is_permitted = try_wait_for(PATIENCE, || connects(stage, from, to).then_some(()));
        assert!(is_permitted.is_some(), "{what} is refused:\n{}", engine.log_tail());
    }
    stage.tell(&format!(
        "NetworkPolicy with kube-router: {} kinds of connections refused, {} permitted",
        refused.len(),
        permitted.len()
    ));
    stage.kubernetes().helm(&["uninstall", RELEASE, "--namespace", &namespace, "--wait"]).succeeded();
}

/// A pod that does nothing. Its network is what counts.
fn idle_pod(stage: &Stage, namespace: &str, labels: Value) -> IpAddr {
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": "idle", "namespace": namespace, "labels": labels },
        "spec": {
            "automountServiceAccountToken": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{
                "name": "idle",
                "image": NAME,
                "args": ["demo"],
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    });
    stage.kubernetes().kubectl_with(&["create", "--filename=-"], &pod.to_string()).succeeded();
    wait_for("an idle pod", PATIENCE, || {
        let arguments = ["get", "pod", "idle", "--namespace", namespace, "--output=jsonpath={.status.podIP}"];
        stage.kubernetes().kubectl(&arguments).succeeded().out.parse().ok()
    })
}

/// Whether a connection from the network of a pod succeeds.
fn connects(stage: &Stage, from: IpAddr, to: SocketAddr) -> bool {
    let mut command: Command = stage.node.in_network_of(from, "timeout");
    command.args(["3", "bash", "-c", &format!("exec 3<>/dev/tcp/{}/{}", to.ip(), to.port())]);
    run(command, "").code == 0
}
