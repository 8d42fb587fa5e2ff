//! The image: what is in it, what its configuration says, and that the program runs in it.

use std::collections::BTreeSet;
use std::fs::Metadata;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::kubernetes::{Ran, run};
use crate::support::node::{Node, folder};
use crate::support::process::Process;
use crate::support::wait::{SOON, START};
use crate::support::{repository, wait_for};

/// The largest allowed archive. It must not grow by a forgotten file.
const MOST_BYTES: u64 = 64 << 20;

/// The name that the chart uses by default.
pub const NAME: &str = concat!("apsara-bridge/apsara-bridge:", env!("CARGO_PKG_VERSION"));

/// The user of the image.
const USER: u32 = 65_532;

/// The archive that `make image` writes.
pub fn archive() -> PathBuf {
    std::env::var_os("IMAGE").map_or_else(|| repository("target/image/apsara-bridge.tar"), PathBuf::from)
}

/// Checks the archive, without running anything. Returns what it found, for the report.
pub fn examine() -> String {
    let archive = archive();
    assert!(archive.is_file(), "{} is missing: run `make image`", archive.display());
    let parts = folder().join("image");
    let root = parts.join("root");
    std::fs::create_dir_all(&root).expect("the folder can be written to");
    unpack(&archive, &parts);
    let manifest = json_file(&parts.join("manifest.json"));
    // docker leaves out the name of its own registry.
    let tags = manifest[0]["RepoTags"].as_array().expect("names");
    let mut tags = tags.iter().filter_map(Value::as_str).map(|tag| tag.trim_start_matches("docker.io/"));
    assert!(tags.any(|tag| tag == NAME), "{}", manifest[0]["RepoTags"]);
    let layers = manifest[0]["Layers"].as_array().expect("layers");
    for layer in layers {
        unpack(&parts.join(layer.as_str().expect("a path")), &root);
    }
    says_what_it_is(&json_file(&parts.join(manifest[0]["Config"].as_str().expect("a path"))));
    has_what_it_needs(&root);
    let bytes = std::fs::metadata(&archive).expect("it exists").len();
    assert!(bytes <= MOST_BYTES, "the image has {bytes} bytes: expected {MOST_BYTES} at most");
    format!("{:.1} MB, {} layers", bytes as f64 / 1e6, layers.len())
}

fn says_what_it_is(image: &Value) {
    let config = &image["config"];
    assert_eq!(config["User"], "65532:65532");
    assert_eq!(config["Entrypoint"], json!(["/apsara-bridge"]));
    let configuration = "/etc/apsara-bridge/bridge.toml";
    assert_eq!(config["Cmd"], json!(["serve", "--config", configuration]));
    let health = &config["Healthcheck"];
    assert_eq!(health["Test"], json!(["CMD", "/apsara-bridge", "health", "--config", configuration]), "{health}");
    for (name, key) in
        [("ExposedPorts", "8080/tcp"), ("ExposedPorts", "9464/tcp"), ("Volumes", "/var/lib/apsara-bridge")]
    {
        assert!(config[name].get(key).is_some(), "{name} has no {key}: {}", config[name]);
    }
    let label = |name: &str| config["Labels"][format!("org.opencontainers.image.{name}")].as_str().unwrap_or_default();
    assert_eq!((label("version"), label("licenses")), (env!("CARGO_PKG_VERSION"), env!("CARGO_PKG_LICENSE")));
    let mut command = Command::new("git");
    command.arg("-C").arg(repository("")).args(["rev-parse", "HEAD"]);
    let head = run(command, "");
    let (revision, head) = (label("revision"), if head.code == 0 { head.out.trim() } else { "unknown" });
    let is_commit = revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_commit || revision == head, "revision {revision}");
    // An archive that somebody names may be of another commit.
    if std::env::var_os("IMAGE").is_none() {
        assert_eq!(revision, head, "the image is of another commit: run `make image`");
    }
}

fn has_what_it_needs(root: &Path) {
    let (mut programs, mut shells) = (BTreeSet::new(), Vec::new());
    let is_shell = |name: &str| ["ash", "bash", "busybox", "dash", "env", "sh", "zsh"].contains(&name);
    walk(root, &mut |path, metadata| {
        let inside = Path::new("/").join(path.strip_prefix(root).expect("below the root"));
        let name = inside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_shell(&name) {
            shells.push(inside.clone());
        }
        let mode = metadata.permissions().mode();
        assert_eq!(mode & 0o6000, 0, "{} runs as another user", inside.display());
        // Libraries are executable too, also the loader.
        if metadata.is_file() && mode & 0o111 != 0 && !name.contains(".so") {
            programs.insert(inside.display().to_string());
        }
    });
    assert!(shells.is_empty(), "shells: {shells:?}");
    assert_eq!(programs, BTreeSet::from(["/apsara-bridge".to_owned()]));

    let papers = root.join("usr/share/doc/apsara-bridge");
    for name in ["LICENSE", "THIRD-PARTY-LICENSES.txt"] {
        let (inside, ours) = (std::fs::read(papers.join(name)), std::fs::read(repository(name)));
        assert_eq!(inside.expect(name), ours.expect(name), "{name}");
    }
    let bill = json_file(&papers.join("apsara-bridge.cdx.json"));
    assert_eq!(bill["bomFormat"], "CycloneDX");
    assert_eq!(bill["metadata"]["component"]["version"], env!("CARGO_PKG_VERSION"));
    let components = bill["components"].as_array().expect("components");
    for name in ["openssl", "librdkafka", "sqlite", "tokio"] {
        assert!(components.iter().any(|component| component["name"] == name), "the SBOM has no {name}");
    }
    // Scanners find the libraries of the system by their packages, and each comes with its licence.
    let packages = std::fs::read_dir(root.join("var/lib/dpkg/status.d")).expect("packages").flatten();
    let packages: Vec<String> = packages.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    assert!(packages.iter().any(|name| name == "libc6"), "{packages:?}");
    for package in &packages {
        assert!(root.join("usr/share/doc").join(package).join("copyright").is_file(), "no licence of {package}");
    }
    let authorities = std::fs::read_to_string(root.join("etc/ssl/certs/ca-certificates.crt")).expect("authorities");
    assert!(authorities.contains("BEGIN CERTIFICATE"));
    let spool = std::fs::metadata(root.join("var/lib/apsara-bridge")).expect("the folder of the spool");
    assert_eq!((spool.uid(), spool.gid()), (USER, USER));
}

/// Runs the program in the image: read-only, as its user, without anything else of this machine.
pub fn try_it(node: &Node) {
    let files = folder().join("tried");
    let (config, spool) = (files.join("config"), files.join("spool"));
    for folder in [&config, &spool] {
        std::fs::create_dir_all(folder).expect("the folder can be written to");
    }
    std::os::unix::fs::chown(&spool, Some(USER), Some(USER)).expect("root may do this");
    std::fs::write(config.join("key"), "TestKey123").expect("writable");
    let text = "[inputs.http]\nkind = 'http'\nlisten = '127.0.0.1:18080'\n\
                [[inputs.http.endpoints]]\npath = '/callbacks'\nurls = ['https://media.example.com/callbacks']\n\
                keys = [{ file = '/etc/apsara-bridge/key' }]\n\
                [outputs.console]\nkind = 'console'\n\
                [[routes]]\nname = 'everything'\nto = { output = 'console' }\n\
                [admin]\nlisten = '127.0.0.1:19464'\n";
    std::fs::write(config.join("bridge.toml"), text).expect("writable");
    let bind =
        |from: &Path, to: &str, mode: &str| format!("type=bind,src={},dst={to},options=rbind:{mode}", from.display());
    let mounts = [bind(&config, "/etc/apsara-bridge", "ro"), bind(&spool, "/var/lib/apsara-bridge", "rw")];
    let arguments = |name: &str, words: &[&str]| -> Vec<String> {
        let group = format!("/{}/{name}", std::env::var("NODE_CGROUP").expect("set by enclose"));
        let flags = ["run", "--rm", "--read-only", "--net-host", "--cgroup", &group].map(str::to_owned);
        let mounts = mounts.iter().flat_map(|mount| ["--mount".to_owned(), mount.clone()]);
        let image = format!("docker.io/{NAME}");
        let rest = [&[image.as_str(), name, "/apsara-bridge"], words].concat();
        flags.into_iter().chain(mounts).chain(rest.into_iter().map(str::to_owned)).collect()
    };
    let once = |name: &str, words: &[&str]| -> Ran {
        let arguments = arguments(name, words);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        node.containers(&arguments)
    };

    let file = "/etc/apsara-bridge/bridge.toml";
    once("check", &["check", "--config", file]).succeeded();
    let wrong = once("check-wrong", &["check", "--config", file, "--set", "outputs.console.kind=none"]);
    assert_ne!(wrong.code, 0, "{}", wrong.told());
    assert_ne!(once("health-before", &["health", "--config", file]).code, 0, "nothing runs yet");

    let mut command = Command::new("ctr");
    command.args(["--address", crate::support::node::SOCKET, "--namespace", "k8s.io"]);
    command.args(arguments("serve", &["serve", "--config", file]));
    let serving = Process::start("the image", &command, &folder().join("image-serve.log"), None);
    serving.wait_ready(START, || (once("health", &["health", "--config", file]).code == 0).then_some(()));
    confined(node);
    let address = "http://127.0.0.1:18080/callbacks";
    let url = ["--url", "https://media.example.com/callbacks"];
    let signed = [&["send", address][..], &url, &["--key-file", "/etc/apsara-bridge/key"]].concat();
    once("send", &signed).succeeded();
    let unsigned = once("send-unsigned", &["send", address]);
    assert_ne!(unsigned.code, 0, "{}", unsigned.told());
    wait_for("the event on the console", SOON, || serving.log().contains("FileUploadComplete").then_some(()));
    node.containers(&["tasks", "kill", "--signal", "SIGTERM", "serve"]).succeeded();
    assert_eq!(serving.wait(SOON), Some(0), "{}", serving.log_tail());

    let demo = once("demo", &["demo", "--once"]).succeeded();
    assert!(!demo.out.is_empty(), "the demo shows nothing");
}

/// The running program has neither another user, nor capabilities, nor a root that it can write to.
fn confined(node: &Node) {
    let tasks = node.containers(&["tasks", "list"]).succeeded().out;
    let line = tasks.lines().find(|line| line.starts_with("serve ")).expect("it runs");
    let pid = line.split_whitespace().nth(1).expect("its id");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let users: Vec<&str> = status.lines().find(|line| line.starts_with("Uid:")).expect("users").split('\t').collect();
    assert!(users[1..].iter().all(|user| *user == USER.to_string()), "{users:?}");
    assert!(status.lines().any(|line| line == "CapEff:\t0000000000000000"), "{status}");
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mounts")).expect("it runs");
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).expect("a root");
    let options = root.split(' ').nth(3).expect("options");
    assert!(options.split(',').any(|option| option == "ro"), "{root}");
}

fn unpack(archive: &Path, into: &Path) {
    let mut command = Command::new("tar");
    command.args(["--extract", "--numeric-owner", "--same-owner", "--file"]).arg(archive).arg("--directory").arg(into);
    run(command, "").succeeded();
}

fn json_file(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).expect("JSON")
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path, &Metadata)) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let (path, metadata) = (entry.path(), entry.metadata().expect("it exists"));
        visit(&path, &metadata);
        if metadata.is_dir() {
            walk(&path, visit);
        }
    }
}
