//! What commands print and read: standard output, errors, tables, JSON. Text that a sender has chosen cannot control the
//! terminal.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use super::FAILED;
use crate::common::visible;
use bumpalo::Bump;

use crate::event::json::Json;

/// Prints an error. Gives the exit code of a failure.
pub(super) fn fail(error: impl std::fmt::Display) -> ExitCode {
    eprintln!("apsara-bridge: {}", visible::text(&error.to_string()));
    ExitCode::from(FAILED)
}

/// Writes JSON to standard output.
pub(super) fn print_json(json: impl AsRef<[u8]>) {
    print(visible::json(json.as_ref()));
}

/// Writes what a sender has sent to standard output: as it is for a program, and without control of a terminal for a
/// person.
pub(super) fn print_sent(sent: &[u8]) {
    if io::stdout().is_terminal() {
        print(visible::text(&String::from_utf8_lossy(sent)).as_bytes());
    } else {
        print(sent);
    }
}

/// Writes to standard output. If the reader has closed it, for example `head`, the program exits with 0.
pub(super) fn print(text: impl AsRef<[u8]>) {
    if let Err(error) = try_print(text) {
        if error.kind() != io::ErrorKind::BrokenPipe {
            eprintln!("apsara-bridge: standard output cannot be written: {error}");
            std::process::exit(i32::from(FAILED));
        }
        std::process::exit(0);
    }
}

/// Writes to standard output, for a command that has to tidy up if that fails.
pub(super) fn try_print(text: impl AsRef<[u8]>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref()).and_then(|()| out.flush())
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
    let rows: Vec<Vec<Cow<'_, str>>> =
        rows.iter().map(|row| row.iter().map(|cell| visible::line(cell)).collect()).collect();
    let mut widths: Vec<usize> = Vec::new();
    for row in &rows {
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

/// The same JSON, indented, for a terminal.
pub(super) fn pretty(json: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // An envelope was written by this program, and has one more level than its data may have.
    match Json::parse_within(json, usize::MAX, &Bump::new()) {
        Ok(json) => json.write_pretty(0, &mut out),
        Err(_) => out.extend_from_slice(json),
    }
    visible::json(&out).into_owned()
}
