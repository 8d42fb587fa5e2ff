//! A limit on the memory of a child process, by a control group of Linux: the child is killed beyond it, as a container
//! is. Needs root.

#![allow(dead_code)] // each binary that includes this uses its own part of it

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where control groups are, with the files for limit and peak: version 2 and version 1.
const VERSIONS: [(&str, &str, &str); 2] = [
    ("/sys/fs/cgroup", "memory.max", "memory.peak"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.max_usage_in_bytes"),
];

/// The limit. It ends when this is dropped; the child must have ended before.
#[derive(Debug)]
pub struct MemoryLimit {
    group: PathBuf,
    peak: &'static str,
}

impl MemoryLimit {
    /// A limit, or why the machine does not allow one.
    pub fn new(bytes: u64) -> Result<MemoryLimit, String> {
        let mut reasons = Vec::new();
        for (root, limit, peak) in VERSIONS {
            let group = Path::new(root).join(format!("apsara-bridge-test-{}", std::process::id()));
            if let Err(error) = std::fs::create_dir(&group) {
                reasons.push(format!("{}: {error}", group.display()));
                continue;
            }
            let made = MemoryLimit { group, peak };
            if !made.group.join(limit).exists() {
                reasons.push(format!("{} is not a control group with a limit on memory", made.group.display()));
                continue;
            }
            match std::fs::write(made.group.join(limit), bytes.to_string()) {
                Ok(()) => return Ok(made),
                Err(error) => reasons.push(format!("{}: {error}", made.group.join(limit).display())),
            }
        }
        Err(reasons.join("; "))
    }

    /// Changes a command so that its process is under the limit.
    pub fn apply(&self, command: &mut Command) {
        let program = std::mem::replace(command, Command::new("sh"));
        command.args(["-c", r#"echo $$ >"$0" && exec "$@""#]).arg(self.group.join("cgroup.procs"));
        command.arg(program.get_program()).args(program.get_args());
    }

    /// The most bytes that were used at once, if the system counts them.
    pub fn peak(&self) -> Option<u64> {
        std::fs::read_to_string(self.group.join(self.peak)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryLimit {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.group);
    }
}
