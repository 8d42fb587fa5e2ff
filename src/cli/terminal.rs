//! What commands print and read: standard output, errors, tables, JSON for people.

use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use super::FAILED;
use crate::event::json::Json;

/// Prints an error. Gives the exit code of a failure.
pub(super) fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("apsara-bridge: {error}");
    ExitCode::from(FAILED)
}

/// Writes to standard output. If the reader has closed it, for example `head`, the program exits with 0.
pub(super) fn print(text: impl AsRef<[u8]>) {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("apsara-bridge: standard output cannot be written: {error}");
            std::process::exit(i32::from(FAILED));
        }
        std::process::exit(0);
    }
}

/// Reads a file, or standard input where it is `-`.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut text = Vec::new();
        io::stdin().lock().read_to_end(&mut text)?;
        return Ok(text);
    }
    std::fs::read(path)
}

/// Name of a file in messages.
pub(super) fn shown(path: &Path) -> String {
    if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() }
}

/// Rows with aligned columns, separated by two spaces.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        widths.resize(widths.len().max(row.len()), 0);
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// The same JSON, indented.
pub(super) fn pretty(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // An envelope was written by this program, and has one more level than its data may have.
    match Json::parse_within(json, usize::MAX) {
        Ok(json) => json.write_pretty(0, &mut out),
        Err(_) => out.extend_from_slice(json),
    }
    out
}
