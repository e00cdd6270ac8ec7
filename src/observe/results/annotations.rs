//! GitHub's annotations: lines on the output that its runner obeys
//! (<https://docs.github.com/actions/reference/workflow-commands-for-github-actions>).
//!
//! Names and messages come from the guest: they are escaped so that they stay within our command.

use std::env;
use std::io::{self, Write};

use super::{Case, Suite, Verdict};

/// GitHub shows this many of a step's errors, and drops the rest.
const SHOWN: usize = 10;

/// Whether GitHub's runner reads our output.
pub fn wanted() -> bool {
    env::var_os("GITHUB_ACTIONS").is_some_and(|value| value == "true")
}

impl Suite {
    /// Writes an annotation for each bad case, as many as GitHub shows; nothing if its runner is not there to read them.
    ///
    /// # Errors
    /// `out` does not take it.
    pub fn annotate(&self, out: &mut dyn Write) -> io::Result<()> {
        match wanted() {
            true => out.write_all(self.annotations().as_bytes()),
            false => Ok(()),
        }
    }

    /// The commands, in one piece so that nothing gets between.
    fn annotations(&self) -> String {
        let bad: Vec<_> = self.cases.iter().filter(|case| case.is_bad()).collect();
        if bad.is_empty() {
            return String::new();
        }
        let shown = if bad.len() > SHOWN { SHOWN - 1 } else { bad.len() };
        // The guest may have left its last line open, and a command is one only at the start of a line.
        let mut text = "\n".to_owned();
        for case in &bad[..shown] {
            text += &command(&self.title(case), message(case));
        }
        if shown < bad.len() {
            text += &command(&self.name, &format!("{} more cases failed", bad.len() - shown));
        }
        text
    }

    fn title(&self, case: &Case) -> String {
        let parts = [self.name.as_str(), &case.group, &case.name];
        let mut told: Vec<_> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        told.dedup();
        told.join(": ")
    }
}

fn message(case: &Case) -> &str {
    match &case.verdict {
        Verdict::Failed(message, _) | Verdict::Error(message, _) | Verdict::Skipped(message) => message,
        Verdict::Passed => "passed",
    }
}

fn command(title: &str, message: &str) -> String {
    format!("::error title={}::{}\n", escaped(title, ":,"), escaped(message, ""))
}

/// What GitHub's runner reads back as `text`: line ends, `%` and what else would end it in this place are encoded, other
/// control characters replaced.
fn escaped(text: &str, more: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '%' | '\r' | '\n' => escaped += &format!("%{:02X}", u32::from(char)),
            _ if more.contains(char) => escaped += &format!("%{:02X}", u32::from(char)),
            '\t' => escaped.push(' '),
            // Some readers take the two separators for line ends.
            _ if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') => escaped.push('\u{fffd}'),
            _ => escaped.push(char),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::{Ending, FailOnKtap, Recorder};
    use super::*;
    use std::time::Duration;

    fn annotations(name: &str, output: &str, ending: &Ending) -> String {
        let mut recorder = Recorder::new(name, FailOnKtap::Auto);
        recorder.feed(output.as_bytes());
        recorder.finish(ending, Duration::ZERO, "").annotations()
    }

    #[test]
    fn what_passed_is_not_annotated() {
        assert_eq!(annotations("make", "TAP version 13\n1..1\nok 1 a\n", &Ending::Exited(0)), "");
    }

    #[test]
    fn failures_and_crashes_are_errors_with_a_title() {
        let text =
            annotations("make", "TAP version 13\n1..1\nnot ok 1 a\n", &Ending::Crashed("panic".to_owned()));
        assert_eq!(text, "\n::error title=make%3A a::not ok\n::error title=make::the guest crashed: panic\n");
    }

    #[test]
    fn nothing_of_a_guest_s_becomes_a_command() {
        let name = "a,b::c%0Ad\r\n::warning::x\u{1b}[31m\u{2028}\u{85}y";
        let text = annotations(name, "", &Ending::Crashed("100%\n::stop-commands::x".to_owned()));
        assert_eq!(
            text,
            "\n::error title=a%2Cb%3A%3Ac%250Ad%0D%0A%3A%3Awarning%3A%3Ax\u{fffd}[31m\u{fffd}\u{fffd}y::the guest \
             crashed: 100%25%0A::stop-commands::x\n"
        );
        assert!(text.lines().skip(1).all(|line| line.starts_with("::error title=")));
    }

    #[test]
    fn no_more_is_written_than_is_shown() {
        let results: String = (1..=30).map(|n| format!("not ok {n}\n")).collect();
        let text = annotations("make", &format!("TAP version 13\n1..30\n{results}"), &Ending::Exited(1));
        assert_eq!(text.trim().lines().count(), SHOWN);
        assert!(text.ends_with("::error title=make::21 more cases failed\n"));
    }
}
