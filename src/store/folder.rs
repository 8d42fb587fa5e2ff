//! Opens a folder: creates it, takes its lock, opens its database.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::database::{Database, Verified};
use super::error::{FailureKind, StoreError};
use super::files::secure;
use super::lock::{FolderLock, LockError, lock};
use super::recover;

/// The mode of a new folder: only the user of the bridge can use it.
const FOLDER_MODE: u32 = 0o700;

/// How long the database is checked at the start; what is not reached by then is checked when it is read.
const CHECK_AT_START: Duration = Duration::from_secs(1);

/// Why a store cannot be opened. Nothing was changed, and opening it again begins anew.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The folder does not exist and cannot be created.
    #[error(
        "{folder} cannot be created: {error}; name a folder that can be written, or set spool.enabled = false",
        folder = folder.display()
    )]
    CannotCreate {
        /// The folder.
        folder: PathBuf,
        /// The error of the system.
        error: std::io::Error,
    },
    /// Another process uses the folder, or its lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The database belongs to another program or to a newer version, or its files do not belong together, or one of them
    /// is a symbolic link.
    #[error("{0}")]
    Foreign(StoreError),
    /// The database cannot be opened or repaired, for example because there is no room for a copy.
    #[error("{folder} cannot be used: {error}", folder = folder.display())]
    Unusable {
        /// The folder.
        folder: PathBuf,
        /// What failed.
        error: StoreError,
    },
    /// The system does not start a thread.
    #[error("the thread of the spool cannot be started: {0}")]
    Thread(std::io::Error),
}

impl OpenError {
    pub(super) fn of(folder: &Path, error: StoreError) -> OpenError {
        match error.kind {
            FailureKind::Foreign => OpenError::Foreign(error),
            _ => OpenError::Unusable { folder: folder.to_owned(), error },
        }
    }
}

/// Creates a folder if it is missing, takes its lock, and opens its database.
pub(super) fn open(folder: &Path, lock_until: Option<Instant>) -> Result<(FolderLock, Database, Verified), OpenError> {
    let is_new = !folder.exists();
    let created =
        DirBuilder::new().mode(FOLDER_MODE).recursive(true).create(folder).and_then(|()| match folder.parent() {
            Some(parent) if is_new && !parent.as_os_str().is_empty() => std::fs::File::open(parent)?.sync_all(),
            _ => Ok(()),
        });
    created.map_err(|error| OpenError::CannotCreate { folder: folder.to_owned(), error })?;
    let lock = lock(folder, lock_until)?;
    secure(folder).map_err(|error| OpenError::of(folder, error))?;
    let (database, verified) = recover::open(folder, CHECK_AT_START).map_err(|error| OpenError::of(folder, error))?;
    Ok((lock, database, verified))
}
