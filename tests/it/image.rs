//! The container image, as far as it can be checked without a container engine: the Dockerfile is linted, the files
//! that it copies exist, and the commands that fill the image are run for a folder. Then the program runs with that
//! folder as its root.

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
    let version = format!("org.opencontainers.image.version=\"{}\"", env!("CARGO_PKG_VERSION"));
    assert!(dockerfile().contains(&version));
}

/// Runs the program as in an image from `scratch`: in another root folder, without any other file of this machine.
#[test]
fn the_program_runs_with_the_files_of_the_image() {
    let folder = tempfile::tempdir().expect("a folder");
    let image = folder.path().join("image");
    std::fs::create_dir(&image).expect("made");
    std::fs::copy(env!("CARGO_BIN_EXE_apsara-bridge"), image.join("apsara-bridge")).expect("copied");
    let fill = instructions().into_iter().find(|line| line.starts_with("RUN ldd")).expect("the image is filled");
    let fill = fill.trim_start_matches("RUN ").replace("/image", &image.display().to_string());
    let output = Command::new("bash").args(["-o", "pipefail", "-ec", &fill]).output().expect("bash runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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
