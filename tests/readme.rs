//! The README's commands, and those of every help text: that kite takes them.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsString;
use std::fs;
use std::process::Command;

const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");

/// The words of a shell's line, up to what ends its first command; nothing if a quote is open at its end.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for char in line.chars() {
        match (quote, char) {
            (Some(open), char) if char == open => quote = None,
            (Some(_), char) => word.get_or_insert_default().push(char),
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ';' | '|' | '&' | '>' | '<') => break,
            (None, ' ') => words.extend(word.take()),
            (None, char) => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word.take());
    quote.is_none().then_some(words)
}

/// kite's arguments in a line that runs it, perhaps by another command; what is not named is `...` or in brackets.
fn arguments(line: &str) -> Option<Vec<OsString>> {
    let words = words(line.trim().strip_prefix("$ ").unwrap_or(line.trim()))?;
    let starters = ["kite", "git", "systemd-run", "docker"];
    let is_run = words.first().is_some_and(|word| starters.contains(&word.as_str()));
    let at = words.iter().position(|word| word == "kite").filter(|_| is_run)?;
    Some(
        words[at + 1..]
            .iter()
            .filter(|word| *word != "..." && !word.starts_with('['))
            .map(OsString::from)
            .collect(),
    )
}

/// The lines of a page that are code: indented by four blanks, between backquotes, or in a block.
fn code(page: &str) -> Vec<String> {
    let mut lines = Vec::new();
    let (mut text, mut is_block) = (String::new(), false);
    for line in page.lines() {
        if line.starts_with("```") {
            is_block = !is_block;
        } else if is_block || line.starts_with("    ") {
            lines.push(line.trim().to_owned());
        } else {
            text += line;
            text.push(' ');
        }
    }
    lines.extend(text.split('`').skip(1).step_by(2).map(str::to_owned));
    lines
}

#[track_caller]
fn check(commands: &[(String, Vec<OsString>)], least: usize) {
    assert!(commands.len() >= least, "only {} commands: {commands:?}", commands.len());
    for (line, arguments) in commands {
        let words: Vec<_> = arguments.iter().map(|word| word.to_str().unwrap()).collect();
        match (kite::cli::check(arguments), &words[..]) {
            // The name of a command, in a sentence.
            (Err(_), [] | ["bench" | "matrix"]) => {}
            (Err(why), _) if why == "they only ask for help" => {}
            // And that of an option of all its kinds.
            (Err(_), ["bench", option]) if option.starts_with("--") => {}
            (result, _) => assert_eq!(result, Ok(()), "{line}"),
        }
    }
}

fn commands(lines: impl Iterator<Item = String>) -> Vec<(String, Vec<OsString>)> {
    lines.filter_map(|line| arguments(&line).map(|arguments| (line, arguments))).collect()
}

#[test]
fn every_command_of_the_readme_is_one() {
    let readme = fs::read_to_string(README).unwrap();
    check(&commands(code(&readme).into_iter()), 60);
}

#[test]
fn every_example_of_a_help_text_is_one() {
    let helps = [
        &["run"][..],
        &["matrix"],
        &["inspect"],
        &["doctor"],
        &["bench", "exits"],
        &["bench", "boot"],
        &["completions"],
        &["man"],
    ];
    for help in helps {
        let output = Command::new(env!("CARGO_BIN_EXE_kite")).args(help).arg("--help").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        // What an example does stands behind two blanks.
        let lines = lines.map(|line| line.trim().split("  ").next().unwrap().to_owned());
        check(&commands(lines), 1);
    }
}

#[test]
fn the_readme_s_defaults_are_ones() {
    let readme = fs::read_to_string(README).unwrap();
    let example = readme.split("```ini\n").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("kite.toml"), example).unwrap();
    let mut kite = Command::new(env!("CARGO_BIN_EXE_kite"));
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
fn words_are_a_shell_s() {
    let of = |line: &str| arguments(line).map(|words| words.join(" ".as_ref()).into_string().unwrap());
    assert_eq!(of("$ kite run ... 'a b'  # c").as_deref(), Some("run a b"));
    assert_eq!(of("git bisect run kite run -- x; echo $?").as_deref(), Some("run -- x"));
    assert_eq!(of("kite: kernel 6.12"), None);
    assert_eq!(of("cargo xtask demo"), None);
}
