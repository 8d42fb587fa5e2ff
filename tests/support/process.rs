//! Child processes that never outlive the process that started them, and whose output can be read afterwards.
//!
//! The child is started by a shell that holds the reading end of a pipe from this process. When this process ends in
//! any way, by a panic, `exit` or SIGKILL, the kernel closes the other end, and the shell kills the child. This needs
//! neither unsafe code nor a parent-death signal, and works for programs that cannot be changed.
//!
//! Promises: a dropped [`Process`] is dead and reaped. Standard output and error are appended to the log file. The
//! child reads nothing from standard input. Ctrl-C in a terminal reaches this process but not the child, which is
//! killed because this process ends. A child that does not handle SIGINT ignores it, because a shell starts background
//! programs that way.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::wait::{SOON, try_wait_for};
use super::wait_for;

/// The shell. `$1` is the log, `$2` a folder to remove when this process has ended ('' for none), the rest the child.
///
/// A line on the pipe is a request to kill the child. The end of the pipe means that this process has ended. Then
/// nobody else can remove the folder: the destructor of a `static` never runs, and after SIGKILL no destructor runs.
/// The watcher reports the second case with USR1. The main shell reaps the child, so its pid cannot belong to another
/// program while the watcher might still kill it.
const KEEPER: &str = r#"
log=$1 folder=$2
shift 2
exec 3<&0
gone=
trap 'gone=1' USR1
"$@" 3<&- </dev/null >>"$log" 2>&1 &
pid=$!
{ read -r _ <&3 || kill -USR1 $$; kill -KILL "$pid"; } >/dev/null 2>&1 &
watcher=$!
exec 3<&-
echo "$pid"
exec >/dev/null
wait "$pid"
status=$?
if [ -n "$gone" ]; then
    wait "$pid"
    [ -z "$folder" ] || rm -rf -- "$folder"
fi
kill -KILL "$watcher"
exit "$status"
"#;

/// How much of the log an error shows.
const TAIL_LINES: usize = 40;

/// A running (or ended) child process.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: u32,
    log: PathBuf,
    keeper: Mutex<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    shell: Child,
    pipe: ChildStdin,
    status: Option<i32>,
}

impl Process {
    /// Starts the program, arguments, environment and folder of `command`. Its standard streams are replaced, and
    /// `env_clear` is ignored. `remove` is deleted if this process ends without dropping the [`Process`].
    pub fn start(name: &str, command: &Command, log: &Path, remove: Option<&Path>) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", KEEPER, "keeper"]).arg(log).arg(remove.unwrap_or(Path::new("")));
        shell.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(key, value),
                None => shell.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            shell.current_dir(folder);
        }
        // In its own group, or Ctrl-C would end the shell before it can kill the child.
        shell.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut shell =
            shell.spawn().unwrap_or_else(|error| panic!("sh does not start, so {name} cannot start: {error}"));
        let pipe = shell.stdin.take().expect("standard input is a pipe");
        let mut line = String::new();
        BufReader::new(shell.stdout.take().expect("standard output is a pipe"))
            .read_line(&mut line)
            .unwrap_or_else(|error| panic!("the shell that runs {name} does not answer: {error}"));
        let pid = line.trim().parse().unwrap_or_else(|_| {
            panic!("{name} could not be started: does the folder of its log {} exist?", log.display())
        });
        Self {
            name: name.to_owned(),
            pid,
            log: log.to_owned(),
            keeper: Mutex::new(Keeper { shell, pipe, status: None }),
        }
    }

    /// The child's process id (not the shell's).
    pub fn id(&self) -> u32 {
        self.pid
    }

    /// The file with what the child wrote on standard output and error.
    pub fn log_file(&self) -> &Path {
        &self.log
    }

    /// What the child has written so far.
    pub fn log(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// The last lines of the log, for an error message.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
        if tail.is_empty() { format!("{} wrote nothing", self.name) } else { tail.join("\n") }
    }

    /// Sends the signal `name` ("TERM", "STOP", "HUP" ...) to the child, if it still runs.
    pub fn signal(&self, name: &str) {
        // Read under the lock, which reaping the shell needs too, so the pid is still the child's.
        let mut keeper = self.lock();
        if keeper.ended().is_some() {
            return;
        }
        // The shell's own `kill`, because a slim system may have no such program.
        let pid = self.pid.to_string();
        let status = Command::new("sh")
            .args(["-c", r#"kill -s "$1" "$2""#, "kill", name, &pid])
            .stderr(Stdio::null())
            .status()
            .expect("sh runs");
        assert!(status.success() || keeper.ended().is_some(), "SIG{name} could not be sent to {}", self.name);
    }

    /// Freezes the child, and returns when none of its threads runs any more: sending the signal does not wait for
    /// that, and a server could answer one more time. Linux only, like the tests that freeze.
    pub fn stop(&self) {
        self.signal("STOP");
        wait_for(&format!("{} to freeze", self.name), SOON, || {
            let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).ok()?;
            let stopped = |thread: &Path| state(&thread.join("stat")).is_none_or(|state| state == 'T');
            threads.flatten().all(|thread| stopped(&thread.path())).then_some(())
        });
    }

    /// Lets a frozen child continue.
    pub fn cont(&self) {
        self.signal("CONT");
    }

    /// Kills the child with SIGKILL, even if it is stopped, and returns when it has ended and its ports are free.
    pub fn kill(&self) {
        let mut keeper = self.lock();
        // If the write fails, the shell has ended, and it ends only after the child.
        let _ = keeper.pipe.write_all(b"kill\n");
        let status = keeper.shell.wait().expect("the shell is our child");
        keeper.status.get_or_insert(status.code().unwrap_or(-1));
    }

    /// The exit code once the child has ended; 128 and the signal's number if a signal ended it, like in a shell.
    pub fn exit_code(&self) -> Option<i32> {
        self.lock().ended()
    }

    /// Waits for the child to end by itself: its exit code as of [`exit_code`](Self::exit_code), or `None` if it
    /// still runs after `timeout`. Blocks the thread.
    pub fn wait(&self, timeout: Duration) -> Option<i32> {
        try_wait_for(timeout, || self.exit_code())
    }

    /// Waits until `ready` returns something. Blocks the thread.
    ///
    /// # Panics
    /// The child ends or `timeout` passes first. The message contains the end of the log.
    pub fn wait_ready<T>(&self, timeout: Duration, mut ready: impl FnMut() -> Option<T>) -> T {
        let found = try_wait_for(timeout, || {
            let ended = || self.exit_code().map(Err);
            ready().map(Ok).or_else(ended)
        });
        match found {
            Some(Ok(found)) => found,
            Some(Err(code)) => {
                panic!("{} ended with exit code {code} before it was ready:\n{}", self.name, self.log_tail())
            }
            None => panic!("{} is not ready after {timeout:?}:\n{}", self.name, self.log_tail()),
        }
    }

    /// Waits until the log contains `text`. Blocks the thread.
    ///
    /// # Panics
    /// Like [`wait_ready`](Self::wait_ready).
    pub fn wait_log(&self, text: &str, timeout: Duration) {
        self.wait_ready(timeout, || self.log().contains(text).then_some(()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Keeper> {
        self.keeper.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Keeper {
    fn ended(&mut self) -> Option<i32> {
        if self.status.is_none() {
            let status = self.shell.try_wait().expect("the shell is our child");
            self.status = status.map(|status| status.code().unwrap_or(-1));
        }
        self.status
    }
}

/// Whether a process with this id exists. A zombie does not count. Linux only, like the tests that use this.
pub fn exists(pid: u32) -> bool {
    state(Path::new(&format!("/proc/{pid}/stat"))).is_some_and(|state| state != 'Z')
}

/// The state letter in a `stat` file of /proc. It follows the name of the program, which is in parentheses and may
/// contain some itself.
fn state(stat: &Path) -> Option<char> {
    std::fs::read_to_string(stat).ok()?.rsplit_once(") ")?.1.chars().next()
}

/// Waits until no process has this id any more.
pub fn wait_gone(pid: u32, timeout: Duration) {
    wait_for(&format!("the end of process {pid}"), timeout, || (!exists(pid)).then_some(()));
}
