//! Files that are read again when their contents change.
//!
//! Contents are compared, not times: a mounted ConfigMap changes when a symbolic link is replaced, and a time can stay
//! the same. A change counts only when two checks in a row found the same contents. A file that is being written, or a
//! pair of files of which one is still old, is therefore not read too early.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use sha2::{Digest, Sha256};

use super::file;

/// A hash of the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(Option<[u8; 32]>);

impl Fingerprint {
    /// The fingerprint of a file that cannot be read.
    pub const UNREADABLE: Fingerprint = Fingerprint(None);

    /// The fingerprint of the given contents.
    pub fn of(contents: &[u8]) -> Fingerprint {
        Fingerprint(Some(Sha256::digest(contents).into()))
    }

    /// The fingerprint of the current contents of a file. Of a file that is too large to be read, its start counts. Blocks.
    pub fn of_file(path: &Path) -> Fingerprint {
        file::read_start(path).map_or(Fingerprint::UNREADABLE, |contents| Fingerprint::of(&contents))
    }
}

/// Something that is read from files, and can be read again while it is in use.
pub trait Reread: Send + Sync + fmt::Debug {
    /// Its name in logs.
    fn name(&self) -> &'static str;

    /// The files, with the fingerprints of the contents that are in use.
    fn files(&self) -> Vec<(PathBuf, Fingerprint)>;

    /// Reads the files again. Blocks.
    ///
    /// # Errors
    /// What is wrong with the files. The last good contents stay in use.
    fn reread(&self) -> Result<(), RereadError>;
}

/// Why files cannot be used: the error of what was read from them.
pub type RereadError = Box<dyn std::error::Error + Send + Sync>;

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{0} cannot be read")]
struct Unreadable(PathBuf);

/// Files that a client library reads by itself, for example when it connects. The owner of the library's client
/// compares the fingerprints to know when a new client is needed.
#[derive(Debug)]
pub struct ReadByLibrary {
    name: &'static str,
    paths: Vec<PathBuf>,
    fingerprints: RwLock<Vec<Fingerprint>>,
}

impl ReadByLibrary {
    /// Checks the files for the first time. Blocks.
    pub fn new(name: &'static str, paths: Vec<PathBuf>) -> ReadByLibrary {
        let fingerprints = RwLock::new(paths.iter().map(|path| Fingerprint::of_file(path)).collect());
        ReadByLibrary { name, paths, fingerprints }
    }

    /// The fingerprints that were found last.
    pub fn fingerprints(&self) -> Vec<Fingerprint> {
        self.fingerprints.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Reread for ReadByLibrary {
    fn name(&self) -> &'static str {
        self.name
    }

    fn files(&self) -> Vec<(PathBuf, Fingerprint)> {
        self.paths.iter().cloned().zip(self.fingerprints()).collect()
    }

    fn reread(&self) -> Result<(), RereadError> {
        let present: Vec<Fingerprint> = self.paths.iter().map(|path| Fingerprint::of_file(path)).collect();
        let missing = self.paths.iter().zip(&present).find(|(_, present)| **present == Fingerprint::UNREADABLE);
        if let Some((path, _)) = missing {
            return Err(Box::new(Unreadable(path.clone())));
        }
        *self.fingerprints.write().unwrap_or_else(PoisonError::into_inner) = present;
        Ok(())
    }
}

/// Files whose contents are compared with those that are in use.
#[derive(Debug, Default)]
pub struct WatchedFiles {
    files: Vec<(PathBuf, Fingerprint)>,
    last_check: Vec<Fingerprint>,
}

impl WatchedFiles {
    /// Watches files, given with the fingerprints of the contents that are in use.
    pub fn new(files: Vec<(PathBuf, Fingerprint)>) -> WatchedFiles {
        WatchedFiles { files, last_check: Vec::new() }
    }

    /// Checks the files. True once for every change, when two checks in a row found the new contents. Blocks.
    pub fn has_changed(&mut self) -> bool {
        let found: Vec<Fingerprint> = self.files.iter().map(|(path, _)| Fingerprint::of_file(path)).collect();
        let is_settled = found == self.last_check;
        let is_new = self.files.iter().zip(&found).any(|((_, known), found)| known != found);
        self.last_check.clone_from(&found);
        if !(is_settled && is_new) {
            return false;
        }
        for ((_, known), found) in self.files.iter_mut().zip(found) {
            *known = found;
        }
        true
    }

    /// Counts the present contents as known. Blocks.
    pub fn acknowledge(&mut self) {
        for (path, known) in &mut self.files {
            *known = Fingerprint::of_file(path);
        }
        self.last_check.clear();
    }

    /// The files.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_found_once_after_it_is_complete() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, "one").expect("written");
        let mut watched = WatchedFiles::new(vec![(file.clone(), Fingerprint::of_file(&file))]);
        assert!(!watched.has_changed() && !watched.has_changed());
        std::fs::write(&file, "tw").expect("written");
        assert!(!watched.has_changed());
        std::fs::write(&file, "two").expect("written");
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
        assert!(!watched.has_changed());
        std::fs::remove_file(&file).expect("removed");
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
    }

    #[test]
    fn a_replaced_link_is_a_change() {
        let folder = tempfile::tempdir().expect("a folder");
        let (link, spare) = (folder.path().join("..data"), folder.path().join("..data_tmp"));
        for version in ["1", "2"] {
            std::fs::create_dir(folder.path().join(version)).expect("made");
            std::fs::write(folder.path().join(version).join("file"), version).expect("written");
        }
        std::os::unix::fs::symlink("1", &link).expect("linked");
        let file = link.join("file");
        let mut watched = WatchedFiles::new(vec![(file.clone(), Fingerprint::of_file(&file))]);
        assert!(!watched.has_changed());
        std::os::unix::fs::symlink("2", &spare).expect("linked");
        std::fs::rename(&spare, &link).expect("replaced");
        assert!(!watched.has_changed());
        assert!(watched.has_changed());
    }
}
