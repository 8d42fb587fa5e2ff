//! Runs the program with the rendered files, like the rendered pod would.
//!
//! Listeners get free ports, and paths are those of a [`Pod`] on this machine. Everything else is as rendered: the
//! command, the probes, the test of the release, the time to stop.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::pod::{Pod, list, text};
use crate::rendered::{NAMESPACE, RELEASE, for_several, identity, of_kind, workload};
use crate::support::free_port;
use crate::support::kubernetes::{Kubernetes, Ran, run};
use crate::support::process::Process;
use crate::support::wait::{ANSWER, START};

#[test]
fn the_program_runs_with_every_values_file() {
    let kubernetes = Kubernetes::shared();
    let tested = AtomicUsize::new(0);
    // Each one spends half of its time on the shutdown delay for load balancers.
    for_several(6, |values| {
        tested.fetch_add(runs(&values.objects(kubernetes, NAMESPACE)?)?, Ordering::Relaxed);
        Ok(())
    });
    assert!(tested.into_inner() > 10, "most files have a test of the release");
}

/// Compares what `check` says that the bridge takes at its bounds with the container's limit of memory.
fn has_memory_for_its_bounds(checked: &str, container: &Value) -> Result<(), String> {
    let bounds = checked.lines().find_map(|line| line.strip_prefix("at its bounds the bridge takes about "));
    let bounds: u64 = bounds
        .and_then(|rest| rest.strip_suffix(" MiB of memory")?.parse().ok())
        .ok_or_else(|| format!("check does not say how much memory it takes: {checked}"))?;
    let limit = text(&container["resources"]["limits"], "memory")?;
    let limit: u64 = [("Mi", 1), ("Gi", 1024)]
        .into_iter()
        .find_map(|(unit, size)| Some(limit.strip_suffix(unit)?.parse::<u64>().ok()? * size))
        .ok_or_else(|| format!("the limit of memory is {limit}; expected Mi or Gi"))?;
    if limit < bounds {
        return Err(format!("at its bounds the bridge takes {bounds} MiB; its limit is {limit} MiB"));
    }
    Ok(())
}

/// Runs the program with one file. Returns how many tests of the release it passed.
fn runs(objects: &[Value]) -> Result<usize, String> {
    let workload = workload(objects);
    let template = &workload["spec"]["template"];
    let spec = &template["spec"];
    let container = &spec["containers"][0];
    let pod = Pod::lay_out(objects, template, &workload["spec"]["volumeClaimTemplates"])?;

    // The configuration, as the program itself reads it.
    let mut check = pod.command(container)?;
    let serve: Vec<_> = check.get_args().map(ToOwned::to_owned).collect();
    if serve.first().is_none_or(|word| word != "serve") {
        return Err(format!("the container runs {serve:?}"));
    }
    check = pod.command_with(container, std::iter::once("check".into()).chain(serve[1..].iter().cloned()))?;
    let checked = succeeded(run(check, ""))?;
    has_memory_for_its_bounds(&checked.error, container)?;
    let settings: Value = toml::from_str(&checked.out).map_err(|error| format!("check did not print TOML: {error}"))?;
    for init in list(&spec["initContainers"]) {
        succeeded(run(pod.command(init)?, ""))?;
    }

    // The Jobs of the release, with their own copy of the configuration.
    for job in of_kind(objects, "Job") {
        let template = &job["spec"]["template"];
        let pod = Pod::lay_out(objects, template, &Value::Null)?;
        succeeded(run(pod.command(&template["spec"]["containers"][0])?, ""))?;
    }

    // Every listener gets a free port, and must have a port of the pod. No address outside this machine is used.
    let mut ports = Ports::default();
    let mut arguments = serve;
    let mut set = |key: &str, value: String| arguments.extend(["--set".into(), format!("{key}={value}").into()]);
    set("admin.listen", ports.open("admin.listen", &settings["admin"], container)?);
    for (name, input) in settings["inputs"].as_object().into_iter().flatten() {
        let (listen, endpoint) = (format!("inputs.{name}.listen"), format!("inputs.{name}.endpoint"));
        match text(input, "kind")? {
            "http" => set(&listen, ports.open(&listen, input, container)?),
            _ => set(&endpoint, format!("http://127.0.0.1:{}", free_port())),
        }
    }
    every_service_has_a_target(objects, container)?;
    let has_spool = settings["spool"]["enabled"] == true;
    if has_spool {
        let path = pod.path(container, text(&settings["spool"], "path")?);
        if !pod.is_kept(container, &path) {
            return Err(format!("the spool is not on a volume that outlives the pod: {path}"));
        }
        set("spool.path", path);
    }
    // There is no bus. So it accepts callbacks only with a spool, or if the console is its only output.
    let mut outputs = settings["outputs"].as_object().into_iter().flatten();
    let is_ready = has_spool || outputs.all(|(_, output)| output["kind"] == "console");

    let command = pod.command_with(container, arguments)?;
    let log = pod.root.path().join("log");
    let process = Process::start("apsara-bridge", &command, &log, Some(pod.root.path()));
    let probe = |name: &str, expected: u16| {
        process.wait_ready(START, || (ports.ask(&pod, container, &container[name]).ok()? == expected).then_some(()));
    };
    probe("startupProbe", 200);
    probe("livenessProbe", 200);
    probe("readinessProbe", if is_ready { 200 } else { 503 });

    // The same as `helm test`.
    let mut tested = 0;
    for test in of_kind(objects, "Pod").into_iter().filter(|_| is_ready) {
        let pod = Pod::lay_out(objects, test, &Value::Null)?;
        for container in list(&test["spec"]["containers"]) {
            let ran = run(ports.command(&pod, container, objects)?, "");
            succeeded(ran).map_err(|error| format!("{}: {error}{}", identity(test), process.log_tail()))?;
        }
        tested += 1;
    }

    let asked = Instant::now();
    process.signal("TERM");
    let grace = Duration::from_secs(spec["terminationGracePeriodSeconds"].as_u64().unwrap_or(30));
    match process.wait(grace) {
        Some(0) => Ok(tested),
        Some(code) => Err(format!("it ended with {code}:\n{}", process.log_tail())),
        None => Err(format!("it still ran {:?} after SIGTERM", asked.elapsed())),
    }
}

fn succeeded(ran: Ran) -> Result<Ran, String> {
    if ran.code == 0 { Ok(ran) } else { Err(ran.told()) }
}

/// The local port for each port of the pod.
#[derive(Default)]
struct Ports(HashMap<u16, u16>);

impl Ports {
    /// A free address for the listener of a section. In the pod, the listener must be reachable from outside, on a port
    /// that the container declares.
    fn open(&mut self, key: &str, section: &Value, container: &Value) -> Result<String, String> {
        let listen = text(section, "listen")?;
        let (host, port) = listen.rsplit_once(':').ok_or_else(|| format!("{key} is {listen}"))?;
        if host != "0.0.0.0" && host != "[::]" {
            return Err(format!("{key} is {listen}: neither a probe nor a Service reaches it"));
        }
        let port = port.parse().map_err(|_| format!("{key} is {listen}"))?;
        if !list(&container["ports"]).any(|named| named["containerPort"] == port) {
            return Err(format!("{key} is {listen}, but the container's ports are {}", container["ports"]));
        }
        let ours = free_port();
        match self.0.insert(port, ours) {
            None => Ok(format!("127.0.0.1:{ours}")),
            Some(_) => Err(format!("{key} is {listen}, but another listener already uses it")),
        }
    }

    /// The local port for a port of the pod, to which a probe or a Service refers by number or name.
    fn ours(&self, container: &Value, port: &Value) -> Result<u16, String> {
        let number = number(container, port)?;
        self.0.get(&number).copied().ok_or_else(|| format!("nothing listens on {port}"))
    }

    /// A container's command, in which the addresses of the release's Services are replaced by local ones.
    fn command(&self, pod: &Pod<'_>, container: &Value, objects: &[Value]) -> Result<Command, String> {
        let command = pod.command(container)?;
        let arguments = command.get_args().map(|word| self.locally(objects, word.to_str().expect("UTF-8")));
        let arguments: Vec<_> = arguments.collect::<Result<_, _>>()?;
        pod.command_with(container, arguments.into_iter().map(Into::into))
    }

    /// A text in which the addresses of the release's Services are replaced by local ones.
    fn locally(&self, objects: &[Value], word: &str) -> Result<String, String> {
        let Some((before, address)) = word.split_once("http://") else { return Ok(word.to_owned()) };
        let (host, path) = address.split_once('/').unwrap_or((address, ""));
        let (host, port) = host.rsplit_once(':').unwrap_or((host, "80"));
        let port: u16 = port.parse().map_err(|_| format!("{word} has no port"))?;
        let name = host.split('.').next().unwrap_or_default();
        let service = of_kind(objects, "Service").into_iter().find(|service| service["metadata"]["name"] == name);
        let service = service.ok_or_else(|| format!("{word}: {RELEASE} has no such Service"))?;
        let port = list(&service["spec"]["ports"]).find(|named| named["port"] == port);
        // The name of a headless Service resolves to the pods, so its port is not translated.
        let is_direct = |port: &Value| service["spec"]["clusterIP"] == "None" || port["targetPort"].is_null();
        let target = port.map(|port| if is_direct(port) { &port["port"] } else { &port["targetPort"] });
        let target = target.ok_or_else(|| format!("{word}: {} has no such port", identity(service)))?;
        let container = &workload(objects)["spec"]["template"]["spec"]["containers"][0];
        Ok(format!("{before}http://127.0.0.1:{}/{path}", self.ours(container, target)?))
    }

    /// The answer to a probe. The success of a command counts as 200, its failure as 503.
    fn ask(&self, pod: &Pod<'_>, container: &Value, probe: &Value) -> Result<u16, String> {
        if !probe["exec"].is_null() {
            let words = list(&probe["exec"]["command"]).skip(1).filter_map(Value::as_str);
            let words = words.map(|word| pod.rewrite(word, std::iter::once(container)).into());
            return Ok(if run(pod.command_with(container, words)?, "").code == 0 { 200 } else { 503 });
        }
        let http = &probe["httpGet"];
        let port = self.ours(container, &http["port"])?;
        get(port, text(http, "path")?).ok_or_else(|| "no answer".to_owned())
    }
}

fn number(container: &Value, port: &Value) -> Result<u16, String> {
    let named = list(&container["ports"]).find(|named| named["name"] == *port || named["containerPort"] == *port);
    let number = named.and_then(|named| named["containerPort"].as_u64()).and_then(|number| u16::try_from(number).ok());
    number.ok_or_else(|| format!("the container has no port {port}: {}", container["ports"]))
}

fn every_service_has_a_target(objects: &[Value], container: &Value) -> Result<(), String> {
    for service in of_kind(objects, "Service") {
        for port in list(&service["spec"]["ports"]) {
            let target = if port["targetPort"].is_null() { &port["port"] } else { &port["targetPort"] };
            number(container, target).map_err(|error| format!("{}: {error}", identity(service)))?;
        }
    }
    Ok(())
}

/// The status of the answer to a GET.
fn get(port: u16, path: &str) -> Option<u16> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).ok()?;
    connection.set_read_timeout(Some(ANSWER)).ok()?;
    write!(connection, "GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}
