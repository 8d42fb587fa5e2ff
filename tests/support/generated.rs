//! Files, or parts of files, that are generated from tables in the code and committed, so that readers and the chart have
//! them without the program. A test fails when one is stale; `make generate` writes them again.

#![allow(dead_code)] // each binary that includes this uses its own part of it

use super::repository;

/// The variable that has the files written instead of compared.
const WRITE: &str = "GENERATE";

/// Compares a file with what it should contain, or writes it.
///
/// # Panics
/// When it is stale.
pub fn check(path: &str, content: &str) {
    let file = repository(path);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&file, content).unwrap_or_else(|error| panic!("{path} cannot be written: {error}"));
        return;
    }
    let present = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(present == content, "{path} is stale: run `make generate`\nexpected:\n{content}");
}

/// The same for the part of a file after a line that contains `marker`.
///
/// # Panics
/// When it is stale, or there is no such line.
pub fn check_after(path: &str, marker: &str, content: &str) {
    let present = std::fs::read_to_string(repository(path)).unwrap_or_default();
    let start = present.find(marker).unwrap_or_else(|| panic!("{path} has no line with {marker}"));
    let end = present[start..].find('\n').map_or(present.len(), |length| start + length + 1);
    check(path, &format!("{}{content}", &present[..end]));
}
