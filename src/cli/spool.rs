//! `spool`: looks at what lies on the disk, whether a bridge runs or not.

use std::process::ExitCode;

use serde_json::json;

use super::{StoreArgs, age, fail, print, table};
use crate::store::database::{Access, Backlog, Database, FailureKind};
use crate::store::{self, StoreSettings};
use crate::setting::Size;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Works beside a running bridge and without one.

Examples:
  apsara-bridge spool status --config bridge.toml
  apsara-bridge spool verify --path /var/lib/apsara-bridge
")]
pub(super) struct Spool {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Tell what lies in the spool, for which outputs, how old it is, and how full it is.
    Status {
        #[command(flatten)]
        store: StoreArgs,
        /// As JSON, for programs.
        #[arg(long)]
        json: bool,
    },
    /// Look for damage: in the structure of the database and in every record. Reads all of it.
    Verify {
        #[command(flatten)]
        store: StoreArgs,
    },
}

impl Spool {
    pub(super) fn run(self) -> ExitCode {
        match self.command {
            Command::Status { store, json } => match store.settings() {
                Ok(settings) => status(&settings, json),
                Err(code) => code,
            },
            Command::Verify { store } => match store.settings() {
                Ok(settings) => verify(&settings),
                Err(code) => code,
            },
        }
    }
}

fn status(settings: &StoreSettings, as_json: bool) -> ExitCode {
    let read = Database::open(&settings.path, Access::Read)
        .and_then(|database| Ok((database.backlogs()?, database.letter_totals()?)));
    let (backlogs, (letters, letter_bytes)) = match read {
        Ok(read) => read,
        Err(error) => return fail(super::unreadable(settings, &error)),
    };
    let bytes: u64 = backlogs.iter().map(|backlog| backlog.bytes).sum();
    let records: u64 = backlogs.iter().map(|backlog| backlog.records).sum();
    let is_running = store::is_running(&settings.path);
    let oldest = |backlog: &Backlog| backlog.oldest.map(age);
    if as_json {
        let outputs = backlogs.iter().map(|backlog| {
            json!({
                "output": backlog.output,
                "records": backlog.records,
                "bytes": backlog.bytes,
                "oldest_seconds": oldest(backlog).map(|age| age.as_secs_f64()),
            })
        });
        let status = json!({
            "path": settings.path.display().to_string(),
            "bridge_is_running": is_running,
            "records": records,
            "bytes": bytes,
            "max_bytes": settings.spool_max_bytes,
            "outputs": outputs.collect::<Vec<_>>(),
            "dead_letters": letters,
            "dead_letters_bytes": letter_bytes,
            "dead_letters_max_bytes": settings.dead_letters_max_bytes,
        });
        print(format!("{status:#}\n"));
        return ExitCode::SUCCESS;
    }
    let share = |bytes: u64, max: u64| format!("{bytes} of {} bytes ({:.1}%)", max, 100.0 * bytes as f64 / max as f64);
    let mut rows = vec![
        vec!["Path".to_owned(), store::file(&settings.path).display().to_string()],
        vec!["Bridge".to_owned(), if is_running { "running" } else { "not running" }.to_owned()],
        vec!["Spool".to_owned(), format!("{}, {}", counted(records), share(bytes, settings.spool_max_bytes))],
        vec!["Dead letters".to_owned(), format!("{letters}, {}", share(letter_bytes, settings.dead_letters_max_bytes))],
    ];
    for backlog in &backlogs {
        let oldest = oldest(backlog).map_or_else(String::new, |age| {
            format!(", the oldest for {}", humantime::format_duration(std::time::Duration::from_secs(age.as_secs())))
        });
        rows.push(vec![
            format!("For {}", backlog.output),
            format!("{}, {}{oldest}", counted(backlog.records), Size(backlog.bytes)),
        ]);
    }
    print(table(&rows));
    ExitCode::SUCCESS
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
                "{} of {} records were changed on the disk: number {}{}; the bridge makes dead letters of them",
                verified.damaged.len(),
                verified.records,
                places.join(", "),
                if verified.damaged.len() > places.len() { ", …" } else { "" }
            ))
        }
        Err(error) if error.kind == FailureKind::Damaged => fail(format!(
            "damaged: {error}; at its next start the bridge sets it aside and takes over what can be read"
        )),
        Err(error) => fail(super::unreadable(settings, &error)),
    }
}

fn counted(records: u64) -> String {
    if records == 1 { "1 record".to_owned() } else { format!("{records} records") }
}
