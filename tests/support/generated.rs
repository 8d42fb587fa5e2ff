//! Files, or parts of files, that are generated from tables in the code and committed, because readers and the chart
//! need them without the program. A test fails when one is stale; `make generate` writes them again.
//!
//! `make generate` runs the tests whose names contain the word `generated`.

#![allow(dead_code)] // each binary that includes this uses its own part of it

use super::repository;

/// If this variable is set, the files are written instead of compared.
const WRITE: &str = "GENERATE";

/// Compares a file with what it should contain, or writes it.
///
/// # Panics
/// When it is stale. The message has the first line that differs.
pub fn check(path: &str, content: &str) {
    let file = repository(path);
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&file, content).unwrap_or_else(|error| panic!("{path} cannot be written: {error}"));
        return;
    }
    let present = std::fs::read_to_string(&file).unwrap_or_default();
    if present == content {
        return;
    }
    let same = present.lines().zip(content.lines()).take_while(|(is, expected)| is == expected).count();
    let line = |text: &str| text.lines().nth(same).unwrap_or("(the end)").to_owned();
    let (is, expected) = (line(&present), line(content));
    panic!("{path} is stale: run `make generate`\nline {} is\n{is}\nexpected\n{expected}", same + 1);
}

/// The same for the part of a file between a line that starts with `<!-- generated` and the next line `<!-- end -->`.
///
/// # Panics
/// When it is stale, or a line is missing.
pub fn check_part(path: &str, content: &str) {
    let present = std::fs::read_to_string(repository(path)).unwrap_or_default();
    let marker = present.find("<!-- generated").unwrap_or_else(|| panic!("{path} has no generated part"));
    let start = marker + present[marker..].find('\n').expect("a line") + 1;
    let end = start + present[start..].find("<!-- end -->").unwrap_or_else(|| panic!("{path}: no end of the part"));
    check(path, &format!("{}{content}{}", &present[..start], &present[end..]));
}
