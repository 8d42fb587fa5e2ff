//! Collects everything that is wrong with settings, to report all of it at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::secret::{Secret, SecretSource};
use super::watch::{Fingerprint, Reread};

/// What is wrong with the value of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct FieldError {
    /// The key.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

/// The check of one section of the configuration.
#[derive(Debug, Default)]
pub struct Validation {
    prefix: String,
    errors: Vec<FieldError>,
    secrets: Vec<(String, Arc<Secret>)>,
    rereads: Vec<Arc<dyn Reread>>,
    unusable: Vec<(PathBuf, Fingerprint)>,
}

impl Validation {
    /// Checks the section with this key. The key of the root is empty.
    pub fn of(section: &str) -> Validation {
        let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
        Validation { prefix, ..Validation::default() }
    }

    /// Reports what is wrong with a key below the section.
    pub fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(FieldError { key: format!("{}{key}", self.prefix), message: message.into() });
    }

    /// Reads a secret, and reports what is wrong with it. It is read again when its file changes.
    pub fn secret(&mut self, key: &str, source: &SecretSource) -> Option<Arc<Secret>> {
        // Taken before the secret is read, because the file may change in between.
        let found = match source {
            SecretSource::File(path) => Some((path, Fingerprint::of_file(path))),
            SecretSource::Env(_) | SecretSource::Inline(_) => None,
        };
        match Secret::read(source) {
            Ok(secret) => {
                let secret = Arc::new(secret);
                self.secrets.push((format!("{}{key}", self.prefix), secret.clone()));
                Some(secret)
            }
            Err(error) => {
                if let Some((path, found)) = found {
                    self.unusable_file(path, found);
                }
                self.wrong(key, error.to_string());
                None
            }
        }
    }

    /// Registers something to be read again when its files change.
    pub fn watch(&mut self, reread: Arc<dyn Reread>) {
        self.rereads.push(reread);
    }

    /// Registers a file that could not be used, with its contents before it was read: after they change, the
    /// configuration may be valid.
    pub fn unusable_file(&mut self, path: &Path, found: Fingerprint) {
        self.unusable.push((path.to_owned(), found));
    }

    /// Whether no error was found so far.
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }

    /// The errors that were found.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Adds the findings of another check.
    pub fn append(&mut self, mut other: Validation) {
        self.errors.append(&mut other.errors);
        self.secrets.append(&mut other.secrets);
        self.rereads.append(&mut other.rereads);
        self.unusable.append(&mut other.unusable);
    }

    /// All findings.
    pub fn finish(self) -> Validated {
        let Validation { errors, secrets, rereads, unusable, .. } = self;
        Validated { errors, secrets, rereads, unusable }
    }
}

/// The findings of a check.
#[derive(Debug)]
pub struct Validated {
    /// The errors.
    pub errors: Vec<FieldError>,
    /// The secrets, with their keys.
    pub secrets: Vec<(String, Arc<Secret>)>,
    /// Other parts that are read again when their files change.
    pub rereads: Vec<Arc<dyn Reread>>,
    /// Files that could not be used, with the contents that were found.
    pub unusable: Vec<(PathBuf, Fingerprint)>,
}
