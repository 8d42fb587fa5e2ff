//! Room on the volume: how much there is, how much the store needs, and the reserve.
//!
//! Removing a record from the spool needs a little room. New records leave room for the log, and the file of the reserve
//! is deleted when even removing fails, so that a full disk can always be drained.

use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statfs, statvfs};
use rustix::io::Errno;

use super::error::StoreError;
use super::files::options;

/// Name of the file that holds the reserve.
pub(super) const RESERVE: &str = "spool.reserve";

/// Room for the log of the database, its index, and the folder.
const LOG_BYTES: u64 = 64 << 20;

/// The largest reserve.
const MAX_RESERVE: u64 = 32 << 20;

/// The volume of a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that this process can still use.
    pub free: u64,
    /// The protocol, if it is on another machine.
    pub network: Option<&'static str>,
}

impl Volume {
    /// The volume of a folder.
    ///
    /// # Errors
    /// The system's.
    pub fn of(folder: &Path) -> std::io::Result<Volume> {
        let space = statvfs(folder)?;
        #[expect(clippy::useless_conversion, reason = "its type differs between platforms")]
        let network = statfs(folder).ok().and_then(|statistics| network(i64::from(statistics.f_type)));
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        Ok(Volume { total: bytes(space.f_blocks), free: bytes(space.f_bavail), network })
    }

    /// Bytes that are reserved for removing records: 1/16 of the volume, at most 32 MiB.
    pub fn reserve(&self) -> u64 {
        (self.total / 16).min(MAX_RESERVE)
    }

    /// Bytes that a store with these bounds needs: its rows and a quarter more, the log, and the reserve.
    pub fn needed(&self, spool_max_bytes: u64, dead_letters_max_bytes: u64) -> u64 {
        let rows = spool_max_bytes.saturating_add(dead_letters_max_bytes);
        rows.saturating_add(rows / 4).saturating_add(LOG_BYTES).saturating_add(self.reserve())
    }
}

/// The protocol of a network file system, by its number in Linux's statfs(2).
fn network(kind: i64) -> Option<&'static str> {
    const KINDS: [(i64, &str); 8] = [
        (0x6969, "NFS"),
        (0xFF53_4D42, "SMB"),
        (0xFE53_4D42, "SMB"),
        (0x517B, "SMB"),
        (0x0102_1997, "9P"),
        (0x00C3_6400, "Ceph"),
        (0x0BD0_0BD0, "Lustre"),
        (0x5346_414F, "AFS"),
    ];
    KINDS.iter().find(|(number, _)| *number == (kind & 0xFFFF_FFFF)).map(|(_, name)| *name)
}

/// The file that reserves room on the volume.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub(super) fn new(folder: &Path) -> Reserve {
        Reserve { path: folder.join(RESERVE) }
    }

    /// Whether the file is there.
    pub(super) fn is_held(&self) -> bool {
        self.path.exists()
    }

    /// Creates the file, if at least as much room stays free. Returns whether the file exists with the right size.
    pub(super) fn take(&self, volume: &Volume) -> Result<bool, StoreError> {
        let bytes = volume.reserve();
        let present = std::fs::symlink_metadata(&self.path);
        let is_right = present.as_ref().is_ok_and(|file| file.len() == bytes);
        if is_right || volume.free < bytes.saturating_mul(2) {
            return Ok(is_right);
        }
        let failed = |error: std::io::Error| {
            let _ = std::fs::remove_file(&self.path);
            StoreError::io(format!("{} cannot be written", self.path.display()), &error)
        };
        if present.is_ok() {
            std::fs::remove_file(&self.path).map_err(failed)?;
        }
        let file = options().write(true).create_new(true).open(&self.path).map_err(failed)?;
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            Ok(()) => Ok(true),
            // A file system without fallocate gets no reserve: written zeros might take no room either.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let _ = std::fs::remove_file(&self.path);
                Ok(false)
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// Deletes the file to free its room. Returns whether there was a file.
    pub(super) fn give_up(&self) -> bool {
        std::fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_and_the_need_follow_the_size_of_the_volume() {
        let mib = 1 << 20;
        let small = Volume { total: 160 * mib, free: 0, network: None };
        assert_eq!(small.reserve(), 10 * mib);
        let large = Volume { total: 20 << 30, free: 0, network: None };
        assert_eq!(large.reserve(), 32 * mib);
        assert_eq!(large.needed(1024 * mib, 256 * mib), (1280 + 320 + 64 + 32) * mib);
    }

    #[test]
    fn network_file_systems_are_known_by_their_numbers() {
        assert_eq!(network(0x6969), Some("NFS"));
        assert_eq!(network(0xFF53_4D42), Some("SMB"));
        // Some systems report a negative number.
        assert_eq!(network(i64::from(-0x00AC_B2BE_i32)), Some("SMB"));
        assert_eq!(network(0xEF53), None, "ext4");
    }

    #[test]
    fn the_reserve_takes_room_and_frees_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let reserve = Reserve::new(folder.path());
        let volume = Volume { total: 16 << 20, free: 4 << 20, network: None };
        assert!(reserve.take(&volume).expect("it can be written") && reserve.is_held());
        let blocks = std::os::unix::fs::MetadataExt::blocks(
            &std::fs::metadata(folder.path().join(RESERVE)).expect("it is there"),
        );
        assert!(blocks * 512 >= 1 << 20, "it takes room on the disk: {blocks} blocks");
        assert!(reserve.give_up() && !reserve.is_held() && !reserve.give_up());
        let narrow = Volume { free: 1 << 20, ..volume };
        assert!(!reserve.take(&narrow).expect("nothing is written"));
    }
}
