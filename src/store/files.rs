//! The files of a folder: their names, who may read them, renames that are durable, and the marker of a failed fsync.
//!
//! The files contain callbacks. Only the user of the bridge can read them, whatever the umask is, and no symbolic link in
//! the folder is followed. The path of the folder itself may contain links.

use std::fs::{File, Metadata, OpenOptions, Permissions};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
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

/// Name of the file whose lock says that a process owns the folder.
pub(super) const LOCK: &str = "lock";

/// Starts of the names of all other files of the store.
const PREFIXES: [&str; 3] = ["spool.db", "spool.reserve", "failing-lanes.json"];

/// Ends of the names of the log and of its index.
pub(super) const LOG: &str = "-wal";
pub(super) const INDEX: &str = "-shm";

/// The mode of files: only their owner can read and write them.
const FILE_MODE: u32 = 0o600;

/// Mode bits of users other than the owner.
pub(super) const OTHERS: u32 = 0o077;

/// Options that open a file, or create it for the user of the bridge alone. A symbolic link is an error. A pipe in its
/// place blocks nobody.
pub(super) fn options() -> OpenOptions {
    let mut options = File::options();
    options.mode(FILE_MODE).custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
    options
}

/// The metadata of a file; none if it does not exist.
///
/// # Errors
/// [`FailureKind::Foreign`] for a symbolic link.
fn metadata(path: &Path) -> Result<Option<Metadata>, StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            let message = format!("{} is a symbolic link; expected the file itself: remove the link", path.display());
            Err(StoreError::new(FailureKind::Foreign, message))
        }
        Ok(metadata) => Ok(Some(metadata)),
        // The program that uses the file reports other errors.
        Err(_) => Ok(None),
    }
}

/// Takes a file away from other users, if it belongs to this user. A failure changes nothing: the file can be used as it
/// is.
fn close_to_others(path: &Path, metadata: &Metadata) {
    let mode = metadata.mode();
    if metadata.is_file() && mode & OTHERS != 0 && metadata.uid() == rustix::process::geteuid().as_raw() {
        // By its path: closing a descriptor of the database would release the locks that SQLite has on it.
        let _ = std::fs::set_permissions(path, Permissions::from_mode(mode & 0o7777 & !OTHERS));
    }
}

/// Checks all files of the store in a folder: there is no symbolic link, and other users cannot read those that belong to
/// this user.
///
/// # Errors
/// [`FailureKind::Foreign`] for a symbolic link.
pub(super) fn secure(folder: &Path) -> Result<(), StoreError> {
    let is_ours = |name: &str| name == LOCK || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_ours) {
            let path = entry.path();
            if let Some(metadata) = metadata(&path)? {
                close_to_others(&path, &metadata);
            }
        }
    }
    Ok(())
}

/// Does the same with a database, its log and its index, before a command creates one of them: SQLite gives them the mode
/// of the database.
///
/// # Errors
/// [`FailureKind::Foreign`] for a symbolic link.
pub(super) fn secure_database(database: &Path) -> Result<(), StoreError> {
    for suffix in ["", LOG, INDEX] {
        let path = with_suffix(database, suffix);
        if let Some(metadata) = metadata(&path)? {
            close_to_others(&path, &metadata);
        }
    }
    Ok(())
}

/// The path of a database for SQLite, which refuses every link in it: without those that lead to the folder.
///
/// # Errors
/// [`FailureKind::Foreign`] if the database, its log or its index is a symbolic link.
pub(super) fn without_links(database: &Path) -> Result<PathBuf, StoreError> {
    for suffix in ["", LOG, INDEX] {
        metadata(&with_suffix(database, suffix))?;
    }
    let folder = database.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // SQLite reports a folder that is missing.
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    Ok(database.file_name().map_or_else(|| database.to_owned(), |name| folder.join(name)))
}

/// Whether an fsync of the folder's database failed, in this or another process, and the database was not copied since.
pub(super) fn is_unsynced(folder: &Path) -> bool {
    folder.join(UNSYNCED).exists()
}

/// Marks that an fsync of the folder's database failed.
pub(super) fn mark_unsynced(folder: &Path) {
    if let Err(error) = options().write(true).create(true).open(folder.join(UNSYNCED)) {
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
    match File::open(folder).and_then(|folder| folder.sync_all()) {
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
