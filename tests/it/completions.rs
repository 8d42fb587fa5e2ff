//! `apsara-bridge completions`: the script completes the command line in a real bash.

use std::process::Command;

use crate::support::program::{self, command};

fn script(shell: &str) -> String {
    let (code, out, error) = program::run(command(&["completions", shell]));
    assert_eq!((code, error.as_str()), (0, ""));
    out
}

/// What bash offers for the last of some words.
fn offered(folder: &std::path::Path, words: &[&str]) -> Vec<String> {
    // What readline does: it calls the function that `complete` has registered, with the words in an array.
    const COMPLETE: &str = r#"
        set -eu
        source "$1"; shift
        [[ $(complete -p apsara-bridge) =~ -F\ ([^ ]+) ]]
        COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_POINT=${#COMP_LINE} COMPREPLY=()
        "${BASH_REMATCH[1]}" "$1" "${*: -1}" "${*: -2:1}"
        [ ${#COMPREPLY[@]} = 0 ] || printf '%s\n' "${COMPREPLY[@]}"
    "#;
    let file = folder.join("completions.bash");
    if !file.exists() {
        std::fs::write(&file, script("bash")).expect("written");
    }
    let mut bash = Command::new("bash");
    bash.args(["--norc", "-c", COMPLETE, "bash"]).arg(&file).arg("apsara-bridge").args(words).current_dir(folder);
    let (code, out, error) = program::run(bash);
    assert_eq!((code, error.as_str()), (0, ""), "{words:?}");
    out.lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_options_words_and_files() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("bridge.toml"), "").expect("written");
    let offered = |words: &[&str]| offered(folder.path(), words);
    assert_eq!(offered(&["ch"]), ["check"]);
    assert_eq!(offered(&["comp"]), ["completions"]);
    assert_eq!(offered(&["dead-letters", "re"]), ["replay"]);
    assert_eq!(offered(&["spool", "ve"]), ["verify"]);
    assert_eq!(offered(&["test", "--te"]), ["--tests"]);
    assert_eq!(offered(&["check", "--st"]), ["--strict"]);
    assert_eq!(offered(&["test", "--config", "bri"]), ["bridge.toml"]);
    assert_eq!(offered(&["test", "--tests", "bri"]), ["bridge.toml"]);
    assert_eq!(
        offered(&["completions", ""]).into_iter().filter(|word| !word.starts_with('-')).collect::<Vec<_>>(),
        ["bash", "elvish", "fish", "powershell", "zsh"]
    );

    // Every command of the help.
    let (_, help, _) = program::run(command(&["--help"]));
    let listed = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next()).expect("a list");
    let commands: Vec<&str> = listed
        .lines()
        .filter_map(|line| line.strip_prefix("  ")?.split(' ').next())
        .filter(|name| !name.is_empty())
        .collect();
    let offered: Vec<String> = offered(&[""]).into_iter().filter(|word| !word.starts_with('-')).collect();
    assert!(
        commands.len() > 12 && commands.iter().all(|name| offered.iter().any(|other| other == name)),
        "{offered:?}"
    );
    assert_eq!(commands.len(), offered.len());
}

#[test]
fn other_shells_have_scripts_with_every_command() {
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        let script = script(shell);
        for word in ["completions", "dead-letters", "config-schema", "strict"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let (code, out, error) = program::run(command(&["completions", "tcsh"]));
    assert!(code == 2 && out.is_empty() && error.contains("bash, elvish, fish, powershell, zsh"), "{error}");
    assert_eq!(program::run(command(&["completions"])).0, 2);
}
