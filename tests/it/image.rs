//! The container image, as far as it can be checked without a container engine: the Dockerfile is linted, the files
//! that it copies exist, and the script that fills the image is run for a folder. Then the program runs with that folder
//! as its root.

use std::process::Command;

use crate::support::{repository, repository_text, tool};

fn dockerfile() -> String {
    repository_text("Dockerfile")
}

/// The instructions, each on one line.
fn instructions() -> Vec<String> {
    let text = dockerfile().lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    let joined = text.replace("\\\n", " ");
    joined.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_linter_has_no_complaints() {
    let output = Command::new(tool("hadolint", "hadolint"))
        .args(["--failure-threshold", "style"])
        .arg(repository("Dockerfile"))
        .output()
        .expect("hadolint runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && said.is_empty(), "{said}");
}

#[test]
fn copied_files_exist_and_are_not_ignored() {
    let ignored = repository_text(".dockerignore");
    for instruction in instructions() {
        let Some(paths) = instruction.strip_prefix("COPY ").filter(|paths| !paths.starts_with("--from")) else {
            continue;
        };
        let paths: Vec<&str> = paths.split_whitespace().collect();
        for source in &paths[..paths.len() - 1] {
            assert!(repository(source).exists(), "{source}");
            assert!(ignored.lines().any(|line| line == format!("!{source}")), "{source} is ignored");
        }
    }
}

#[test]
fn labels_name_version_and_revision() {
    let label = instructions().into_iter().find(|line| line.starts_with("LABEL ")).expect("labels");
    for wanted in [
        concat!("image.version=\"", env!("CARGO_PKG_VERSION"), "\""),
        concat!("image.licenses=\"", env!("CARGO_PKG_LICENSE"), "\""),
        "image.revision=\"${REVISION}\"",
    ] {
        assert!(label.contains(&format!("org.opencontainers.{wanted}")), "{wanted} in {label}");
    }
}

/// A registry may change what a tag means, so a release gives digests.
#[test]
fn every_base_can_be_given_by_digest() {
    let instructions = instructions();
    for base in instructions.iter().filter_map(|line| line.strip_prefix("FROM ")) {
        let base = base.split(' ').next().expect("a word");
        let argument = base.strip_prefix("${").and_then(|name| name.strip_suffix('}'));
        let is_argument = |name: &str| instructions.iter().any(|line| line.starts_with(&format!("ARG {name}=")));
        assert!(base == "scratch" || argument.is_some_and(is_argument), "{base}");
    }
}

/// Runs the program as in an image from `scratch`: in another root folder, without any other file of this machine.
#[test]
fn the_program_runs_with_the_files_of_the_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    std::fs::create_dir(&image).expect("made");
    std::fs::copy(env!("CARGO_BIN_EXE_apsara-bridge"), image.join("apsara-bridge")).expect("copied");
    assert!(instructions().contains(&"RUN packaging/fill-image /image".to_owned()));
    let output = Command::new(repository("packaging/fill-image")).arg(&image).output().expect("the script runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // Scanners find the system's libraries by their packages, and people find the licences of these.
    for package in ["libc6", "libgcc-s1", "ca-certificates"] {
        let status = std::fs::read_to_string(image.join("var/lib/dpkg/status.d").join(package)).expect("written");
        assert!(status.starts_with(&format!("Package: {package}\n")) && status.contains("\nVersion: "), "{status}");
        assert!(image.join("usr/share/doc").join(package).join("copyright").is_file(), "{package}");
    }
    let run = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--root"]).arg(&image).arg("/apsara-bridge").args(arguments);
        let output = command.output().expect("unshare runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = run(&["--version"]);
    assert_eq!((code, out.trim()), (Some(0), concat!("apsara-bridge ", env!("CARGO_PKG_VERSION"))), "{error}");
    // The command of the health check, with the configuration where the image expects it.
    let check = dockerfile().lines().find(|line| line.contains("\"health\"")).expect("a health check").to_owned();
    let words: Vec<String> = serde_json::from_str(check.trim().trim_start_matches("CMD ")).expect("the exec form");
    let config = image.join(words.last().expect("words").trim_start_matches('/'));
    std::fs::create_dir_all(config.parent().expect("a folder")).expect("made");
    std::fs::write(&config, "[admin]\nlisten = '127.0.0.1:1'\n").expect("written");
    let arguments: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    let (code, _, error) = run(&arguments);
    assert!(code == Some(1) && error.contains("http://127.0.0.1:1/healthz"), "{error}");
    // HTTPS finds the certificate authorities: without them the client could not be created.
    let (code, _, error) = run(&["send", "https://127.0.0.1:1/callbacks"]);
    assert!(code == Some(1) && error.contains("onnect"), "{error}");
}
