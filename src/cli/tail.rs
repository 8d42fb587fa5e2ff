//! `tail`: prints what passes through a running bridge, from its event stream.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::http::uri::Authority;
use hyper::{Request, Response, StatusCode};
use rustix::event::{PollFd, PollFlags, poll};

use super::terminal::{fail, print};
use super::{ConfigArgs, USAGE, block_on, config_errors};
use crate::admin::{EVENT_STREAM, EVENTS, SIGN_OF_LIFE};
use crate::bridge::feed::{
    CallbackEntry, DeadLetterEntry, DestinationEntry, DestinationResult, EndReason, Entry, FORMAT, PublishedEntry,
    RejectionEntry, SkippedEntry,
};
use crate::common::address::reachable;
use crate::common::backoff::Backoff;
use crate::common::http::{HttpClient, HttpError};
use crate::common::visible;
use crate::config;
use crate::dialect::Catalogue;
use crate::event::DEFAULT_TYPE_PREFIX;
use crate::route::{Condition, ConditionConfig, FilterConfig};

/// The longest time for the head of the answer.
const ANSWER: Duration = Duration::from_secs(5);

/// After so long without a sign of life, the connection is given up.
const SILENCE: Duration = SIGN_OF_LIFE.saturating_mul(3);

/// Pause before connecting again: doubles from the first to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));

/// After a connection that lasted so long, pauses begin again with the first one.
const STEADY: Duration = Duration::from_secs(10);

/// Longest line of a stream, in bytes.
const MAX_LINE: usize = 4 << 20;

/// Most characters of an answer that are shown: of a sentence, and of anything else, for example a page of HTML.
const MAX_SHOWN: (usize, usize) = (300, 80);

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Prints one line for each callback: time (UTC), id, type, status, subject, the
routes that matched, the destinations, outcome and latency; a line for each event
that leaves the spool; and a line for each request that was rejected. With --match
or --filter, only events are printed.

Above 1,000 events in a second, some are left out, and their number is printed on
standard error. When the bridge restarts, tail connects again. Ctrl-C ends it.

Examples:
  apsara-bridge tail --config bridge.toml
  apsara-bridge tail --match status=failure --match 'type=Transcode*'
  apsara-bridge tail --match 'status = [\"failure\", \"partial\"]' --json
  apsara-bridge tail --filter 'not = { exact = { status = \"success\" } }'
  kubectl exec apsara-bridge-0 -- /apsara-bridge tail
")]
pub(super) struct Tail {
    #[command(flatten)]
    config: ConfigArgs,
    /// Address of the admin listener. Default: admin.listen of the configuration.
    #[arg(long, value_name = "HOST:PORT", conflicts_with_all = ["config", "set"])]
    admin: Option<String>,
    /// Only events with this attribute, as in the `match` of a route: a text, a pattern such as Transcode*, or a list.
    /// Several attributes must all match.
    #[arg(long = "match", value_name = "ATTRIBUTE=PATTERN")]
    matches: Vec<String>,
    /// Only events for which this filter holds, as in the `filter` of a route, in TOML or JSON.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Print each entry as a line of JSON.
    #[arg(long)]
    json: bool,
    /// End after so many lines.
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
}

impl Tail {
    pub(super) fn run(self) -> ExitCode {
        let condition = match self.condition() {
            Ok(condition) => condition,
            Err(error) => return usage(&error),
        };
        let admin = match &self.admin {
            Some(admin) => match address(admin) {
                Some(admin) => admin,
                None => return usage(&format!("--admin {admin}: expected host:port")),
            },
            None => match config::load_admin_listen(&self.config.layers()) {
                Ok(listen) => reachable(&listen),
                Err(errors) => return config_errors(&errors),
            },
        };
        if let Err(error) = end_with_reader().and_then(|()| end_with_ctrl_c()) {
            return fail(format!("cannot start a thread: {error}"));
        }
        let http = match HttpClient::new() {
            Ok(http) => http,
            Err(error) => return fail(error),
        };
        let mut printer = Printer {
            is_json: self.json,
            is_coloured: is_coloured(),
            left: self.count,
            type_prefix: DEFAULT_TYPE_PREFIX.to_owned(),
        };
        let source = Source { http, name: format!("http://{admin}{EVENTS}"), query: condition.to_query() };
        let warn = |type_prefix: &str| self.warn(&condition, type_prefix);
        match block_on(follow(&source, &mut printer, warn)) {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(error)) => fail(error),
            Err(error) => fail(error),
        }
    }

    /// What `--match` and `--filter` say.
    fn condition(&self) -> Result<ConditionConfig, String> {
        let mut config = ConditionConfig::default();
        for text in &self.matches {
            let wrong = |expected: &str| format!("--match {text}: expected {expected}");
            let (name, value) =
                text.split_once('=').ok_or_else(|| wrong("attribute=pattern, for example status=failure"))?;
            let patterns = patterns(value.trim()).map_err(wrong)?;
            config.matches.entry(name.trim().to_owned()).or_default().extend(patterns);
        }
        for text in &self.filters {
            config.filters.push(filter(text).map_err(|error| format!("--filter {text}: {error}"))?);
        }
        // The same mistakes as the bridge would find, before it is asked.
        ConditionConfig::from_query(&config.to_query())?;
        Condition::compile(&config, DEFAULT_TYPE_PREFIX)?;
        Ok(config)
    }

    /// Warns about patterns that no known event has, as `check` does for routes. `type_prefix` is that of the bridge.
    fn warn(&self, condition: &ConditionConfig, type_prefix: &str) {
        let normalizer = config::load_normalizer(&self.config.layers()).ok();
        let built_in = Catalogue::built_in().ok();
        let catalogue = normalizer.as_ref().map(|normalizer| normalizer.catalogue()).or(built_in.as_ref());
        let (Some(catalogue), Ok(condition)) = (catalogue, Condition::compile(condition, type_prefix)) else { return };
        for unknown in condition.unknown_values(catalogue, type_prefix) {
            eprintln!("warning: the condition {}", visible::line(&unknown));
        }
    }
}

/// Prints what is wrong with the arguments. Gives the exit code of wrong usage.
fn usage(error: &str) -> ExitCode {
    eprintln!("apsara-bridge: {}", visible::text(error));
    ExitCode::from(USAGE)
}

/// The address of `--admin`: host and port, also as a URL.
fn address(admin: &str) -> Option<String> {
    let admin = admin.strip_prefix("http://").unwrap_or(admin).trim_end_matches('/');
    let authority: Authority = admin.parse().ok()?;
    authority.port_u16().map(|_| reachable(admin))
}

/// The patterns of one `--match`: a value of TOML as in a route, or a text without quotes.
///
/// # Errors
/// What is expected instead.
fn patterns(value: &str) -> Result<Vec<String>, &'static str> {
    use toml::Value::{Array, String};
    const LIST: &str = "a list of quoted texts, for example status = [\"failure\", \"partial\"]";
    let table: Option<toml::Table> = toml::from_str(&format!("value = {value}")).ok();
    match table.and_then(|mut table| table.remove("value")) {
        Some(String(text)) => Ok(vec![text]),
        Some(Array(items)) => {
            let texts: Option<Vec<_>> = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            texts.ok_or(LIST)
        }
        _ if value.starts_with(['"', '\'']) => Err("the quotes to be closed, for example status = \"failure\""),
        // A pattern can begin with a set of characters too, but not consist of nothing else.
        _ if value.starts_with('[') && (value.contains(['"', '\'']) || value.find(']') == Some(value.len() - 1)) => {
            Err(LIST)
        }
        _ => Ok(vec![value.to_owned()]),
    }
}

/// One `--filter`: a table of TOML, with or without its braces, or JSON.
fn filter(text: &str) -> Result<FilterConfig, String> {
    #[derive(serde::Deserialize)]
    struct Table {
        filter: FilterConfig,
    }
    if !text.trim_start().starts_with('{') {
        return toml::from_str(text).map_err(|error| error.message().to_owned());
    }
    serde_json::from_str(text).or_else(|_| {
        let table: Result<Table, toml::de::Error> = toml::from_str(&format!("filter = {text}"));
        table.map(|table| table.filter).map_err(|error| error.message().to_owned())
    })
}

/// Ends the program when nobody reads its output any more, also while there is nothing to print.
fn end_with_reader() -> io::Result<()> {
    let wait = || {
        let stdout = io::stdout();
        // An error of the output is always reported, and nothing else is asked for.
        let mut polled = [PollFd::new(&stdout, PollFlags::empty())];
        while poll(&mut polled, None).is_err() {}
        std::process::exit(0);
    };
    std::thread::Builder::new().spawn(wait).map(drop)
}

/// Ends the program with 0 on Ctrl-C, also while its output is blocked.
fn end_with_ctrl_c() -> io::Result<()> {
    let wait = || {
        if let Ok(Ok(())) = block_on(tokio::signal::ctrl_c()) {
            std::process::exit(0);
        }
    };
    std::thread::Builder::new().spawn(wait).map(drop)
}

/// Whether standard output shows colours.
fn is_coloured() -> bool {
    let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Where the stream comes from.
struct Source {
    http: HttpClient,
    /// The URL without the query.
    name: String,
    query: String,
}

/// Why there is no stream at present.
enum Lost {
    /// Trying again can help.
    ForNow(String),
    /// The bridge has reloaded its configuration.
    Reloaded,
    /// A person has to do something.
    ForGood(String),
}

/// Follows the bridge, also over its restarts. Ends when enough was printed.
///
/// # Errors
/// Why it cannot be followed: at the start, or later for a reason that stays.
async fn follow(source: &Source, printer: &mut Printer, warn: impl FnOnce(&str)) -> Result<(), String> {
    let mut stream = match source.connect().await {
        Ok(stream) => stream,
        Err(Lost::ForNow(why) | Lost::ForGood(why)) => return Err(why),
        Err(Lost::Reloaded) => return Ok(()),
    };
    if io::stdout().is_terminal() {
        eprintln!("apsara-bridge: connected to {}; Ctrl-C ends", source.name);
    }
    warn(&stream.type_prefix);
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        let connected = Instant::now();
        let lost = loop {
            match stream.entries().await {
                Ok(entries) if printer.print(&entries) => {}
                Ok(_) => return Ok(()),
                Err(lost) => break lost,
            }
        };
        let was_steady = connected.elapsed() >= STEADY;
        if was_steady {
            backoff.reset();
        }
        // What was said about why there is no connection.
        let mut said = Vec::new();
        let mut pause = match lost {
            Lost::ForNow(why) => {
                note(&format!("{why}; connecting again"));
                said.push(why);
                Some(backoff.pause())
            }
            Lost::Reloaded => {
                note("the bridge has reloaded its configuration");
                // A server that always says so must not be asked without a pause.
                (!was_steady).then(|| backoff.pause())
            }
            Lost::ForGood(why) => return Err(why),
        };
        stream = loop {
            if let Some(pause) = pause {
                tokio::time::sleep(pause).await;
            }
            match source.connect().await {
                Ok(stream) => break stream,
                Err(Lost::ForGood(why)) => return Err(why),
                Err(Lost::ForNow(why)) if !said.contains(&why) => {
                    note(&format!("{why}; trying again"));
                    said.push(why);
                }
                Err(Lost::ForNow(_) | Lost::Reloaded) => {}
            }
            pause = Some(backoff.pause());
        };
        note("connected again; events in between may be missing");
    }
}

fn note(text: &str) {
    eprintln!("apsara-bridge: {}", visible::line(text));
}

impl Source {
    /// Asks for the stream, and reads its greeting.
    async fn connect(&self) -> Result<Stream, Lost> {
        let name = &self.name;
        let url = if self.query.is_empty() { name.clone() } else { format!("{name}?{}", self.query) };
        let for_good = |why: String| Lost::ForGood(format!("{name}: {why}"));
        let for_now = |why: String| Lost::ForNow(format!("{name}: {why}"));
        let request = Request::get(url).body(Full::default()).map_err(|error| for_good(error.to_string()))?;
        let answer = match tokio::time::timeout(ANSWER, self.http.send(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error @ HttpError::NotConnected(_))) => {
                return Err(for_now(format!("{error}; is the bridge running?")));
            }
            Ok(Err(error)) => return Err(for_now(error.to_string())),
            Err(_) => return Err(for_now("no answer in time".to_owned())),
        };
        let status = answer.status();
        if status != StatusCode::OK {
            let why = refusal(answer).await;
            return Err(match status {
                StatusCode::SERVICE_UNAVAILABLE => for_now(why),
                StatusCode::NOT_FOUND => for_good(format!("{why}; is it another version of apsara-bridge?")),
                _ => for_good(why),
            });
        }
        if media_type(&answer).is_none_or(|media_type| !media_type.eq_ignore_ascii_case(EVENT_STREAM)) {
            return Err(for_good(
                "the answer is not an event stream; is this the admin address of a bridge?".to_owned(),
            ));
        }
        let mut stream = Stream {
            name: name.clone(),
            body: answer.into_body(),
            type_prefix: String::new(),
            unread: Vec::new(),
            early: Vec::new(),
            end: None,
        };
        let mut entries = match tokio::time::timeout(ANSWER, stream.entries()).await {
            Ok(entries) => entries?,
            Err(_) => return Err(for_now("no entry in time; is this the admin address of a bridge?".to_owned())),
        };
        // Later versions may put more of them first.
        let position = entries.iter().position(|(_, entry)| matches!(entry, Entry::Hello(_)));
        match position.map(|position| entries[position].1.clone()) {
            Some(Entry::Hello(hello)) if hello.format == FORMAT => stream.type_prefix = hello.type_prefix,
            Some(Entry::Hello(hello)) => {
                return Err(for_good(format!(
                    "the bridge has version {} and sends format {}, but this program has version {} and reads format \
                     {FORMAT}; use the `tail` of the bridge's version",
                    hello.version,
                    hello.format,
                    env!("CARGO_PKG_VERSION"),
                )));
            }
            _ => return Err(for_good("the stream does not begin like that of apsara-bridge".to_owned())),
        }
        stream.early.append(&mut entries);
        Ok(stream)
    }
}

/// The media type of an answer, without its parameters.
fn media_type<B>(answer: &Response<B>) -> Option<&str> {
    let value = answer.headers().get(CONTENT_TYPE)?.to_str().ok()?;
    value.split(';').next().map(str::trim)
}

/// The text of an answer that is not a stream, on one line.
async fn refusal(answer: Response<Incoming>) -> String {
    let status = answer.status();
    let most =
        if media_type(&answer).is_none_or(|media_type| media_type == "text/plain") { MAX_SHOWN.0 } else { MAX_SHOWN.1 };
    let body = match tokio::time::timeout(ANSWER, HttpClient::read(answer)).await {
        Ok(Ok(answer)) => answer.into_body(),
        _ => Bytes::new(),
    };
    let text = String::from_utf8_lossy(&body);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().nth(most) {
        _ if text.is_empty() => status.to_string(),
        Some((end, _)) => format!("{status}: {}…", &text[..end]),
        None => format!("{status}: {text}"),
    }
}

/// An entry, and its text.
type Read = (Bytes, Entry);

/// A stream that is being read.
struct Stream {
    name: String,
    body: Incoming,
    /// What every `type` starts with.
    type_prefix: String,
    unread: Vec<u8>,
    /// Entries that came with the greeting.
    early: Vec<Read>,
    /// Why the bridge ends the stream, as it said.
    end: Option<EndReason>,
}

impl Stream {
    /// The next entries.
    ///
    /// # Errors
    /// Why there are no more.
    async fn entries(&mut self) -> Result<Vec<Read>, Lost> {
        if !self.early.is_empty() {
            return Ok(std::mem::take(&mut self.early));
        }
        loop {
            let lost = |why: &str| Lost::ForNow(format!("{}: {why}", self.name));
            match self.end {
                Some(EndReason::Reloaded) => return Err(Lost::Reloaded),
                Some(_) => return Err(lost("the bridge is stopping")),
                None => {}
            }
            let frame = match tokio::time::timeout(SILENCE, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame,
                Ok(_) => return Err(lost("the connection has ended")),
                Err(_) => return Err(lost("the bridge gives no sign of life")),
            };
            let Ok(piece) = frame.into_data() else { continue };
            self.unread.extend_from_slice(&piece);
            let Some(end) = self.unread.iter().rposition(|byte| *byte == b'\n') else {
                if self.unread.len() > MAX_LINE {
                    return Err(Lost::ForGood(format!("{}: a line is too long for an event stream", self.name)));
                }
                continue;
            };
            let rest = self.unread.split_off(end + 1);
            let lines = Bytes::from(std::mem::replace(&mut self.unread, rest));
            let entries = lines.split(|byte| *byte == b'\n').filter_map(|line| {
                let line = line.strip_suffix(b"\r").unwrap_or(line).strip_prefix(b"data:")?;
                let text = lines.slice_ref(line.strip_prefix(b" ").unwrap_or(line));
                let entry = serde_json::from_slice(&text).unwrap_or(Entry::Unknown);
                Some((text, entry))
            });
            let entries: Vec<Read> = entries.collect();
            self.end = entries.iter().find_map(|(_, entry)| match entry {
                Entry::End(end) => Some(end.reason),
                _ => None,
            });
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }
}

/// Colours, as the terminal knows them.
const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";
const DIM: &str = "2";

/// Prints entries.
struct Printer {
    is_json: bool,
    is_coloured: bool,
    /// How many lines are still to be printed, if that is limited.
    left: Option<u64>,
    type_prefix: String,
}

impl Printer {
    /// Prints entries. Returns false when enough was printed.
    fn print(&mut self, entries: &[Read]) -> bool {
        let mut out = String::new();
        for (text, entry) in entries {
            let line = match entry {
                Entry::Hello(hello) => {
                    self.type_prefix.clone_from(&hello.type_prefix);
                    continue;
                }
                Entry::Skipped(skipped) if !self.is_json => {
                    note(&missing(skipped));
                    continue;
                }
                // It does not ask for states.
                Entry::End(_) | Entry::State(_) | Entry::Unknown => continue,
                _ if self.is_json => String::from_utf8_lossy(&visible::json(text)).into_owned(),
                Entry::Callback(callback) => self.callback(callback),
                Entry::Rejection(rejection) => self.rejection(rejection),
                Entry::Published(published) => self.published(published),
                Entry::DeadLetter(letter) => self.dead_letter(letter),
                Entry::Skipped(_) => continue,
            };
            out.push_str(&line);
            out.push('\n');
            if let (Some(left), false) = (&mut self.left, matches!(entry, Entry::Skipped(_))) {
                *left -= 1;
                if *left == 0 {
                    break;
                }
            }
        }
        if !out.is_empty() {
            print(out);
        }
        self.left != Some(0)
    }

    fn callback(&self, entry: &CallbackEntry) -> String {
        if entry.attributes.is_empty() {
            return format!(
                "{}  {} by {}: {}",
                clock(&entry.time),
                self.paint(RED, &shown(&entry.outcome)),
                shown(&entry.input),
                shown(entry.reason.as_deref().unwrap_or_default()),
            );
        }
        let mut cells = self.names(&entry.time, |name| entry.attributes.get(name).map(String::as_str));
        let routes: Vec<&str> =
            entry.routes.iter().filter(|route| route.matched).map(|route| route.name.as_str()).collect();
        cells.push(shown(&routes.join(",")));
        let destinations: Vec<String> = entry.destinations.iter().map(|to| self.destination(to)).collect();
        cells.push(if destinations.is_empty() { "-".to_owned() } else { destinations.join(", ") });
        cells.push(self.outcome(&entry.outcome, entry.reason.as_deref()));
        cells.push(latency(entry.latency_ms));
        cells.join("  ")
    }

    fn rejection(&self, entry: &RejectionEntry) -> String {
        let rejected = self.paint(RED, "rejected");
        let mut text =
            format!("{}  {rejected} by {}: {}", clock(&entry.time), shown(&entry.input), shown(&entry.reason));
        if let Some(path) = &entry.path {
            let _ = write!(text, ", path {}", shown(path));
        }
        if let Some(message) = &entry.message {
            let _ = write!(text, ": {}", shown(message));
        }
        text
    }

    fn published(&self, entry: &PublishedEntry) -> String {
        let mut cells = self.names(&entry.time, |name| entry.attributes.get(name).map(String::as_str));
        cells.push(shown(entry.route.as_deref().unwrap_or_default()));
        cells.push(format!("{}/{}", shown(&entry.output), shown(&entry.topic)));
        cells.push(self.outcome("published", None));
        cells.extend(entry.latency_ms.map(latency));
        cells.push("from the spool".to_owned());
        cells.join("  ")
    }

    fn dead_letter(&self, entry: &DeadLetterEntry) -> String {
        let mut cells = self.names(&entry.time, |name| entry.attributes.get(name).map(String::as_str));
        cells.push(shown(entry.route.as_deref().unwrap_or_default()));
        let place = [entry.output.as_deref(), entry.topic.as_deref()];
        cells.push(shown(&place.into_iter().flatten().collect::<Vec<_>>().join("/")));
        cells.push(self.outcome("dead_lettered", Some(&format!("{}: {}", entry.reason, entry.message))));
        cells.push("from the spool".to_owned());
        cells.join("  ")
    }

    /// Time, id, type, status and subject.
    fn names<'e>(&self, time: &str, get: impl Fn(&str) -> Option<&'e str>) -> Vec<String> {
        let text = |name: &str| shown(get(name).unwrap_or_default());
        let event_type = get("type").map(|full| full.strip_prefix(&self.type_prefix).unwrap_or(full));
        let status = format!("{:<8}", text("status"));
        let status = match get("status") {
            Some("failure") => self.paint(RED, &status),
            Some("partial") => self.paint(YELLOW, &status),
            _ => status,
        };
        vec![
            clock(time),
            format!("{:<32}", text("id")),
            format!("{:<22}", shown(event_type.unwrap_or_default())),
            status,
            format!("{:<16}", text("subject")),
        ]
    }

    fn destination(&self, to: &DestinationEntry) -> String {
        let place = format!("{}/{}", shown(&to.output), shown(&to.topic));
        if to.result == DestinationResult::Published {
            return place;
        }
        let why = to.error.as_deref().map(|error| format!(": {}", shown(error))).unwrap_or_default();
        format!("{place} ({}{why})", self.paint(colour(to.result.as_str()), to.result.as_str()))
    }

    fn outcome(&self, outcome: &str, reason: Option<&str>) -> String {
        let why = reason.map(|reason| format!(" ({})", shown(reason))).unwrap_or_default();
        format!("{}{why}", self.paint(colour(outcome), &shown(outcome)))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.is_coloured { format!("\u{1b}[{colour}m{text}\u{1b}[0m") } else { text.to_owned() }
    }
}

fn colour(outcome: &str) -> &'static str {
    match outcome {
        "published" => GREEN,
        "spooled" => YELLOW,
        "duplicate" | "dropped" => DIM,
        _ => RED,
    }
}

/// A text of a sender, without control of the terminal; a dash if it is empty.
fn shown(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { visible::line(text).into_owned() }
}

/// The time of day of a time in RFC 3339.
fn clock(time: &str) -> String {
    shown(time.split_once('T').map_or(time, |(_, clock)| clock))
}

fn latency(milliseconds: f64) -> String {
    if milliseconds < 1000.0 { format!("{milliseconds:.1} ms") } else { format!("{:.2} s", milliseconds / 1000.0) }
}

fn missing(skipped: &SkippedEntry) -> String {
    let parts = [
        (skipped.events_over_rate, "events are not shown, because there are more than 1,000 in a second"),
        (
            skipped.published_over_rate,
            "publications from the spool are not shown, because there are more than 200 in a second",
        ),
        (skipped.others_over_rate, "rejections are not shown, because there are more than 100 in a second"),
        (skipped.reader_slow, "entries are not shown, because they were not read fast enough"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}"));
    parts.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(matches: &[&str], filters: &[&str]) -> Result<ConditionConfig, String> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let config = ConfigArgs { config: Vec::new(), set: Vec::new() };
        Tail { config, admin: None, matches: owned(matches), filters: owned(filters), json: false, count: None }
            .condition()
    }

    #[test]
    fn a_condition_is_written_as_in_a_route() {
        let one = tail(&["status=failure", "type = Transcode*"], &[]).expect("valid");
        assert_eq!(
            (&*one.matches["status"], &*one.matches["type"]),
            (&["failure".to_owned()][..], &["Transcode*".to_owned()][..])
        );
        let quoted =
            tail(&["status = \"failure\"", "status=partial", "accountid=1833220977560000"], &[]).expect("valid");
        assert_eq!(quoted.matches["status"], ["failure", "partial"]);
        assert_eq!(quoted.matches["accountid"], ["1833220977560000"]);
        assert_eq!(
            tail(&["status = [\"failure\", 'partial']"], &[]).expect("valid").matches["status"],
            ["failure", "partial"]
        );
        let forms = [
            "not = { exact = { status = 'success' } }",
            "{ not = { exact = { status = 'success' } } }",
            r#"{"not": {"exact": {"status": "success"}}}"#,
        ];
        for form in forms {
            assert!(tail(&[], &[form]).expect(form).filters[0].not.is_some());
        }
        for (matches, filters, expected) in [
            (&["staus=failure"][..], &[][..], "`staus`: unknown attribute; did you mean `status`?"),
            (&["failure"], &[], "expected attribute=pattern"),
            (&["status=[]"], &[], "an empty list matches nothing"),
            (&[], &["nto = 1"], "unknown field `nto`"),
            (&[], &["{"], "--filter {: "),
            (&[], &["exact = {}"], "`exact` is empty"),
        ] {
            let error = tail(matches, filters).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn senders_cannot_write_to_the_terminal() {
        let printer = Printer { is_json: false, is_coloured: false, left: None, type_prefix: "com.".to_owned() };
        let hostile = "\u{1b}[2J\u{9b}31m\u{202e}\r\n";
        let entry = |kind: &str| {
            let text = serde_json::json!({
                "kind": kind, "time": hostile, "input": hostile, "outcome": hostile, "reason": hostile, "latency_ms": 1.0,
                "attributes": { "id": hostile, "type": hostile, "status": hostile, "subject": hostile },
                "routes": [{ "name": hostile, "matched": true }],
                "destinations": [{ "route": hostile, "output": hostile, "topic": hostile, "result": "spooled",
                    "took_ms": 1.0, "error": hostile, "message": hostile }],
                "message": hostile, "path": hostile, "attempts": 1, "route": hostile, "output": hostile, "topic": hostile,
            });
            serde_json::from_value::<Entry>(text).expect("an entry")
        };
        let (Entry::Callback(callback), Entry::Rejection(rejection)) = (entry("callback"), entry("rejection")) else {
            panic!("two kinds")
        };
        let (Entry::Published(published), Entry::DeadLetter(letter)) = (entry("published"), entry("dead_letter"))
        else {
            panic!("two kinds")
        };
        for line in [
            printer.callback(&callback),
            printer.rejection(&rejection),
            printer.published(&published),
            printer.dead_letter(&letter),
        ] {
            assert!(
                line.contains("\\u{1b}") && !line.chars().any(char::is_control) && !line.contains('\u{202e}'),
                "{line}"
            );
        }
    }

    #[test]
    fn a_line_without_an_event_is_a_sentence() {
        let printer = Printer { is_json: false, is_coloured: false, left: None, type_prefix: String::new() };
        let text = r#"{"kind":"callback","time":"2026-11-26T13:30:46.550Z","input":"http","outcome":"dead_lettered",
            "reason":"not_a_callback: x","latency_ms":1.0}"#;
        let Entry::Callback(callback) = serde_json::from_str(text).expect("an entry") else { panic!("a callback") };
        assert_eq!(printer.callback(&callback), "13:30:46.550Z  dead_lettered by http: not_a_callback: x");
        let text = r#"{"kind":"rejection","time":"2026-11-26T13:30:46.550Z","input":"http","reason":"no_such_path",
            "message":"expected the `path` of an endpoint","path":"/wrong"}"#;
        let Entry::Rejection(rejection) = serde_json::from_str(text).expect("an entry") else { panic!("a rejection") };
        assert_eq!(
            printer.rejection(&rejection),
            "13:30:46.550Z  rejected by http: no_such_path, path /wrong: expected the `path` of an endpoint"
        );
    }

    #[test]
    fn a_line_has_everything_an_operator_asks_for() {
        let printer = Printer { is_json: false, is_coloured: true, left: None, type_prefix: "com.example.".to_owned() };
        let text = r#"{"kind":"callback","time":"2026-11-26T13:30:46.550Z","input":"http","signature":"valid",
            "outcome":"spooled","latency_ms":1012.4,
            "attributes":{"id":"b1eb2e2744d079b8fcbe541b2bc52ce5","type":"com.example.TranscodeComplete","status":"failure","subject":"m1"},
            "routes":[{"name":"ok","matched":false,"why":"x"},{"name":"failures","matched":true},{"name":"all","matched":true}],
            "destinations":[{"route":"failures","output":"kafka","topic":"media.failed","result":"published","took_ms":2.5},
              {"route":"all","output":"nats","topic":"media","result":"spooled","took_ms":1000.0,"error":"timed_out"}]}"#;
        let Entry::Callback(callback) = serde_json::from_str(text).expect("an entry") else { panic!("a callback") };
        assert_eq!(
            printer.callback(&callback),
            "13:30:46.550Z  b1eb2e2744d079b8fcbe541b2bc52ce5  TranscodeComplete       \u{1b}[31mfailure \u{1b}[0m  \
             m1                failures,all  kafka/media.failed, nats/media (\u{1b}[33mspooled\u{1b}[0m: timed_out)  \
             \u{1b}[33mspooled\u{1b}[0m  1.01 s"
        );
    }
}
