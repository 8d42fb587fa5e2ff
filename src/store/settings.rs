//! Where the store is, and its bounds.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::files::OTHERS;
use super::space::Volume;

/// Where the store is, and its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// The folder.
    pub path: PathBuf,
    /// Its bounds.
    pub bounds: StoreBounds,
}

/// The bounds of the store. They can change while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreBounds {
    /// Bound of the spool in bytes, as [`super::SpoolRecord::bytes`] counts them.
    pub spool_max_bytes: u64,
    /// Bound of one topic of an output that is up, in the same bytes.
    pub lane_max_bytes: u64,
    /// Bound of the dead letters in bytes, as [`super::DeadLetter::bytes`] counts them.
    pub dead_letters_max_bytes: u64,
    /// The part of it for bodies that are not callbacks.
    pub not_a_callback_max_bytes: u64,
    /// Age at which dead letters are deleted; none keeps them.
    pub dead_letters_max_age: Option<Duration>,
}

impl StoreSettings {
    /// The folder, or the nearest one above it that exists.
    pub(super) fn nearest(&self) -> &Path {
        // Above a relative path is the working directory, which has no name there.
        self.path.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("."))
    }

    /// Warnings about the folder and its volume, one sentence each. The folder need not exist yet.
    pub fn warnings(&self) -> Vec<String> {
        let there = self.nearest();
        if !there.is_dir() {
            return vec![format!("spool.path: {} is not a folder, so the bridge cannot start", there.display())];
        }
        let Ok(volume) = Volume::of(there) else { return Vec::new() };
        let shown = self.path.display();
        let mut warnings = Vec::new();
        if let Ok(folder) = self.path.metadata()
            && folder.mode() & OTHERS != 0
        {
            warnings.push(format!(
                "spool.path: other users can enter {shown} (mode {:o}): run `chmod 700 {shown}`, or, if fsGroup of \
                 Kubernetes sets the mode, mount the volume only into the container of the bridge",
                folder.mode() & 0o777
            ));
        }
        let needed = volume.needed(self.bounds.spool_max_bytes, self.bounds.dead_letters_max_bytes);
        if volume.total < needed {
            warnings.push(format!(
                "spool.path: the volume of {shown} has {} MiB; spool.max_bytes and dead_letters.max_bytes need {} MiB \
                 with the log and a reserve",
                volume.total >> 20,
                needed.div_ceil(1 << 20)
            ));
        }
        if let Some(protocol) = volume.network {
            warnings.push(format!(
                "spool.path: {shown} is on a network file system ({protocol}); locks and fsync may not hold there, so \
                 that events can be lost; use a local disk or a block volume"
            ));
        }
        warnings
    }
}
