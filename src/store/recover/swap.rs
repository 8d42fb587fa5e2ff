//! Replacing a database by a new one. Every step can be interrupted; the table in [`super`] says how a start continues.

use std::path::Path;

use super::super::error::StoreError;
use super::super::files::{FILE, INDEX, LOG, UNSYNCED, free_name, remove_parts, rename, set_aside, sync, with_suffix};

/// A database that is being built.
pub(super) const BUILDING: &str = "spool.db.building";

/// A database that is complete.
const READY: &str = "spool.db.ready";

/// The same, but not everything could be read of the old one.
const READY_IN_PART: &str = "spool.db.ready-in-part";

/// An old database of which everything was read.
pub(super) const SUPERSEDED: &str = "spool.db.superseded";

/// Continues a swap that was interrupted. Returns whether a new database is in place now.
///
/// While the old database is still in its place, the new one is removed: the old one is whole, and another program may
/// have added records to it in between.
pub(super) fn continue_swap(folder: &Path) -> Result<bool, StoreError> {
    for (name, is_complete) in [(READY, true), (READY_IN_PART, false)] {
        let ready = folder.join(name);
        if !ready.exists() {
            continue;
        }
        if !folder.join(FILE).exists() {
            swap(folder, is_complete)?;
            return Ok(true);
        }
        remove_parts(&ready);
    }
    Ok(false)
}

/// Makes a finished database that of the folder. Its name says whether it has everything of the old one.
pub(super) fn finish(folder: &Path, is_complete: bool) -> Result<(), StoreError> {
    let ready = if is_complete { READY } else { READY_IN_PART };
    rename(&folder.join(BUILDING), &folder.join(ready))?;
    sync(folder)?;
    swap(folder, is_complete)
}

/// Moves the old database aside with its log, and puts the new one in its place. Each name is durable before the next one
/// changes, because an old database without its log, or a new one next to the old log, would be read wrongly.
fn swap(folder: &Path, is_complete: bool) -> Result<(), StoreError> {
    let path = folder.join(FILE);
    let log = with_suffix(&path, LOG);
    let superseded = folder.join(SUPERSEDED);
    if path.exists() {
        let aside = if is_complete { superseded.clone() } else { free_name(folder) };
        rename(&path, &aside)?;
        sync(folder)?;
    }
    if log.exists() {
        // Its database was moved last, possibly by a run that was interrupted.
        let newest = || set_aside(folder).pop().unwrap_or_else(|| free_name(folder));
        let aside = if is_complete { superseded.clone() } else { newest() };
        rename(&log, &with_suffix(&aside, LOG))?;
    }
    let _ = std::fs::remove_file(with_suffix(&path, INDEX));
    sync(folder)?;
    rename(&folder.join(if is_complete { READY } else { READY_IN_PART }), &path)?;
    sync(folder)?;
    remove_parts(&superseded);
    // Only now, because every byte and name of the new file was synced.
    match std::fs::remove_file(folder.join(UNSYNCED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(format!("{} cannot be removed", folder.join(UNSYNCED).display()), &error))
        }
        _ => Ok(()),
    }
}

/// Removes all old databases except the newest, of which not everything was read.
pub(super) fn keep_newest(folder: &Path) {
    let mut old = set_aside(folder);
    old.pop();
    old.iter().for_each(|path| remove_parts(path));
}
