//! `completions`: scripts that complete the command line in shells.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::Cli;
use super::terminal::print;

/// Arguments.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The script completes commands, options, words with a fixed list, and names of
files. Print it again after an update of apsara-bridge.

Examples:
  source <(apsara-bridge completions bash)            for this shell
  apsara-bridge completions bash > ~/.local/share/bash-completion/completions/apsara-bridge
  apsara-bridge completions zsh > ~/.zfunc/_apsara-bridge        a folder in fpath
  apsara-bridge completions fish > ~/.config/fish/completions/apsara-bridge.fish
")]
pub(super) struct Completions {
    /// The shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> ExitCode {
        let mut command = Cli::command();
        let name = command.get_name().to_owned();
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, name, &mut script);
        print(script);
        ExitCode::SUCCESS
    }
}
