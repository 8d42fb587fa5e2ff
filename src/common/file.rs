//! Reads the files that a configuration names: itself, secrets, certificates, catalogues.
//!
//! A wrong path must neither fill the memory nor wait forever. So only regular files are read, and a file may have at
//! most [`MAX_BYTES`], or a limit of the caller.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

use super::units::Size;

/// The most that Kubernetes stores in a ConfigMap or Secret. The certificates of all public authorities take a quarter.
pub const MAX_BYTES: u64 = 1 << 20;

/// Opens a file that is not a pipe, a socket or a device, whose end may never come. Blocks.
///
/// # Errors
/// Those of the system, and for a file of another type.
pub fn open(path: &Path) -> Result<File> {
    let kind = std::fs::metadata(path)?.file_type();
    // For a folder, the error of the system says what it is.
    if !kind.is_file() && !kind.is_dir() {
        return Err(Error::new(ErrorKind::InvalidInput, "expected a regular file"));
    }
    File::open(path)
}

/// The first bytes of a file, one more than [`MAX_BYTES`] if it is larger. Blocks.
///
/// # Errors
/// Those of [`open`], and of reading.
pub fn read_start(path: &Path) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    open(path)?.take(MAX_BYTES + 1).read_to_end(&mut contents)?;
    Ok(contents)
}

/// Everything that can be read from an open file, if that is at most `limit` bytes. Blocks.
///
/// # Errors
/// Those of reading, and for a file that is too large.
pub fn read_at_most(file: impl Read, limit: u64) -> Result<Vec<u8>> {
    let mut contents = Vec::new();
    file.take(limit + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        return Err(Error::new(ErrorKind::FileTooLarge, format!("the file is larger than {}", Size(limit))));
    }
    Ok(contents)
}

/// The contents of a file. Blocks.
///
/// # Errors
/// Those of [`open`], and of [`read_at_most`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    read_at_most(open(path)?, MAX_BYTES)
}

/// The contents of a file of text. Blocks.
///
/// # Errors
/// Those of [`read`], and for a file that is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    text(read(path)?)
}

/// The contents of a file as text.
///
/// # Errors
/// For contents that are not UTF-8.
pub fn text(contents: Vec<u8>) -> Result<String> {
    String::from_utf8(contents).map_err(|_| Error::new(ErrorKind::InvalidData, "the file is not valid UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_without_an_end_and_large_files_are_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("file");
        std::fs::write(&file, vec![b'x'; 1 << 20]).expect("written");
        assert_eq!(read(&file).expect("readable").len(), 1 << 20);
        std::fs::write(&file, vec![b'x'; (1 << 20) + 1]).expect("written");
        assert_eq!(read(&file).expect_err("refused").to_string(), "the file is larger than 1MiB");
        let pipe = folder.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("made");
        for endless in [Path::new("/dev/zero"), &pipe] {
            assert_eq!(read(endless).expect_err("refused").to_string(), "expected a regular file");
        }
        assert_eq!(read(folder.path()).expect_err("refused").kind(), ErrorKind::IsADirectory);
    }
}
