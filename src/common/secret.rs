//! Secrets: read from files, from the environment, or from the configuration itself, and never printed.
//!
//! The value of a secret is kept in memory. When the contents of its file change, the service reads it again by
//! [`Reread`]. While the file cannot be read, the last value stays in use.

use std::borrow::Cow;
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustix::fs::statfs;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::file;
use super::watch::{Fingerprint, Reread, RereadError};

/// Where a secret is stored. Its value is never printed.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file. White space at its end is not part of the secret.
    File(PathBuf),
    /// In an environment variable.
    Env(String),
    /// In the configuration itself.
    Inline(String),
}

impl fmt::Debug for SecretSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::File(path) => write!(formatter, "file {}", path.display()),
            SecretSource::Env(name) => write!(formatter, "env {name}"),
            SecretSource::Inline(_) => formatter.write_str("hidden"),
        }
    }
}

impl Serialize for SecretSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, place) = match self {
            SecretSource::File(path) => ("file", path.display().to_string()),
            SecretSource::Env(name) => ("env", name.clone()),
            SecretSource::Inline(_) => return serializer.serialize_str("<hidden>"),
        };
        serializer.collect_map([(kind, place)])
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        const EXPECTED: &str = "{ file = \"…\" }, { env = \"NAME\" } or a string";
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = SecretSource;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(EXPECTED)
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(text.to_owned()))
            }
            // A variable of the environment that overrides a key arrives as a number or a boolean if it looks like one.
            fn visit_u64<E: de::Error>(self, value: u64) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(value.to_string()))
            }
            fn visit_i64<E: de::Error>(self, value: i64) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(value.to_string()))
            }
            fn visit_f64<E: de::Error>(self, value: f64) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(value.to_string()))
            }
            fn visit_bool<E: de::Error>(self, value: bool) -> Result<SecretSource, E> {
                Ok(SecretSource::Inline(value.to_string()))
            }
            fn visit_map<A: de::MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
                let source = match map.next_entry::<String, String>()? {
                    Some((key, place)) if key == "file" => SecretSource::File(place.into()),
                    Some((key, name)) if key == "env" => SecretSource::Env(name),
                    _ => return Err(de::Error::custom(format!("a secret is {EXPECTED}"))),
                };
                match map.next_key::<String>()? {
                    None => Ok(source),
                    Some(_) => Err(de::Error::custom(format!("a secret has one source: {EXPECTED}"))),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

// Numbers and booleans are left out: in a file they belong in quotes, because YAML and TOML change them, for example
// `0123` or `1.10`.
impl JsonSchema for SecretSource {
    fn schema_name() -> Cow<'static, str> {
        "Secret".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "description": "The secret itself.", "type": "string", "minLength": 1 },
            {
                "type": "object",
                "properties": {
                    "file": {
                        "description": "A file that contains the secret. White space at its end is ignored. The file is \
                            read again when it changes.",
                        "type": "string",
                    },
                },
                "required": ["file"],
                "additionalProperties": false,
            },
            {
                "type": "object",
                "properties": {
                    "env": {
                        "description": "An environment variable of the process that contains the secret.",
                        "type": "string",
                    },
                },
                "required": ["env"],
                "additionalProperties": false,
            },
        ] })
    }
}

/// A secret with its current value.
pub struct Secret {
    source: SecretSource,
    state: RwLock<State>,
    rule: OnceLock<SecretRule>,
}

struct State {
    value: Arc<str>,
    fingerprint: Fingerprint,
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(formatter)
    }
}

/// Why a secret has no value.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// Its file cannot be read.
    #[error("secret file {path} cannot be read: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: std::io::Error,
    },
    /// Its environment variable is not set, or is not UTF-8.
    #[error("environment variable {0} of a secret is not set")]
    NotSet(String),
    /// Its value cannot be used for its purpose.
    #[error("secret {secret:?}: {why}")]
    Unusable {
        /// The secret. Its value does not show.
        secret: SecretSource,
        /// What is wrong with the value.
        why: &'static str,
    },
    /// It is empty. The text names the file or variable.
    #[error("{0} is empty")]
    Empty(String),
}

/// What a value must fulfil; the error says what is wrong with it.
pub type SecretRule = fn(&str) -> Result<(), &'static str>;

impl Secret {
    /// Reads a secret for the first time.
    ///
    /// # Errors
    /// The file or variable, and what is wrong with it.
    pub fn read(source: &SecretSource) -> Result<Secret, SecretError> {
        let state = RwLock::new(State::read(source)?);
        Ok(Secret { source: source.clone(), state, rule: OnceLock::new() })
    }

    /// Sets what the value must fulfil, now and whenever it is read again. The first rule stays.
    ///
    /// # Errors
    /// What is wrong with the current value.
    pub fn require(&self, rule: SecretRule) -> Result<(), &'static str> {
        self.rule.get_or_init(|| rule)(&self.value())
    }

    /// The current value.
    pub fn value(&self) -> Arc<str> {
        self.state.read().unwrap_or_else(PoisonError::into_inner).value.clone()
    }

    /// A warning about its file, if it has one: see [`exposed`].
    pub fn warning(&self) -> Option<String> {
        match &self.source {
            SecretSource::File(path) => exposed(path),
            SecretSource::Env(_) | SecretSource::Inline(_) => None,
        }
    }

    /// Whether its value is in the configuration itself.
    pub fn is_inline(&self) -> bool {
        matches!(self.source, SecretSource::Inline(_))
    }
}

/// A warning if every user of the machine can read a file with a secret. Blocks.
///
/// The group is not counted: it can be the way in which the bridge gets the file, for example through Kubernetes' fsGroup.
/// Nor is a file in memory: Kubernetes and Docker Swarm mount secrets there, often readable for everyone, in a container
/// that only the bridge uses.
pub fn exposed(path: &Path) -> Option<String> {
    const READABLE: u32 = 0o004;
    const SEARCHABLE: u32 = 0o001;
    let real = path.canonicalize().ok()?;
    let has = |path: &Path, bit: u32| path.metadata().is_ok_and(|metadata| metadata.mode() & bit != 0);
    let is_exposed =
        has(&real, READABLE) && real.ancestors().skip(1).all(|folder| has(folder, SEARCHABLE)) && !is_in_memory(&real);
    let path = path.display();
    is_exposed.then(|| format!("every user of this machine can read the secret in {path}: run `chmod o-r {path}`"))
}

/// Whether a file is on a tmpfs or ramfs, by the numbers in Linux's statfs(2).
fn is_in_memory(path: &Path) -> bool {
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58F6];
    #[expect(clippy::useless_conversion, reason = "its type differs between platforms")]
    statfs(path).is_ok_and(|statistics| IN_MEMORY.contains(&(i64::from(statistics.f_type) & 0xFFFF_FFFF)))
}

impl State {
    fn read(source: &SecretSource) -> Result<State, SecretError> {
        let (value, fingerprint, place) = match source {
            SecretSource::File(path) => {
                let text =
                    file::read_text(path).map_err(|error| SecretError::Unreadable { path: path.clone(), error })?;
                let fingerprint = Fingerprint::of(text.as_bytes());
                (text.trim_end().to_owned(), fingerprint, format!("secret file {}", path.display()))
            }
            SecretSource::Env(name) => {
                let value = std::env::var(name).map_err(|_| SecretError::NotSet(name.clone()))?;
                (value, Fingerprint::UNREADABLE, format!("environment variable {name}"))
            }
            SecretSource::Inline(value) => (value.clone(), Fingerprint::UNREADABLE, "secret".to_owned()),
        };
        if value.is_empty() {
            return Err(SecretError::Empty(place));
        }
        Ok(State { value: value.into(), fingerprint })
    }
}

impl Reread for Secret {
    fn name(&self) -> &'static str {
        "secret"
    }

    fn files(&self) -> Vec<(PathBuf, Fingerprint)> {
        match &self.source {
            SecretSource::File(path) => {
                let fingerprint = self.state.read().unwrap_or_else(PoisonError::into_inner).fingerprint;
                vec![(path.clone(), fingerprint)]
            }
            SecretSource::Env(_) | SecretSource::Inline(_) => Vec::new(),
        }
    }

    fn reread(&self) -> Result<(), RereadError> {
        let state = State::read(&self.source)?;
        if let Some(rule) = self.rule.get() {
            rule(&state.value).map_err(|why| SecretError::Unusable { secret: self.source.clone(), why })?;
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        secret: SecretSource,
    }

    #[test]
    fn a_secret_is_never_printed() {
        let sample: Sample = toml::from_str("secret = 'hunter2'").expect("valid");
        let secret = Secret::read(&sample.secret).expect("readable");
        assert_eq!(&*secret.value(), "hunter2");
        assert_eq!(format!("{:?} {secret:?}", sample.secret), "hidden hidden");
        assert_eq!(serde_json::to_string(&sample.secret).expect("JSON"), r#""<hidden>""#);
    }

    #[test]
    fn a_secret_has_one_source_that_can_be_read() {
        let error = toml::from_str::<Sample>("secret = { file = 'a', env = 'b' }").expect_err("must be refused");
        assert!(error.message().starts_with("a secret has one source"), "{error}");
        let missing = Secret::read(&SecretSource::File("/nonexistent/key".into())).expect_err("missing");
        assert!(missing.to_string().starts_with("secret file /nonexistent/key cannot be read: "), "{missing}");
    }

    #[test]
    fn a_file_that_everyone_can_read_causes_a_warning() {
        use std::fs::{Permissions, set_permissions};
        use std::os::unix::fs::PermissionsExt as _;

        // Not in the usual folder for temporary files, which may be in memory.
        let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a folder");
        let (file, link) = (folder.path().join("key"), folder.path().join("link"));
        std::fs::write(&file, "one").expect("written");
        std::os::unix::fs::symlink(&file, &link).expect("linked");
        let warned = |folder_mode: u32, mode: u32| {
            set_permissions(&file, Permissions::from_mode(mode)).expect("set");
            set_permissions(folder.path(), Permissions::from_mode(folder_mode)).expect("set");
            let secret = Secret::read(&SecretSource::File(link.clone())).expect("readable");
            (secret.warning(), exposed(&file).is_some())
        };
        let expected =
            format!("every user of this machine can read the secret in {0}: run `chmod o-r {0}`", link.display());
        assert_eq!(warned(0o755, 0o644), (Some(expected), true));
        for closed in [(0o755, 0o640), (0o755, 0o600), (0o700, 0o644), (0o750, 0o644)] {
            assert_eq!(warned(closed.0, closed.1), (None, false), "{closed:?}");
        }
        assert_eq!(exposed(Path::new("/nonexistent/key")), None);
    }

    #[test]
    fn the_last_value_stays_while_the_file_cannot_be_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("key");
        std::fs::write(&file, "one\n").expect("written");
        let secret = Secret::read(&SecretSource::File(file.clone())).expect("readable");
        std::fs::write(&file, "two\n").expect("written");
        secret.reread().expect("readable");
        assert_eq!(&*secret.value(), "two");
        for broken in [Some(""), None] {
            match broken {
                Some(text) => std::fs::write(&file, text).expect("written"),
                None => std::fs::remove_file(&file).expect("removed"),
            }
            secret.reread().expect_err("must fail");
            assert_eq!(&*secret.value(), "two");
        }
    }
}
