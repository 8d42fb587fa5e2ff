//! How a folder comes to a database that can be used: made, or copied from one that cannot be used any more.
//!
//! A new database is written under a temporary name, synced, and renamed to the name that says that it is complete.
//! From then on it is the database: whatever is under the old name is moved aside, and the new one takes its place.
//! Each of these steps can be interrupted, and the next start continues:
//!
//! | file | meaning at a start |
//! |---|---|
//! | `spool.db.building` | not finished; it is removed and built anew |
//! | `spool.db.ready` | complete; it takes the place of `spool.db` |
//! | `spool.db.ready-in-part` | the same, but not everything could be read of the old one, which is kept |
//! | `spool.db.superseded` | an old database of which everything was read; it is removed |
//! | `spool.db.unsynced` | an fsync of `spool.db` failed; its content is copied into a new file |
//! | `spool.db.damaged-TIME` | an old database from which not everything could be read |
//!
//! The old database is only read, never changed. A folder with old databases but without `spool.db` is not taken for
//! an empty one: the newest of them is copied.

use std::path::{Path, PathBuf};
use std::time::Duration;

use time::OffsetDateTime;
use time::macros::format_description;

use super::database::{Access, Database, FILE, PAGE_BYTES, Verified, Writing};
use super::error::{FailureKind, StoreError};
use super::record::{DeadLetter, DeadLetterRow, SpoolRecord, Spooled};
use super::salvage;
use super::space::{Reserve, Volume};

/// A database that is being built.
const BUILDING: &str = "spool.db.building";

/// A database that is complete.
const READY: &str = "spool.db.ready";

/// The same, of one from which not everything could be read.
const READY_IN_PART: &str = "spool.db.ready-in-part";

/// An old database that is not needed any more.
const SUPERSEDED: &str = "spool.db.superseded";

/// Says that an fsync of the database failed. It needs no fsync of its own: a power failure loses the marker together
/// with the content of memory that it warns of.
const UNSYNCED: &str = "spool.db.unsynced";

/// What the names of old databases begin with.
const ASIDE: &str = "spool.db.damaged-";

/// What follows the name of a database in those of its log and its index.
const LOG: &str = "-wal";
const INDEX: &str = "-shm";

/// Free space under which a start gives up the reserve when the database cannot be opened.
const NO_SPACE: u64 = 1 << 20;

/// Why a database is copied into a new file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// An fsync failed, so that the file cannot be trusted any more. All of it can be read.
    SyncFailed,
    /// SQLite reported damage.
    Damaged(StoreError),
}

/// Opens the database of a folder whose lock the caller holds. Makes it, or repairs it, where that is needed, and
/// checks it for at most the given time.
pub(super) fn open(folder: &Path, check: Duration) -> Result<(Database, Verified), StoreError> {
    match attempt(folder, check) {
        Err(error)
            if Volume::of(folder).is_ok_and(|volume| volume.free < NO_SPACE) && Reserve::new(folder).give_up() =>
        {
            tracing::warn!(path = %folder.display(), %error, "the disk is full; the reserve of the spool is given up");
            attempt(folder, check)
        }
        result => result,
    }
}

fn attempt(folder: &Path, check: Duration) -> Result<(Database, Verified), StoreError> {
    let path = folder.join(FILE);
    remove_parts(&folder.join(BUILDING));
    continue_swap(folder)?;
    if path.exists() {
        remove_parts(&folder.join(SUPERSEDED));
    }
    if path.is_symlink() {
        let message = format!("{} is a symbolic link; expected the file itself", path.display());
        return Err(StoreError::new(FailureKind::Foreign, message));
    }
    if is_blank(&path) {
        std::fs::remove_file(&path)
            .map_err(|error| StoreError::io(format!("{} cannot be removed", path.display()), &error))?;
    }
    if !path.exists() {
        make(folder)?;
    }
    if is_unsynced(folder) {
        rebuild(folder, &Cause::SyncFailed, 0)?;
    }
    let opened =
        open_synced(folder).and_then(|mut database| database.verify(Some(check)).map(|verified| (database, verified)));
    let cause = match opened {
        Err(error) if error.kind == FailureKind::Damaged => Cause::Damaged(error),
        Err(error) if error.kind == FailureKind::SyncFailed => Cause::SyncFailed,
        opened => return opened,
    };
    rebuild(folder, &cause, 0)?;
    let mut database = open_synced(folder)?;
    let verified = database.verify(Some(check))?;
    Ok((database, verified))
}

/// Opens the database of a folder as its owner, with a log whose name is durable. SQLite syncs the folder when it makes
/// a log, but does not look whether that succeeds.
pub(super) fn open_synced(folder: &Path) -> Result<Database, StoreError> {
    let database = Database::open(folder, Access::Owner)?;
    sync(folder)?;
    Ok(database)
}

/// A file without tables: an earlier program was interrupted when it had just made it.
fn is_blank(path: &Path) -> bool {
    let size = |path: &Path| std::fs::metadata(path).map(|file| file.len()).ok();
    match (size(path), size(&with_suffix(path, LOG)).unwrap_or(0)) {
        // SQLite deletes a log next to an empty file. Without the file the log is asked about.
        (Some(0), _) => true,
        (Some(bytes), 0) => bytes <= u64::from(PAGE_BYTES) && Database::is_blank(path),
        _ => false,
    }
}

/// Ends a swap that was interrupted. As long as the old database is in its place, it is whole, and the new one may be
/// older: another program may have used the folder in between.
///
/// Returns whether a new database took its place.
fn continue_swap(folder: &Path) -> Result<bool, StoreError> {
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

/// Makes the database of a folder that has none.
fn make(folder: &Path) -> Result<(), StoreError> {
    let path = folder.join(FILE);
    if let Some(newest) = set_aside(folder).last() {
        tracing::error!(
            from = %newest.display(),
            "spool.db is missing next to a database that was set aside; its content is copied"
        );
        let (log, its_log) = (with_suffix(&path, LOG), with_suffix(newest, LOG));
        if log.exists() && !its_log.exists() {
            // An earlier program was interrupted between the two.
            rename(&log, &its_log)?;
            sync(folder)?;
        }
        let cause = StoreError::new(FailureKind::Damaged, "spool.db is missing");
        let copied = copy(folder, newest, &Cause::Damaged(cause), 0)?;
        if copied.loss.is_some_and(salvage::Loss::is_none) {
            remove_parts(newest);
        }
        return Ok(());
    }
    if std::fs::metadata(with_suffix(&path, LOG)).is_ok_and(|log| log.len() > 0) {
        return Err(StoreError::new(
            FailureKind::Foreign,
            format!(
                "{} is missing, but its log {FILE}{LOG} is there: put the file back, or remove the log if its events \
                 are not needed",
                path.display()
            ),
        ));
    }
    let building = folder.join(BUILDING);
    Database::create(&building)?.finish_new().inspect_err(|_| remove_parts(&building))?;
    finish(folder, true)
}

/// Copies the database of a folder into a new one, which takes its place. No connection may write meanwhile; those
/// that read keep the old file. `expected` is how many records it is known to hold, at least.
///
/// # Errors
/// When the copy cannot be made. The old database stays as it is then, and this can be called again.
pub(super) fn rebuild(folder: &Path, cause: &Cause, expected: u64) -> Result<Copied, StoreError> {
    let path = folder.join(FILE);
    if continue_swap(folder)? {
        return Ok(Copied::default());
    }
    match cause {
        Cause::SyncFailed => {
            tracing::warn!(database = %path.display(), "an fsync failed; the spool is copied into a new file");
        }
        Cause::Damaged(error) => {
            tracing::error!(database = %path.display(), %error, "the spool is damaged; it is copied into a new file");
        }
    }
    copy(folder, &path, cause, expected)
}

/// Copies what can be read of a database into a new one, which becomes that of the folder.
fn copy(folder: &Path, from: &Path, cause: &Cause, expected: u64) -> Result<Copied, StoreError> {
    let building = folder.join(BUILDING);
    let copied = match read_into(from, &building) {
        Err(error) if error.kind == FailureKind::DiskFull && Reserve::new(folder).give_up() => {
            read_into(from, &building)
        }
        copied => copied,
    };
    let mut copied = copied.map_err(|error| {
        remove_parts(&building);
        let size = std::fs::metadata(from).map_or(0, |file| file.len()).div_ceil(1 << 20);
        match error.kind {
            FailureKind::DiskFull => StoreError::new(
                FailureKind::DiskFull,
                format!(
                    "there is no room to copy {} (up to {size} MiB): free space on the disk; nothing was changed",
                    from.display()
                ),
            ),
            _ => error,
        }
    })?;
    let found = copied.records + copied.damaged;
    if let Some(loss) = &mut copied.loss {
        loss.rows = loss.rows.max(expected.saturating_sub(found));
    }
    let is_complete = copied.loss.is_some_and(salvage::Loss::is_none);
    finish(folder, is_complete)?;
    let Copied { records, dead_letters, damaged, loss } = copied;
    match loss {
        Some(loss) if loss.is_none() && *cause == Cause::SyncFailed => {
            tracing::info!(records, dead_letters, damaged, "the spool was copied into a new file");
        }
        Some(loss) if loss.is_none() => {
            tracing::warn!(records, dead_letters, damaged, "everything was copied from the damaged database");
        }
        Some(loss) => tracing::error!(
            records,
            dead_letters,
            damaged,
            lost = loss.rows,
            or_more = loss.is_open,
            "not everything could be read of the damaged database; it is kept"
        ),
        None => tracing::error!("nothing could be read of the damaged database; it is kept"),
    }
    if !is_complete {
        keep_newest(folder);
    }
    Ok(copied)
}

/// How much was copied.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Copied {
    pub(super) records: u64,
    dead_letters: u64,
    /// Records and dead letters that were not as they had been written, and are dead letters now.
    damaged: u64,
    /// What could not be read; none: nothing could.
    pub(super) loss: Option<salvage::Loss>,
}

fn read_into(from: &Path, building: &Path) -> Result<Copied, StoreError> {
    remove_parts(building);
    let source = match Database::open_damaged(from) {
        Ok(source) => Some(source),
        Err(error) if error.kind == FailureKind::Damaged => {
            tracing::error!(database = %from.display(), %error, "the database cannot be opened");
            None
        }
        Err(error) => return Err(error),
    };
    let mut database = Database::create(building)?;
    let mut copied = Copied::default();
    if let Some(source) = source {
        let writing = database.begin()?;
        let mut into = Into { writing: &writing, copied: &mut copied };
        let loss = salvage::read(&source, &mut into)?;
        writing.commit()?;
        copied.loss = Some(loss);
    }
    database.finish_new()?;
    Ok(copied)
}

/// Rows on their way into a new database.
struct Into<'a> {
    writing: &'a Writing<'a>,
    copied: &'a mut Copied,
}

impl salvage::Sink for Into<'_> {
    fn record(&mut self, spooled: Spooled) -> Result<(), StoreError> {
        if spooled.is_sound {
            self.copied.records += 1;
            return self.writing.append(spooled.seq, &spooled.record);
        }
        self.copied.damaged += 1;
        self.writing.keep(&damaged_record(spooled.record), u64::MAX).map(drop)
    }

    fn dead_letter(&mut self, row: DeadLetterRow) -> Result<(), StoreError> {
        self.copied.dead_letters += 1;
        self.copied.damaged += u64::from(!row.is_sound);
        self.writing.insert_dead_letter(Some(row.id), &as_found(row)).map(drop)
    }
}

/// The dead letter of a record that is not as it was written.
pub(crate) fn damaged_record(record: SpoolRecord) -> DeadLetter {
    DeadLetter {
        reason: DAMAGED.to_owned(),
        code: "the record was changed on the disk".to_owned(),
        attempts: record.attempts,
        route: Some(record.route),
        output: Some(record.output),
        topic: Some(record.topic),
        key: record.key,
        envelope: Some(record.envelope),
        body: record.body,
        at: super::now(),
        ..DeadLetter::default()
    }
}

/// A dead letter with the reason that it is not as it was written, if that is so.
pub(super) fn as_found(row: DeadLetterRow) -> DeadLetterRow {
    if row.is_sound || row.letter.reason == DAMAGED {
        return row;
    }
    let DeadLetter { reason, code, .. } = &row.letter;
    let code = format!("the dead letter was changed on the disk; it was {reason}: {code}");
    DeadLetterRow { letter: DeadLetter { reason: DAMAGED.to_owned(), code, ..row.letter }, ..row }
}

/// The reason of dead letters whose content is not as it was written.
pub const DAMAGED: &str = "damaged";

/// Makes a finished database the one of the folder. Its name says whether it has everything that the old one had.
fn finish(folder: &Path, is_complete: bool) -> Result<(), StoreError> {
    let ready = if is_complete { READY } else { READY_IN_PART };
    rename(&folder.join(BUILDING), &folder.join(ready))?;
    sync(folder)?;
    swap(folder, is_complete)
}

/// Puts the complete database in the place of the old one, which is moved aside with its log. Each name is durable
/// before the next one changes: an old database without its log, or a new one next to the old log, would be wrong.
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
        // Its database was moved last, be it by the run that was interrupted.
        let newest = || set_aside(folder).pop().unwrap_or_else(|| free_name(folder));
        let aside = if is_complete { superseded.clone() } else { newest() };
        rename(&log, &with_suffix(&aside, LOG))?;
    }
    let _ = std::fs::remove_file(with_suffix(&path, INDEX));
    sync(folder)?;
    rename(&folder.join(if is_complete { READY } else { READY_IN_PART }), &path)?;
    sync(folder)?;
    remove_parts(&superseded);
    // After that: every byte of the new file was synced.
    match std::fs::remove_file(folder.join(UNSYNCED)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io(format!("{} cannot be removed", folder.join(UNSYNCED).display()), &error))
        }
        _ => Ok(()),
    }
}

/// Removes old databases but the newest, from which not everything was read.
fn keep_newest(folder: &Path) {
    let mut old = set_aside(folder);
    old.pop();
    old.iter().for_each(|path| remove_parts(path));
}

/// Whether an fsync of the folder's database failed, be it that of another process, and it was not copied since.
pub(super) fn is_unsynced(folder: &Path) -> bool {
    folder.join(UNSYNCED).exists()
}

/// Notes that an fsync of the folder's database failed.
pub(super) fn mark_unsynced(folder: &Path) {
    if let Err(error) = std::fs::File::create(folder.join(UNSYNCED)) {
        tracing::error!(
            path = %folder.display(),
            %error,
            "the failed fsync cannot be noted for the next start; a restart now and a power failure after it may lose \
             events"
        );
    }
}

/// The old databases of a folder, the oldest first.
pub(super) fn set_aside(folder: &Path) -> Vec<PathBuf> {
    aside_files(folder, |name| !name.ends_with(LOG) && !name.ends_with(INDEX))
}

fn aside_files(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let names = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.file_name());
    let names = names.filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(ASIDE) && is_wanted(name)).collect();
    names.sort();
    names.into_iter().map(|name| folder.join(name)).collect()
}

/// A name for an old database. It is the last in order, whatever the clock says: the last one is the newest.
fn free_name(folder: &Path) -> PathBuf {
    let format = format_description!("[year][month][day]T[hour][minute][second]");
    let name = folder.join(format!("{ASIDE}{}", OffsetDateTime::now_utc().format(&format).unwrap_or_default()));
    match set_aside(folder).pop() {
        Some(last) if last >= name => with_suffix(&last, "-1"),
        _ => name,
    }
}

fn remove_parts(path: &Path) {
    for suffix in ["", LOG, INDEX, "-journal"] {
        let _ = std::fs::remove_file(with_suffix(path, suffix));
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}

fn rename(from: &Path, to: &Path) -> Result<(), StoreError> {
    std::fs::rename(from, to).map_err(|error| StoreError::io(format!("{} cannot be renamed", from.display()), &error))
}

/// Makes the names of a folder durable: the fsync of a file does not. If that fails it is noted, because trying it again
/// proves nothing: only names that change again are written again.
fn sync(folder: &Path) -> Result<(), StoreError> {
    use std::io::ErrorKind;
    match std::fs::File::open(folder).and_then(|folder| folder.sync_all()) {
        Ok(()) => Ok(()),
        // A file system whose folders need no sync, or know none.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        Err(error) => {
            mark_unsynced(folder);
            Err(StoreError::new(FailureKind::SyncFailed, format!("{} cannot be synced: {error}", folder.display())))
        }
    }
}
