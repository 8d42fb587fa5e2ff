//! A disk in memory that can be filled, visible only to programs that are started with it. It needs no root, but the
//! machine must allow user namespaces.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::not_run;
use super::process::Process;
use super::wait::SOON;

/// A disk in memory that only processes in its namespace see. It is removed with its last process.
#[derive(Debug)]
pub struct Disk {
    mount: PathBuf,
    holder: Process,
}

impl Disk {
    /// A disk of that size (`2m`), mounted in `folder`; `None` if the machine does not allow it.
    pub fn new(folder: &Path, size: &str) -> Option<Disk> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "disk", "/mnt"]);
        if !command.status().is_ok_and(|status| status.success()) {
            not_run("tests of full disks need `unshare --user --mount` (unprivileged user namespaces)");
            return None;
        }
        let mount = folder.join("disk");
        std::fs::create_dir(&mount).expect("made");
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c"]);
        command.arg("mount -t tmpfs -o size=\"$2\" disk \"$1\" && echo mounted && exec sleep infinity");
        command.arg("sh").arg(&mount).arg(size);
        let holder = Process::start("the disk", &command, &folder.join("disk.log"), None);
        holder.wait_log("mounted", SOON);
        Some(Disk { mount, holder })
    }

    /// A command that runs a program that sees the disk.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--user", "--preserve-credentials", "--mount", "--target", &self.holder.id().to_string()]);
        command.arg(program);
        command
    }

    /// The mount point, as the programs with the disk see it.
    pub fn mount(&self) -> &Path {
        &self.mount
    }

    /// A path on the disk, as this process sees it.
    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(&format!("/proc/{}/root{}", self.holder.id(), self.mount.display())).join(name)
    }

    /// Fills all the room that is left.
    pub fn fill(&self, name: &str) {
        let mut file = std::fs::File::create(self.path(name)).expect("created");
        for piece in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0; piece];
            while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        }
    }
}
