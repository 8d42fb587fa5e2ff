//! Tests of the routes: `[[tests]]` in a configuration, or in files that contain nothing else.
//!
//! A running bridge never reads them. Every mistake in them is an error with its file, its line (in TOML) and its key.
//! Tests need neither secrets nor a network.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use toml_edit::{ImDocument, Item};

use super::check::no_output;
use super::layers::{Reader, place_of};
use super::raw::{ExpectedWord, RawCallback, RawExpect, RawExpectedRecords, RawTest};
use super::{ConfigError, Layer};
use crate::common::file::{self, read_at_most};
use crate::common::suggest::did_you_mean;
use crate::common::units::Size;
use crate::dialect::{Normalizer, Sender};
use crate::event::{Attribute, Event};
use crate::output::{DestinationRules, TopicRule};
use crate::route::{Destination, Router, Values, attribute_hint};

/// The largest file of tests, and the largest callback in a file of its own. Ten thousand tests with the longest
/// callbacks of Alibaba take less.
const MAX_FILE_BYTES: u64 = 64 << 20;

/// The key of the tests.
const TESTS: &str = "tests";

/// The routes of a configuration, with everything that their tests need.
#[derive(Debug)]
pub struct RouteRules {
    /// Turns callbacks into events.
    pub normalizer: Normalizer,
    /// The routes.
    pub router: Router,
    /// What is known about who sends callbacks, for each endpoint and queue, and the largest body that it accepts.
    pub senders: Vec<(Sender, Option<Size>)>,
    /// The outputs: their kinds, and what their destinations may say.
    pub outputs: BTreeMap<String, (&'static str, DestinationRules)>,
}

impl RouteRules {
    /// A destination as a test names it: `output/topic`, or `output` if the output has no topics.
    pub fn address(&self, destination: &Destination, topic: &str) -> String {
        let output = &destination.output;
        match self.outputs.get(output) {
            Some((_, DestinationRules { topic: TopicRule::None(_), .. })) => output.clone(),
            _ => format!("{output}/{topic}"),
        }
    }

    /// Whether the records of an output have keys.
    pub fn has_keys(&self, output: &str) -> bool {
        self.outputs.get(output).is_some_and(|(_, rules)| rules.has_keys)
    }

    /// Checks a destination as a test names it.
    fn check_address(&self, text: &str) -> Result<(), String> {
        let (name, topic) = text.split_once('/').map_or((text, None), |(name, topic)| (name, Some(topic)));
        let Some((kind, rules)) = self.outputs.get(name) else {
            return Err(no_output(name, &self.outputs.keys().map(String::as_str).collect::<Vec<_>>()));
        };
        match (rules.topic, topic) {
            (TopicRule::None(_), None) => Ok(()),
            (TopicRule::None(_), Some(_)) => {
                Err(format!("`{text}`: an output of kind {kind} has no topics; expected `{name}`"))
            }
            (TopicRule::Required(_), None | Some("")) => Err(format!("`{text}` has no topic; expected `{name}/TOPIC`")),
            (TopicRule::Optional(word), None | Some("")) => {
                Err(format!("`{text}` has no topic; expected `{name}/{word}`, or the topic of the route"))
            }
            (_, Some(topic)) if topic.contains(['{', '}']) => {
                Err(format!("`{text}`: expected the topic with its values, without braces"))
            }
            (_, Some(_)) => Ok(()),
        }
    }

    /// The event with some attributes and no data.
    fn event(&self, attributes: &BTreeMap<String, String>) -> Result<Event, Wrong> {
        // Everything that is left out is absent, also what every event of a callback has.
        let mut event = Event::new("{}");
        event.remove(Attribute::SpecVersion);
        event.remove(Attribute::DataContentType);
        let mut errors = Vec::new();
        for (name, value) in attributes {
            let mut wrong = |message: String| errors.push((format!("event.{name}"), message));
            let Some(attribute) = Attribute::from_name(name) else {
                wrong(format!("unknown attribute{}", attribute_hint(name)));
                continue;
            };
            if value.is_empty() {
                wrong("expected a text; leave it out for an event without it".to_owned());
            } else if let Err(message) = self.check_value(attribute, value) {
                wrong(message);
            }
            let prefix = self.normalizer.type_prefix();
            let is_short = attribute == Attribute::Type && !value.starts_with(prefix);
            let full = if is_short { Cow::Owned(format!("{prefix}{value}")) } else { Cow::Borrowed(value.as_str()) };
            event.set(attribute, full);
        }
        if errors.is_empty() { Ok(event) } else { Err(errors) }
    }

    /// Whether an event can have a value.
    fn check_value(&self, attribute: Attribute, value: &str) -> Result<(), String> {
        let Values::Closed(known) = Values::of(attribute, self.normalizer.catalogue(), self.normalizer.type_prefix())
        else {
            return Ok(());
        };
        if known.contains(&value) {
            return Ok(());
        }
        let hint = did_you_mean(value, known.iter().copied());
        Err(format!("unknown value `{value}`{hint}; expected one of {}", known.join(", ")))
    }
}

/// The routes of a configuration, and their tests.
#[derive(Debug)]
pub struct RouteTests {
    /// The routes, and what they need.
    pub rules: RouteRules,
    /// The tests of the configuration, then those of the files.
    pub tests: Vec<RouteTest>,
}

/// A test.
#[derive(Debug)]
pub struct RouteTest {
    /// Its name, unique in its file.
    pub name: String,
    /// What the routes get.
    pub given: Given,
    /// What must happen.
    pub expected: Expected,
    source: Arc<Source>,
    index: usize,
}

/// What the routes get in a test.
#[derive(Debug)]
pub enum Given {
    /// A callback in a file, which exists or not.
    File(PathBuf),
    /// The text of a callback.
    Text(String),
    /// An event.
    Event(Event),
}

/// What a test expects.
#[derive(Debug)]
pub enum Expected {
    /// That nothing is published, and why.
    Word(ExpectedWord),
    /// What is published. A field that is `None` is not checked.
    Records {
        /// The attribute `status`.
        status: Option<String>,
        /// All destinations; see [`RouteRules::address`].
        to: Option<BTreeSet<String>>,
        /// The key of those records that can have one.
        key: Option<String>,
        /// That it becomes a dead letter too.
        dead_letter: bool,
    },
}

impl RouteTest {
    /// Where it is: the file or another source, and the line if it is known.
    pub fn place(&self) -> (&str, Option<usize>) {
        (&self.source.name, self.source.line(&self.key("")))
    }

    /// An error at a key of the test.
    pub fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        self.source.error(self.key(key), message.into())
    }

    /// The body of its callback, for a test that has one. Blocks.
    ///
    /// # Errors
    /// When its file cannot be read.
    pub fn callback(&self) -> Option<Result<Cow<'_, [u8]>, ConfigError>> {
        match &self.given {
            Given::Event(_) => None,
            Given::Text(text) => Some(Ok(Cow::Borrowed(text.as_bytes()))),
            Given::File(path) => {
                let contents = contents(path);
                let unreadable = |error| format!("{} cannot be read: {error}", path.display());
                Some(contents.map(Cow::Owned).map_err(|error| self.error("callback.file", unreadable(error))))
            }
        }
    }

    fn key(&self, key: &str) -> String {
        let dot = if key.is_empty() { "" } else { "." };
        format!("{TESTS}[{}]{dot}{key}", self.index)
    }
}

impl RouteTests {
    /// Reads the tests of a configuration, and those in files. A file that is given twice is read once; `-` is standard
    /// input.
    pub(super) fn read(
        mut configuration: Reader,
        files: &[PathBuf],
        rules: RouteRules,
    ) -> Result<RouteTests, Vec<ConfigError>> {
        let (name, path) = configuration.origin(TESTS).unwrap_or_default();
        let source = Arc::new(Source::new(name, path));
        let mut tests = read(&mut configuration, &source, &rules);
        let mut errors = source.with_lines(configuration.into_errors());
        let mut known = HashSet::new();
        for path in files {
            let is_new = known.insert(std::fs::canonicalize(path).unwrap_or_else(|_| path.clone()));
            if is_new {
                match read_file(path, &rules) {
                    Ok(mut found) => tests.append(&mut found),
                    Err(mut found) => errors.append(&mut found),
                }
            }
        }
        if errors.is_empty() { Ok(RouteTests { rules, tests }) } else { Err(errors) }
    }
}

fn contents(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(file::open(path)?, MAX_FILE_BYTES)
}

/// Reads the tests in a file, of which there must be one at least.
fn read_file(path: &Path, rules: &RouteRules) -> Result<Vec<RouteTest>, Vec<ConfigError>> {
    let is_standard_input = path == Path::new("-");
    let name = if is_standard_input { "standard input".to_owned() } else { path.display().to_string() };
    let contents = if is_standard_input { read_at_most(io::stdin().lock(), MAX_FILE_BYTES) } else { contents(path) };
    let text = contents.and_then(file::text).map_err(|error| {
        let message = format!("cannot be read: {error}");
        vec![ConfigError { source: Some(name.clone()), key: String::new(), message }]
    })?;
    let mut reader = Reader::new(&[Layer::Text(name.clone(), text)]).map_err(|unreadable| unreadable.errors)?;
    let source = Arc::new(Source::new(name, (!is_standard_input).then(|| path.to_owned())));
    for key in reader.root_keys() {
        if key != TESTS {
            let hint = did_you_mean(&key, [TESTS].into_iter());
            reader.wrong_at(&[key], format!("unknown key{hint}; a file of tests contains only [[{TESTS}]]"));
        }
    }
    let tests = read(&mut reader, &source, rules);
    if tests.is_empty() && reader.errors.is_empty() {
        reader.wrong_at(&[], format!("contains no tests; expected at least one [[{TESTS}]]"));
    }
    if reader.errors.is_empty() { Ok(tests) } else { Err(source.with_lines(reader.into_errors())) }
}

/// Reads the tests of a reader. Errors are noted in it.
fn read(reader: &mut Reader, source: &Arc<Source>, rules: &RouteRules) -> Vec<RouteTest> {
    let mut names = HashSet::new();
    let mut tests = Vec::new();
    for index in 0..reader.list_length(TESTS) {
        let errors = reader.errors.len();
        let place = [TESTS, &index.to_string()];
        let raw = reader.section_by(&place, |value| value.deserialize::<RawTest>().map_err(Box::new));
        let Some(raw) = raw else { continue };
        let is_whole = reader.errors.len() == errors;
        let name = raw.name.clone();
        match check(raw, is_whole, source, rules) {
            Ok((given, expected)) => {
                tests.push(RouteTest { name: name.clone(), given, expected, source: source.clone(), index });
            }
            Err(wrong) => {
                for (key, message) in wrong {
                    let dot = if key.is_empty() { "" } else { "." };
                    reader.wrong(&format!("{TESTS}[{index}]{dot}{key}"), message);
                }
            }
        }
        if !name.is_empty() && !names.insert(name.clone()) {
            reader.wrong(&format!("{TESTS}[{index}].name"), format!("two tests are named `{name}`"));
        }
    }
    tests
}

/// What is wrong with a test: keys below the test, and messages.
type Wrong = Vec<(String, String)>;

/// Checks a test. If wrong values were taken out of it, it is not whole, and what is missing in it is no mistake.
fn check(raw: RawTest, is_whole: bool, source: &Source, rules: &RouteRules) -> Result<(Given, Expected), Wrong> {
    let mut wrong = Wrong::new();
    if raw.name.is_empty() && is_whole {
        wrong.push(("name".to_owned(), "missing; the report names a test by it".to_owned()));
    }
    let given = given(raw.callback, raw.event, is_whole, source, rules).map_err(|mut found| wrong.append(&mut found));
    let expected = expected(raw.expect, is_whole, rules).map_err(|mut found| wrong.append(&mut found));
    match (given, expected) {
        (Ok(given), Ok(expected)) if wrong.is_empty() && is_whole => Ok((given, expected)),
        _ => Err(wrong),
    }
}

fn given(
    callback: Option<RawCallback>,
    event: Option<BTreeMap<String, String>>,
    is_whole: bool,
    source: &Source,
    rules: &RouteRules,
) -> Result<Given, Wrong> {
    let found = match (callback, event) {
        (Some(RawCallback::File(file)), None) if file.as_os_str().is_empty() => {
            return Err(vec![("callback.file".to_owned(), "expected a path".to_owned())]);
        }
        (Some(RawCallback::File(file)), None) => return Ok(Given::File(source.folder.join(file))),
        (Some(RawCallback::Text(text)), None) => return Ok(Given::Text(text)),
        (None, Some(attributes)) => return rules.event(&attributes).map(Given::Event),
        (Some(_), Some(_)) => "both",
        (None, None) if !is_whole => return Err(Wrong::new()),
        (None, None) => "neither",
    };
    Err(vec![(String::new(), format!("expected one of `callback` and `event`, found {found}"))])
}

fn expected(expect: Option<RawExpect>, is_whole: bool, rules: &RouteRules) -> Result<Expected, Wrong> {
    let mut errors = Wrong::new();
    let mut wrong = |key: &str, message: String| errors.push((key.to_owned(), message));
    let RawExpectedRecords { status, to, key, dead_letter } = match expect {
        Some(RawExpect::Records(records)) => records,
        Some(RawExpect::Word(word)) => return Ok(Expected::Word(word)),
        None if !is_whole => return Err(errors),
        None => {
            wrong("expect", "missing; it says what must happen to the event".to_owned());
            return Err(errors);
        }
    };
    if status.is_none() && to.is_none() && key.is_none() && !dead_letter && is_whole {
        wrong("expect", "expected at least one of status, to, key and dead_letter = true".to_owned());
    }
    if let Some(Err(message)) = status.as_ref().map(|word| rules.check_value(Attribute::Status, word)) {
        wrong("expect.status", message);
    }
    for (index, address) in to.iter().flatten().enumerate() {
        if let Err(message) = rules.check_address(address) {
            wrong(&format!("expect.to[{index}]"), message);
        }
    }
    if to.as_ref().is_some_and(Vec::is_empty) {
        let words = ExpectedWord::ALL.map(|word| format!("\"{}\"", word.as_str())).join(", ");
        let message = format!("expected at least one destination; if there is none, expect is one of {words}");
        wrong("expect.to", message);
    }
    let can_have_key = |address: &String| rules.has_keys(address.split('/').next().unwrap_or_default());
    match (&key, &to) {
        (Some(key), _) if key.is_empty() => {
            wrong("expect.key", "expected a text; leave it out to accept any key".to_owned());
        }
        (Some(_), Some(to)) if !to.is_empty() && !to.iter().any(can_have_key) => {
            wrong("expect.key", "no output of `to` has keys; leave it out".to_owned());
        }
        _ => {}
    }
    if errors.is_empty() {
        Ok(Expected::Records { status, to: to.map(BTreeSet::from_iter), key, dead_letter })
    } else {
        Err(errors)
    }
}

/// Where tests come from.
struct Source {
    /// Its name in messages.
    name: String,
    /// What the paths of callbacks are relative to.
    folder: PathBuf,
    /// Its file, if it is one.
    file: Option<PathBuf>,
    /// The content of the file, read when a line is needed for the first time. None if it is not TOML.
    document: OnceLock<Option<Document>>,
}

/// Where an item begins. A table without a header of its own begins where its first item does.
fn first_byte(item: &Item) -> Option<usize> {
    match item.span() {
        Some(span) => Some(span.start),
        None => item.as_table()?.iter().filter_map(|(_, item)| first_byte(item)).min(),
    }
}

/// A document in TOML, with the places of its keys.
struct Document {
    root: Item,
    /// Where the line ends are, in order.
    line_ends: Vec<usize>,
}

impl fmt::Debug for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(formatter)
    }
}

impl Source {
    fn new(name: String, file: Option<PathBuf>) -> Source {
        let folder = file.as_deref().and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
        Source { name, folder, file, document: OnceLock::new() }
    }

    /// The line of a key, or of what is nearest above it.
    fn line(&self, key: &str) -> Option<usize> {
        let document = self.document.get_or_init(|| {
            let text = contents(self.file.as_ref()?).and_then(file::text).ok()?;
            let line_ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at).collect();
            Some(Document { root: ImDocument::parse(text).ok()?.into_item(), line_ends })
        });
        let Document { root, line_ends } = document.as_ref()?;
        let (mut item, mut start) = (root, None);
        for part in place_of(key) {
            let below = part.parse::<usize>().ok().and_then(|index| item.get(index)).or_else(|| item.get(&part));
            let Some(below) = below else { break };
            item = below;
            start = first_byte(item).or(start);
        }
        let start = start?;
        Some(1 + line_ends.partition_point(|end| *end < start))
    }

    fn error(&self, key: String, message: String) -> ConfigError {
        let source = match self.line(&key) {
            Some(line) => format!("{}:{line}", self.name),
            None => self.name.clone(),
        };
        ConfigError { source: Some(source), key, message }
    }

    /// The same errors with their lines.
    fn with_lines(&self, errors: Vec<ConfigError>) -> Vec<ConfigError> {
        errors.into_iter().map(|error| self.error(error.key, error.message)).collect()
    }
}
