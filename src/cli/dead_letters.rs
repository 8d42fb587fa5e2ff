//! `dead-letters`: shows, replays and deletes what could not be published. Works next to a running bridge.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::terminal::{fail, pretty, print, print_json, print_sent, table};
use super::{StoreArgs, USAGE};
use crate::bridge::DeadLetterReason;
use crate::common::visible;
use crate::store::database::{Access, Database};
use crate::store::{self, DeadLetterFilter, DeadLetterRow, StoreError, StoreSettings};

/// Dead letters per transaction. A running bridge waits for one transaction at most.
const CHUNK: usize = 500;

/// How often to check whether replays have ended.
const POLL: Duration = Duration::from_millis(50);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Works next to a running bridge. The running bridge does a replay, by its current
routes. Without a running bridge, the replay waits for the next start.

Examples:
  apsara-bridge dead-letters list --config bridge.toml --reason unrouted --since 1h
  apsara-bridge dead-letters show 17 --config bridge.toml
  apsara-bridge dead-letters replay 17 18 --config bridge.toml
  apsara-bridge dead-letters delete --config bridge.toml --reason not_a_callback
")]
pub(super) struct DeadLetters {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// List dead letters, one per line.
    List {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        conditions: Conditions,
        /// Print a JSON array, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with its envelope and body.
    Show {
        #[command(flatten)]
        store: StoreArgs,
        /// Number of the dead letter.
        id: i64,
        /// Print a JSON object, for programs.
        #[arg(long)]
        json: bool,
        /// Print only the body, exactly as it was received. On a terminal, control characters and other invisible
        /// characters are escaped.
        #[arg(long, conflicts_with = "json")]
        body: bool,
    },
    /// Publish dead letters again. Each is removed when every destination has acknowledged it.
    Replay {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        which: Which,
        /// How long to wait for the result. The replay continues after that.
        #[arg(long, value_name = "TIME", default_value = "1m", value_parser = super::span)]
        wait: Duration,
    },
    /// Delete dead letters for good.
    Delete {
        #[command(flatten)]
        store: StoreArgs,
        #[command(flatten)]
        which: Which,
    },
}

/// Conditions that all must hold.
#[derive(Debug, clap::Args)]
struct Conditions {
    /// Only those with this reason.
    #[arg(long, value_parser = PossibleValuesParser::new(DeadLetterReason::all().map(DeadLetterReason::as_str)))]
    reason: Option<String>,
    /// Only those of this event type: the full type, or the EventType of Alibaba.
    #[arg(long = "type", value_name = "TYPE")]
    event_type: Option<String>,
    /// Only those last received at this time or later: RFC 3339, or how long ago, for example 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<OffsetDateTime>,
    /// Only those last received before this time: RFC 3339, or how long ago, for example 2h.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    before: Option<OffsetDateTime>,
}

/// Which dead letters are meant.
#[derive(Debug, clap::Args)]
struct Which {
    /// Numbers of dead letters.
    ids: Vec<i64>,
    /// All dead letters.
    #[arg(long, conflicts_with_all = ["ids", "reason", "event_type", "since", "before"])]
    all: bool,
    #[command(flatten)]
    conditions: Conditions,
}

fn moment(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let ago = super::span(text)
        .map_err(|_| "expected a time, for example 2026-01-31T12:00:00Z, or how long ago, for example 2h".to_owned())?;
    time::Duration::try_from(ago)
        .ok()
        .and_then(|ago| OffsetDateTime::now_utc().checked_sub(ago))
        .ok_or_else(|| "that is too long ago".to_owned())
}

impl Conditions {
    fn filter(self) -> DeadLetterFilter {
        let milliseconds =
            |time: OffsetDateTime| i64::try_from(time.unix_timestamp_nanos() / 1_000_000).unwrap_or(i64::MAX);
        DeadLetterFilter {
            ids: Vec::new(),
            reason: self.reason,
            event_type: self.event_type,
            since: self.since.map(milliseconds),
            before: self.before.map(milliseconds),
        }
    }
}

impl Which {
    /// The filter, or a usage error if there is no condition: a forgotten condition must not mean all.
    fn filter(self) -> Result<DeadLetterFilter, ExitCode> {
        let filter = DeadLetterFilter { ids: self.ids, ..self.conditions.filter() };
        let says_something = self.all
            || !filter.ids.is_empty()
            || filter.reason.is_some()
            || filter.event_type.is_some()
            || filter.since.is_some()
            || filter.before.is_some();
        if says_something {
            return Ok(filter);
        }
        eprintln!("apsara-bridge: expected numbers, --all, --reason, --type, --since or --before");
        Err(ExitCode::from(USAGE))
    }
}

impl DeadLetters {
    pub(super) fn run(self) -> ExitCode {
        let (settings, result) = match self.command {
            Command::List { store, conditions, json } => match store.settings() {
                Ok(settings) => (settings.clone(), list(&settings, &conditions.filter(), json)),
                Err(code) => return code,
            },
            Command::Show { store, id, json, body } => match store.settings() {
                Ok(settings) => (settings.clone(), show(&settings, id, json, body)),
                Err(code) => return code,
            },
            Command::Replay { store, which, wait } => match (store.settings(), which.filter()) {
                (Ok(settings), Ok(filter)) => (settings.clone(), replay(&settings, &filter, wait)),
                (Err(code), _) | (_, Err(code)) => return code,
            },
            Command::Delete { store, which } => match (store.settings(), which.filter()) {
                (Ok(settings), Ok(filter)) => (settings.clone(), delete(&settings, &filter)),
                (Err(code), _) | (_, Err(code)) => return code,
            },
        };
        result.unwrap_or_else(|error| fail(super::unreadable(&settings, &error)))
    }
}

/// Visits dead letters in the order of their numbers, in chunks, so that a million of them take no more memory than a
/// few.
fn visit(
    database: &Database,
    filter: &DeadLetterFilter,
    mut each: impl FnMut(Vec<DeadLetterRow>) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut after = i64::MIN;
    loop {
        let letters = database.dead_letters(filter, after, CHUNK, false)?;
        let Some(last) = letters.last() else { return Ok(()) };
        after = last.id;
        each(letters)?;
    }
}

fn list(settings: &StoreSettings, filter: &DeadLetterFilter, as_json: bool) -> Result<ExitCode, StoreError> {
    let database = Database::open(&settings.path, Access::Read)?;
    let mut count = 0;
    if as_json {
        print("[");
        visit(&database, filter, |letters| {
            for letter in letters {
                let separator = if count == 0 { "\n" } else { ",\n" };
                print_json(format!("{separator}{}", summary(&letter)));
                count += 1;
            }
            Ok(())
        })?;
        print(if count == 0 { "]\n" } else { "\n]\n" });
        return Ok(ExitCode::SUCCESS);
    }
    visit(&database, filter, |letters| {
        let mut rows = Vec::new();
        if count == 0 {
            let heads = ["ID", "LAST", "COUNT", "REASON", "TYPE", "SUBJECT", "DESTINATION", "CODE"];
            rows.push(heads.map(str::to_owned).to_vec());
        }
        count += letters.len();
        rows.extend(letters.iter().map(|DeadLetterRow { id, count, letter, .. }| {
            let (event_type, subject) = letter.event.as_ref().map_or(("-", "-"), |(_, event_type, subject)| {
                (event_type.rsplit('.').next().unwrap_or(event_type), subject.as_deref().unwrap_or("-"))
            });
            let cells = [
                id.to_string(),
                time_of(letter.at),
                count.to_string(),
                letter.reason.clone(),
                event_type.to_owned(),
                subject.to_owned(),
                destination(letter.output.as_deref(), letter.topic.as_deref()).unwrap_or_else(|| "-".to_owned()),
                letter.code.clone(),
            ];
            cells.map(|cell| cut(&cell, 60)).to_vec()
        }));
        print(table(&rows));
        Ok(())
    })?;
    if count == 0 {
        eprintln!("no dead letters");
    }
    Ok(ExitCode::SUCCESS)
}

fn show(settings: &StoreSettings, id: i64, as_json: bool, body_only: bool) -> Result<ExitCode, StoreError> {
    let database = Database::open(&settings.path, Access::Read)?;
    let filter = DeadLetterFilter { ids: vec![id], ..DeadLetterFilter::default() };
    let Some(letter) = database.dead_letters(&filter, i64::MIN, 1, true)?.pop() else {
        return Ok(fail(format!("there is no dead letter {id}")));
    };
    let body = &letter.letter.body;
    if body_only {
        print_sent(body);
        return Ok(ExitCode::SUCCESS);
    }
    let envelope = letter.letter.envelope.as_deref().unwrap_or(b"null");
    if as_json {
        let mut object = summary(&letter);
        object["envelope"] = serde_json::from_slice(envelope).unwrap_or_else(|_| lossy(envelope));
        object["body"] = lossy(body);
        object["body_is_text"] = std::str::from_utf8(body).is_ok().into();
        print_json(format!("{object:#}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut rows = Vec::new();
    if let Value::Object(members) = summary(&letter) {
        for (name, value) in members {
            let text = match value {
                Value::Null => continue,
                Value::String(text) => text,
                other => other.to_string(),
            };
            rows.push(vec![name, cut(&text, 1024)]);
        }
    }
    let mut text = table(&rows);
    if letter.letter.envelope.is_some() {
        let _ = write!(text, "\nEnvelope:\n{}\n", String::from_utf8_lossy(&pretty(envelope)));
    }
    if !body.is_empty() {
        let _ = write!(text, "\nBody:\n{}\n", visible::text(&String::from_utf8_lossy(body)));
    }
    print(text);
    Ok(ExitCode::SUCCESS)
}

fn replay(settings: &StoreSettings, filter: &DeadLetterFilter, wait: Duration) -> Result<ExitCode, StoreError> {
    let mut database = Database::open(&settings.path, Access::Shared)?;
    let asked = ids(&database, filter)?;
    if let Some(code) = missing(filter, &asked) {
        return Ok(code);
    }
    for chunk in asked.chunks(CHUNK) {
        let writing = database.begin()?;
        writing.request_replay(chunk)?;
        writing.commit()?;
    }
    if !store::is_running(&settings.path) {
        print(format!("{}: no bridge is running; they are replayed when one starts\n", letters(asked.len())));
        return Ok(ExitCode::SUCCESS);
    }
    let deadline = Instant::now() + wait;
    let (mut waiting, mut failed) = (asked.clone(), Vec::new());
    loop {
        let mut still = Vec::new();
        for chunk in waiting.chunks(CHUNK) {
            let filter = DeadLetterFilter { ids: chunk.to_vec(), ..DeadLetterFilter::default() };
            for letter in database.dead_letters(&filter, i64::MIN, CHUNK, false)? {
                if letter.replay_requested {
                    still.push(letter.id);
                } else {
                    failed.push(letter);
                }
            }
        }
        waiting = still;
        if waiting.is_empty() || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(POLL);
    }
    print(format!("{} replayed\n", letters(asked.len() - waiting.len() - failed.len())));
    for letter in &failed {
        let error = letter.replay_error.as_deref().unwrap_or("it was received again");
        eprintln!("dead letter {}: not replayed: {}", letter.id, visible::line(&cut(error, 1024)));
    }
    if !waiting.is_empty() {
        eprintln!(
            "{} not finished after {}; the bridge continues",
            letters(waiting.len()),
            humantime::format_duration(wait)
        );
    }
    if failed.is_empty() && waiting.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(fail(format!("{} not replayed", letters(failed.len() + waiting.len()))))
}

fn delete(settings: &StoreSettings, filter: &DeadLetterFilter) -> Result<ExitCode, StoreError> {
    let mut database = Database::open(&settings.path, Access::Shared)?;
    let ids = ids(&database, filter)?;
    if let Some(code) = missing(filter, &ids) {
        return Ok(code);
    }
    let mut deleted = 0;
    for chunk in ids.chunks(CHUNK) {
        let writing = database.begin()?;
        for id in chunk {
            deleted += usize::from(writing.remove_dead_letter(*id)?.is_some());
        }
        writing.commit()?;
    }
    print(format!("{} deleted\n", letters(deleted)));
    Ok(ExitCode::SUCCESS)
}

fn ids(database: &Database, filter: &DeadLetterFilter) -> Result<Vec<i64>, StoreError> {
    let mut ids = Vec::new();
    visit(database, filter, |letters| {
        ids.extend(letters.iter().map(|letter| letter.id));
        Ok(())
    })?;
    Ok(ids)
}

/// The error about numbers that do not exist. Nothing is done then.
fn missing(filter: &DeadLetterFilter, found: &[i64]) -> Option<ExitCode> {
    let missing: Vec<String> = filter.ids.iter().filter(|id| !found.contains(id)).map(|id| id.to_string()).collect();
    (!missing.is_empty()).then(|| fail(format!("there is no such dead letter: {}", missing.join(", "))))
}

fn letters(count: usize) -> String {
    if count == 1 { "1 dead letter".to_owned() } else { format!("{count} dead letters") }
}

/// A dead letter without its envelope and body.
fn summary(letter: &DeadLetterRow) -> Value {
    let DeadLetterRow { id, first_at, count, replay_error, replay_requested, is_sound, letter } = letter;
    let (event_id, event_type, subject) = match &letter.event {
        Some((id, event_type, subject)) => (Some(id), Some(event_type), subject.as_ref()),
        None => (None, None, None),
    };
    let mut summary = json!({
        "id": id,
        "reason": letter.reason,
        "code": letter.code,
        "attempts": letter.attempts,
        "count": count,
        "first": time_of(*first_at),
        "last": time_of(letter.at),
        "input": letter.input,
        "route": letter.route,
        "output": letter.output,
        "topic": letter.topic,
        "key": letter.key,
        "event_id": event_id,
        "type": event_type,
        "subject": subject,
        "replay_requested": replay_requested,
        "replay_error": replay_error,
    });
    if !is_sound {
        summary["damaged"] = true.into();
    }
    summary
}

fn destination(output: Option<&str>, topic: Option<&str>) -> Option<String> {
    Some(format!("{}/{}", output?, topic?))
}

fn time_of(milliseconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "-".to_owned())
}

/// The beginning of a text.
fn cut(text: &str, characters: usize) -> String {
    let mut shown: String = text.chars().take(characters).collect();
    if text.chars().nth(characters).is_some() {
        shown.push('…');
    }
    shown
}

fn lossy(bytes: &[u8]) -> Value {
    Value::String(String::from_utf8_lossy(bytes).into_owned())
}
