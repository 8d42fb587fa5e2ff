//! Damage in the write-ahead log, where the newest of what was kept lies until it is moved into the database.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong and takes that for its end: right for a
//! transaction that a power failure cut off, but a single bad byte would silently lose everything behind it. Each
//! checksum continues that of the frame before, so that frames behind a damaged one can still be told to be of the
//! log. Such a log is rewritten with checksums that hold, for what is damaged in it is found by the checks of the
//! database's structure and of its records. The format is that of SQLite's documentation of the file format, §4.

/// Bytes before the first frame.
const HEADER: usize = 32;

/// Bytes of a frame before its page.
const FRAME_HEADER: usize = 24;

/// Begins a log whose checksums are of little-endian words; of big-endian ones where the last bit is set.
const MAGIC: u32 = 0x377F_0682;

const VERSION: u32 = 3_007_000;

type Sum = (u32, u32);

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn put(bytes: &mut [u8], at: usize, words: [u32; 2]) {
    bytes[at..at + 4].copy_from_slice(&words[0].to_be_bytes());
    bytes[at + 4..at + 8].copy_from_slice(&words[1].to_be_bytes());
}

fn sum(is_big_endian: bool, seed: Sum, bytes: &[u8]) -> Sum {
    let (mut one, mut other) = seed;
    for pair in bytes.chunks_exact(8) {
        let read = |at: usize| {
            let word = [pair[at], pair[at + 1], pair[at + 2], pair[at + 3]];
            if is_big_endian { u32::from_be_bytes(word) } else { u32::from_le_bytes(word) }
        };
        one = one.wrapping_add(read(0)).wrapping_add(other);
        other = other.wrapping_add(read(4)).wrapping_add(one);
    }
    (one, other)
}

/// Rewrites a log that has good frames behind bad ones. Returns how many frames were bad, 0 for a log that is sound
/// or ends as SQLite thinks; a log that holds nothing is sound.
pub fn mend(log: &mut [u8], page_bytes: usize) -> usize {
    let frame_bytes = FRAME_HEADER + page_bytes;
    if log.len() < HEADER + frame_bytes {
        return 0;
    }
    let magic = word(log, 0);
    let is_header_sound = magic & !1 == MAGIC
        && word(log, 8) as usize == page_bytes
        && sum(magic & 1 == 1, (0, 0), &log[..24]) == (word(log, 24), word(log, 28));
    let is_big_endian = is_header_sound && magic & 1 == 1;
    let frames = (log.len() - HEADER) / frame_bytes;
    let start = |frame: usize| HEADER + frame * frame_bytes;
    let salts = |log: &[u8], frame: usize| (word(log, start(frame) + 8), word(log, start(frame) + 12));
    let stored = |log: &[u8], frame: usize| (word(log, start(frame) + 16), word(log, start(frame) + 20));
    // The salts tell the frames of this log from those of an earlier one that it is written over. Two frames that
    // agree stand for a header that can't be read.
    let salt = if is_header_sound {
        (word(log, 16), word(log, 20))
    } else {
        let agree = (1..frames).find(|frame| salts(log, *frame) == salts(log, frame - 1));
        salts(log, agree.unwrap_or(0))
    };
    let is_good = |log: &[u8], frame: usize| {
        let seed = match frame {
            0 if is_header_sound => (word(log, 24), word(log, 28)),
            0 => return false,
            _ => stored(log, frame - 1),
        };
        let content = sum(is_big_endian, seed, &log[start(frame)..start(frame) + 8]);
        let content = sum(is_big_endian, content, &log[start(frame) + FRAME_HEADER..start(frame) + frame_bytes]);
        salts(log, frame) == salt && content == stored(log, frame)
    };
    let good: Vec<bool> = (0..frames).map(|frame| is_good(log, frame)).collect();
    let Some(last) = good.iter().rposition(|good| *good) else { return 0 };
    let bad = good[..last].iter().filter(|good| !**good).count();
    if bad == 0 && is_header_sound {
        return 0;
    }
    let magic = MAGIC | u32::from(is_big_endian);
    put(log, 0, [magic, VERSION]);
    put(log, 8, [u32::try_from(page_bytes).unwrap_or(0), word(log, 12)]);
    put(log, 16, [salt.0, salt.1]);
    let mut running = sum(is_big_endian, (0, 0), &log[..24]);
    put(log, 24, [running.0, running.1]);
    for frame in 0..=last {
        let at = start(frame);
        put(log, at + 8, [salt.0, salt.1]);
        running = sum(is_big_endian, running, &log[at..at + 8]);
        running = sum(is_big_endian, running, &log[at + FRAME_HEADER..at + frame_bytes]);
        put(log, at + 16, [running.0, running.1]);
    }
    bad.max(1)
}
