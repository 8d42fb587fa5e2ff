//! The log of the recorder (`shim.c`): what one or several processes did to the files of a folder, in order.
//!
//! Each file has its own number. Inodes are not sufficient, because the system reuses that of a removed file.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// The number of a file, in the order of creation.
pub type FileId = usize;

/// What can be synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    File(FileId),
    Folder,
}

/// One call that ended, or a mark.
#[derive(Clone, Debug)]
pub enum Op {
    /// A process began.
    Start,
    /// A file that was there before, with its content.
    Existing {
        file: FileId,
        name: String,
        data: Range<usize>,
    },
    Create {
        file: FileId,
        name: String,
    },
    Write {
        file: FileId,
        offset: u64,
        data: Range<usize>,
    },
    Truncate {
        file: FileId,
        length: u64,
    },
    /// The file has at least this length afterwards.
    Allocate {
        file: FileId,
        length: u64,
    },
    Rename {
        file: FileId,
        from: String,
        to: String,
    },
    Unlink {
        file: FileId,
        name: String,
    },
    SyncBegin {
        number: u64,
    },
    SyncEnd {
        of: Synced,
        number: u64,
        is_ok: bool,
    },
    /// A call that was made to fail.
    Failed,
    /// A sync that was left out, of the file with this name; empty for the folder.
    Swallowed(String),
    /// A mark of the program.
    Mark(String),
}

/// A whole log.
pub struct Recording {
    pub ops: Vec<Op>,
    bytes: Vec<u8>,
}

const HEADER: usize = 32;

/// The numbers of `enum operation` in the recorder.
mod number {
    pub const CREATE: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const TRUNCATE: u32 = 3;
    pub const ALLOCATE: u32 = 4;
    pub const RENAME: u32 = 5;
    pub const UNLINK: u32 = 6;
    pub const SYNC_BEGIN: u32 = 7;
    pub const SYNC_END: u32 = 8;
    pub const MARK: u32 = 9;
    pub const FAILED: u32 = 10;
    pub const START: u32 = 11;
    pub const EXISTING: u32 = 12;
    pub const SWALLOWED: u32 = 13;
}

/// The bytes of a mark in a log, for what is known before the program starts.
pub fn mark(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(number::MARK.to_ne_bytes());
    bytes.extend([0; 24]);
    bytes.extend(u32::try_from(text.len()).expect("a mark is short").to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes
}

impl Recording {
    /// Reads a log. An incomplete record at its end, where the writing process ended, is ignored.
    pub fn read(path: &Path) -> Result<Recording, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
        let (mut ops, mut at) = (Vec::new(), 0);
        let mut ids = Ids::default();
        while at + HEADER <= bytes.len() {
            let word = |offset: usize| {
                u32::from_ne_bytes(bytes[at + offset..at + offset + 4].try_into().expect("these are four bytes"))
            };
            let long = |offset: usize| {
                u64::from_ne_bytes(bytes[at + offset..at + offset + 8].try_into().expect("these are eight bytes"))
            };
            let (operation, error, inode, value) = (word(0), word(4), long(8), long(16));
            let name = at + HEADER..at + HEADER + word(24) as usize;
            let data = name.end..name.end + word(28) as usize;
            at = data.end;
            if at > bytes.len() {
                break;
            }
            let text = |range: Range<usize>| String::from_utf8_lossy(&bytes[range]).into_owned();
            let synced = |ids: &Ids| match inode {
                0 => Ok(Synced::Folder),
                inode => ids.find(inode).map(Synced::File),
            };
            ops.push(match operation {
                number::START => Op::Start,
                number::EXISTING => Op::Existing { file: ids.add(inode), name: text(name), data },
                number::CREATE => Op::Create { file: ids.add(inode), name: text(name) },
                number::WRITE => Op::Write { file: ids.find(inode)?, offset: value, data },
                number::TRUNCATE => Op::Truncate { file: ids.find(inode)?, length: value },
                number::ALLOCATE => Op::Allocate { file: ids.find(inode)?, length: value },
                number::RENAME => Op::Rename { file: ids.find(inode)?, from: text(name), to: text(data) },
                number::UNLINK => Op::Unlink { file: ids.find(inode)?, name: text(name) },
                number::SYNC_BEGIN => Op::SyncBegin { number: value },
                number::SYNC_END => Op::SyncEnd { of: synced(&ids)?, number: value, is_ok: error == 0 },
                number::MARK => Op::Mark(text(data)),
                number::FAILED => Op::Failed,
                number::SWALLOWED => Op::Swallowed(text(name)),
                _ => return Err(format!("the simulated disk does not support what the program did: {}", text(name))),
            });
        }
        Ok(Recording { ops, bytes })
    }

    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// How much was written.
    pub fn written(&self) -> usize {
        self.ops.iter().map(|op| if let Op::Write { data, .. } = op { data.len() } else { 0 }).sum()
    }

    /// The marks before a point.
    pub fn marks(&self, until: usize) -> impl Iterator<Item = &str> {
        self.ops[..until].iter().filter_map(|op| if let Op::Mark(text) = op { Some(text.as_str()) } else { None })
    }

    /// The position of the mark with this prefix.
    pub fn find(&self, text: &str) -> Option<usize> {
        self.ops.iter().position(|op| matches!(op, Op::Mark(mark) if mark.starts_with(text)))
    }

    /// The position of the first call that failed or was left out.
    pub fn first_fault(&self) -> Option<usize> {
        let is_fault = |op: &Op| matches!(op, Op::Failed | Op::Swallowed(_) | Op::SyncEnd { is_ok: false, .. });
        self.ops.iter().position(is_fault)
    }
}

/// The current file of each inode.
#[derive(Default)]
struct Ids {
    by_inode: HashMap<u64, FileId>,
    next: FileId,
}

impl Ids {
    fn add(&mut self, inode: u64) -> FileId {
        self.next += 1;
        self.by_inode.insert(inode, self.next);
        self.next
    }

    fn find(&self, inode: u64) -> Result<FileId, String> {
        self.by_inode
            .get(&inode)
            .copied()
            .ok_or_else(|| format!("the log contains inode {inode}, which was never created"))
    }
}
