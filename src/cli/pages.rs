//! What is made from the grammar: completion scripts for shells, and manual pages (man(7), Linux man-pages).

use std::io;

use anyhow::{Context, anyhow};
use clap::{CommandFactory, ValueEnum, ValueHint};
use clap_complete::aot::{Bash, Fish, Generator, Zsh};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::{Cli, DONE};
use crate::host::messages::print;

/// What `kite completions --help` ends with.
pub(super) const COMPLETIONS_HELP: &str = "\
Exit status: 0, or 125 if the script cannot be written.

Where a shell looks for the script:
  kite completions bash > ~/.local/share/bash-completion/completions/kite
  kite completions zsh > ~/.zfunc/_kite    ~/.zfunc is in $fpath before compinit
  kite completions fish > ~/.config/fish/completions/kite.fish

Example:
  source <(kite completions bash)          for this shell alone";

/// What `kite man --help` ends with.
pub(super) const MAN_HELP: &str = "\
Exit status: 0, or 125 if there is no such command or the page cannot be written.

Examples:
  kite man | man -l -
  kite man run | man -l -
  kite man bench exits > kite-bench-exits.1";

/// A shell that has a completion script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU Bash, 4.4 or later
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// Prints a shell's completion script. Returns the exit code.
///
/// # Errors
/// The script cannot be written.
pub fn print_completions(shell: Shell) -> anyhow::Result<u8> {
    print(completions(shell), "the completion script").map(|()| DONE)
}

/// Prints the manual page of a command, or kite's own if there are no words. Returns the exit code.
///
/// # Errors
/// There is no such command, or the page cannot be written.
pub fn print_man(words: &[String]) -> anyhow::Result<u8> {
    print(man(words)?, "the manual page").map(|()| DONE)
}

fn completions(shell: Shell) -> Vec<u8> {
    // Behind `--` comes a program of the guest's, and its arguments.
    let program = |arg: clap::Arg| arg.value_hint(ValueHint::CommandName);
    let mut command = Cli::command().mut_subcommand("run", |run| run.mut_arg("command", program));
    command.set_bin_name("kite");
    command.build();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => Bash.generate(&command, &mut script),
        Shell::Zsh => Zsh.generate(&command, &mut script),
        Shell::Fish => Fish.generate(&command, &mut script),
    }
    script
}

/// The page of the command that these words name.
fn man(words: &[String]) -> anyhow::Result<Vec<u8>> {
    // There are no pages of `kite help`.
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    let mut command = &command;
    for word in words {
        command = command.find_subcommand(word).ok_or_else(|| {
            let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
            anyhow!("there is no command '{word}' of {name}'s; try `{name} --help`")
        })?;
    }
    let mut page = Vec::new();
    render(command, &mut page).context("cannot make the manual page")?;
    Ok(page)
}

fn render(command: &clap::Command, page: &mut Vec<u8>) -> io::Result<()> {
    // As the help has it, and not every option in one line.
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    let man = Man::new(command.clone().override_usage(usage));
    // Not dated, so that a build is the same on any day; an empty date would be left out.
    let man = man.date(" ").source(format!("kite {}", env!("CARGO_PKG_VERSION"))).manual("kite's manual");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let mut rest = Roff::default();
    if let Some(help) = command.get_after_help() {
        sections(&help.to_string(), &mut rest);
    }
    if command.get_bin_name() != Some("kite") {
        rest.control("SH", ["SEE ALSO"]);
        rest.text([roman("kite(1)")]);
    }
    rest.to_writer(page)
}

/// The end of a help text as sections: a block that begins with `NAME:` or `Exit status: ` opens one.
fn sections(help: &str, page: &mut Roff) {
    const STATUS: [&str; 2] = ["Exit status: ", "Exit codes:"];
    for block in help.split("\n\n") {
        let (first, rest) = block.split_once('\n').unwrap_or((block, ""));
        if let Some(text) = STATUS.iter().find_map(|status| first.strip_prefix(status)) {
            page.control("SH", ["EXIT STATUS"]);
            page.extend((!text.is_empty()).then(|| prose(text)));
            table(rest, page);
        } else if let Some(name) = first.strip_suffix(':').filter(|_| !first.starts_with(' ')) {
            page.control("SH", [name.to_uppercase().as_str()]);
            lines(rest, page);
        } else {
            page.control("PP", []);
            lines(block, page);
        }
    }
}

fn prose(line: &str) -> Roff {
    let mut text = Roff::default();
    text.text([roman(line)]);
    text
}

/// Lines of text; those that are indented are shown as they are.
fn lines(text: &str, page: &mut Roff) {
    let mut is_example = false;
    for line in text.lines() {
        if line.starts_with(' ') != is_example {
            is_example = !is_example;
            page.control(if is_example { "nf" } else { "fi" }, []);
        }
        page.extend([prose(line.strip_prefix("  ").unwrap_or(line))]);
    }
    if is_example {
        page.control("fi", []);
    }
}

/// Rows of a status and what it means, and text below them.
fn table(text: &str, page: &mut Roff) {
    let mut is_below_rows = false;
    for line in text.lines().map(str::trim_start) {
        let row = line.split_once("  ").filter(|_| line.starts_with(|char: char| char.is_ascii_digit()));
        if let Some((status, meaning)) = row {
            page.control("TP", []);
            page.extend([prose(status), prose(meaning.trim_start())]);
        } else {
            if is_below_rows {
                page.control("PP", []);
            }
            page.extend([prose(line)]);
        }
        is_below_rows = row.is_some();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(words: &[&str]) -> String {
        let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
        String::from_utf8(man(&words).unwrap()).unwrap()
    }

    #[test]
    fn every_command_has_a_page_with_its_options_and_sections() {
        let kite = page(&[]);
        assert!(kite.contains(r"kite\-run(1)") && kite.contains("\n.SH \"EXIT STATUS\"\n"), "{kite}");
        assert!(!kite.contains(r"kite\-help"), "{kite}");
        let run = page(&["run"]);
        for expected in
            [r"kite\-run \- Boot", r"\-\-memory", "\n.SH EXAMPLES\n", "\n.SH KEYS\n", "\n.SH \"SEE ALSO\"\n"]
        {
            assert!(run.contains(expected), "{expected}: {run}");
        }
        assert!(page(&["bench", "exits"]).contains(r"kite\-bench\-exits \- How long VM exits take"));
    }

    #[test]
    fn a_page_of_no_command_is_refused_with_where_to_look() {
        let refused = |words: &[&str]| {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            format!("{:#}", man(&words).unwrap_err())
        };
        assert_eq!(refused(&["ru"]), "there is no command 'ru' of kite's; try `kite --help`");
        assert_eq!(
            refused(&["bench", "x"]),
            "there is no command 'x' of kite bench's; try `kite bench --help`"
        );
    }

    #[test]
    fn examples_are_shown_line_by_line_and_prose_is_filled() {
        let mut roff = Roff::default();
        sections("Exit status: 0.\nAlways.\n\nMore.\n\nExamples:\n  kite run  # a\n  .b\nEnd.", &mut roff);
        let expected = ".SH \"EXIT STATUS\"\n0.\nAlways.\n.PP\nMore.\n.SH EXAMPLES\n.nf\nkite run  # a\n\\&.b\n.fi\nEnd.\n";
        assert!(roff.to_roff().ends_with(expected), "{}", roff.to_roff());
    }

    #[test]
    fn each_status_has_a_row_of_its_own() {
        let mut roff = Roff::default();
        sections("Exit codes:\n  0    fine\n  1  not\n  Else more.\n  And more.", &mut roff);
        let expected = ".SH \"EXIT STATUS\"\n.TP\n0\nfine\n.TP\n1\nnot\n.PP\nElse more.\nAnd more.\n";
        assert!(roff.to_roff().ends_with(expected), "{}", roff.to_roff());
    }

    #[test]
    fn every_shell_s_script_knows_commands_and_options() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).unwrap();
            for expected in ["matrix", "idle-timeout", "completions"] {
                assert!(script.contains(expected), "{shell:?}: {expected}");
            }
        }
    }
}
