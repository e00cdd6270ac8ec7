//! The commands of pages and help texts: that kite takes them.

use std::ffi::OsString;
use std::fs;
use std::process::Command;

use crate::shell::words;
use crate::{pages, source};

/// What runs kite, or is run in the source tree.
const STARTERS: [&str; 14] = [
    "kite",
    "git",
    "systemd-run",
    "docker",
    "podman",
    "skopeo",
    "buildah",
    "sudo",
    "cargo",
    "tar",
    "sha256sum",
    "resources/kvm-unit-tests",
    "findings/NAME.sh;",
    "KITE_UPDATE_DOCS=1",
];

/// kite's arguments in a line that runs it, perhaps by another command; what is not named is `...` or in brackets.
fn arguments(line: &str) -> Option<Vec<OsString>> {
    let words = words(line.trim().strip_prefix("$ ").unwrap_or(line.trim()))?;
    let is_run = words.first().is_some_and(|word| STARTERS.contains(&word.as_str()));
    let is_cargo = words.first().is_some_and(|word| word == "cargo" || word == "tar");
    let at = words.iter().position(|word| word == "kite").filter(|_| is_run && !is_cargo)?;
    Some(
        words[at + 1..]
            .iter()
            .filter(|word| *word != "..." && !word.starts_with('['))
            .map(OsString::from)
            .collect(),
    )
}

#[track_caller]
fn check(commands: &[(String, Vec<OsString>)], least: usize) {
    assert!(commands.len() >= least, "only {} commands: {commands:?}", commands.len());
    for (line, arguments) in commands {
        let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        match (kite::cli::check(arguments), &words[..]) {
            // The name of a command, in a sentence.
            (
                Err(_),
                []
                | [
                    "bench" | "image" | "matrix" | "oci" | "completions" | "pause" | "resume" | "screenshot"
                    | "stop",
                ]
                | ["COMMAND", "--help"],
            ) => {}
            (Err(why), _) if why == "they only ask for help" => {}
            // And that of an option of all its kinds.
            (Err(_), ["bench" | "run", option]) if option.starts_with("--") => {}
            (result, _) => assert_eq!(result, Ok(()), "{line}"),
        }
    }
}

fn commands(lines: impl Iterator<Item = String>) -> Vec<(String, Vec<OsString>)> {
    lines.filter_map(|line| arguments(&line).map(|arguments| (line, arguments))).collect()
}

#[test]
fn every_line_of_an_indented_block_is_a_command() {
    for (path, page) in pages() {
        for line in &page.commands {
            let first = line.split(' ').next().unwrap();
            assert!(
                STARTERS.contains(&first),
                "{path}: output is in ```text, and commands begin otherwise: {line}"
            );
        }
    }
}

#[test]
fn kite_takes_every_command_of_the_pages() {
    let mut lines = Vec::new();
    for (_, page) in pages() {
        lines.extend(page.commands);
        lines.extend(page.inline);
    }
    check(&commands(lines.into_iter()), 90);
}

#[test]
fn every_example_of_a_help_text_is_one() {
    let helps = [
        &["run"][..],
        &["matrix"],
        &["list"],
        &["screenshot"],
        &["pause"],
        &["resume"],
        &["stop"],
        &["image"],
        &["image", "list"],
        &["image", "inspect"],
        &["image", "pull"],
        &["image", "remove"],
        &["image", "prune"],
        &["inspect"],
        &["doctor"],
        &["bench", "exits"],
        &["bench", "boot"],
        &["completions"],
        &["man"],
    ];
    for help in helps {
        let output = Command::new(crate::support::KITE).args(help).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        // What an example does stands behind two blanks.
        let lines = lines.map(|line| line.trim().split("  ").next().unwrap().to_owned());
        check(&commands(lines), 1);
    }
}

#[test]
fn the_reference_s_defaults_are_ones() {
    let reference = source("resources/doc/reference.md");
    let example = reference.split("```ini\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kite.toml"), example).unwrap();
    let mut kite = Command::new(crate::support::KITE);
    kite.current_dir(folder.path()).env_remove("KITE_KERNEL").env("XDG_CONFIG_HOME", folder.path());
    let output = kite.args(["run", "--verbose"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    for line in example.lines() {
        let name = line.split(' ').next().unwrap();
        assert!(stderr.contains(&format!(": {name}\n")), "{name}: {stderr}");
    }
    assert!(stderr.contains("arch/x86/boot/bzImage: "), "{stderr}");
}

#[test]
fn arguments_of_kite_are_found_behind_what_starts_it() {
    let of = |line: &str| arguments(line).map(|words| words.join(" ".as_ref()).into_string().unwrap());
    assert_eq!(of("$ kite run ... 'a b'  # c").as_deref(), Some("run a b"));
    assert_eq!(of("git bisect run kite run -- x; echo $?").as_deref(), Some("run -- x"));
    assert_eq!(of("kite: kernel 6.12"), None);
    assert_eq!(of("cargo xtask demo"), None);
}
