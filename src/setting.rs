//! Values that settings are made of: spans of time, sizes, secrets. Shared by the plug-ins' own settings.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// How often the file of a secret is looked at for a change.
const SECRET_CHECK: Duration = Duration::from_secs(1);

/// A key, below the section that is checked, and what is wrong with its value.
pub type Mistake = (String, String);

/// A span of time, written with its unit: `"5s"`, `"250ms"`, `"1h 30m"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(formatter)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a time with its unit, as \"5s\" or \"250ms\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Span, E> {
                humantime::parse_duration(text).map(Span).map_err(|_| {
                    E::custom(format!("`{text}` is no time; expected one with its unit, as \"5s\" or \"250ms\""))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// A number of bytes, written with its unit: `"256KiB"`, `"1GiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// The size as a length in memory.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 >= unit && self.0.is_multiple_of(unit) {
                return write!(formatter, "{}{name}", self.0 / unit);
            }
        }
        write!(formatter, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Size;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size with its unit, as \"256KiB\" or \"1GiB\"")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
                let has_unit = text.ends_with(|c: char| c.is_ascii_alphabetic());
                text.parse::<bytesize::ByteSize>().ok().filter(|_| has_unit).map(|size| Size(size.as_u64())).ok_or_else(
                    || E::custom(format!("`{text}` is no size; expected one with its unit, as \"256KiB\" or \"1GiB\"")),
                )
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// Reads a list where a single item may stand for a list of one.
///
/// # Errors
/// When it is neither.
pub fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    struct Visitor<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> de::Visitor<'de> for Visitor<T> {
        type Value = Vec<T>;
        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("one item or a list of them")
        }
        fn visit_seq<A: de::SeqAccess<'de>>(self, seq: A) -> Result<Vec<T>, A::Error> {
            Vec::deserialize(de::value::SeqAccessDeserializer::new(seq))
        }
        fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            T::deserialize(de::value::MapAccessDeserializer::new(map)).map(|item| vec![item])
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|item| vec![item])
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<Vec<T>, E> {
            T::deserialize(value.into_deserializer()).map(|item| vec![item])
        }
        fn visit_str<E: de::Error>(self, text: &str) -> Result<Vec<T>, E> {
            T::deserialize(de::value::StrDeserializer::new(text)).map(|item| vec![item])
        }
    }
    deserializer.deserialize_any(Visitor(std::marker::PhantomData))
}

/// Where a secret lies. Never printed with its value.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file; blanks at its end are not part of it.
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
            // A secret of digits, or one that is the word `true`, arrives so from the environment.
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

/// A secret with its present value. One in a file is read again when the file changes; while it can't be read, the
/// last value holds.
pub struct Secret {
    source: SecretSource,
    state: Mutex<SecretState>,
}

struct SecretState {
    value: String,
    modified: Option<SystemTime>,
    checked: Instant,
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(formatter)
    }
}

impl Secret {
    /// Reads a secret for the first time.
    ///
    /// # Errors
    /// A phrase that names the file or variable and what is wrong with it: unreadable, unset or empty.
    pub fn read(source: &SecretSource) -> Result<Secret, String> {
        let (value, modified) = Self::look(source)?;
        let state = SecretState { value, modified, checked: Instant::now() };
        Ok(Secret { source: source.clone(), state: Mutex::new(state) })
    }

    /// The value as it is now.
    pub fn value(&self) -> String {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let SecretSource::File(path) = &self.source
            && state.checked.elapsed() >= SECRET_CHECK
        {
            state.checked = Instant::now();
            let modified = std::fs::metadata(path).and_then(|data| data.modified()).ok();
            if modified != state.modified {
                match Self::look(&self.source) {
                    Ok((value, modified)) => {
                        tracing::info!(file = %path.display(), "secret read again");
                        state.value = value;
                        state.modified = modified;
                    }
                    Err(error) => tracing::warn!(%error, "secret can't be read again; the last value holds"),
                }
            }
        }
        state.value.clone()
    }

    fn look(source: &SecretSource) -> Result<(String, Option<SystemTime>), String> {
        let (value, modified, place) = match source {
            SecretSource::File(path) => {
                let place = format!("secret file {}", path.display());
                let text = std::fs::read_to_string(path).map_err(|error| format!("{place} can't be read: {error}"))?;
                let modified = std::fs::metadata(path).and_then(|data| data.modified()).ok();
                (text.trim_end().to_owned(), modified, place)
            }
            SecretSource::Env(name) => {
                let place = format!("environment variable {name}");
                let value = std::env::var(name).map_err(|_| format!("{place} of a secret is not set"))?;
                (value, None, place)
            }
            SecretSource::Inline(value) => (value.clone(), None, "secret".to_owned()),
        };
        if value.is_empty() {
            return Err(format!("{place} is empty"));
        }
        Ok((value, modified))
    }
}

/// A pause of which the second half is random, so that many who wait for the same don't come all at once.
pub fn jittered(pause: Duration) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    // The randomness that the standard library gives its hash tables.
    let number = RandomState::new().hash_one(0);
    let part = f64::from((number >> 32) as u32) / f64::from(u32::MAX);
    pause / 2 + (pause / 2).mul_f64(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct Sample {
        #[serde(default)]
        span: Option<Span>,
        #[serde(default)]
        size: Option<Size>,
        #[serde(default)]
        secret: Option<SecretSource>,
    }

    fn error(text: &str) -> String {
        toml::from_str::<Sample>(text).expect_err("must be refused").message().to_owned()
    }

    #[test]
    fn units_are_needed_and_understood() {
        let sample: Sample = toml::from_str("span = '1m 30s'\nsize = '256KiB'").expect("valid");
        assert_eq!(sample.span, Some(Span(Duration::from_secs(90))));
        assert_eq!(sample.size, Some(Size(262_144)));
        assert_eq!(
            (Size(262_144).to_string(), Size(1 << 30).to_string(), Size(1000).to_string()),
            ("256KiB".to_owned(), "1GiB".to_owned(), "1000B".to_owned())
        );
        assert_eq!(
            error("span = '5 parsecs'"),
            "`5 parsecs` is no time; expected one with its unit, as \"5s\" or \"250ms\""
        );
        assert_eq!(
            error("span = 5"),
            "invalid type: integer `5`, expected a time with its unit, as \"5s\" or \"250ms\""
        );
        assert_eq!(error("size = '256'"), "`256` is no size; expected one with its unit, as \"256KiB\" or \"1GiB\"");
    }

    #[test]
    fn a_secret_is_never_shown() {
        let sample: Sample = toml::from_str("secret = 'hunter2'").expect("valid");
        let source = sample.secret.expect("given");
        let secret = Secret::read(&source).expect("readable");
        assert_eq!(secret.value(), "hunter2");
        assert_eq!(format!("{source:?} {secret:?}"), "hidden hidden");
        assert_eq!(serde_json::to_string(&source).expect("JSON"), r#""<hidden>""#);
        assert!(error("secret = { file = 'a', env = 'b' }").starts_with("a secret has one source"));
        let missing = Secret::read(&SecretSource::File("/nonexistent/key".into())).expect_err("missing");
        assert!(missing.starts_with("secret file /nonexistent/key can't be read: "), "{missing}");
    }
}
