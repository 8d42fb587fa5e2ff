//! The files of a folder: their names, renames that are durable, and the marker of a failed fsync.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use super::error::{FailureKind, StoreError};

/// Name of the database.
pub const FILE: &str = "spool.db";

/// Says that an fsync of the database failed. It needs no fsync of its own: a power failure loses the marker together
/// with the content of memory that it warns of.
pub(super) const UNSYNCED: &str = "spool.db.unsynced";

/// Start of the names of old databases.
const ASIDE: &str = "spool.db.damaged-";

/// Ends of the names of the log and of its index.
pub(super) const LOG: &str = "-wal";
pub(super) const INDEX: &str = "-shm";

/// Whether an fsync of the folder's database failed, in this or another process, and the database was not copied since.
pub(super) fn is_unsynced(folder: &Path) -> bool {
    folder.join(UNSYNCED).exists()
}

/// Marks that an fsync of the folder's database failed.
pub(super) fn mark_unsynced(folder: &Path) {
    if let Err(error) = std::fs::File::create(folder.join(UNSYNCED)) {
        tracing::error!(
            path = %folder.display(),
            %error,
            "the failed fsync cannot be marked for the next start; a restart now and a power failure after it can lose \
             events"
        );
    }
}

/// Old databases in a folder that were set aside because they were damaged, the oldest first.
pub fn set_aside(folder: &Path) -> Vec<PathBuf> {
    let is_wanted = |name: &str| !name.ends_with(LOG) && !name.ends_with(INDEX);
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(ASIDE) && is_wanted(name)).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// A free name for an old database. It sorts last even if the clock went back, so that the last name is the newest.
pub(super) fn free_name(folder: &Path) -> PathBuf {
    let format = format_description!("[year][month][day]T[hour][minute][second]");
    let name = folder.join(format!("{ASIDE}{}", OffsetDateTime::now_utc().format(&format).unwrap_or_default()));
    match set_aside(folder).pop() {
        Some(last) if last >= name => with_suffix(&last, "-1"),
        _ => name,
    }
}

/// Removes a database with its log and its index.
pub(super) fn remove_parts(path: &Path) {
    for suffix in ["", LOG, INDEX, "-journal"] {
        let _ = std::fs::remove_file(with_suffix(path, suffix));
    }
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|error| StoreError::io(format!("{} cannot be renamed", from.display()), &error))
}

/// Makes the names of a folder durable; the fsync of a file does not. A failure is marked, because a second try proves
/// nothing: it writes only names that have changed since.
pub(super) fn sync(folder: &Path) -> Result<(), StoreError> {
    use std::io::ErrorKind;
    match std::fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        Ok(()) => Ok(()),
        // The file system does not sync folders.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        Err(error) => {
            mark_unsynced(folder);
            Err(StoreError::new(FailureKind::SyncFailed, format!("{} cannot be synced: {error}", folder.display())))
        }
    }
}

/// Where the database of a folder is.
pub fn file(folder: &Path) -> PathBuf {
    folder.join(FILE)
}
