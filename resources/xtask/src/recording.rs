//! `cargo xtask recording`: the README's picture, a terminal in which real commands run, drawn anew from a real run.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::host;
use crate::lab::Lab;
use crate::setup::{Kernel, Setup};
use crate::step::step;
use crate::test::build_kite;

/// Where the picture is.
const PICTURE: &str = "resources/doc/recording.svg";
/// What is typed: a command that a reader can type, too.
const COMMANDS: [&str; 5] = [
    "uname -r",
    "kite run -- uname -a",
    "kite run -- sh -c 'echo hello >/etc/made; cat /etc/made; exit 7'",
    "echo $?",
    "ls /etc/made",
];
/// Begins the output of each command.
const MARK: &str = "\u{1}";
/// Runs each line, with the status of the one before.
const RUN: &str =
    r#"for line in "$@"; do printf '\001'; (exit $status); eval "$line" 2>&1; status=$?; done; exit 0"#;

/// How wide a character is and how high a line, and what is around them, in pixels.
const CHARACTER: f64 = 7.82;
const LINE: usize = 20;
const MARGIN: usize = 16;
/// The longest line that is shown.
const COLUMNS: usize = 98;
/// How long it takes to type a command, and until its output comes, in seconds.
const TYPED: f64 = 1.2;
const ANSWER: f64 = 0.8;

/// Runs the commands where there is hardware KVM, or in the lab, and draws what comes of them.
///
/// # Errors
/// kite does not build, a command fails, or the picture cannot be written.
pub fn run() -> Result<ExitCode> {
    let kite = build_kite()?;
    let mut setup = Setup::new();
    let kernel = setup.kernel()?;
    let said = step("running the commands", || said(&mut setup, &kite, &kernel))?;
    let outputs: Vec<&str> = said.split(MARK).skip(1).collect();
    ensure!(outputs.len() == COMMANDS.len(), "{} outputs: {said}", outputs.len());
    ensure!(outputs[1].contains(&kernel.release) && outputs[2] == "hello\n" && outputs[3] == "7\n", "{said}");
    let path = host::root().join(PICTURE);
    fs::write(&path, picture(&COMMANDS, &outputs)).with_context(|| format!("writing {}", path.display()))?;
    println!("{}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// What the commands print, each behind a mark.
fn said(setup: &mut Setup, kite: &Path, kernel: &Kernel) -> Result<String> {
    let folder = kite.parent().context("kite is in a folder")?.display();
    let path = format!("PATH={folder}:{}", std::env::var("PATH").unwrap_or_default());
    let named = format!("KITE_KERNEL={}", kernel.bz_image().display());
    let words = ["env", &path, &named, "bash", "-c", RUN, "bash"].into_iter().chain(COMMANDS);
    let words: Vec<OsString> = words.map(OsString::from).collect();
    Ok(Lab::captured(setup, &words)?.replace('\r', ""))
}

/// A line of the terminal: when it appears, and whether it is a prompt.
struct Line {
    text: String,
    at: f64,
    is_prompt: bool,
}

fn lines(commands: &[&str], outputs: &[&str]) -> Vec<Line> {
    let (mut lines, mut at) = (Vec::new(), 0.0);
    for (command, output) in commands.iter().zip(outputs) {
        lines.push(Line { text: (*command).to_owned(), at, is_prompt: true });
        at += TYPED;
        for text in output.lines().flat_map(wrapped) {
            lines.push(Line { text, at, is_prompt: false });
        }
        at += ANSWER;
    }
    lines
}

/// A line as a terminal breaks it.
fn wrapped(line: &str) -> Vec<String> {
    let characters: Vec<char> = line.chars().collect();
    characters.chunks(COLUMNS).map(|part| part.iter().collect()).collect()
}

/// The terminal as SVG. A viewer without animation shows all of it.
fn picture(commands: &[&str], outputs: &[&str]) -> String {
    let lines = lines(commands, outputs);
    let width = (COLUMNS as f64 * CHARACTER) as usize + 2 * MARGIN;
    let height = lines.len() * LINE + 2 * MARGIN;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>kite in a terminal</title>\n<style>\n\
         text {{ font: 13px ui-monospace, Menlo, Consolas, monospace; fill: #d8dee9; white-space: pre }}\n\
         .c {{ fill: #a3be8c }}\n\
         @keyframes a {{ from {{ opacity: 0 }} to {{ opacity: 1 }} }}\n\
         g {{ animation: a 1ms steps(1) backwards }}\n\
         @media (prefers-reduced-motion) {{ g {{ animation: none }} }}\n</style>\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"8\" fill=\"#1e222a\"/>\n"
    );
    for (index, line) in lines.iter().enumerate() {
        let y = MARGIN + index * LINE + LINE * 3 / 4;
        let text = escaped(&line.text);
        let (prompt, class) = if line.is_prompt { ("$ ", " class=\"c\"") } else { ("", "") };
        svg += &format!(
            "<g style=\"animation-delay:{:.1}s\"><text x=\"{MARGIN}\" y=\"{y}\"{class}>{prompt}{text}</text></g>\n",
            line.at
        );
    }
    svg + "</svg>\n"
}

/// Text in XML, without control characters.
fn escaped(text: &str) -> String {
    let text: String = text.chars().filter(|char| !char.is_control()).collect();
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_shows_each_command_and_its_output_in_order() {
        let svg = picture(&["a <b", "c"], &["1 & 2\n", "3\n4\n"]);
        let at = |text: &str| svg.find(text).unwrap_or_else(|| panic!("{text}: {svg}"));
        assert!(at("$ a &lt;b") < at("1 &amp; 2") && at("1 &amp; 2") < at("$ c") && at(">3<") < at(">4<"));
        assert!(svg.contains("animation-delay:2.0s") && svg.ends_with("</svg>\n"));
    }

    #[test]
    fn a_long_line_is_broken_as_a_terminal_does() {
        let parts = wrapped(&"x".repeat(COLUMNS + 1));
        assert_eq!(parts.iter().map(String::len).collect::<Vec<_>>(), [COLUMNS, 1]);
    }

    #[test]
    fn the_picture_in_the_tree_is_of_these_commands() {
        let svg = fs::read_to_string(host::root().join(PICTURE)).unwrap();
        for command in COMMANDS {
            assert!(
                svg.contains(&format!("$ {}</text>", escaped(command))),
                "cargo xtask recording draws it anew: {command}"
            );
        }
    }
}
