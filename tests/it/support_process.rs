//! Child processes end with the test process, and report why they did not start.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::process::{Process, exists, wait_gone};
use crate::support::wait::SOON;
use crate::support::wait_for;

fn sh(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}

fn start(script: &str, folder: &Path) -> Process {
    Process::start("the child", &sh(script), &folder.join("log"), None)
}

#[test]
fn output_and_exit_code_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let child = start("echo out; echo err >&2; exit 3", folder.path());
    assert_eq!(child.wait(SOON), Some(3));
    assert_eq!(child.log(), "out\nerr\n");
}

#[test]
fn environment_and_folder_reach_the_child() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = sh(r#"echo "$APSARA__WORD in $PWD""#);
    command.env("APSARA__WORD", "two words").current_dir("/");
    let child = Process::start("the child", &command, &folder.path().join("log"), None);
    assert_eq!(child.wait(SOON), Some(0));
    assert_eq!(child.log(), "two words in /\n");
}

#[test]
fn signals_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let child = start("echo up; exec sleep 600", folder.path());
    child.wait_log("up", SOON);
    child.signal("TERM");
    assert_eq!(child.wait(SOON), Some(128 + 15));
    child.signal("TERM"); // nothing happens: the child has ended
}

#[test]
fn a_stopped_child_can_be_killed() {
    let folder = tempfile::tempdir().unwrap();
    let child = start("echo up; exec sleep 600", folder.path());
    child.wait_log("up", SOON);
    child.stop();
    child.kill();
    assert!(!exists(child.id()));
    assert_eq!(child.exit_code(), Some(128 + 9));
}

#[test]
fn a_failed_start_shows_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let child = start("echo 'the port is in use' >&2; exit 1", folder.path());
    let panic = std::panic::catch_unwind(|| child.wait_ready(SOON, || None::<()>)).unwrap_err();
    let message = panic.downcast_ref::<String>().unwrap();
    assert_eq!(message, "the child ended with exit code 1 before it was ready:\nthe port is in use");
}

/// Not a test by itself: [`children_die_with_us`] runs it in its own process, which is killed.
#[test]
fn parent_that_is_killed() {
    let Some(folder) = std::env::var_os("PARENT_THAT_IS_KILLED") else { return };
    let folder = Path::new(&folder);
    let child = Process::start("the child", &sh("exec sleep 600"), &folder.join("log"), Some(folder));
    println!("child {}", child.id());
    sh("kill -KILL $PPID").status().unwrap();
}

#[test]
fn children_die_with_us() {
    let folder = tempfile::tempdir().unwrap();
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "support_process::parent_that_is_killed", "--nocapture"])
        .env("PARENT_THAT_IS_KILLED", &inner)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(parent.stdout.take().unwrap());
    let mut lines = output.lines().map_while(Result::ok);
    // The test harness writes the name of the test on the same line, before the output.
    let pid =
        lines.find_map(|line| line.split_once("child ")?.1.parse().ok()).expect("the parent prints the child's pid");
    assert!(!parent.wait().unwrap().success());
    wait_gone(pid, SOON);
    wait_for("the removal of the folder", SOON, || (!inner.exists()).then_some(()));
}
