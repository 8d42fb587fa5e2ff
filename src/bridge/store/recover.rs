//! A damaged database: set aside under another name, and what can be read of it taken over into a new one.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;
use time::macros::format_description;

use super::database::{Access, Database, FILE, FailureKind, StoreError};

/// The files that a database consists of, by what follows the name of the first.
const PARTS: [&str; 3] = ["", "-wal", "-shm"];

/// Renames the database of a folder and makes a new one with what can be read of it. The old files stay, for a
/// person to look at. No connection may write to it meanwhile.
///
/// # Errors
/// When the files can't be renamed or the new one can't be made. What was renamed stays so.
pub(super) fn set_aside(folder: &Path, damage: &StoreError) -> Result<Database, StoreError> {
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
    let taken = take_over(&aside, &mut database);
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

/// Copies what can be read, in one transaction. Returns records, dead letters, and rows that are lost.
fn take_over(aside: &Path, into: &mut Database) -> Result<(u64, u64, u64), StoreError> {
    let damaged = Database::open_file(aside, Access::Read)?;
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
