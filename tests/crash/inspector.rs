//! Opens folders with the real store, in separate processes. If one hangs or crashes, this is a fault, and the test
//! continues.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use crate::check::Found;
use crate::stage::ITSELF;

/// How long opening and reading a folder may take before it counts as a hang.
const HANGS: Duration = Duration::from_secs(15);

/// Opens the store in a folder and reads all of it.
pub type Inspect = fn(&Path) -> Result<Found, String>;

/// A process that inspects one folder after the other.
pub struct Inspector {
    child: Child,
    folders: ChildStdin,
    answers: Receiver<String>,
}

impl Inspector {
    pub fn start(role: &str) -> Inspector {
        let mut command = Command::new(ITSELF);
        command.env("CRASH_ROLE", role).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the test can start itself");
        let folders = child.stdin.take().expect("it is a pipe");
        let lines = BufReader::new(child.stdout.take().expect("it is a pipe")).lines();
        let (sender, answers) = channel();
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Inspector { child, folders, answers }
    }

    /// The contents of a folder. After an outer error the process cannot be used any more.
    pub fn inspect(&mut self, folder: &Path) -> Result<Result<Found, String>, String> {
        // A process that has ended gives no answer either.
        let _ = writeln!(self.folders, "{}", folder.display());
        match self.answers.recv_timeout(HANGS) {
            Ok(line) => Ok(parse(&line)),
            Err(RecvTimeoutError::Timeout) => Err(format!("the store hangs: no answer in {HANGS:?}")),
            Err(RecvTimeoutError::Disconnected) => {
                Err(format!("the store crashed its process: {:?}", self.child.wait()))
            }
        }
    }
}

impl Drop for Inspector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The part that runs in the process.
pub fn run(inspect: Inspect) -> Result<(), String> {
    for folder in std::io::stdin().lines().map_while(Result::ok) {
        let answer = match inspect(Path::new(&folder)) {
            Ok(Found { events, wrong, opened_in }) => {
                let events = events.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
                format!("{}\t{events}\t{}", opened_in.as_micros(), wrong.join("\t"))
            }
            Err(error) => format!("error\t{error}"),
        };
        println!("{}", answer.replace('\n', "; "));
    }
    Ok(())
}

fn parse(line: &str) -> Result<Found, String> {
    let mut parts = line.split('\t');
    let opened_in = parts.next().unwrap_or_default();
    let Ok(opened_in) = opened_in.parse().map(Duration::from_micros) else {
        return Err(parts.collect::<Vec<_>>().join(" "));
    };
    let events = parts.next().unwrap_or_default().split_whitespace();
    Ok(Found {
        opened_in,
        events: events.map(|number| number.parse().expect("events are numbers")).collect(),
        wrong: parts.filter(|wrong| !wrong.is_empty()).map(str::to_owned).collect(),
    })
}
