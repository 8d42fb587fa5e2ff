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
        # Only readline has it.
        compopt() { :; }
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
    // Without an offer bash completes files.
    for words in
        [&["normalize", ""][..], &["explain", ""], &["send", "http://127.0.0.1/", ""], &["spool", "import", ""]]
    {
        assert_eq!(offered(words), [""; 0], "{words:?}");
    }
    assert_eq!(offered(&["normalize", "--pr"]), ["--pretty"]);
    assert_eq!(offered(&["test", "--tests", "a.toml", ""]), [""; 0]);
    for command in [["send", "--dialect"], ["schema", "--dialect"], ["catalogue", "--dialect"]] {
        assert_eq!(offered(&[&command[..], &[""]].concat()), ["vod", "ims"]);
    }
    assert_eq!(offered(&["dead-letters", "list", "--reason", "unr"]), ["unrouted"]);
    assert_eq!(offered(&["send", "--type", "TranscodeC"]), ["TranscodeComplete"]);
    assert_eq!(offered(&["schema", "TranscodeC"]), ["TranscodeComplete"]);
    assert_eq!(offered(&["doctor", "--publish-test", "bri"]), ["bri"], "no file");

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

/// What the generators of clap leave out or complete with files.
#[test]
fn scripts_complete_files_only_where_files_are_expected() {
    let bash = script("bash");
    for placeholder in ["[FILE]", "<TARGET>", "<FILE>", "[EVENT_TYPE]", "[IDS]"] {
        assert!(!bash.contains(placeholder), "{placeholder}");
    }
    let zsh = script("zsh");
    assert!(!zsh.contains(":_default'"), "every value has a hint");
    let test = zsh.split("\n(test)\n").nth(1).and_then(|rest| rest.split("\n;;").next()).expect("a command");
    assert!(test.contains("'*::FILE:_files'"), "a second file of tests\n{test}");
    let option = |name: &str| {
        let mut lines = zsh.lines().filter(|line| line.contains(&format!("--{name}=[")));
        lines.next().unwrap_or_else(|| panic!("{name}")).trim_end_matches(" \\").to_owned()
    };
    assert!(option("publish-test").ends_with(":TOPIC:'"), "{}", option("publish-test"));
    assert!(option("dialect").ends_with("(vod ims)'"), "{}", option("dialect"));
    assert!(option("reason").contains("(unrouted "), "{}", option("reason"));
    assert!(option("key-file").ends_with(":FILE:_files'"), "{}", option("key-file"));
    assert!(option("path").ends_with(":FOLDER:_files -/'"), "{}", option("path"));
    let fish = script("fish");
    let using = "complete -c apsara-bridge -n \"__fish_apsara_bridge_using_subcommand";
    for line in [
        format!("{using} completions\" -f -a \"bash elvish fish powershell zsh\""),
        format!("{using} check\" -f"),
        format!("{using} dead-letters; and __fish_seen_subcommand_from show\" -f"),
    ] {
        assert!(fish.lines().any(|other| other == line), "{line}");
    }
    assert!(!fish.contains("using_subcommand normalize\" -f"));
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
