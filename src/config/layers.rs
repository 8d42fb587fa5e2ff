//! The layers of the configuration, and reading them into structures.
//!
//! serde stops at the first error. Here the wrong value is noted and taken out of the tree, and the section is read
//! again, until it can be read. What was taken out has its default then; the configuration as a whole is refused.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};

use figment::error::{Actual, Kind};
use figment::providers::{Env, Format, Serialized, Toml, Yaml};
use figment::value::{Dict, Value};
use figment::{Figment, Provider, Source};
use serde::de::DeserializeOwned;

use crate::common::file;
use crate::common::suggest::nearest;
use crate::common::watch::Fingerprint;

/// What every environment variable of the configuration starts with.
pub const ENV_PREFIX: &str = "APSARA_BRIDGE__";

/// Most levels of brackets in YAML. Its parser accepts no more either, but reads all of them before it says so, in a time
/// that grows with the square of the levels.
const MAX_DEPTH: usize = 128;

/// A layer of the configuration. It can contain secrets.
#[derive(Clone)]
pub enum Layer {
    /// A file, TOML or YAML by its ending.
    File(PathBuf),
    /// Text under a name, TOML or YAML by the ending of the name, for text that does not come from a file.
    Text(String, String),
    /// The environment.
    Environment,
    /// One `section.key=value`.
    Set(String),
}

impl fmt::Debug for Layer {
    // Without values, which may be secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layer::File(path) => formatter.debug_tuple("File").field(path).finish(),
            Layer::Text(name, _) => formatter.debug_tuple("Text").field(name).finish_non_exhaustive(),
            Layer::Environment => formatter.write_str("Environment"),
            Layer::Set(text) => {
                let key = text.split_once('=').map(|(key, _)| key);
                formatter.debug_tuple("Set").field(&key).finish_non_exhaustive()
            }
        }
    }
}

/// An error in the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConfigError {
    /// File, variable or flag the value came from, where it is known.
    pub source: Option<String>,
    /// The key, from the root.
    pub key: String,
    /// What is wrong and what was expected.
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(source) = &self.source {
            write!(formatter, "{source}: ")?;
        }
        if !self.key.is_empty() {
            write!(formatter, "{}: ", self.key)?;
        }
        formatter.write_str(&self.message)
    }
}

/// The merged layers, and the errors found in them.
pub(super) struct Reader {
    figment: Figment,
    root: Value,
    pub(super) errors: Vec<ConfigError>,
    /// The same errors, because a section that is read again has them again.
    noted: HashSet<ConfigError>,
    /// Places that were read and taken out of the tree, with their sources.
    taken: Vec<(Vec<String>, Option<String>)>,
    /// The files, with the contents that were read.
    pub(super) files: Vec<(PathBuf, Fingerprint)>,
}

/// Layers that could not be merged.
pub(super) struct Unreadable {
    pub(super) errors: Vec<ConfigError>,
    pub(super) files: Vec<(PathBuf, Fingerprint)>,
}

impl Reader {
    /// Merges layers.
    ///
    /// # Errors
    /// Files that are missing or are not valid TOML or YAML, and flags that are not `key=value`.
    pub(super) fn new(layers: &[Layer]) -> Result<Reader, Unreadable> {
        let mut figment = Figment::new();
        let mut errors = Vec::new();
        let mut files = Vec::new();
        let mut wrong = |source: &str, message: String| {
            errors.push(ConfigError { source: Some(source.to_owned()), key: String::new(), message });
        };
        for layer in layers {
            figment = match layer {
                Layer::File(path) => {
                    let name = path.display().to_string();
                    // Taken before the file is read, because it may change in between.
                    let found = Fingerprint::of_file(path);
                    let text = match file::read_text(path) {
                        Ok(text) => text,
                        Err(error) => {
                            files.push((path.clone(), found));
                            wrong(&name, format!("cannot be read: {error}"));
                            continue;
                        }
                    };
                    files.push((path.clone(), Fingerprint::of(text.as_bytes())));
                    if is_yaml(path) {
                        if nests_too_deep(&text) {
                            wrong(&name, too_deep());
                            continue;
                        }
                        merged(figment, Yaml::file_exact(path), &name, &mut wrong)
                    } else {
                        merged(figment, Toml::file_exact(path), &name, &mut wrong)
                    }
                }
                Layer::Text(name, text) if is_yaml(Path::new(name)) => {
                    if nests_too_deep(text) {
                        wrong(name, too_deep());
                        continue;
                    }
                    merged(figment, Yaml::string(text), name, &mut wrong)
                }
                Layer::Text(name, text) => merged(figment, Toml::string(text), name, &mut wrong),
                Layer::Environment => figment.merge(Env::prefixed(ENV_PREFIX).split("__")),
                Layer::Set(text) => match text.split_once('=') {
                    Some((key, value)) if !key.trim().is_empty() => {
                        // As in the environment, a value is a string, a number, a boolean, an array or a table.
                        let value: Value = value.parse().unwrap_or_else(|_| Value::from(value));
                        figment.merge(Serialized::default(key.trim(), value))
                    }
                    _ => {
                        wrong("--set", format!("expected section.key=value, found `{text}`"));
                        continue;
                    }
                },
            };
        }
        let root: Value = match figment.extract() {
            Ok(root) => root,
            Err(error) => {
                for error in error {
                    let source = error.metadata.as_ref().map(source_name).unwrap_or_default();
                    wrong(&source, without_quote(&error.kind.to_string()));
                }
                Value::from(Dict::new())
            }
        };
        if errors.is_empty() {
            Ok(Reader { figment, root, errors, noted: HashSet::new(), taken: Vec::new(), files })
        } else {
            Err(Unreadable { errors, files })
        }
    }

    /// Reads a section. Errors are noted, and the wrong values have their defaults.
    pub(super) fn section<T: DeserializeOwned + Default>(&mut self, path: &[&str]) -> T {
        self.section_by(path, |value| value.deserialize().map_err(Box::new)).unwrap_or_default()
    }

    /// Reads a section by a function, as [`Reader::section`] does. Gives none where there is no such section, or where
    /// the errors cannot be taken out of it.
    pub(super) fn section_by<T>(
        &mut self,
        path: &[&str],
        read: impl Fn(&Value) -> Result<T, Box<figment::Error>>,
    ) -> Option<T> {
        loop {
            let error = match read(at(&self.root, path)?) {
                Ok(section) => return Some(section),
                Err(error) => error,
            };
            let mut progress = false;
            for error in *error {
                let mut place: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
                place.extend(error.path.iter().cloned());
                let (named, taken, message) = explain(place, &error.kind);
                self.wrong_at(&named, message);
                progress |= take_out(&mut self.root, &taken, path.len());
            }
            if !progress {
                return None;
            }
        }
    }

    /// Takes a string out of the tree, so that the section around it can be read without it.
    pub(super) fn take_string(&mut self, path: &[&str]) -> Option<String> {
        let (last, parent) = path.split_last()?;
        let place: Vec<String> = path.iter().map(|part| (*part).to_owned()).collect();
        let source = self.source(&place);
        let Some(Value::Dict(_, dict)) = at_mut(&mut self.root, parent) else { return None };
        let text = dict.remove(*last)?.into_string()?;
        self.taken.push((place, source));
        Some(text)
    }

    /// The keys of the root.
    pub(super) fn root_keys(&self) -> Vec<String> {
        self.root.as_dict().into_iter().flat_map(Dict::keys).cloned().collect()
    }

    /// The number of items of a list of tables; 0 if there is none. What is not a list is an error.
    pub(super) fn list_length(&mut self, key: &str) -> usize {
        let actual = match at(&self.root, &[key]) {
            None | Some(Value::Empty(..)) => return 0,
            Some(Value::Array(_, items)) => return items.len(),
            Some(other) => other.to_actual(),
        };
        self.wrong(key, format!("found {}; expected a list of tables, each written as [[{key}]]", found(&actual)));
        0
    }

    /// Notes an error at a key as people write it: `routes[2].name`.
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        self.wrong_at(&place_of(key), message.into());
    }

    /// Notes an error at a place.
    pub(super) fn wrong_at(&mut self, place: &[String], message: String) {
        let mut key = String::new();
        for part in place {
            if part.bytes().all(|byte| byte.is_ascii_digit()) {
                key.push_str(&format!("[{part}]"));
            } else {
                if !key.is_empty() {
                    key.push('.');
                }
                key.push_str(part);
            }
        }
        let error = ConfigError { source: self.source(place), key, message };
        if self.noted.insert(error.clone()) {
            self.errors.push(error);
        }
    }

    /// Where the value at a place came from; where there is none, the nearest one above it.
    fn source(&self, place: &[String]) -> Option<String> {
        if let Some((_, source)) = self.taken.iter().find(|(taken, _)| taken == place) {
            return source.clone();
        }
        let parts: Vec<&str> = place.iter().map(String::as_str).collect();
        (1..=parts.len()).rev().find_map(|length| self.metadata(&parts[..length])).map(source_name)
    }

    /// Where the value of a key came from: its name, and the file if it is one.
    pub(super) fn origin(&self, key: &str) -> Option<(String, Option<PathBuf>)> {
        let metadata = self.metadata(&[key])?;
        let file = match &metadata.source {
            Some(Source::File(path)) => Some(path.clone()),
            _ => None,
        };
        Some((source_name(metadata), file))
    }

    fn metadata(&self, place: &[&str]) -> Option<&figment::Metadata> {
        leaf_tags(at(&self.root, place)?).find_map(|tag| self.figment.get_metadata(tag))
    }

    pub(super) fn into_errors(self) -> Vec<ConfigError> {
        self.errors
    }
}

/// The parts of a key as people write it.
pub(super) fn place_of(key: &str) -> Vec<String> {
    key.split('.').flat_map(|part| part.split('[')).map(|part| part.trim_end_matches(']').to_owned()).collect()
}

fn is_yaml(file: &Path) -> bool {
    file.extension().is_some_and(|ending| ending == "yaml" || ending == "yml")
}

fn too_deep() -> String {
    format!("the lists and tables nest deeper than {MAX_DEPTH} levels")
}

/// Whether brackets in YAML nest deeper than [`MAX_DEPTH`] levels. Those in quotes and comments do not count; those in
/// texts without quotes do, but they are usually in pairs.
fn nests_too_deep(yaml: &str) -> bool {
    let (mut depth, mut previous) = (0_usize, '\n');
    let mut characters = yaml.chars();
    while let Some(character) = characters.next() {
        let is_start = previous.is_whitespace() || matches!(previous, '[' | '{' | ',' | ':');
        match character {
            '[' | '{' => depth += 1,
            ']' | '}' => depth = depth.saturating_sub(1),
            '#' if previous.is_whitespace() => {
                characters.find(|character| *character == '\n');
                previous = '\n';
                continue;
            }
            // A quote that is doubled begins a text again.
            '\'' if is_start || previous == '\'' => {
                characters.find(|character| *character == '\'');
            }
            '"' if is_start => {
                while let Some(character) = characters.next().filter(|character| *character != '"') {
                    if character == '\\' {
                        characters.next();
                    }
                }
            }
            _ => {}
        }
        if depth > MAX_DEPTH {
            return true;
        }
        previous = character;
    }
    false
}

fn merged<P: Provider>(figment: Figment, provider: P, name: &str, wrong: &mut impl FnMut(&str, String)) -> Figment {
    // The errors of a provider are noted here, so that those of several files are reported together.
    if let Err(error) = provider.data() {
        for error in error {
            wrong(name, without_quote(&error.kind.to_string()));
        }
        return figment;
    }
    figment.merge(provider)
}

fn source_name(metadata: &figment::Metadata) -> String {
    match &metadata.source {
        Some(Source::File(path)) => path.display().to_string(),
        _ if metadata.name.contains("environment") => "environment".to_owned(),
        Some(Source::Code(_)) => "--set".to_owned(),
        _ => metadata.name.to_string(),
    }
}

/// The key to name, the place to take out of the tree, and the message, for an error at a place.
fn explain(place: Vec<String>, kind: &Kind) -> (Vec<String>, Vec<String>, String) {
    let below = |name: &str| place.iter().cloned().chain([name.to_owned()]).collect::<Vec<_>>();
    match kind {
        Kind::UnknownField(name, known) => {
            // The path of the error ends in the key itself.
            let named = if place.last() == Some(name) { place.clone() } else { below(name) };
            let hint = match nearest(name, known.iter().copied()) {
                Some(name) => format!("; did you mean `{name}`?"),
                None if known.is_empty() => "; expected no keys here".to_owned(),
                None => format!("; expected one of {}", known.join(", ")),
            };
            (named.clone(), named, format!("unknown key{hint}"))
        }
        Kind::MissingField(name) => (below(name), place.clone(), "missing".to_owned()),
        Kind::UnknownVariant(name, known) => {
            let hint = nearest(name, known.iter().copied())
                .map_or_else(String::new, |name| format!("; did you mean `{name}`?"));
            let message = format!("unknown value `{name}`{hint}; expected one of {}", known.join(", "));
            (place.clone(), place, message)
        }
        Kind::InvalidType(actual, expected) | Kind::InvalidValue(actual, expected) => {
            let message = format!("found {}; expected {}", found(actual), plain(expected));
            (place.clone(), place, message)
        }
        other => (place.clone(), place, other.to_string()),
    }
}

/// A value of a wrong type in the words of a user. A string may be a secret at the wrong place.
fn found(actual: &Actual) -> String {
    if matches!(actual, Actual::Str(_)) { "a string".to_owned() } else { plain(&actual.to_string()) }
}

/// An error of a parser without the lines it quotes, which may hold a secret.
fn without_quote(message: &str) -> String {
    let is_quote =
        |line: &&str| line.split_once('|').is_none_or(|(number, _)| !number.trim().chars().all(|c| c.is_ascii_digit()));
    message.lines().filter(is_quote).collect::<Vec<_>>().join(": ")
}

/// The words of serde and figment in the words of a user.
fn plain(words: &str) -> String {
    if words.starts_with("struct ") || words == "a map" || words == "map" {
        return "a table".to_owned();
    }
    match words {
        "usize" | "u64" | "u32" | "i64" => "a whole number".to_owned(),
        "a sequence" | "sequence" => "a list".to_owned(),
        "unit" => "nothing".to_owned(),
        other => other
            .replace("signed int ", "the number ")
            .replace("unthe number ", "the number ")
            .replace("float ", "the number ")
            .replace("string \"", "the string \"")
            .replace("bool ", ""),
    }
}

fn at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Dict(_, dict) => dict.get(*part),
        Value::Array(_, items) => items.get(part.parse::<usize>().ok()?),
        _ => None,
    })
}

fn at_mut<'v>(value: &'v mut Value, path: &[&str]) -> Option<&'v mut Value> {
    path.iter().try_fold(value, |value, part| match value {
        Value::Dict(_, dict) => dict.get_mut(*part),
        Value::Array(_, items) => items.get_mut(part.parse::<usize>().ok()?),
        _ => None,
    })
}

/// Takes a value out of the tree, but nothing above the section. An item of an array is not taken out alone, because
/// the others would change their places: the whole array is taken out.
fn take_out(root: &mut Value, place: &[String], section: usize) -> bool {
    let parts: Vec<&str> = place.iter().map(String::as_str).collect();
    for length in (section + 1..=parts.len()).rev() {
        let (last, parent) = (parts[length - 1], &parts[..length - 1]);
        if let Some(Value::Dict(_, dict)) = at_mut(root, parent)
            && dict.remove(last).is_some()
        {
            return true;
        }
    }
    false
}

fn leaf_tags(value: &Value) -> Box<dyn Iterator<Item = figment::value::Tag> + '_> {
    match value {
        Value::Dict(_, dict) if !dict.is_empty() => Box::new(dict.values().flat_map(leaf_tags)),
        Value::Array(_, items) if !items.is_empty() => Box::new(items.iter().flat_map(leaf_tags)),
        leaf => Box::new(std::iter::once(leaf.tag())),
    }
}
