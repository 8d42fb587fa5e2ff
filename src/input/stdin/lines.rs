//! Lines of a stream, and the thread that reads them.
//!
//! Memory is bounded: a line that is too long is read to its end without being kept, and few lines are read ahead.
//! The thread blocks in `read` for as long as nothing comes, which tokio's own standard input does too, on a thread that
//! the end of the runtime waits for. Nothing waits for this one.

use std::io::{self, BufRead, ErrorKind, Read as _};

use bytes::Bytes;
use tokio::sync::mpsc;

/// Lines that are read ahead. Enough that the thread and the bridge need not wait for each other at every line.
const READ_AHEAD: usize = 16;

/// What is kept of a line that is too long: enough to recognize it.
pub(super) const KEPT_BYTES: usize = 4 << 10;

/// A line that is not blank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// Its number, from 1. Blank lines are counted too.
    pub(super) number: u64,
    /// Its text without the line end. Of a line that is too long, the beginning, at most [`KEPT_BYTES`].
    pub(super) text: Bytes,
    /// That it is too long.
    pub(super) too_long: Option<TooLong>,
}

/// A line that is longer than the limit. Both in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    /// Its length.
    pub(super) bytes: u64,
    /// The limit.
    pub(super) limit: u64,
}

/// Reads lines.
#[derive(Debug)]
pub(super) struct Lines<R> {
    source: R,
    number: u64,
    buffer: Vec<u8>,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(source: R) -> Lines<R> {
        Lines { source, number: 0, buffer: Vec::new() }
    }

    /// The next line that is not blank, none at the end. Blocks.
    pub(super) fn next(&mut self, limit: usize) -> io::Result<Option<Line>> {
        loop {
            self.buffer.clear();
            // The line end of Windows has two bytes, which do not count.
            let most = limit.saturating_add(2);
            let read = (&mut self.source).take(most as u64).read_until(b'\n', &mut self.buffer)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let rest = if read == most && !self.buffer.ends_with(b"\n") { self.skip()? } else { 0 };
            let text = self.buffer.strip_suffix(b"\n").unwrap_or(&self.buffer);
            let text = if rest == 0 { text.strip_suffix(b"\r").unwrap_or(text) } else { text };
            if rest > 0 || text.len() > limit {
                let too_long = TooLong { bytes: text.len() as u64 + rest, limit: limit as u64 };
                let text = Bytes::copy_from_slice(&text[..text.len().min(limit).min(KEPT_BYTES)]);
                return Ok(Some(Line { number: self.number, text, too_long: Some(too_long) }));
            }
            if !text.trim_ascii().is_empty() {
                let text = Bytes::copy_from_slice(text);
                return Ok(Some(Line { number: self.number, text, too_long: None }));
            }
        }
    }

    /// Reads to the end of the line. Returns how many bytes that were, without the line end.
    fn skip(&mut self) -> io::Result<u64> {
        let mut bytes = 0;
        loop {
            let piece = match self.source.fill_buf() {
                Ok(piece) => piece,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let end = piece.iter().position(|byte| *byte == b'\n');
            let (length, used) = end.map_or((piece.len(), piece.len()), |end| (end, end + 1));
            let is_over = end.is_some() || used == 0;
            bytes += length as u64;
            self.source.consume(used);
            if is_over {
                return Ok(bytes);
            }
        }
    }
}

/// Starts the thread that reads standard input. It sends lines, then none at the end, or an error. It ends when the
/// receiver is dropped, or with the process. `limit` is asked before each line.
///
/// # Errors
/// The thread cannot be started.
pub(super) fn read_stdin(
    limit: impl Fn() -> usize + Send + 'static,
) -> io::Result<mpsc::Receiver<io::Result<Option<Line>>>> {
    let (sender, receiver) = mpsc::channel(READ_AHEAD);
    let read = move || {
        let mut lines = Lines::new(io::stdin().lock());
        loop {
            let line = lines.next(limit());
            let is_last = !matches!(line, Ok(Some(_)));
            if sender.blocking_send(line).is_err() || is_last {
                return;
            }
        }
    };
    std::thread::Builder::new().name("stdin".to_owned()).spawn(read)?;
    Ok(receiver)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 8;

    /// Number, text and length, with the source read in pieces of so many bytes.
    fn read(text: &str, piece: usize) -> Vec<(u64, String, Option<u64>)> {
        let mut lines = Lines::new(io::BufReader::with_capacity(piece, text.as_bytes()));
        let mut found = Vec::new();
        while let Some(line) = lines.next(LIMIT).expect("readable") {
            let text = String::from_utf8(line.text.to_vec()).expect("UTF-8");
            found.push((line.number, text, line.too_long.map(|too_long| too_long.bytes)));
        }
        found
    }

    #[test]
    fn lines_end_as_on_any_system_and_blank_ones_are_only_counted() {
        for piece in [1, 3, 4096] {
            let one = |number, text: &str| (number, text.to_owned(), None);
            assert_eq!(read("", piece), []);
            assert_eq!(read("\n \t\r\n\r\n", piece), []);
            assert_eq!(read("a\nb\r\n\n\r\nc", piece), [one(1, "a"), one(2, "b"), one(5, "c")]);
            assert_eq!(read("a\rb\r", piece), [one(1, "a\rb")]);
            assert_eq!(read("12345678\n12345678\r\n12345678", piece).len(), 3);
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_measured() {
        for piece in [1, 3, 4096] {
            for (end, bytes) in [("", 0), ("\n", 0), ("\r\n", 0), ("x\n", 1), ("xx", 2), ("xyz\nb", 3), ("\rx\nb", 2)] {
                let found = read(&format!("123456789{end}"), piece);
                assert_eq!(found[0].2, Some(9 + bytes), "{end:?} {piece}");
                assert_eq!(
                    found.get(1).map(|(number, text, _)| (*number, text.as_str())),
                    end.strip_suffix('b').map(|_| (2, "b"))
                );
            }
            let long = "x".repeat(3 * KEPT_BYTES);
            let found = read(&format!("a\n{long}\nb"), piece);
            assert_eq!((found[1].2, found[2].0), (Some(long.len() as u64), 3));
        }
    }

    #[test]
    fn memory_is_bounded_by_the_limit() {
        let mut lines = Lines::new(io::BufReader::new(io::repeat(b'x').take(64 << 20)));
        let line = lines.next(1 << 20).expect("readable").expect("a line");
        assert_eq!((line.text.len(), line.too_long.map(|too_long| too_long.bytes)), (KEPT_BYTES, Some(64 << 20)));
        assert!(lines.buffer.capacity() <= 4 << 20, "{}", lines.buffer.capacity());
    }
}
