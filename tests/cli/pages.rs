//! Completion scripts and manual pages, as the shells and the readers of pages take them.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::support::{KITE, skipped};

/// A folder with kite as `kite`, for the search path of shells.
fn bin() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(KITE, folder.path().join("kite")).unwrap();
    folder
}

/// What a command prints where `folder` is first on the search path, or that there is no such program.
fn printed(folder: &Path, program: &str, arguments: &[&str]) -> Result<String, String> {
    let paths = env::var_os("PATH").unwrap_or_default();
    let paths = [folder.to_owned()].into_iter().chain(env::split_paths(&paths));
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", env::join_paths(paths).unwrap()).env("HOME", folder);
    match command.output() {
        Ok(output) => {
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{program} {arguments:?}: {output:?}"
            );
            Ok(String::from_utf8(output.stdout).unwrap())
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// What kite prints.
fn kite(arguments: &[&str]) -> String {
    let output = Command::new(KITE).args(arguments).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Every command with its words, kite's own first.
fn commands() -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut next = 0;
    while let Some(words) = all.get(next).cloned() {
        let arguments: Vec<_> = words.iter().map(String::as_str).chain(["--help"]).collect();
        let help = kite(&arguments);
        let rows = help.lines().skip_while(|line| *line != "Commands:").skip(1);
        for row in rows.take_while(|line| line.starts_with("  ")) {
            let name = row.split_whitespace().next().unwrap();
            if name != "help" && row.starts_with("  ") && !row.starts_with("   ") {
                all.push(words.iter().cloned().chain([name.to_owned()]).collect());
            }
        }
        next += 1;
    }
    all
}

#[test]
fn bash_completes_commands_options_and_values() {
    const COMPLETE: &str = r#"
        source <(kite completions bash)
        complete -p kite >/dev/null || exit 1
        try() {
            COMP_WORDS=("$@")
            COMP_CWORD=$(($# - 1))
            _kite kite "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
            echo "$*: ${COMPREPLY[*]}"
        }
        try kite ru
        try kite run --mem
        try kite run --on-reboot re
        try kite bench ex
        try kite completions z
    "#;
    let folder = bin();
    let said = needs!(printed(folder.path(), "bash", &["--norc", "-c", COMPLETE]));
    assert_eq!(
        said,
        "kite ru: run\nkite run --mem: --memory\nkite run --on-reboot re: restart\nkite bench ex: exits\n\
         kite completions z: zsh\n"
    );
}

#[test]
fn zsh_loads_its_completion() {
    const LOAD: &str =
        "autoload -Uz compinit && compinit -D -u && source <(kite completions zsh) && print $_comps[kite]";
    let folder = bin();
    assert_eq!(needs!(printed(folder.path(), "zsh", &["-f", "-c", LOAD])), "_kite\n");
}

#[test]
fn fish_completes_commands_and_options() {
    const COMPLETE: &str =
        "kite completions fish | source; complete -C 'kite ru'; complete -C 'kite run --mem'";
    let folder = bin();
    let arguments = ["--no-config", "-c", COMPLETE];
    let said = needs!(printed(folder.path(), "fish", &arguments));
    let names: Vec<_> = said.lines().map(|line| line.split('\t').next().unwrap()).collect();
    assert_eq!(names, ["run", "--memory"], "{said}");
}

#[test]
fn every_command_has_a_manual_page_without_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let commands = commands();
    assert!(commands.len() >= 9, "{commands:?}");
    let mut pages: Vec<PathBuf> = Vec::new();
    for words in commands {
        let arguments: Vec<_> = ["man"].into_iter().chain(words.iter().map(String::as_str)).collect();
        let name = ["kite"].into_iter().chain(words.iter().map(String::as_str)).collect::<Vec<_>>().join("-");
        let page = kite(&arguments);
        assert!(page.contains(&format!(".TH {name} 1 ")), "{page}");
        assert!(page.contains(".SH SYNOPSIS") && page.contains(".SH OPTIONS"), "{page}");
        let path = folder.path().join(format!("{name}.1"));
        fs::write(&path, page).unwrap();
        pages.push(path);
    }
    let mut lint = vec!["-T", "lint", "-W", "error"];
    lint.extend(pages.iter().map(|path| path.to_str().unwrap()));
    match printed(folder.path(), "mandoc", &lint) {
        Ok(found) => assert_eq!(found, ""),
        Err(reason) => skipped("every_command_has_a_manual_page_without_an_error (lint)", &reason),
    }
}

#[test]
fn a_page_says_what_the_help_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kite-run.1");
    fs::write(&path, kite(&["man", "run"])).unwrap();
    let render = ["-T", "ascii", "-O", "width=500", path.to_str().unwrap()];
    let page = needs!(printed(folder.path(), "mandoc", &render));
    // Bold is a letter over itself.
    let page = page.chars().fold(String::new(), |mut text, char| {
        if char == '\u{8}' {
            text.pop();
        } else {
            text.push(char);
        }
        text
    });
    let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let page = words(&page);
    for expected in [
        "kite run [OPTIONS] [-- <COMMAND>...]",
        "-m, --memory <SIZE> RAM, such as 512M or 4G; at least 64M",
        "--idle-timeout <DURATION> End a guest that neither runs nor prints",
        "127 there is no such command in the guest",
        "kite run -- uname -a",
    ] {
        assert!(page.contains(expected), "{expected}: {page}");
    }
}

#[test]
fn a_shell_or_a_command_that_is_none_is_refused_in_one_line() {
    for (arguments, expected) in [
        (&["completions", "csh"][..], "invalid value 'csh' for '<SHELL>' [possible values: bash, zsh, fish]"),
        (&["completions"], "<SHELL> is missing"),
        (&["man", "nosuch"], "there is no command 'nosuch' of kite's; try `kite --help`"),
    ] {
        let output = Command::new(KITE).args(arguments).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), output.stdout), (Some(125), Vec::new()), "{stderr}");
        assert!(stderr.contains(expected) && stderr.lines().count() == 1, "{stderr}");
    }
}
