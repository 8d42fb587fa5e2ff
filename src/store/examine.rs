//! What `doctor` checks: who uses the folder, its file system and its room, and how fast the disk is.
//!
//! Nothing stays on the disk. The speed is measured with a file that has no name: the system removes it when it is closed,
//! also after a crash.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, OFlags, access, statfs};
use rustix::io::Errno;

use super::files::{FILE, INDEX, LOCK, LOG, options, with_suffix};
use super::lock::is_running;
use super::settings::StoreSettings;
use super::space::{RESERVE, Volume};
use crate::common::findings::Findings;

/// How often the disk is measured, and for how long at most.
const WRITES: usize = 20;
const MEASURE: Duration = Duration::from_secs(2);

/// Bytes of one write: a small batch of events.
const WRITE_BYTES: usize = 16 << 10;

/// A slower fsync is reported. An answer to a callback waits for one, and the next batch for it too.
const SLOW: Duration = Duration::from_millis(50);

/// What a database of SQLite begins with (its page on the file format).
const HEADER: &[u8; 16] = b"SQLite format 3\0";

const MEMORY: &str = "it is memory: a restart of the machine loses the events on it";

/// File systems of a machine by their number in Linux's statfs(2), and how they lose events, if they do.
const FILE_SYSTEMS: [(i64, &str, &str); 8] = [
    (0xEF53, "ext4", ""),
    (0x5846_5342, "xfs", ""),
    (0x9123_683E, "btrfs", ""),
    (0x2FC1_2FC1, "zfs", ""),
    (0xF2F5_2010, "f2fs", ""),
    (0x0102_1994, "tmpfs", MEMORY),
    (0x8584_58F6, "ramfs", MEMORY),
    (0x794C_7630, "overlay", "it is a layer of the container: the events on it are lost with the container"),
];

impl StoreSettings {
    /// Checks the folder and its disk for real. `deadline` is that of delivery, which includes writing to the disk. Blocks.
    pub fn examine(&self, deadline: Duration, findings: &Findings) {
        let shown = self.path.display();
        let there = self.nearest();
        if let Some((seen, remedy)) = self.unusable(there) {
            return findings.problem("folder", seen, remedy);
        }
        match (there == self.path, is_running(&self.path)) {
            (true, true) => findings.ok("folder", format!("a bridge is running with {shown}")),
            (true, false) => findings.ok("folder", format!("{shown} can be written")),
            (false, _) => findings.ok("folder", format!("{shown} does not exist yet; the bridge creates it")),
        }
        if is_foreign(&self.path.join(FILE)) {
            findings.warning(
                "database",
                format!(
                    "{shown}/{FILE} is not a database: the bridge puts it aside when it starts, without its events"
                ),
                "restore the file from a copy, or set another spool.path if it belongs to another program",
            );
        }
        if let Ok(volume) = Volume::of(there) {
            file_system(there, &volume, findings);
            self.room(&volume, findings);
        }
        speed(there, deadline, findings);
    }

    /// Why the folder cannot be used, and what helps. `there` is the folder, or the nearest one above it.
    fn unusable(&self, there: &Path) -> Option<(String, &'static str)> {
        if !there.is_dir() {
            let seen = format!("{} is not a folder", there.display());
            return Some((seen, "set spool.path to a folder, or move the file away"));
        }
        let refused = |path: &Path, how| match access(path, how) {
            Ok(()) => None,
            Err(Errno::ROFS) => Some((
                format!("{} is on a file system that is mounted read-only", path.display()),
                "mount the volume with write access, or set spool.path to a folder on another one",
            )),
            Err(_) => Some((
                format!("{} cannot be written by this user", path.display()),
                "give the folder and its files to the user of the bridge, or set another spool.path",
            )),
        };
        let file = |path: &Path| match std::fs::symlink_metadata(path) {
            Ok(metadata) if metadata.is_symlink() => {
                let seen = format!("{} is a symbolic link, which the bridge does not follow", path.display());
                Some((seen, "remove the link, and put the file itself there"))
            }
            Ok(metadata) if !metadata.is_file() => {
                Some((format!("{} is not a file", path.display()), "move it away, or set another spool.path"))
            }
            Ok(_) => refused(path, Access::READ_OK | Access::WRITE_OK),
            Err(_) => None,
        };
        let [database, log, index, _] = self.parts();
        refused(there, Access::WRITE_OK | Access::EXEC_OK)
            .or_else(|| [self.path.join(LOCK), database, log, index].iter().find_map(|path| file(path)))
    }

    /// The database, its log, its index, and the reserve: what takes room. The user of the bridge need not own the
    /// reserve, because it is only created and removed.
    fn parts(&self) -> [PathBuf; 4] {
        let database = self.path.join(FILE);
        let (log, index) = (with_suffix(&database, LOG), with_suffix(&database, INDEX));
        [database, log, index, self.path.join(RESERVE)]
    }

    /// Compares the room that is left with what is needed. The size of the volume itself is a matter of the warnings.
    fn room(&self, volume: &Volume, findings: &Findings) {
        let needed = volume.needed(self.bounds.spool_max_bytes, self.bounds.dead_letters_max_bytes);
        let used: u64 = self.parts().iter().filter_map(|part| Some(std::fs::metadata(part).ok()?.len())).sum();
        let (left, needed) = (volume.free.saturating_add(used) >> 20, needed.div_ceil(1 << 20));
        let seen = format!("{left} MiB are free for the spool, which needs up to {needed} MiB");
        if left < needed {
            findings.warning(
                "room",
                seen,
                "free room on the volume, or lower spool.max_bytes and dead_letters.max_bytes",
            );
        } else {
            findings.ok("room", seen);
        }
    }
}

/// Whether a file is neither empty nor a database.
fn is_foreign(database: &Path) -> bool {
    let mut start = Vec::new();
    let read = options().read(true).open(database).and_then(|file| file.take(16).read_to_end(&mut start));
    read.is_ok() && !start.is_empty() && start != HEADER
}

fn file_system(there: &Path, volume: &Volume, findings: &Findings) {
    let shown = there.display();
    if let Some(protocol) = volume.network {
        let seen = format!("{shown} is on another machine ({protocol}): locks and fsync may not hold there");
        return findings.warning("file system", seen, "use a local disk or a block volume");
    }
    let Ok(statistics) = statfs(there) else { return };
    #[expect(clippy::useless_conversion, reason = "its type differs between platforms")]
    let number = i64::from(statistics.f_type) & 0xFFFF_FFFF;
    match FILE_SYSTEMS.iter().find(|(known, ..)| *known == number) {
        Some((_, name, "")) => findings.ok("file system", format!("{shown} is on {name}")),
        Some((_, name, why)) => {
            let seen = format!("{shown} is on {name}: {why}");
            findings.warning("file system", seen, "mount a volume that stays, and set spool.path to a folder on it");
        }
        None => {
            let seen = "is on a file system that is not in memory and not a layer of a container";
            findings.ok("file system", format!("{shown} {seen} (type {number:#x})"));
        }
    }
}

/// Measures how long a write takes until it is on the disk.
fn speed(there: &Path, deadline: Duration, findings: &Findings) {
    let mut times = match measure(there) {
        Ok(times) => times,
        Err(error) => {
            let why = format!("no file without a name can be written there, and doctor leaves no other: {error}");
            return findings.not_checked("fsync", why);
        }
    };
    times.sort_unstable();
    let (Some(median), Some(longest)) = (times.get(times.len() / 2), times.last()) else { return };
    let millis = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    let seen = format!("an fsync takes {} (the longest of {}: {})", millis(median), times.len(), millis(longest));
    if *median >= deadline {
        let remedy = "use a faster disk: with this one no event is on the disk within delivery.deadline";
        findings.problem("fsync", seen, remedy);
    } else if *median >= SLOW {
        findings.warning("fsync", seen, "use a faster disk, for example a local SSD: callbacks wait for the spool");
    } else {
        findings.ok("fsync", seen);
    }
}

fn measure(there: &Path) -> std::io::Result<Vec<Duration>> {
    let options = OFlags::TMPFILE.bits().cast_signed();
    let mut file = File::options().write(true).mode(0o600).custom_flags(options).open(there)?;
    let start = Instant::now();
    let mut times = Vec::new();
    while times.len() < WRITES && start.elapsed() < MEASURE {
        let begun = Instant::now();
        file.write_all(&[0x5A; WRITE_BYTES])?;
        file.sync_data()?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::findings::Verdict;
    use crate::store::StoreBounds;

    fn settings(path: &Path, megabytes: u64) -> StoreSettings {
        let bounds = StoreBounds {
            spool_max_bytes: megabytes << 20,
            lane_max_bytes: megabytes << 20,
            dead_letters_max_bytes: 1 << 20,
            not_a_callback_max_bytes: 1 << 20,
            dead_letters_max_age: None,
        };
        StoreSettings { path: path.to_owned(), bounds }
    }

    fn verdict(findings: &Findings, check: &str) -> Verdict {
        findings.found().iter().find(|finding| finding.check == check).expect("it was checked").verdict
    }

    #[test]
    fn files_in_the_way_are_named_with_what_helps() {
        let folder = tempfile::tempdir().expect("a folder");
        let examined = |path: &Path| {
            let findings = Findings::default();
            settings(path, 1).examine(Duration::from_secs(1), &findings);
            findings.found()
        };
        let problem = |path: &Path| {
            let found = examined(path).into_iter().next().expect("a finding");
            assert_eq!((found.check.as_str(), found.verdict), ("folder", Verdict::Problem), "{}", found.seen);
            (found.seen, found.remedy)
        };
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("written");
        let (seen, remedy) = problem(&file);
        assert!(seen.ends_with("file is not a folder") && remedy.contains("set spool.path to a folder"), "{seen}");
        let warned = settings(&file, 1).warnings();
        assert!(warned.len() == 1 && warned[0].contains("file is not a folder"), "nothing about its mode: {warned:?}");
        // As root everything else can be written.
        let (seen, remedy) = problem(Path::new("/proc/sys/kernel/ostype"));
        assert!(seen.ends_with("ostype is not a folder") && !remedy.contains("user"), "{seen}");
        let spool = folder.path().join("spool");
        for name in ["lock", "spool.db", "spool.db-wal", "spool.db-shm"] {
            std::fs::create_dir_all(spool.join(name)).expect("made");
            let (seen, _) = problem(&spool);
            assert!(seen.ends_with(&format!("/{name} is not a file")), "{seen}");
            std::fs::remove_dir(spool.join(name)).expect("removed");
            std::os::unix::fs::symlink(&file, spool.join(name)).expect("made");
            let (seen, _) = problem(&spool);
            assert!(seen.contains(&format!("/{name} is a symbolic link")), "{seen}");
            std::fs::remove_file(spool.join(name)).expect("removed");
        }

        let database = |contents: &[u8]| {
            std::fs::write(spool.join(FILE), contents).expect("written");
            examined(&spool).iter().any(|found| found.check == "database" && found.verdict == Verdict::Warning)
        };
        assert!(database(b"a text") && database(b"a text that is longer than a header"));
        assert!(!database(b"") && !database(b"SQLite format 3\0 and more"));
    }

    /// What the files take is part of what is needed.
    #[test]
    fn the_files_of_a_running_bridge_count_as_room() {
        let folder = tempfile::tempdir().expect("a folder");
        let settings = settings(folder.path(), 1);
        let volume = Volume { total: 1 << 30, free: 0, network: None };
        let needed = volume.needed(1 << 20, 1 << 20);
        let names = ["spool.db", "spool.db-wal", "spool.db-shm", "spool.reserve"];
        for (position, name) in names.iter().enumerate() {
            let findings = Findings::default();
            settings.room(&volume, &findings);
            assert_eq!(verdict(&findings, "room"), Verdict::Warning, "{position} files");
            let file = File::create(folder.path().join(name)).expect("made");
            file.set_len(needed.div_ceil(4) + (1 << 20)).expect("set");
        }
        let findings = Findings::default();
        settings.room(&volume, &findings);
        assert_eq!(verdict(&findings, "room"), Verdict::Ok);
    }

    #[test]
    fn the_folder_stays_empty() {
        let folder = tempfile::tempdir().expect("a folder");
        let findings = Findings::default();
        settings(folder.path(), 1).examine(Duration::from_secs(1), &findings);
        let found = findings.found();
        let checks: Vec<&str> = found.iter().map(|finding| finding.check.as_str()).collect();
        assert_eq!(checks, ["folder", "file system", "room", "fsync"]);
        assert_eq!(std::fs::read_dir(folder.path()).expect("readable").count(), 0);
        let findings = Findings::default();
        settings(&folder.path().join("new/folder"), u64::MAX >> 24).examine(Duration::ZERO, &findings);
        assert_eq!(verdict(&findings, "room"), Verdict::Warning);
        assert_eq!(verdict(&findings, "fsync"), Verdict::Problem, "slower than a deadline of nothing");
        assert!(!folder.path().join("new").exists());
    }
}
