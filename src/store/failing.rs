//! The file that says which lanes fail, and why. The running bridge writes it, and `spool status` reads it.
//!
//! It is a report for people, not a part of the store. It may be missing or old.

use std::io::{Read as _, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::files::options;

/// Name of the file.
const FILE: &str = "failing-lanes.json";

/// A lane whose last attempt failed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct FailingLane {
    /// Name of the output.
    pub output: String,
    /// The topic.
    pub topic: String,
    /// Records in the spool.
    pub records: u64,
    /// The first failure after the last success, in Unix seconds.
    pub since: i64,
    /// Attempts since then.
    pub attempts: u32,
    /// The kind of the error: a word of [`crate::output::ErrorKind`].
    pub reason: String,
    /// The error message of the bus.
    pub error: String,
    /// What a person can do about it; empty if there is nothing to do.
    pub remedy: String,
}

/// The lanes that fail.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FailingLanes {
    /// The lanes with the most records.
    pub lanes: Vec<FailingLane>,
    /// Number of further lanes.
    pub not_named: usize,
}

impl FailingLanes {
    /// Replaces the file, or removes it when nothing fails.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let (path, unfinished) = (folder.join(FILE), folder.join(format!("{FILE}.unfinished")));
        if self.lanes.is_empty() {
            return std::fs::remove_file(path);
        }
        let _ = std::fs::remove_file(&unfinished);
        let mut file = options().write(true).create_new(true).open(&unfinished)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(unfinished, path)
    }

    /// The lanes that failed when the file was written; none if there is no file.
    pub fn read(folder: &Path) -> FailingLanes {
        let mut text = Vec::new();
        let read = options().read(true).open(folder.join(FILE)).and_then(|mut file| file.read_to_end(&mut text));
        read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }
}
