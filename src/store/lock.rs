//! The lock of a folder: one process at a time owns a spool.
//!
//! The system releases the lock when the process ends, however it ends. The file holds the number of the process, for
//! people. It is never truncated, and a file with other contents is not written to.

use std::fs::{File, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::files::{LOCK, options};

/// What the contents of the file begin with.
const OWNER: &str = "process ";

/// More bytes than the contents have.
const MAX_CONTENTS: u64 = 64;

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
        error: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) {
        return "; it is a symbolic link: remove it";
    }
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; the folder and its files must belong to the user of the bridge",
        _ => "",
    }
}

/// Takes the lock of a folder. Blocks until the deadline, if there is one.
pub(super) fn lock(folder: &Path, deadline: Option<Instant>) -> Result<FolderLock, LockError> {
    let path = folder.join(LOCK);
    let unusable = |error: io::Error| LockError::Unusable { file: path.clone(), error };
    let file = options().create(true).truncate(false).read(true).write(true).open(&path).map_err(unusable)?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if deadline.is_some_and(|deadline| Instant::now() < deadline) => {
                std::thread::sleep(TRY_EVERY);
            }
            Err(TryLockError::WouldBlock) => {
                let owner = match contents(&file) {
                    Some(contents) if contents.starts_with(OWNER) => format!(" ({})", contents.trim()),
                    _ => String::new(),
                };
                return Err(LockError::InUse { folder: folder.to_owned(), owner });
            }
            Err(TryLockError::Error(error)) => return Err(unusable(error)),
        }
    }
    // After a power failure the contents can be zeros.
    let is_ours = |contents: String| contents.starts_with(OWNER) || contents.bytes().all(|byte| byte == 0);
    if contents(&file).is_some_and(is_ours) {
        // As long as every other owner, so that nothing of an earlier one remains. On a full disk this fails, but the
        // lock is held.
        let _ = (&file).rewind().and_then(|()| writeln!(&file, "{OWNER}{:<20}", std::process::id()));
    }
    Ok(FolderLock(file))
}

/// The beginning of the contents; none if they are not text.
fn contents(file: &File) -> Option<String> {
    let mut contents = String::new();
    file.take(MAX_CONTENTS).read_to_string(&mut contents).ok()?;
    Some(contents)
}

/// Whether a process owns the folder.
pub fn is_running(folder: &Path) -> bool {
    options()
        .read(true)
        .open(folder.join(LOCK))
        .is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}
