//! What is wrong with a command line, in one line that helps to mend it.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser};

use super::Cli;

/// Where `kite run`'s command begins.
const END: &str = "--";
/// The command that takes another one behind its options.
const RUN: &str = "run";
/// The heading of the options that need a command.
const COMMAND_HEADING: &str = "Options for a command";

/// A line for the user about arguments that clap has refused; `arguments` begin with the program's name.
pub(super) fn line(error: &clap::Error, arguments: &[OsString]) -> String {
    match reason(error, arguments) {
        (why, true) => why,
        (why, false) if why.ends_with('?') => format!("{why} Try `{}`", help(arguments)),
        (why, false) => format!("{why}; try `{}`", help(arguments)),
    }
}

/// The same without a hint at the help.
pub(super) fn why(error: &clap::Error, arguments: &[OsString]) -> String {
    reason(error, arguments).0
}

/// What is wrong, and whether it says what to write instead.
fn reason(error: &clap::Error, arguments: &[OsString]) -> (String, bool) {
    match (error.kind(), context(error, ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(argument)) if argument.starts_with('-') => {
            let similar = context(error, ContextKind::SuggestedArg);
            let similar = similar.map_or_else(String::new, |it| format!("; do you mean '{it}'?"));
            (format!("there is no option '{argument}'{similar}"), false)
        }
        (ErrorKind::UnknownArgument, Some(argument)) => match misplaced(&argument, arguments) {
            Some(mended) => (mended, true),
            None => (format!("unexpected argument '{argument}'"), false),
        },
        (ErrorKind::InvalidSubcommand, _) => (no_such_command(error, arguments), false),
        (ErrorKind::MissingRequiredArgument, _) => match lacks_command(error, arguments) {
            Some(option) => (
                format!(
                    "'{option}' is for a command in the guest, which comes after `--`: kite run {option} ... -- COMMAND"
                ),
                true,
            ),
            None => (missing(error).unwrap_or_else(|| one_line(error)), false),
        },
        (ErrorKind::TooManyValues, Some(option)) => (format!("'{option}' takes no value"), false),
        _ => (one_line(error), false),
    }
}

/// clap's message and tips without its usage text, and without the advice to put an option behind `--`.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let text = text.split("\n\nUsage:").next().unwrap_or_default();
    let text = text.split("\n\nFor more information").next().unwrap_or_default();
    let lines = text.trim_start_matches("error: ").lines().map(str::trim);
    let lines: Vec<_> = lines.filter(|line| !line.is_empty() && !line.starts_with("tip: to pass ")).collect();
    lines.join(" ").replace(" tip:", "; tip:")
}

/// A command line of a `kite run` that has an empty command.
pub(super) fn is_empty_command(arguments: &[OsString]) -> bool {
    let (last, rest) = match arguments.split_last() {
        Some((last, rest)) => (last, rest),
        None => return false,
    };
    last == END && !rest.iter().any(|word| word == END) && parses(rest)
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        ContextValue::Strings(texts) => texts.first().cloned(),
        _ => None,
    }
}

/// Whether nothing is wrong with these arguments, but that more are needed.
fn parses(arguments: &[OsString]) -> bool {
    let parsed = Cli::try_parse_from(arguments);
    parsed.err().is_none_or(|error| error.kind() == ErrorKind::MissingRequiredArgument)
}

/// What shows the help that is about this command line.
fn help(arguments: &[OsString]) -> String {
    let mut command = Cli::command();
    let mut words = vec!["kite".to_owned()];
    for word in arguments.iter().skip(1) {
        let Some(found) = command.get_subcommands().find(|it| word == it.get_name()) else { break };
        words.push(found.get_name().to_owned());
        command = found.clone();
    }
    words.join(" ") + " --help"
}

/// The right command line, if a word of `kite run`'s has come where only options may.
fn misplaced(argument: &str, arguments: &[OsString]) -> Option<String> {
    if arguments.get(1)? != RUN {
        return None;
    }
    let end = arguments.iter().position(|word| word == END);
    let at = (2..end.unwrap_or(arguments.len()))
        .find(|&at| arguments[at] == argument && parses(&arguments[..at]))?;
    let (before, after) = arguments.split_at(at);
    let line = |inserted: &str| {
        let words = before.iter().skip(1).map(OsString::as_os_str);
        let words = words.chain([OsStr::new(inserted)]).chain(after.iter().map(OsString::as_os_str));
        words.fold("kite".to_owned(), |line, word| line + " " + &quoted(word))
    };
    let rest_is_command = end.is_none();
    if before.last().is_some_and(|word| word == "--stats") {
        let file =
            format!("--stats takes its file with an equals sign: --stats={}", quoted(after[0].as_os_str()));
        return Some(match rest_is_command {
            true => format!("{file}; and a command comes after `--`: {}", line(END)),
            false => file,
        });
    }
    if is_kernel_s_name(argument) {
        return Some(format!("a kernel is named with --kernel: {}", line("--kernel")));
    }
    rest_is_command.then(|| format!("a command for the guest comes after `--`: {}", line(END)))
}

/// Whether a file's name is one that kernels have.
fn is_kernel_s_name(argument: &str) -> bool {
    let name = Path::new(argument).file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("vmlinu") || name.starts_with("bzImage")
}

fn no_such_command(error: &clap::Error, arguments: &[OsString]) -> String {
    let name = context(error, ContextKind::InvalidSubcommand).unwrap_or_default();
    if let Some(similar) = context(error, ContextKind::SuggestedSubcommand) {
        return format!("there is no command '{name}'; do you mean '{similar}'?");
    }
    let is_first = arguments.get(1).is_some_and(|word| *word == *name) && !name.is_empty();
    let mended =
        arguments.iter().skip(1).fold("kite run --".to_owned(), |line, word| line + " " + &quoted(word));
    match is_first {
        true => format!("there is no command '{name}' of kite's; to run it in a guest: {mended}"),
        false => format!("there is no command '{name}'"),
    }
}

fn missing(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg)? {
        ContextValue::Strings(missing) => Some(format!("{} is missing", missing.join(", "))),
        _ => None,
    }
}

/// The option for which a command is missing.
fn lacks_command(error: &clap::Error, arguments: &[OsString]) -> Option<String> {
    let missing = match error.get(ContextKind::InvalidArg)? {
        ContextValue::Strings(missing) => missing,
        _ => return None,
    };
    if !missing.iter().any(|it| it.contains("COMMAND")) {
        return None;
    }
    let command = Cli::command();
    let run = command.find_subcommand(RUN)?;
    let mut options = run.get_arguments().filter(|it| it.get_help_heading() == Some(COMMAND_HEADING));
    options.find_map(|option| {
        let name = format!("--{}", option.get_long()?);
        let is_given = |word: &OsString| word.to_string_lossy().split('=').next() == Some(&name);
        // Of these options it is the one that needs none.
        (name != "--verbose" && arguments.iter().any(is_given)).then_some(name)
    })
}

/// A word as a shell takes it.
fn quoted(word: &OsStr) -> String {
    let text = word.to_string_lossy();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_-+=:,./@%^".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        let arguments: Vec<OsString> = text.split(' ').map(OsString::from).collect();
        line(&Cli::try_parse_from(&arguments).unwrap_err(), &arguments)
    }

    #[test]
    fn a_forgotten_end_of_options_is_answered_with_the_right_command() {
        for (wrong, right) in [
            ("kite run uname -a", "kite run -- uname -a"),
            ("kite run -m 1G uname -a", "kite run -m 1G -- uname -a"),
            ("kite run --cpus=2 make -j2 a=$b", "kite run --cpus=2 -- make -j2 'a=$b'"),
            ("kite run make run", "kite run -- make run"),
            ("kite run --timeout 5 true", "kite run --timeout 5 -- true"),
            ("kite run bzImage", "kite run --kernel bzImage"),
            ("kite run vmlinuz-6.1 -- true", "kite run --kernel vmlinuz-6.1 -- true"),
            ("kite uname -a", "kite run -- uname -a"),
        ] {
            let line = refused(wrong);
            assert!(line.contains(&format!(": {right}")), "{wrong}: {line}");
        }
        assert!(refused("kite run x -- true").starts_with("unexpected argument 'x'; try"));
    }

    #[test]
    fn no_option_is_to_be_put_behind_the_end_of_options() {
        for (wrong, expected) in [
            ("kite run -z 1G", "there is no option '-z'; try `kite run --help`"),
            (
                "kite run --mem 1G",
                "there is no option '--mem'; do you mean '--memory'? Try `kite run --help`",
            ),
            ("kite bench boot --run 5", "there is no option '--run'; do you mean '--runs'?"),
        ] {
            let line = refused(wrong);
            assert!(line.starts_with(expected) && !line.contains("-- -"), "{line}");
        }
    }

    #[test]
    fn an_option_that_needs_a_command_is_named() {
        for option in ["--share .", "--share=.", "--timeout 5", "--junit x", "--clear-env"] {
            let name = option.split([' ', '=']).next().unwrap();
            let line = refused(&format!("kite run --verbose {option}"));
            assert!(line.starts_with(&format!("'{name}' is for a command")), "{line}");
        }
    }

    #[test]
    fn a_file_for_statistics_is_put_behind_an_equals_sign() {
        assert!(refused("kite run --stats a.json").contains("--stats=a.json"));
        assert!(refused("kite run --stats uname -a").contains("kite run --stats -- uname -a"));
        assert!(!refused("kite run --stats a.json -- true").contains("kite run"));
    }

    #[test]
    fn an_end_of_options_without_a_command_is_seen() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_empty_command(&words("kite run --")));
        assert!(is_empty_command(&words("kite run -m 1G --")));
        assert!(!is_empty_command(&words("kite run -- --")));
        assert!(!is_empty_command(&words("kite run")));
    }
}
