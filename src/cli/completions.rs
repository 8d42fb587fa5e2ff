//! `completions`: scripts that complete the command line in shells.
//!
//! The scripts follow from the command table: a path completes files, a fixed list its words, and anything else nothing.
//! What the generators of clap leave out is added here.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::{PossibleValuesParser, Resettable};
use clap::{Arg, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use super::Cli;
use super::callbacks::normalizer;
use super::terminal::print;
use crate::dialect::SAMPLES;

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
        let command = Cli::command();
        let name = command.get_name().to_owned();
        let mut command = hinted(command, &event_types());
        let leaves = leaves(&command, &[]);
        if self.shell == Shell::Bash {
            command = without_placeholders(command);
        }
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut command, &name, &mut script);
        let mut script = String::from_utf8_lossy(&script).into_owned();
        match self.shell {
            Shell::Bash => leaves.iter().for_each(|leaf| bash_files(&mut script, &name, leaf)),
            Shell::Fish => leaves.iter().for_each(|leaf| fish_arguments(&mut script, &name, leaf)),
            _ => {}
        }
        print(script);
        ExitCode::SUCCESS
    }
}

/// The names of the event types that the program knows, each once.
fn event_types() -> Vec<&'static str> {
    let Ok(normalizer) = normalizer() else { return Vec::new() };
    let names: BTreeSet<&str> = normalizer.catalogue().events().iter().map(|event| event.name.as_str()).collect();
    // The program ends soon.
    names.into_iter().map(|name| &*name.to_owned().leak()).collect()
}

/// The command with what completes the value of each argument.
fn hinted(command: Command, event_types: &[&'static str]) -> Command {
    let mut more = None;
    let command = command.mut_args(|argument| {
        let takes_several = argument.get_num_args().is_some_and(|values| values.max_values() > 1);
        let argument = match argument.get_id().as_str() {
            _ if !argument.get_action().takes_values() => argument,
            // Commands accept other names too, so these words are only for completion.
            "event_type" => argument.value_parser(PossibleValuesParser::new(event_types.to_vec())),
            "fixture" => argument.value_parser(PossibleValuesParser::new(SAMPLES.iter().map(|(name, _)| *name))),
            _ => match argument.get_value_hint() {
                ValueHint::AnyPath => argument.value_hint(ValueHint::FilePath),
                ValueHint::Unknown if !words(&argument).is_empty() => argument,
                ValueHint::Unknown => argument.value_hint(ValueHint::Other),
                _ => argument,
            },
        };
        // The generators complete one value of an option. Further ones look like an argument of the command.
        if takes_several && !argument.is_positional() {
            let rest = Arg::new("FILE").num_args(0..).value_parser(clap::value_parser!(PathBuf));
            more = Some(rest.value_hint(argument.get_value_hint()));
        }
        argument
    });
    let command = match more {
        Some(rest) => command.arg(rest),
        None => command,
    };
    command.mut_subcommands(|command| hinted(command, event_types))
}

/// The words of an argument with a fixed list.
fn words(argument: &Arg) -> Vec<String> {
    if !argument.get_action().takes_values() {
        return Vec::new();
    }
    let values = argument.get_value_parser().possible_values().into_iter().flatten();
    values.filter(|value| !value.is_hide_set()).map(|value| value.get_name().to_owned()).collect()
}

/// The command for bash, whose generator offers the name of an argument as a word.
fn without_placeholders(command: Command) -> Command {
    let nothing = || PossibleValuesParser::new(Vec::<&str>::new());
    let command = command.mut_args(|argument| {
        if argument.is_positional() && words(&argument).is_empty() {
            argument.default_value(Resettable::<clap::builder::OsStr>::Reset).value_parser(nothing())
        } else {
            argument
        }
    });
    command.mut_subcommands(without_placeholders)
}

/// A command without commands of its own.
struct Leaf {
    /// The names of the commands that lead to it, and its own.
    path: Vec<String>,
    /// What its arguments can be, apart from options.
    words: Vec<String>,
    /// Whether they can be files.
    takes_files: bool,
}

fn leaves(command: &Command, path: &[String]) -> Vec<Leaf> {
    if command.has_subcommands() {
        let below = command.get_subcommands().map(|command| (command, command.get_name().to_owned()));
        return below.flat_map(|(command, name)| leaves(command, &[path, &[name]].concat())).collect();
    }
    let takes_files = command.get_positionals().any(|argument| argument.get_value_hint() == ValueHint::FilePath);
    vec![Leaf { path: path.to_vec(), words: command.get_positionals().flat_map(words).collect(), takes_files }]
}

/// Lets bash complete files where a command takes them. Without this it offers the options for an empty word.
fn bash_files(script: &mut String, name: &str, leaf: &Leaf) {
    if !leaf.takes_files {
        return;
    }
    let function = format!("{name}__{}", leaf.path.join("__")).replace('-', "__");
    let Some(start) = script.find(&format!("\n        {function})\n            opts=")) else { return };
    let Some(length) = script[start..].find("\n            ;;") else { return };
    let part = &script[start..start + length];
    let depth = leaf.path.len() + 1;
    let part = part.replace(&format!(" || ${{COMP_CWORD}} -eq {depth} ]]"), " ]]");
    // The last one is for words that are not options. Without any, bash completes files.
    let options = "\n            COMPREPLY=( $(compgen -W \"${opts}\" -- \"${cur}\") )";
    let part = match part.rsplit_once(options) {
        Some((before, after)) => format!("{before}{after}"),
        None => part,
    };
    script.replace_range(start..start + length, &part);
}

/// Lets fish complete arguments that are not options, which its generator leaves out.
fn fish_arguments(script: &mut String, name: &str, leaf: &Leaf) {
    let using = format!("__fish_{}_using_subcommand", name.replace('-', "_"));
    let condition = match &leaf.path[..] {
        [command] => format!("{using} {command}"),
        [command, below] => format!("{using} {command}; and __fish_seen_subcommand_from {below}"),
        _ => return,
    };
    if !leaf.takes_files {
        let words = leaf.words.join(" ");
        let offered = if words.is_empty() { String::new() } else { format!(" -a \"{words}\"") };
        let _ = writeln!(script, "complete -c {name} -n \"{condition}\" -f{offered}");
    }
}
