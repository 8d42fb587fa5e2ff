//! The programs of `examples/consumers`, as `tests/support/setup examples` installs or builds them.

use std::path::Path;
use std::process::Command;

use crate::support::process::Process;
use crate::support::wait::{SOON, START};
use crate::support::{installed, repository_text, tool};
use crate::traffic::Report;

/// The code of a program that SIGTERM ends.
const TERMINATED: i32 = 128 + 15;

/// An example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Example {
    Python,
    JavaScript,
    Go,
    Java,
}

impl Example {
    /// Those that read from Kafka.
    pub const KAFKA: [Example; 3] = [Example::Python, Example::JavaScript, Example::Java];

    /// The name of its folder.
    pub fn name(self) -> &'static str {
        match self {
            Example::Python => "python",
            Example::JavaScript => "javascript",
            Example::Go => "go",
            Example::Java => "java",
        }
    }

    /// The command that its head names.
    fn command(self) -> Command {
        let folder = installed(&format!("examples-{}", self.name()), "examples");
        let source = match self {
            Example::Python => "consumer.py",
            Example::JavaScript => "consumer.js",
            Example::Go => "main.go",
            Example::Java => "src/main/java/Consumer.java",
        };
        let copy = std::fs::read_to_string(folder.join(source)).expect("the set-up copies it");
        let name = format!("examples/consumers/{}/{source}", self.name());
        assert!(copy == repository_text(&name), "{name} has changed: run `tests/support/setup examples`");
        let mut command = match self {
            Example::Python => Command::new(folder.join("bin/python")),
            Example::JavaScript => Command::new(tool("node", "examples")),
            Example::Go => Command::new(folder.join("consumer")),
            Example::Java => Command::new(tool("java", "examples")),
        };
        match self {
            Example::Python | Example::JavaScript => drop(command.arg(source)),
            Example::Go => {}
            Example::Java => drop(command.args(["-cp", "target/classes:target/libs/*", "Consumer"])),
        }
        command.current_dir(folder);
        command
    }
}

/// An example that runs.
#[derive(Debug)]
pub struct Run {
    example: Example,
    process: Process,
}

impl Run {
    /// Starts it. Its output goes to the file `log`.
    pub fn start(example: Example, log: &Path, environment: &[(&str, &str)]) -> Run {
        let mut command = example.command();
        command.envs(environment.iter().copied());
        Run { example, process: Process::start(example.name(), &command, log, None) }
    }

    pub fn example(&self) -> Example {
        self.example
    }

    pub fn name(&self) -> &'static str {
        self.example.name()
    }

    /// What it has printed so far.
    pub fn report(&self) -> Report {
        Report::read(&self.process.log())
    }

    /// The end of its output.
    pub fn log(&self) -> String {
        self.process.log_tail()
    }

    /// Its exit code, if it has ended.
    pub fn exit_code(&self) -> Option<i32> {
        self.process.exit_code()
    }

    /// Waits while it runs. Blocks the thread.
    pub fn wait<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        self.process.wait_ready(SOON, look)
    }

    /// Freezes it.
    pub fn freeze(&self) {
        self.process.stop();
    }

    /// Lets it continue.
    pub fn cont(&self) {
        self.process.cont();
    }

    /// Stops it with SIGTERM, and returns what it has printed. Blocks the thread.
    ///
    /// # Panics
    /// It had ended before, or ends with an error.
    pub fn stop(&self) -> Report {
        assert_eq!(self.exit_code(), None, "{} has ended:\n{}", self.name(), self.log());
        self.process.signal("TERM");
        // Java ends with this code also after its own end was orderly.
        let expected = if self.example == Example::Java { TERMINATED } else { 0 };
        assert_eq!(self.process.wait(START), Some(expected), "{}:\n{}", self.name(), self.log());
        self.report()
    }

    /// Kills it, and returns what it has printed. Blocks the thread.
    pub fn kill(&self) -> Report {
        self.process.kill();
        self.report()
    }
}
