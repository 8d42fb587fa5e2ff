//! The lock of a folder: one process at a time owns a spool.
//!
//! The system releases it when the process ends in whatever way. The name of the process in the file is for people.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the file whose lock says that a process owns the folder.
const FILE: &str = "lock";

/// How often it is tried again while it is waited for.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Takes the lock of a folder; waits for it until a deadline, if there is one.
pub(super) fn lock(folder: &Path, deadline: Option<Instant>) -> Result<FolderLock, String> {
    let path = folder.join(FILE);
    let unusable = |error: std::io::Error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => "; the folder and its files must belong to the user of the bridge",
            _ => "",
        };
        format!("{} cannot be used: {error}{hint}", path.display())
    };
    let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(unusable)?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                std::thread::sleep(TRY_EVERY);
            }
            Err(TryLockError::WouldBlock) => {
                let mut owner = String::new();
                let _ = file.read_to_string(&mut owner);
                let owner = owner.trim();
                let owner = if owner.is_empty() { String::new() } else { format!(" ({owner})") };
                return Err(format!("{} belongs to another bridge that is running{owner}", folder.display()));
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
    file.set_len(0).map_err(unusable)?;
    // On a full disk this fails, and the lock holds all the same.
    let _ = writeln!(file, "process {}", std::process::id());
    Ok(FolderLock(file))
}

/// Whether a process owns the folder.
pub fn is_running(folder: &Path) -> bool {
    File::options()
        .read(true)
        .open(folder.join(FILE))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
