//! The lock of a folder: one process at a time owns a spool.
//!
//! The system releases the lock when the process ends, however it ends. The file holds the number of the process, for
//! people.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Name of the file whose lock says that a process owns the folder.
const FILE: &str = "lock";

/// How often the lock is tried while it is waited for.
const TRY_EVERY: Duration = Duration::from_millis(100);

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct FolderLock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Why a folder cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process holds the lock.
    #[error("{folder} belongs to another bridge that is running{owner}", folder = folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
        /// The process that holds the lock, in parentheses, or nothing.
        owner: String,
    },
    /// The lock file cannot be opened or locked.
    #[error("{file} cannot be used: {error}{hint}", file = file.display(), hint = hint(error))]
    Unusable {
        /// The lock file.
        file: PathBuf,
        /// The error of the system.
        error: std::io::Error,
    },
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => "; the folder and its files must belong to the user of the bridge",
        _ => "",
    }
}

/// Takes the lock of a folder. Blocks until the deadline, if there is one.
pub(super) fn lock(folder: &Path, deadline: Option<Instant>) -> Result<FolderLock, LockError> {
    let path = folder.join(FILE);
    let unusable = |error: std::io::Error| LockError::Unusable { file: path.clone(), error };
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
                return Err(LockError::InUse { folder: folder.to_owned(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
    file.set_len(0).map_err(unusable)?;
    // On a full disk this fails, but the lock is held.
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
