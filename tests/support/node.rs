//! A real Kubernetes node: API server, controllers, scheduler, kubelet, kube-proxy, containerd, a network of pods, DNS,
//! volumes.
//!
//! Promises: started means that the node is ready, and that pods can use Services and names of the cluster. Everything
//! runs in the namespaces of `tests/support/node/enclose`, in which this process must run ([`enclose`]): it writes only
//! below the folder of [`folder`], and nothing is left when the process ends. A namespace of
//! [`Kubernetes::namespace`] enforces the pod security standard "restricted".
//!
//! Images are not pulled. [`Node::load`] takes them from an archive. Pods reach servers of the test at [`ADDRESS`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard};

use serde_json::{Value, json};

use super::kubernetes::{Kubernetes, Ran, SERVICES, kubeconfig, run, start_apiserver, start_etcd};
use super::process::Process;
use super::wait::{SOON, START};
use super::{installed, repository, wait_for};

/// The address of the node.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 97, 0, 1));

/// Where containerd listens, in a folder of this namespace.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// The addresses of pods.
const PODS: &str = "10.98.0.0/24";

/// The name of the node.
const NAME: &str = "node";

/// The address of DNS in the configuration of pods.
const DNS_PORT: u16 = 53;

/// The class of the volumes, which is the default.
const CLASS: &str = "disks";

/// How many volumes there are.
const VOLUMES: usize = 8;

/// The user of the pods. It owns their volumes, because a folder of the machine, unlike a disk, is not given to the
/// group of the pod.
const USER: u32 = 65_532;

/// The node. Dropping it ends it.
#[derive(Debug)]
pub struct Node {
    parts: Mutex<Parts>,
    _others: Vec<Process>,
    kubernetes: Kubernetes,
    folder: PathBuf,
}

/// What a restart of the node ends. The others are those of the cluster.
#[derive(Debug)]
struct Parts {
    kubelet: Process,
    containerd: Process,
}

/// Why a node cannot run on this machine.
pub fn refusal() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("a Kubernetes node needs root".to_owned());
    }
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--pid", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "run", "/run"]);
    let is_allowed = command.status().is_ok_and(|status| status.success());
    (!is_allowed)
        .then(|| "a Kubernetes node needs network, mount and process namespaces (`unshare -n -m -p`)".to_owned())
}

/// Goes on in namespaces of its own: replaces this process by one that runs the same program there, unless this is that
/// one.
///
/// # Panics
/// The program cannot be run.
pub fn enclose() {
    if std::env::var_os("NODE_FOLDER").is_none() {
        let program = std::env::current_exe().expect("this program has a path");
        let mut command = Command::new(repository("tests/support/node/enclose"));
        let error = command.arg(program).args(std::env::args_os().skip(1)).exec();
        panic!("tests/support/node/enclose cannot be run: {error}");
    }
}

/// The folder for everything that the node and the test write. It is removed at the end.
pub fn folder() -> PathBuf {
    std::env::var_os("NODE_FOLDER").expect("set by tests/support/node/enclose").into()
}

impl Node {
    /// Starts a node.
    pub fn start() -> Node {
        let folder = folder();
        for name in ["cni", "kubelet", "containerd", "volumes", "plugins", "pod-logs"] {
            std::fs::create_dir_all(folder.join(name)).expect("the folder can be written to");
        }
        network();
        let servers = tempfile::Builder::new().prefix("kubernetes-").tempdir_in(&folder).expect("writable");
        let (etcd, port) = start_etcd(servers.path());
        let address = ADDRESS.to_string();
        let mut flags = vec!["--bind-address", "0.0.0.0", "--advertise-address", &address, "--allow-privileged"];
        flags.extend(["--kubelet-preferred-address-types", "InternalIP"]);
        let apiserver = start_apiserver(servers.path(), port, &flags);
        let config = kubeconfig(servers.path());
        let tls = servers.path().join("tls");
        let kubernetes = Kubernetes::of(servers, vec![apiserver, etcd]);

        let mut controllers = program("kube-controller-manager", &config);
        controllers.arg("--service-account-private-key-file").arg(tls.join("server.key"));
        controllers.arg("--root-ca-file").arg(tls.join("authority.pem")).arg("--leader-elect=false");
        controllers.args(["--allocate-node-cidrs", "--cluster-cidr", PODS, "--node-cidr-mask-size=24"]);
        let mut scheduler = program("kube-scheduler", &config);
        scheduler.arg("--leader-elect=false");
        let mut proxy = program("kube-proxy", &config);
        proxy.args(["--proxy-mode=iptables", "--cluster-cidr", PODS, "--hostname-override", NAME]);
        proxy.args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"]);
        proxy.arg("--conntrack-tcp-timeout-close-wait=0");
        let others = [("kube-controller-manager", controllers), ("kube-scheduler", scheduler), ("kube-proxy", proxy)];
        let mut others: Vec<Process> =
            others.iter().map(|(name, command)| Process::start(name, command, &log(&folder, name), None)).collect();
        others.push(start_dns(&folder, &config));
        let containerd = start_containerd(&folder);
        let kubelet = start_kubelet(&folder, &config);
        let parts = Mutex::new(Parts { kubelet, containerd });
        let node = Node { parts, _others: others, kubernetes, folder };
        node.load(&installed("node/pause.tar", "node"));
        node.volumes();
        node.ready();
        node
    }

    /// The cluster of the node.
    pub fn kubernetes(&self) -> &Kubernetes {
        &self.kubernetes
    }

    /// Loads the images of an archive.
    pub fn load(&self, archive: &Path) {
        let archive = archive.to_str().expect("UTF-8");
        self.containers(&["images", "import", archive]).succeeded();
    }

    /// Runs containerd's client in the namespace of the kubelet.
    pub fn containers(&self, arguments: &[&str]) -> Ran {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(SOCKET).args(["--namespace", "k8s.io"]).args(arguments);
        run(command, "")
    }

    /// What happens when the machine of the node restarts: kubelet, containerd and all containers end at once, and the
    /// first two are started again. Returns when the node is ready again; pods may not be.
    pub fn restart(&self) {
        let mut parts = self.lock();
        parts.kubelet.kill();
        let tasks = self.containers(&["tasks", "list", "--quiet"]).succeeded().out;
        for task in tasks.lines() {
            // Others end with the first process of their pod.
            self.containers(&["tasks", "kill", "--all", "--signal", "SIGKILL", task]);
        }
        parts.containerd.kill();
        parts.containerd = start_containerd(&self.folder);
        parts.kubelet = start_kubelet(&self.folder, &kubeconfig(self.kubernetes.folder()));
        drop(parts);
        self.ready();
    }

    /// Starts an engine for NetworkPolicies. It ends when it is dropped, and what it refused stays refused.
    pub fn network_policies(&self) -> Process {
        let mut command = Command::new(installed("node/kube-router", "node"));
        command.arg("--kubeconfig").arg(kubeconfig(self.kubernetes.folder()));
        command.args(["--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--enable-cni=false"]);
        command.args(["--service-cluster-ip-range", SERVICES, "--hostname-override", NAME, "--v=1"]);
        command.args(["--iptables-sync-period=10s", "--health-port=0"]).env("NODE_NAME", NAME);
        Process::start("kube-router", &command, &log(&self.folder, "kube-router"), None)
    }

    /// A command that runs in the network of the pod with this address.
    pub fn in_network_of(&self, address: IpAddr, program: &str) -> Command {
        let wanted = format!(" {address}/");
        let names = std::fs::read_dir("/run/netns").expect("made by containerd").flatten().map(|entry| entry.path());
        let network = names.into_iter().find(|path| {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", path.display())).args(["ip", "-oneline", "-4", "address"]);
            run(command, "").out.contains(&wanted)
        });
        let network = network.unwrap_or_else(|| panic!("no pod has the address {address}"));
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", network.display())).arg(program);
        command
    }

    /// Keeps all logs, for a person who looks for the reason of a failure.
    pub fn keep_logs(&self, into: &Path) {
        std::fs::create_dir_all(into).expect("writable");
        let folders = [&self.folder, self.kubernetes.folder()].map(std::fs::read_dir);
        let files = folders.into_iter().flatten().flatten().flatten().map(|entry| entry.path());
        for log in files.filter(|path| path.extension().is_some_and(|extension| extension == "log")) {
            let _ = std::fs::copy(&log, into.join(log.file_name().expect("a file")));
        }
        let events = self.kubernetes.kubectl(&["get", "events", "--all-namespaces", "--sort-by=.lastTimestamp"]);
        let _ = std::fs::write(into.join("events.txt"), events.out);
        let pods = self.kubernetes.kubectl(&["get", "pods,jobs", "--all-namespaces", "--output=yaml"]);
        let _ = std::fs::write(into.join("pods.yaml"), pods.out);
    }

    fn ready(&self) {
        let parts = self.lock();
        parts.kubelet.wait_ready(START, || {
            let arguments = ["wait", "node", NAME, "--for=condition=Ready", "--timeout=1s"];
            self.kubernetes.kubectl(&arguments).quietly().is_ok().then_some(())
        });
    }

    /// Folders of the machine as volumes, which are there as long as the node.
    fn volumes(&self) {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": CLASS,
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": "kubernetes.io/no-provisioner",
            "volumeBindingMode": "WaitForFirstConsumer",
        });
        let volumes = (0..VOLUMES).map(|number| {
            let path = self.folder.join("volumes").join(number.to_string());
            std::fs::create_dir_all(&path).expect("the folder can be written to");
            std::os::unix::fs::chown(&path, Some(USER), Some(USER)).expect("root may do this");
            json!({
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": { "name": format!("volume-{number}") },
                "spec": {
                    "capacity": { "storage": "20Gi" },
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": CLASS,
                    "hostPath": { "path": path, "type": "Directory" },
                },
            })
        });
        let items: Vec<Value> = std::iter::once(class).chain(volumes).collect();
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
        self.kubernetes.kubectl_with(&["create", "--filename=-"], &list.to_string()).succeeded();
    }

    fn lock(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A program of the cluster, as a client of the API server.
fn program(name: &str, config: &Path) -> Command {
    let mut command = Command::new(installed(&format!("kubernetes/{name}"), "kubernetes"));
    command.arg("--kubeconfig").arg(config);
    command
}

fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

/// The interfaces of the node. That of the Services has no other purpose than a route to their addresses: without one,
/// connections to them fail before kube-proxy's rules see them.
fn network() {
    let commands = [
        "ip link add node0 type bridge",
        &format!("ip address add {ADDRESS}/24 dev node0"),
        "ip link set node0 up",
        "ip link add svc0 type bridge",
        "ip link set svc0 up",
        &format!("ip route add {SERVICES} dev svc0 src {ADDRESS}"),
    ];
    for words in commands {
        let mut command = Command::new("ip");
        command.args(words.split_whitespace().skip(1));
        run(command, "").succeeded();
    }
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("a setting of this network namespace");
}

fn start_containerd(folder: &Path) -> Process {
    let (root, cni) = (folder.join("containerd"), folder.join("cni"));
    let network = json!({
        "cniVersion": "0.4.0",
        "name": "pods",
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("addresses"),
                    "ranges": [[{ "subnet": PODS }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    });
    std::fs::write(cni.join("10-pods.conflist"), network.to_string()).expect("the folder can be written to");
    // `restrict_oom_score_adj`: without CAP_SYS_RESOURCE the score cannot be lowered, and runc fails with "can't get
    // final child's PID".
    let text = format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd/state"
[grpc]
address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
path = "{opt}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pause:local"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{cni}"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"#,
        root = root.display(),
        opt = folder.join("opt").display(),
        cni = cni.display(),
        socket = SOCKET,
    );
    let file = folder.join("containerd.toml");
    std::fs::write(&file, text).expect("the folder can be written to");
    let mut command = Command::new("containerd");
    command.arg("--config").arg(file);
    let containerd = Process::start("containerd", &command, &log(folder, "containerd"), None);
    containerd.wait_ready(START, || {
        let mut command = Command::new("ctr");
        command.args(["--address", SOCKET, "version"]);
        (run(command, "").code == 0).then_some(())
    });
    containerd
}

fn start_kubelet(folder: &Path, config: &Path) -> Process {
    let names = folder.join("resolv.conf");
    std::fs::write(&names, format!("nameserver {ADDRESS}\n")).expect("the folder can be written to");
    let settings = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        // Only this namespace reaches it.
        "authentication": { "anonymous": { "enabled": true }, "webhook": { "enabled": false } },
        "authorization": { "mode": "AlwaysAllow" },
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", std::env::var("NODE_CGROUP").expect("set by tests/support/node/enclose")),
        "clusterDNS": [ADDRESS],
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": format!("unix://{}", SOCKET),
        // The disk of the machine is not the node's concern.
        "evictionHard": { "memory.available": "50Mi" },
        "failCgroupV1": false,
        "failSwapOn": false,
        "imageGCHighThresholdPercent": 100,
        "localStorageCapacityIsolation": false,
        "podLogsDir": folder.join("pod-logs"),
        "resolvConf": names,
        // How soon a changed ConfigMap is in the pods.
        "syncFrequency": "5s",
        "volumePluginDir": folder.join("plugins"),
    });
    let file = folder.join("kubelet.json");
    std::fs::write(&file, settings.to_string()).expect("the folder can be written to");
    let mut command = program("kubelet", config);
    command.arg("--config").arg(file).args(["--hostname-override", NAME, "--node-ip", &ADDRESS.to_string()]);
    command.arg("--root-dir").arg(folder.join("kubelet")).arg("--cert-dir").arg(folder.join("kubelet/pki"));
    Process::start("kubelet", &command, &log(folder, "kubelet"), None)
}

fn start_dns(folder: &Path, config: &Path) -> Process {
    let text = format!(
        ".:{DNS_PORT} {{\n  bind {ADDRESS}\n  errors\n  ready {ready}\n  cache 5\n  kubernetes cluster.local {{\n    \
         kubeconfig {config}\n    pods disabled\n    ttl 5\n  }}\n}}\n",
        ready = READY,
        config = config.display(),
    );
    let file = folder.join("Corefile");
    std::fs::write(&file, text).expect("the folder can be written to");
    let mut command = Command::new(installed("node/coredns", "node"));
    command.arg("-conf").arg(file);
    let dns = Process::start("coredns", &command, &log(folder, "coredns"), None);
    let ready: SocketAddr = READY.parse().expect("an address");
    wait_for("DNS to listen", SOON, || std::net::TcpStream::connect(ready).ok());
    dns
}

/// Where CoreDNS says whether it is ready.
const READY: &str = "127.0.0.1:8181";
