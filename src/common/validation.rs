//! Gathers everything that is wrong with settings, so that all of it is reported at once.

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
    /// Checks the section with this key; the root has an empty one.
    pub fn of(section: &str) -> Validation {
        let prefix = if section.is_empty() { String::new() } else { format!("{section}.") };
        Validation { prefix, ..Validation::default() }
    }

    /// Reports what is wrong with a key below the section.
    pub fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.errors.push(FieldError { key: format!("{}{key}", self.prefix), message: message.into() });
    }

    /// Reads a secret, which is read again when its file changes; reports what is wrong with it.
    pub fn secret(&mut self, key: &str, source: &SecretSource) -> Option<Arc<Secret>> {
        match Secret::read(source) {
            Ok(secret) => {
                let secret = Arc::new(secret);
                self.secrets.push((format!("{}{key}", self.prefix), secret.clone()));
                Some(secret)
            }
            Err(error) => {
                if let SecretSource::File(path) = source {
                    self.unusable_file(path);
                }
                self.wrong(key, error.to_string());
                None
            }
        }
    }

    /// Has something read again when its files change.
    pub fn watch(&mut self, reread: Arc<dyn Reread>) {
        self.rereads.push(reread);
    }

    /// Notes a file that could not be used as it is: when it changes, the configuration may be valid. Blocks.
    pub fn unusable_file(&mut self, path: &Path) {
        self.unusable.push((path.to_owned(), Fingerprint::of_file(path)));
    }

    /// Whether nothing is wrong so far.
    pub fn is_ok(&self) -> bool {
        self.errors.is_empty()
    }

    /// What was found wrong.
    pub fn errors(&self) -> &[FieldError] {
        &self.errors
    }

    /// Adds what another check found.
    pub fn append(&mut self, mut other: Validation) {
        self.errors.append(&mut other.errors);
        self.secrets.append(&mut other.secrets);
        self.rereads.append(&mut other.rereads);
        self.unusable.append(&mut other.unusable);
    }

    /// Everything that was found.
    pub fn finish(self) -> Validated {
        let Validation { errors, secrets, rereads, unusable, .. } = self;
        Validated { errors, secrets, rereads, unusable }
    }
}

/// What a check found.
#[derive(Debug)]
pub struct Validated {
    /// What is wrong.
    pub errors: Vec<FieldError>,
    /// The secrets, with their keys.
    pub secrets: Vec<(String, Arc<Secret>)>,
    /// What else is read again when its files change.
    pub rereads: Vec<Arc<dyn Reread>>,
    /// Files that could not be used, with the contents that were found.
    pub unusable: Vec<(PathBuf, Fingerprint)>,
}
