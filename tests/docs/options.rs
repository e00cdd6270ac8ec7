//! The reference's tables of options: that they are those of `--help`, word for word. `KITE_UPDATE_DOCS=1` writes them.

use std::env;
use std::fs;
use std::process::Command;

use crate::{source, tree};

const REFERENCE: &str = "resources/doc/reference.md";
const BEGIN: &str = "<!-- options: ";
const END: &str = "<!-- end -->";

/// What an option or argument is called in a help text, and what it says of it.
type Row = (String, String);

/// The tables that a help text has: headings, each with rows.
fn tables(help: &str) -> Vec<(String, Vec<Row>)> {
    let mut tables: Vec<(String, Vec<Row>)> = Vec::new();
    for line in help.lines() {
        let inner = line.trim_start();
        let indent = line.len() - inner.len();
        if let Some(heading) = line.strip_suffix(':').filter(|_| indent == 0) {
            let is_table = heading == "Arguments" || heading.starts_with("Options");
            if !is_table && !tables.is_empty() {
                break;
            }
            tables.extend(is_table.then(|| (heading.to_owned(), Vec::new())));
            continue;
        }
        if inner.is_empty() {
            continue;
        }
        let Some((_, rows)) = tables.last_mut() else { continue };
        // Text behind the tables.
        if indent == 0 {
            break;
        }
        let is_name = indent <= 6 && (inner.starts_with(['-', '[', '<']));
        if is_name {
            let (name, text) = inner.split_once("  ").unwrap_or((inner, ""));
            rows.push((name.trim().to_owned(), text.trim().to_owned()));
        } else if let Some((_, text)) = rows.last_mut() {
            if inner == "Possible values:" {
                text.push('.');
            }
            if !text.is_empty() {
                // A list's points are parts of a sentence.
                text.push_str(if inner.starts_with("- ") && !text.ends_with(':') { "; " } else { " " });
            }
            text.push_str(inner.strip_prefix("- ").unwrap_or(inner).trim());
        }
    }
    tables
}

/// The tables as the reference has them.
fn markdown(help: &str) -> String {
    let mut text = String::new();
    for (heading, rows) in tables(help) {
        let heading = heading.replacen("Options", "option", 1).replacen("Arguments", "argument", 1);
        text += if text.is_empty() { "" } else { "\n" };
        text += &format!("| {heading} | what it does |\n|---|---|\n");
        for (name, what) in rows {
            let cell = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").replace('|', r"\|");
            text += &format!("| `{}` | {} |\n", cell(&name), escaped(&cell(&what)));
        }
    }
    text
}

/// Text in which what Markdown would take for marks is shown: placeholders in angle brackets, asterisks.
fn escaped(text: &str) -> String {
    text.replace('<', r"\<").replace('*', r"\*").replace("[[", r"\[\[")
}

#[test]
fn the_reference_has_the_options_of_every_help() {
    let reference = source(REFERENCE);
    let mut parts = reference.split(BEGIN);
    let mut updated = parts.next().unwrap().to_owned();
    let mut commands = Vec::new();
    for part in parts {
        let (command, rest) = part.split_once(" -->\n").unwrap();
        let (_, rest) = rest.split_once(END).unwrap();
        let words: Vec<_> = command.split(' ').skip(1).chain(["--help"]).collect();
        let output = Command::new(crate::support::KITE).args(words).output().unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        updated += &format!("{BEGIN}{command} -->\n\n{}\n{END}{rest}", markdown(&help));
        commands.push(command);
    }
    assert_eq!(
        commands,
        [
            "kite run",
            "kite matrix",
            "kite list",
            "kite screenshot",
            "kite pause",
            "kite resume",
            "kite stop",
            "kite image list",
            "kite image inspect",
            "kite image pull",
            "kite image remove",
            "kite image prune",
            "kite oci",
            "kite oci create",
            "kite oci exec",
            "kite bench exits",
            "kite bench boot",
            "kite inspect",
            "kite doctor",
            "kite completions",
            "kite man"
        ]
    );
    if env::var_os("KITE_UPDATE_DOCS").is_some() {
        fs::write(tree(REFERENCE), &updated).unwrap();
    }
    for (own, expected) in source(REFERENCE).lines().zip(updated.lines()) {
        assert_eq!(
            own, expected,
            "KITE_UPDATE_DOCS=1 cargo test --test docs writes the reference's tables anew"
        );
    }
    assert_eq!(source(REFERENCE), updated);
}

#[test]
fn the_reference_has_a_table_for_each_command() {
    let output = Command::new(crate::support::KITE).arg("--help").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let reference = source(REFERENCE);
    let commands = commands.take_while(|line| !line.is_empty());
    // Further lines of a text are indented by more.
    for line in commands.filter(|line| !line.starts_with("   ")) {
        let name = line.split_whitespace().next().unwrap();
        assert!(name == "help" || reference.contains(&format!("{BEGIN}kite {name}")), "{name}");
    }
}

#[test]
fn options_with_their_texts_are_read_from_a_help_text() {
    let help = "Do it\n\nUsage: x\n\nArguments:\n  [PID]  The one\n\nOptions:\n  -j, --jobs <N>\n          How many\n          \
                there are\n\n          Possible values:\n          - a: first\n          - b: second\n\n      --json     Print\n\n\
                Options for a command:\n      --x  Text\n\nExit status: 0.\nExamples:\n  kite\n";
    assert_eq!(
        markdown(help),
        "| argument | what it does |\n|---|---|\n| `[PID]` | The one |\n\n| option | what it does |\n|---|---|\n\
         | `-j, --jobs <N>` | How many there are. Possible values: a: first; b: second |\n| `--json` | Print |\n\n\
         | option for a command | what it does |\n|---|---|\n| `--x` | Text |\n"
    );
}
