//! A damaged database: set aside under another name, and what can be read of it taken over into a new one. What was
//! set aside is left as it was found; the reading is done on a copy.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use super::database::{Access, Database, FILE, FailureKind, PAGE_BYTES, StoreError};
use super::wal;

/// Name of the copy that a damaged database is read from.
const COPY: &str = "spool.db.reading";

/// The files that a database consists of, by what follows the name of the first.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];

/// Renames the database of a folder and makes a new one with what can be read of it. The old files stay, for a
/// person to look at. No connection may write to it meanwhile.
///
/// # Errors
/// When the files can't be renamed or the new one can't be made. What was renamed stays so.
pub fn set_aside(folder: &Path, damage: &StoreError) -> Result<Database, StoreError> {
    let aside = free_name(folder);
    tracing::error!(
        %damage,
        database = %folder.join(FILE).display(),
        set_aside_as = %aside.display(),
        "the spool's database is damaged; starting a new one"
    );
    for part in PARTS {
        let (from, to) = (with_suffix(&folder.join(FILE), part), with_suffix(&aside, part));
        match std::fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(StoreError::new(FailureKind::Io, format!("{} can't be renamed: {error}", from.display())));
            }
            _ => {}
        }
    }
    let mut database = Database::open(folder, Access::Own)?;
    let taken = copy(folder, &aside)
        .map_err(|error| StoreError::new(FailureKind::Io, format!("{} can't be copied: {error}", aside.display())))
        .and_then(|copy| take_over(&copy, &mut database));
    for part in PARTS {
        let _ = std::fs::remove_file(with_suffix(&folder.join(COPY), part));
    }
    match taken {
        Ok((records, letters, lost)) => {
            tracing::error!(records, dead_letters = letters, lost, "taken over from the damaged database");
        }
        Err(error) if matches!(error.kind, FailureKind::Damaged | FailureKind::Foreign) => {
            tracing::error!(%error, "nothing could be read of the damaged database");
        }
        Err(error) => return Err(error),
    }
    Ok(database)
}

/// Looks for damage in the log that the last bridge left behind when it was killed.
///
/// # Errors
/// The damage, or why the log can't be read.
pub fn check_log(folder: &Path) -> Result<(), StoreError> {
    let path = with_suffix(&folder.join(FILE), "-wal");
    let mut log = match std::fs::read(&path) {
        Ok(log) => log,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(StoreError::new(FailureKind::Io, format!("{} can't be read: {error}", path.display())));
        }
    };
    match wal::mend(&mut log, PAGE_BYTES as usize) {
        0 => Ok(()),
        bad => Err(StoreError::new(FailureKind::Damaged, format!("{bad} frames of the write-ahead log are damaged"))),
    }
}

/// Makes the copy of what was set aside, its log mended.
fn copy(folder: &Path, aside: &Path) -> std::io::Result<PathBuf> {
    let copy = folder.join(COPY);
    for part in PARTS {
        let _ = std::fs::remove_file(with_suffix(&copy, part));
    }
    std::fs::copy(aside, &copy)?;
    if let Ok(mut log) = std::fs::read(with_suffix(aside, "-wal")) {
        wal::mend(&mut log, PAGE_BYTES as usize);
        std::fs::write(with_suffix(&copy, "-wal"), log)?;
    }
    Ok(copy)
}

/// Copies what can be read, in one transaction. Returns records, dead letters, and rows that are lost.
fn take_over(copy: &Path, into: &mut Database) -> Result<(u64, u64, u64), StoreError> {
    let damaged = match Database::open_file(copy, Access::Read) {
        Err(error) if error.kind == FailureKind::Damaged => {
            graft_first_page(copy)
                .map_err(|error| StoreError::new(FailureKind::Io, format!("no new first page: {error}")))?;
            Database::open_file(copy, Access::Read)?
        }
        opened => opened?,
    };
    let writing = into.begin()?;
    let (mut records, mut letters) = (0, 0);
    let lost = damaged.salvage(
        |seq, record| {
            records += 1;
            writing.append(seq, &record)
        },
        |letter| {
            letters += 1;
            writing.insert_letter(Some(letter.id), &letter)
        },
    )?;
    writing.commit()?;
    Ok((records, letters, lost))
}

/// Gives a database whose first page is damaged that of a new one. It holds the file's header and the table of
/// tables, which is the same in every database of the format: tables are made once, in one order, and never moved.
fn graft_first_page(copy: &Path) -> std::io::Result<()> {
    let fresh = with_suffix(copy, ".first-page");
    let remove = || {
        for part in PARTS {
            let _ = std::fs::remove_file(with_suffix(&fresh, part));
        }
    };
    remove();
    // Closed at once, so that all of it is in the file and nothing in a log.
    drop(Database::open_file(&fresh, Access::Own).map_err(std::io::Error::other)?);
    let mut first = std::fs::read(&fresh)?;
    remove();
    first.truncate(PAGE_BYTES as usize);
    let pages = std::fs::metadata(copy)?.len() / u64::from(PAGE_BYTES);
    // SQLite's file format, §1.3: size in pages at 28; first and number of free pages at 32, which are of no use here.
    first[28..32].copy_from_slice(&u32::try_from(pages).unwrap_or(u32::MAX).to_be_bytes());
    first[32..40].fill(0);
    File::options().write(true).open(copy)?.write_all_at(&first, 0)
}

fn free_name(folder: &Path) -> PathBuf {
    let format = format_description!("[year][month][day]T[hour][minute][second]");
    let time = OffsetDateTime::now_utc().format(&format).unwrap_or_default();
    let name = |count: u32| match count {
        0 => folder.join(format!("{FILE}.damaged-{time}")),
        count => folder.join(format!("{FILE}.damaged-{time}-{count}")),
    };
    (0..).map(name).find(|path| !path.exists()).unwrap_or_else(|| name(0))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
