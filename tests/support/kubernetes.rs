//! A real Kubernetes API server with its etcd, and kubectl and helm as its clients.
//!
//! Promises: started means that the server reports that it is ready, and that it has the definitions that the setup
//! installs (Prometheus operator, KEDA, Gateway API). kubectl and helm see only this server, and none of the user's own
//! settings. A namespace of [`Kubernetes::namespace`] enforces the pod security standard "restricted".
//!
//! No controller, scheduler or kubelet runs: objects are only validated, defaulted, admitted and stored. A Deployment
//! gets no pods, a claim gets no volume, and a deleted namespace never disappears.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::certificates::Certificates;
use super::process::Process;
use super::wait::START;
use super::{free_port, installed, tool};

/// The token with all permissions.
const TOKEN: &str = "token-of-the-tests";

/// The addresses of Services.
pub(super) const SERVICES: &str = "10.96.0.0/16";

/// A server. Dropping it kills it and removes its data.
#[derive(Debug)]
pub struct Kubernetes {
    _servers: Vec<Process>, // each before those that it is a client of
    folder: TempDir,
}

/// The result of a program.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The program and its arguments, for an error message.
    pub command: String,
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub out: String,
    /// Its standard error.
    pub error: String,
}

impl Ran {
    /// The result, if the program succeeded and standard error is empty. Warnings of the server appear there.
    pub fn quietly(self) -> Result<Self, String> {
        if self.code == 0 && self.error.is_empty() { Ok(self) } else { Err(self.told()) }
    }

    /// The result, if the program succeeded. Warnings are allowed.
    ///
    /// # Panics
    /// It failed.
    pub fn succeeded(self) -> Self {
        assert!(self.code == 0, "{}", self.told());
        self
    }

    /// Its standard error, if it failed as expected.
    pub fn refused(self) -> Result<String, String> {
        if self.code == 0 { Err(format!("{} succeeded", self.command)) } else { Ok(self.error) }
    }

    /// The command and its output, for an error message.
    pub fn told(&self) -> String {
        format!("{} ended with {}:\n{}{}", self.command, self.code, self.error, self.out)
    }
}

impl Kubernetes {
    /// The server of this test process, started by the first caller. Tests use different namespaces.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kubernetes> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// Starts a server for the caller alone.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("kubernetes-")
            .tempdir()
            .expect("the folder for temporary files is writable");
        let (etcd, port) = start_etcd(folder.path());
        // Without controllers, a namespace has no default account. The server's own endpoint must not be loopback, and
        // nobody uses it.
        let flags = ["--disable-admission-plugins", "ServiceAccount", "--endpoint-reconciler-type", "none"];
        let apiserver = start_apiserver(folder.path(), port, &[&["--bind-address", "127.0.0.1"], &flags[..]].concat());
        Self::of(folder, vec![apiserver, etcd])
    }

    /// A server of which a [`node`](super::node) may be a client too.
    pub(super) fn of(folder: TempDir, servers: Vec<Process>) -> Self {
        let kubernetes = Self { _servers: servers, folder };
        kubernetes._servers[0].wait_ready(START, || {
            (kubernetes.kubectl(&["get", "--raw=/readyz"]).quietly().is_ok_and(|ran| ran.out == "ok")).then_some(())
        });
        let definitions = installed("kubernetes/crds", "kubernetes");
        let definitions = definitions.to_str().expect("UTF-8");
        let established = ["wait", "--for=condition=Established", "--timeout=60s", "-f", definitions];
        for arguments in [&["create", "-f", definitions][..], &established] {
            kubernetes.kubectl(arguments).quietly().expect("the definitions are accepted");
        }
        kubernetes
    }

    /// Where its kubeconfig and its logs are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Creates a namespace that refuses pods below the pod security standard "restricted", and warns about workloads
    /// that would create such pods. Its name begins with `name`.
    pub fn namespace(&self, name: &str) -> String {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        let labels: serde_json::Map<String, Value> = ["enforce", "warn", "audit"]
            .into_iter()
            .flat_map(|mode| [(mode.to_owned(), "restricted"), (format!("{mode}-version"), "latest")])
            .map(|(mode, value)| (format!("pod-security.kubernetes.io/{mode}"), json!(value)))
            .collect();
        let namespace =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } });
        self.kubectl_with(&["create", "-f", "-"], &namespace.to_string()).quietly().expect("the namespace is created");
        name
    }

    /// Runs kubectl against this server.
    pub fn kubectl(&self, arguments: &[&str]) -> Ran {
        self.kubectl_with(arguments, "")
    }

    /// Runs kubectl against this server with something on standard input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = Command::new(installed("kubernetes/kubectl", "kubernetes"));
        command.arg("--kubeconfig").arg(kubeconfig(self.folder.path())).args(arguments);
        command.env("KUBECACHEDIR", self.folder.path().join("kubectl")).env("KUBERC", "off");
        run(command, input)
    }

    /// The objects in a text of YAML documents, as kubectl reads them.
    pub fn objects(&self, text: &str) -> Result<Vec<Value>, String> {
        let read = ["create", "--dry-run=client", "--validate=false", "--output=json", "--filename=-"];
        Self::read(&self.kubectl_with(&read, text).quietly()?.out)
    }

    /// The objects in JSON that kubectl prints: one, several in a row, or a list.
    pub fn read(text: &str) -> Result<Vec<Value>, String> {
        let mut objects = Vec::new();
        for document in serde_json::Deserializer::from_str(text).into_iter::<Value>() {
            let mut document = document.map_err(|error| format!("kubectl did not print JSON: {error}"))?;
            match document.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => objects.extend(items),
                _ => objects.push(document),
            }
        }
        Ok(objects)
    }

    /// The names of all resources that can be in a namespace, for `kubectl get`. Without events, which the server
    /// writes by itself, and `endpoints`, because reading them causes a warning.
    pub fn resources(&self) -> Result<Vec<String>, String> {
        let ran = self.kubectl(&["api-resources", "--verbs=list", "--namespaced=true", "--output=name"]).quietly()?;
        let is_wanted = |name: &&str| !["endpoints", "events", "events.events.k8s.io"].contains(name);
        Ok(ran.out.lines().filter(is_wanted).map(str::to_owned).collect())
    }

    /// Runs helm against this server.
    pub fn helm(&self, arguments: &[&str]) -> Ran {
        let mut command = helm_command("helm", self.folder.path());
        command.env("KUBECONFIG", kubeconfig(self.folder.path())).args(arguments);
        run(command, "")
    }
}

/// Runs helm without a server, to render or to lint.
pub fn helm(arguments: &[&str]) -> Ran {
    alone("helm", arguments)
}

/// The same with the version before it.
pub fn helm3(arguments: &[&str]) -> Ran {
    alone("helm3", arguments)
}

fn alone(helm: &str, arguments: &[&str]) -> Ran {
    let home = tempfile::tempdir().expect("the folder for temporary files is writable");
    let mut command = helm_command(helm, home.path());
    command.env("KUBECONFIG", home.path().join("none")).args(arguments);
    run(command, "")
}

/// Runs a program to its end.
pub fn run(mut command: Command, input: &str) -> Ran {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{} cannot be run: {error}", words[0]));
    let mut pipe = child.stdin.take().expect("standard input is a pipe");
    let output = std::thread::scope(|scope| {
        // In parallel with reading, or two full pipes would wait for each other. A program may stop reading early.
        scope.spawn(move || drop(pipe.write_all(input.as_bytes())));
        child.wait_with_output().expect("it is our child")
    });
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: text(&output.stdout),
        error: text(&output.stderr),
        command: words.join(" "),
    }
}

fn helm_command(name: &str, home: &Path) -> Command {
    let mut command = Command::new(tool(name, "chart"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|name| name.starts_with("HELM_")) {
            command.env_remove(variable);
        }
    }
    for part in ["CACHE", "CONFIG", "DATA"] {
        command.env(format!("HELM_{part}_HOME"), home.join("helm").join(part.to_lowercase()));
    }
    command
}

pub(super) fn start_etcd(folder: &Path) -> (Process, u16) {
    let (port, peers) = (free_port(), free_port());
    let (url, peers) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{peers}"));
    let mut command = Command::new(installed("kubernetes/etcd", "kubernetes"));
    command.arg("--data-dir").arg(folder.join("etcd"));
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, &url]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, &peers]);
    }
    // The data need not survive a power failure.
    command.args(["--initial-cluster", &format!("default={peers}"), "--unsafe-no-fsync"]);
    (Process::start("etcd", &command, &folder.join("etcd.log"), Some(folder)), port)
}

/// The rest of its flags is that of the caller.
pub(super) fn start_apiserver(folder: &Path, etcd: u16, flags: &[&str]) -> Process {
    let port = free_port();
    let certificates = Certificates::make(&folder.join("tls"));
    let tokens = folder.join("tokens.csv");
    std::fs::write(&tokens, format!("{TOKEN},tests,tests,system:masters\n")).expect("the folder can be written to");
    std::fs::write(
        kubeconfig(folder),
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "tests", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority": certificates.authority,
            }}],
            "users": [{ "name": "tests", "user": { "token": TOKEN } }],
            "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
            "current-context": "tests",
        })
        .to_string(),
    )
    .expect("the folder can be written to");
    let mut command = Command::new(installed("kubernetes/kube-apiserver", "kubernetes"));
    command.args(["--etcd-servers", &format!("http://127.0.0.1:{etcd}")]);
    command.args(["--secure-port", &port.to_string()]);
    command.arg("--tls-cert-file").arg(&certificates.server);
    command.arg("--tls-private-key-file").arg(&certificates.server_key);
    command.arg("--token-auth-file").arg(&tokens).args(["--authorization-mode", "RBAC"]);
    // Tokens of service accounts.
    command.arg("--service-account-key-file").arg(&certificates.server);
    command.arg("--service-account-signing-key-file").arg(&certificates.server_key);
    command.args(["--service-account-issuer", "https://tests.invalid"]);
    command.args(["--service-cluster-ip-range", SERVICES]).args(flags);
    Process::start("kube-apiserver", &command, &folder.join("kube-apiserver.log"), Some(folder))
}

/// The file with which clients reach the server.
pub fn kubeconfig(folder: &Path) -> PathBuf {
    folder.join("kubeconfig.json")
}
