//! `spool`: shows what is stored on the disk, and publishes or moves it when no bridge runs.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::terminal::{fail, print, print_json, table};
use super::{StoreArgs, USAGE, age, config_errors};
use crate::common::units::Size;
use crate::config;
use crate::output::TopicRule;
use crate::route::Template;
use crate::service;
use crate::store::database::{Access, Database};
use crate::store::{
    self, AWAITS_DEAD_LETTERS, Backlog, FailingLane, FailingLanes, FailureKind, Imported, LANE_STATES, Offline,
    StoreSettings,
};
use crate::telemetry::logs;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
`status` and `verify` work next to a running bridge. The other commands lock the
folder: `drain` waits until no bridge uses it, `move` and `import` exit with an
error if one does.

Examples:
  apsara-bridge spool status --config bridge.toml
  apsara-bridge spool verify --path /var/lib/apsara-bridge
  apsara-bridge spool drain --config bridge.toml --timeout 10m
  apsara-bridge spool move --config bridge.toml --from kafka --to nats --topic media.rescued
  apsara-bridge spool import --config bridge.toml /mnt/old/spool.db
")]
pub(super) struct Spool {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Print what is in the spool, for which outputs, how old it is, how full it is, and which topics cannot be
    /// published and why.
    Status {
        #[command(flatten)]
        store: StoreArgs,
        /// Print JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Look for damage: in the structure of the database and in every record. Reads all of it.
    Verify {
        #[command(flatten)]
        store: StoreArgs,
    },
    /// Publish everything in the spool, without accepting callbacks. The exit code is 0 if the spool is then empty.
    Drain {
        #[command(flatten)]
        store: StoreArgs,
        /// The longest time, for example 10m. After that the exit code is 1, and the number of records left is printed.
        /// Default: no limit.
        #[arg(long, value_name = "TIME", value_parser = super::span)]
        timeout: Option<Duration>,
    },
    /// Give the records of one output to another, for example when an output was renamed or removed.
    Move {
        #[command(flatten)]
        store: StoreArgs,
        /// Output that the records are for. It does not have to be configured.
        #[arg(long, value_name = "OUTPUT")]
        from: String,
        /// Output to give the records to.
        #[arg(long, value_name = "OUTPUT")]
        to: String,
        /// Topic for all records. Default: each keeps its own.
        #[arg(long)]
        topic: Option<String>,
    },
    /// Add the records and dead letters from the file of another spool, for example of one that was set aside.
    Import {
        #[command(flatten)]
        store: StoreArgs,
        /// File of the other spool. It is only read.
        file: PathBuf,
    },
}

impl Spool {
    pub(super) fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Status { store, json } => store.settings().map(|settings| status(&store, &settings, json)),
            Command::Verify { store } => store.settings().map(|settings| verify(&settings)),
            Command::Drain { store, timeout } => drain(&store, timeout),
            Command::Move { store, from, to, topic } => move_records(&store, &from, &to, topic.as_deref()),
            Command::Import { store, file } => store.settings().map(|settings| import(settings, &file)),
        };
        result.unwrap_or_else(|code| code)
    }
}

fn drain(store: &StoreArgs, timeout: Option<Duration>) -> Result<ExitCode, ExitCode> {
    let mut settings =
        config::load_without_inputs(&store.config.layers()).map_err(|errors| config_errors(&errors))?.settings;
    if let (Some(path), Some(store)) = (&store.path, &mut settings.store) {
        store.path.clone_from(path);
    }
    if let Some(store) = &settings.store {
        there(store)?;
    }
    let (format, filter) = &settings.log;
    logs::start(*format, filter);
    let runtime =
        tokio::runtime::Runtime::new().map_err(|error| fail(format!("the runtime cannot be started: {error}")))?;
    let drained = runtime.block_on(async {
        // As the first process of a container, it would ignore the signal without a handler.
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        tokio::select! {
            drained = service::drain_spool(settings, timeout) => drained.map_err(|error| error.to_string()),
            _ = terminate.recv() => Err("stopped by a signal; what is left stays in the spool".to_owned()),
        }
    });
    // It may still wait for the lock.
    runtime.shutdown_background();
    let drained = match drained {
        Ok(drained) => drained,
        Err(error) => return Ok(fail(error)),
    };
    let left: u64 = drained.left.iter().map(|(_, records)| records).sum();
    let letters = match drained.dead_letters {
        0 => String::new(),
        letters => format!("; {letters} dead letters are stored: see `dead-letters list`"),
    };
    if left == 0 {
        print(format!("the spool is empty{letters}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let outputs = drained.left.iter().map(|(output, records)| format!("{}: {records}", shown_output(output)));
    let outputs = outputs.collect::<Vec<_>>().join(", ");
    let hint = match drained.unknown.iter().next() {
        None => String::new(),
        Some(output) => format!(
            "; output `{output}` is not configured: `spool move --from {output} --to NAME` gives its records to another"
        ),
    };
    Ok(fail(format!("{} left in the spool ({outputs}){hint}{letters}", counted(left))))
}

fn move_records(store: &StoreArgs, from: &str, to: &str, topic: Option<&str>) -> Result<ExitCode, ExitCode> {
    let settings = store.settings()?;
    let loaded = config::load_without_inputs(&store.config.layers()).map_err(|errors| config_errors(&errors))?.settings;
    let Some(output) = loaded.outputs.iter().find(|output| output.name == to) else {
        let names: Vec<&str> = loaded.outputs.iter().map(|output| output.name.as_str()).collect();
        let hint = crate::common::suggest::nearest(to, names.iter().copied())
            .map_or_else(|| format!("outputs are {}", names.join(", ")), |name| format!("did you mean `{name}`?"));
        eprintln!("apsara-bridge: --to: there is no output `{to}`; {hint}");
        return Err(ExitCode::from(USAGE));
    };
    if from == AWAITS_DEAD_LETTERS {
        eprintln!("apsara-bridge: --from: expected the name of an output");
        return Err(ExitCode::from(USAGE));
    }
    if from == to {
        eprintln!("apsara-bridge: --to: expected another output than `{from}`");
        return Err(ExitCode::from(USAGE));
    }
    let topic = match (output.rules.topic, topic) {
        (TopicRule::None(_), Some(_)) => {
            eprintln!("apsara-bridge: --topic: an output of kind {} has no topics; leave it out", output.kind);
            return Err(ExitCode::from(USAGE));
        }
        (TopicRule::None(lane), None) => Some(lane),
        (_, topic) => topic,
    };
    let check = |topic: &str| {
        let template = Template::parse_topic(topic).map_err(|error| error.to_string())?;
        if template.literals().collect::<String>() != topic {
            return Err("expected a topic without attributes".to_owned());
        }
        config::topic_fault(&template, &output.rules.topic, &loaded.type_prefix).map_or(Ok(()), Err)
    };
    if let Some(topic) = topic
        && let Err(error) = check(topic)
    {
        eprintln!("apsara-bridge: --topic: {error}");
        return Err(ExitCode::from(USAGE));
    }
    there(&settings)?;
    let mut offline = Offline::open(settings, None).map_err(fail)?;
    let (topics, records) = offline.topics(from).map_err(fail)?;
    if records == 0 {
        return Ok(fail(format!("the spool has no records for output `{from}`")));
    }
    if topic.is_none() {
        let mut topics: Vec<String> = topics.into_iter().collect();
        topics.sort_unstable();
        for topic in topics {
            if let Err(error) = check(&topic) {
                let message = format!(
                    "topic `{topic}` is not possible on output `{to}`: {error}; name another with --topic. Nothing was \
                     moved"
                );
                return Ok(fail(message));
            }
        }
    }
    let moved = offline.move_records(from, to, topic).map_err(fail)?;
    print(format!("{} moved from {from} to {to}\n", counted(moved)));
    if moved < records {
        return Ok(fail(format!("{} damaged and not moved; see `spool verify`", counted(records - moved))));
    }
    Ok(ExitCode::SUCCESS)
}

fn import(settings: StoreSettings, file: &Path) -> ExitCode {
    let imported = match Offline::open(settings, None).map(|mut offline| offline.import(file)) {
        Ok(Ok(imported)) => imported,
        Ok(Err(error)) => return fail(error),
        Err(error) => return fail(error),
    };
    let Imported { records, dead_letters, repeats, damaged, lost, may_be_more, left } = imported;
    print(format!(
        "imported {} and {dead_letters} dead letters; {repeats} existed already; {damaged} were damaged and are now \
         dead letters\n",
        counted(records)
    ));
    if lost > 0 || may_be_more {
        let or_more = if may_be_more { " or more" } else { "" };
        eprintln!("apsara-bridge: {lost}{or_more} rows of {} could not be read", file.display());
    }
    if left > 0 {
        return fail(format!(
            "there was no room for {left} rows (spool.max_bytes, dead_letters.max_bytes): drain the spool, then import the \
             file again"
        ));
    }
    ExitCode::SUCCESS
}

/// A folder without a spool is an error, not an empty spool.
fn there(settings: &StoreSettings) -> Result<(), ExitCode> {
    if store::file(&settings.path).exists() || !store::set_aside(&settings.path).is_empty() {
        return Ok(());
    }
    let file = store::file(&settings.path);
    Err(fail(format!("there is no spool at {}; set its folder with --path, or use --config", file.display())))
}

/// The output of records, for people. Records that wait for room among the dead letters have no output.
fn shown_output(output: &str) -> &str {
    if output == AWAITS_DEAD_LETTERS { "waiting for room among the dead letters" } else { output }
}

/// How many lanes the text lists. `--json` lists all of them.
const LANES_SHOWN: usize = 20;

/// What the spool holds for one output.
#[derive(Default)]
struct OfOutput {
    topics: usize,
    records: u64,
    bytes: u64,
    oldest: Option<i64>,
}

fn by_output(backlogs: &[Backlog]) -> BTreeMap<&str, OfOutput> {
    let mut outputs: BTreeMap<&str, OfOutput> = BTreeMap::new();
    for backlog in backlogs {
        let of_output = outputs.entry(&backlog.output).or_default();
        of_output.topics += 1;
        of_output.records += backlog.records;
        of_output.bytes += backlog.bytes;
        of_output.oldest = of_output.oldest.into_iter().chain(backlog.oldest).min();
    }
    outputs
}

/// What is in the spool.
struct Status<'s> {
    settings: &'s StoreSettings,
    is_running: bool,
    backlogs: &'s [Backlog],
    /// The configured outputs. Without a configuration nothing can be said about them.
    configured: Option<BTreeMap<String, String>>,
    failing: FailingLanes,
    dead_letters: u64,
    dead_letter_bytes: u64,
    set_aside: Vec<PathBuf>,
}

impl Status<'_> {
    fn is_known(&self, output: &str) -> bool {
        output == AWAITS_DEAD_LETTERS || self.configured.as_ref().is_none_or(|known| known.contains_key(output))
    }

    fn bytes(&self) -> u64 {
        self.backlogs.iter().map(|backlog| backlog.bytes).sum()
    }

    fn records(&self) -> u64 {
        self.backlogs.iter().map(|backlog| backlog.records).sum()
    }

    fn json(&self) -> serde_json::Value {
        let FailingLanes { lanes: failing, not_named } = &self.failing;
        let outputs = by_output(self.backlogs).into_iter().map(|(output, of_output)| {
            json!({
                "output": output,
                "is_configured": self.configured.is_some().then(|| self.is_known(output)),
                "topics": of_output.topics,
                "records": of_output.records,
                "bytes": of_output.bytes,
                "oldest_seconds": of_output.oldest.map(|at| age(at).as_secs_f64()),
            })
        });
        let failing: HashMap<(&str, &str), &FailingLane> =
            failing.iter().map(|lane| ((lane.output.as_str(), lane.topic.as_str()), lane)).collect();
        let lanes = self.backlogs.iter().map(|backlog| {
            let failing = failing.get(&(backlog.output.as_str(), backlog.topic.as_str()));
            let state = match failing {
                Some(_) => Some(LANE_STATES[1]),
                // It may be one of those that are not named.
                None if *not_named > 0 => None,
                None => Some(LANE_STATES[0]),
            };
            json!({
                "output": backlog.output,
                "topic": backlog.topic,
                "records": backlog.records,
                "bytes": backlog.bytes,
                "oldest_seconds": backlog.oldest.map(|at| age(at).as_secs_f64()),
                "state": state,
                "failing": failing,
            })
        });
        json!({
            "path": self.settings.path.display().to_string(),
            "bridge_is_running": self.is_running,
            "records": self.records(),
            "bytes": self.bytes(),
            "max_bytes": self.settings.bounds.spool_max_bytes,
            "outputs": outputs.collect::<Vec<_>>(),
            "lanes": lanes.collect::<Vec<_>>(),
            "failing_lanes_not_named": not_named,
            "dead_letters": self.dead_letters,
            "dead_letters_bytes": self.dead_letter_bytes,
            "dead_letters_max_bytes": self.settings.bounds.dead_letters_max_bytes,
            "set_aside": self.set_aside.iter().map(|file| file.display().to_string()).collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let bounds = &self.settings.bounds;
        let share =
            |bytes: u64, max: u64| format!("{bytes} of {max} bytes ({:.1}%)", 100.0 * bytes as f64 / max as f64);
        let letters =
            format!("{}, {}", self.dead_letters, share(self.dead_letter_bytes, bounds.dead_letters_max_bytes));
        let mut rows = vec![
            vec!["Path".to_owned(), store::file(&self.settings.path).display().to_string()],
            vec!["Bridge".to_owned(), if self.is_running { "running" } else { "not running" }.to_owned()],
            vec![
                "Spool".to_owned(),
                format!("{}, {}", counted(self.records()), share(self.bytes(), bounds.spool_max_bytes)),
            ],
            vec!["Dead letters".to_owned(), letters],
        ];
        for (output, of_output) in by_output(self.backlogs) {
            let oldest =
                of_output.oldest.map_or_else(String::new, |at| format!(", the oldest waits for {}", seconds(age(at))));
            let topics = if of_output.topics > 1 { format!(" of {} topics", of_output.topics) } else { String::new() };
            let hint = if self.is_known(output) { "" } else { "; this output is not configured: see `spool move`" };
            rows.push(vec![
                format!("For {}", shown_output(output)),
                format!("{}{topics}, {}{oldest}{hint}", counted(of_output.records), Size(of_output.bytes)),
            ]);
        }
        for lane in self.failing.lanes.iter().take(LANES_SHOWN) {
            rows.push(vec!["Failing".to_owned(), failing_lane(lane)]);
        }
        let more = self.failing.lanes.len().saturating_sub(LANES_SHOWN) + self.failing.not_named;
        if more > 0 {
            rows.push(vec!["Failing".to_owned(), format!("{more} more topics: see `spool status --json`")]);
        }
        for file in &self.set_aside {
            rows.push(vec!["Set aside".to_owned(), format!("{}: damaged; see `spool import`", file.display())]);
        }
        table(&rows)
    }
}

fn status(store: &StoreArgs, settings: &StoreSettings, as_json: bool) -> ExitCode {
    let read = Database::open(&settings.path, Access::Read)
        .and_then(|database| Ok((database.backlogs()?, database.dead_letter_totals()?)));
    let (backlogs, (dead_letters, dead_letter_bytes)) = match read {
        Ok(read) => read,
        Err(error) => return fail(super::unreadable(settings, &error)),
    };
    let is_running = store::is_running(&settings.path);
    // The report of a bridge that has ended says nothing about now.
    let mut failing = if is_running { FailingLanes::read(&settings.path) } else { FailingLanes::default() };
    let records_of: HashMap<(&str, &str), u64> =
        backlogs.iter().map(|backlog| ((backlog.output.as_str(), backlog.topic.as_str()), backlog.records)).collect();
    failing.lanes.retain_mut(|lane| {
        let records = records_of.get(&(lane.output.as_str(), lane.topic.as_str()));
        records.inspect(|records| lane.records = **records).is_some()
    });
    let status = Status {
        settings,
        is_running,
        backlogs: &backlogs,
        configured: store.config.is_given().then(|| config::load_output_kinds(&store.config.layers()).ok()).flatten(),
        failing,
        dead_letters,
        dead_letter_bytes,
        set_aside: store::set_aside(&settings.path),
    };
    if as_json {
        print_json(format!("{:#}\n", status.json()));
    } else {
        print(status.table());
    }
    ExitCode::SUCCESS
}

fn failing_lane(lane: &FailingLane) -> String {
    let FailingLane { output, topic, records, since, attempts, reason, error, remedy } = lane;
    let since = seconds(age(since.saturating_mul(1000)));
    let remedy = if remedy.is_empty() { String::new() } else { format!("; {remedy}") };
    let attempts = if *attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    format!("{output}/{topic}: {}, {attempts} in {since}, {reason}: {error}{remedy}", counted(*records))
}

fn seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

fn verify(settings: &StoreSettings) -> ExitCode {
    match Database::open(&settings.path, Access::Read).and_then(|mut database| database.verify(None)) {
        Ok(verified) if verified.damaged.is_empty() => {
            print(format!("sound: {}\n", counted(verified.records)));
            ExitCode::SUCCESS
        }
        Ok(verified) => {
            let places: Vec<String> = verified.damaged.iter().take(20).map(i64::to_string).collect();
            fail(format!(
                "{} of {} records were changed on the disk: number {}{}; the bridge makes them dead letters",
                verified.damaged.len(),
                verified.records,
                places.join(", "),
                if verified.damaged.len() > places.len() { ", …" } else { "" }
            ))
        }
        Err(error) if error.kind == FailureKind::Damaged => {
            fail(format!("damaged: {error}; at its next start the bridge copies what can be read into a new file"))
        }
        Err(error) => fail(super::unreadable(settings, &error)),
    }
}

fn counted(records: u64) -> String {
    if records == 1 { "1 record".to_owned() } else { format!("{records} records") }
}
