//! A disk that can lose its power: what of a recording is certainly on it at a point, and what may be.
//!
//! The model, which is harsher than most file systems:
//! - Content that was written before a sync of its file began is durable when that sync has ended.
//! - Of later writes, any part may be on the disk, in pieces of 4 KiB, because the system writes back memory pages. A
//!   piece that was written several times may be there in any of its versions. A change of the length may be there or
//!   not, independently of the rest.
//! - A name is durable when a sync of the folder has ended. Of later changes, some first part is on the disk. In some
//!   states it is any possible part: a file can only be renamed from a name that it has.
//! - A sync that fails decides about everything that it should have synced: each piece is on the disk, or it will never
//!   be there unless the program writes it again. The program itself reads what it wrote from memory, like on Linux.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::random::Random;
use crate::recording::{FileId, Op, Recording, Synced};

/// The size of one write of the disk.
pub const BLOCK: usize = 4096;

/// None means zeros.
type Block = Option<Arc<[u8]>>;

/// The content of a file.
#[derive(Clone, Debug, Default)]
pub struct Content {
    length: u64,
    blocks: Vec<Block>,
}

/// The number of a block, and the position in it.
fn place(offset: u64) -> (usize, usize) {
    ((offset / BLOCK as u64) as usize, (offset % BLOCK as u64) as usize)
}

impl Content {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Block { number, block, end } => {
                self.length = self.length.max(*end);
                if self.blocks.len() <= *number {
                    self.blocks.resize(number + 1, None);
                }
                self.blocks[*number] = block.clone();
            }
            Change::Length(length) if *length >= self.length => self.length = *length,
            Change::Length(length) => {
                self.length = *length;
                let (last, rest) = place(*length);
                self.blocks.truncate(last + usize::from(rest > 0));
                if let Some(Some(block)) = self.blocks.get(last) {
                    let mut cut = block.to_vec();
                    cut[rest..].fill(0);
                    self.blocks[last] = Some(cut.into());
                }
            }
        }
    }

    /// The block after a write into it.
    fn written(&self, number: usize, at: usize, data: &[u8]) -> Block {
        let mut block = match self.blocks.get(number) {
            Some(Some(block)) => block.to_vec(),
            _ => vec![0; BLOCK],
        };
        block[at..at + data.len()].copy_from_slice(data);
        Some(block.into())
    }

    /// Writes it to a real file, with holes for zeros.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let file = std::fs::File::create(path)?;
        // Neighbours are written together, because each call takes time.
        let mut run: Vec<u8> = Vec::new();
        for number in 0..=self.blocks.len() {
            match self.blocks.get(number) {
                Some(Some(block)) => run.extend_from_slice(block),
                _ if !run.is_empty() => {
                    file.write_all_at(&run, (number * BLOCK - run.len()) as u64)?;
                    run.clear();
                }
                _ => {}
            }
        }
        file.set_len(self.length)
    }
}

#[derive(Clone, Debug)]
enum Change {
    /// A version of a block, and the end of the file if it was in this block or before it.
    Block {
        number: usize,
        block: Block,
        end: u64,
    },
    Length(u64),
}

#[derive(Clone, Debug)]
enum Naming {
    Create { name: String, file: FileId },
    Rename { from: String, to: String, file: FileId },
    Unlink { name: String, file: FileId },
}

type Names = BTreeMap<String, FileId>;

/// Applies the change if it is possible. Returns whether it was.
fn apply_naming(names: &mut Names, naming: &Naming) -> bool {
    match naming {
        Naming::Create { name, file } => match names.contains_key(name) {
            true => false,
            false => names.insert(name.clone(), *file).is_none(),
        },
        Naming::Rename { from, to, file } => {
            let is_possible = names.get(from) == Some(file);
            if is_possible {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            is_possible
        }
        Naming::Unlink { name, file } => {
            let is_possible = names.get(name) == Some(file);
            if is_possible {
                names.remove(name);
            }
            is_possible
        }
    }
}

/// One file: what the program sees, what is certainly on the disk, and the later changes with their positions in the
/// recording.
#[derive(Debug, Default)]
struct OnDisk {
    seen: Content,
    durable: Content,
    pending: Vec<(usize, Change)>,
}

/// The disk at a point of a recording.
pub struct Disk {
    files: HashMap<FileId, OnDisk>,
    /// The names that the program sees.
    seen: Names,
    durable: Names,
    pending: Vec<(usize, Naming)>,
    /// The positions where syncs began.
    syncs: HashMap<u64, usize>,
    /// The next operation.
    at: usize,
    /// Decides the fate of blocks whose sync fails.
    random: Random,
}

/// A folder that a power failure leaves behind.
#[derive(Clone, Debug)]
pub struct State {
    pub files: Vec<(String, Content)>,
    /// A description of how it was built.
    pub mode: String,
}

impl State {
    /// Writes it to real files.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        self.files.iter().try_for_each(|(name, content)| content.write(&folder.join(name)))
    }
}

/// Which pending changes reached the disk.
#[derive(Clone, Copy, Debug)]
enum Mode {
    Nothing,
    Everything,
    /// Each piece with this probability, in permille.
    Some(usize),
    AllButOneBlock,
    OneBlock,
    /// The first part in the order of writing.
    Prefix,
    /// The last part in the order of writing.
    Suffix,
}

const MODES: [Mode; 9] = [
    Mode::Nothing,
    Mode::Everything,
    Mode::Some(100),
    Mode::Some(500),
    Mode::Some(900),
    Mode::AllButOneBlock,
    Mode::OneBlock,
    Mode::Prefix,
    Mode::Suffix,
];

impl Disk {
    pub fn new(seed: u64) -> Disk {
        Disk {
            files: HashMap::new(),
            seen: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            syncs: HashMap::new(),
            at: 0,
            random: Random::new(seed),
        }
    }

    /// Advances to a point: everything before it was done.
    pub fn advance(&mut self, recording: &Recording, until: usize) {
        while self.at < until {
            self.apply(recording, self.at);
            self.at += 1;
        }
    }

    fn apply(&mut self, recording: &Recording, at: usize) {
        match &recording.ops[at] {
            Op::Start | Op::Failed | Op::Swallowed(_) | Op::Mark(_) => {}
            Op::Existing { file, name, data } => {
                self.files.insert(*file, OnDisk::default());
                self.write(*file, 0, recording.bytes(data), at);
                let on_disk = self.files.get_mut(file).expect("it was put there just now");
                on_disk.pending.clear();
                on_disk.durable = on_disk.seen.clone();
                self.seen.insert(name.clone(), *file);
                self.durable.insert(name.clone(), *file);
            }
            Op::Create { file, name } => {
                self.files.insert(*file, OnDisk::default());
                self.rename(Naming::Create { name: name.clone(), file: *file }, at);
            }
            Op::Rename { file, from, to } => {
                self.rename(Naming::Rename { from: from.clone(), to: to.clone(), file: *file }, at);
            }
            Op::Unlink { file, name } => self.rename(Naming::Unlink { name: name.clone(), file: *file }, at),
            Op::Write { file, offset, data } => self.write(*file, *offset, recording.bytes(data), at),
            Op::Truncate { file, length } => self.change(*file, Change::Length(*length), at),
            Op::Allocate { file, length } => {
                if self.files.get(file).is_some_and(|on_disk| on_disk.seen.length < *length) {
                    self.change(*file, Change::Length(*length), at);
                }
            }
            Op::SyncBegin { number } => drop(self.syncs.insert(*number, at)),
            Op::SyncEnd { of, number, is_ok } => {
                let began = self.syncs.remove(number).unwrap_or(at);
                match (of, is_ok) {
                    (Synced::File(file), true) => self.synced(*file, began),
                    (Synced::File(file), false) => self.sync_failed(*file),
                    (Synced::Folder, true) => self.folder_synced(began),
                    // Names are in the file system's own journal, which does not forget them.
                    (Synced::Folder, false) => {}
                }
            }
        }
    }

    fn rename(&mut self, naming: Naming, at: usize) {
        assert!(apply_naming(&mut self.seen, &naming), "the recorder missed something before {naming:?}");
        self.pending.push((at, naming));
    }

    fn change(&mut self, file: FileId, change: Change, at: usize) {
        // A file without a name may still be written to.
        let Some(on_disk) = self.files.get_mut(&file) else { return };
        on_disk.seen.apply(&change);
        on_disk.pending.push((at, change));
    }

    fn write(&mut self, file: FileId, offset: u64, data: &[u8], at: usize) {
        let (mut offset, mut left) = (offset, data);
        while !left.is_empty() {
            let Some(on_disk) = self.files.get(&file) else { return };
            let (number, within) = place(offset);
            let (now, later) = left.split_at(left.len().min(BLOCK - within));
            let block = on_disk.seen.written(number, within, now);
            offset += now.len() as u64;
            left = later;
            // The version also contains what was in the block before.
            let end = offset.max(on_disk.seen.length.min((number as u64 + 1) * BLOCK as u64));
            self.change(file, Change::Block { number, block, end }, at);
        }
    }

    fn synced(&mut self, file: FileId, began: usize) {
        let Some(on_disk) = self.files.get_mut(&file) else { return };
        on_disk.pending.retain(|(at, change)| {
            let is_covered = *at < began;
            if is_covered {
                on_disk.durable.apply(change);
            }
            !is_covered
        });
    }

    /// All versions of a block have the same fate: when the disk refuses a block, the system does not try to write it
    /// again.
    fn sync_failed(&mut self, file: FileId) {
        let Some(on_disk) = self.files.get_mut(&file) else { return };
        let mut fates: HashMap<Option<usize>, bool> = HashMap::new();
        for (_, change) in on_disk.pending.drain(..) {
            let of = if let Change::Block { number, .. } = change { Some(number) } else { None };
            if *fates.entry(of).or_insert_with(|| self.random.permille(500)) {
                on_disk.durable.apply(&change);
            }
        }
    }

    fn folder_synced(&mut self, began: usize) {
        let durable = &mut self.durable;
        self.pending.retain(|(at, naming)| {
            let is_covered = *at < began;
            if is_covered {
                apply_naming(durable, naming);
            }
            !is_covered
        });
        let named: BTreeSet<FileId> = self.durable.values().chain(self.seen.values()).copied().collect();
        let coming: BTreeSet<FileId> = self.pending.iter().map(|(_, naming)| naming.file()).collect();
        self.files.retain(|file, _| named.contains(file) || coming.contains(file));
    }

    /// Everything that the program sees: the state after it is killed while the power stays on.
    pub fn seen(&self) -> State {
        let files =
            self.seen.iter().filter_map(|(name, file)| Some((name.clone(), self.files.get(file)?.seen.clone())));
        State { files: files.collect(), mode: "as seen by the program".to_owned() }
    }

    /// A state that a power failure may leave at this point.
    pub fn state(&self, random: &mut Random) -> State {
        let mode = *random.pick(&MODES).expect("there are modes");
        // All pending changes, in the order of writing.
        let mut order: Vec<usize> = self.pending.iter().map(|(at, _)| *at).collect();
        let mut blocks: Vec<(FileId, usize)> = Vec::new();
        let mut ids: Vec<FileId> = self.files.keys().copied().collect();
        ids.sort_unstable();
        for file in &ids {
            for (at, change) in &self.files[file].pending {
                order.push(*at);
                if let Change::Block { number, .. } = change {
                    blocks.push((*file, *number));
                }
            }
        }
        order.sort_unstable();
        order.dedup();
        blocks.sort_unstable();
        blocks.dedup();
        let cut = match random.pick(&order) {
            Some(at) => *at,
            None => 0,
        };
        let one = random.pick(&blocks).copied();
        let names = self.names(mode, cut, random);
        let mut files = Vec::new();
        for (name, file) in &names {
            // Files that a process needs only while it runs are gone.
            let Some(on_disk) = self.files.get(file) else { continue };
            let mut content = on_disk.durable.clone();
            for (at, change) in &on_disk.pending {
                let is_of_one = matches!(change, Change::Block { number, .. } if Some((*file, *number)) == one);
                let reached = match mode {
                    Mode::Nothing => false,
                    Mode::Everything => true,
                    Mode::Some(permille) => random.permille(permille),
                    Mode::AllButOneBlock => !is_of_one,
                    Mode::OneBlock => is_of_one,
                    Mode::Prefix => *at <= cut,
                    Mode::Suffix => *at >= cut,
                };
                if reached {
                    content.apply(change);
                }
            }
            files.push((name.clone(), content));
        }
        let pending = order.len();
        State { files, mode: format!("{mode:?}, {pending} operations and {} blocks pending", blocks.len()) }
    }

    /// The names that are on the disk.
    fn names(&self, mode: Mode, cut: usize, random: &mut Random) -> Names {
        let mut names = self.durable.clone();
        let first = random.below(self.pending.len() + 1);
        let is_in_order = random.permille(700);
        for (index, (at, naming)) in self.pending.iter().enumerate() {
            let reached = match mode {
                Mode::Nothing => false,
                Mode::Everything => true,
                Mode::Prefix => *at <= cut,
                _ if is_in_order => index < first,
                Mode::Suffix => *at >= cut,
                _ => random.permille(500),
            };
            if reached {
                apply_naming(&mut names, naming);
            }
        }
        names
    }
}

impl Naming {
    fn file(&self) -> FileId {
        match self {
            Naming::Create { file, .. } | Naming::Rename { file, .. } | Naming::Unlink { file, .. } => *file,
        }
    }
}
