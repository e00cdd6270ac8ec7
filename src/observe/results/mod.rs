//! What a command's run came to, for those who read results by machine: its output's KTAP as cases, a JUnit file,
//! GitHub's annotations.
//!
//! All of it comes from a guest: what is kept is bounded, and nothing is written as the guest wrote it.

pub mod annotations;
pub mod junit;
mod ktap;
mod rule;
mod tail;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

pub use crate::spec::command::FailOnKtap;
pub use tail::Tail;

/// How a command's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It exited with this status.
    Exited(u8),
    /// This signal killed it.
    Signalled(i32),
    /// It was stopped when its time was over: which limit that was.
    TimedOut(String),
    /// The guest crashed: how.
    Crashed(String),
    /// There is such a command, and it cannot be executed.
    NotExecutable,
    /// There is no such command.
    NotFound,
    /// kite or the host failed: how.
    Failed(String),
}

/// What came of one case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It was not run, or was expected to fail and did: why.
    Skipped(String),
    /// What it tests is wrong: in a line, and the diagnostics.
    Failed(String, String),
    /// It could not be run to its end: in a line, and the diagnostics.
    Error(String, String),
}

/// One test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The tests around it, outermost first, joined with dots; empty if there are none.
    pub group: String,
    /// What it is called.
    pub name: String,
    /// How long it took, from the result before it.
    pub time: Duration,
    /// What came of it.
    pub verdict: Verdict,
}

impl Case {
    /// Whether it is neither passed nor skipped.
    pub fn is_bad(&self) -> bool {
        matches!(self.verdict, Verdict::Failed(..) | Verdict::Error(..))
    }
}

/// How much of the command's output goes into the results, in bytes.
const KEPT_OUTPUT: usize = 64 << 10;

/// Follows a command's standard output while it runs.
pub struct Recorder {
    name: String,
    rule: FailOnKtap,
    started: Instant,
    parser: ktap::Parser,
    output: Tail,
}

impl Recorder {
    /// Begins to follow a run; `name` is what the results call the command.
    pub fn new(name: &str, rule: FailOnKtap) -> Self {
        let (parser, output) = (ktap::Parser::new(), Tail::new(KEPT_OUTPUT));
        Self { name: name.to_owned(), rule, started: Instant::now(), parser, output }
    }

    /// Takes what the command has printed next.
    pub fn feed(&mut self, stdout: &[u8]) {
        self.parser.feed(stdout, self.started.elapsed());
        self.output.push(stdout);
    }

    /// The results, once the run is over. `kernel_log_tail` is the end of the kernel's log.
    pub fn finish(self, ending: &Ending, elapsed: Duration, kernel_log_tail: &str) -> Suite {
        let output = self.output.text();
        let ktap::Found { mut cases, documents } = self.parser.finish();
        let mut verdict = ending.verdict(&output);
        let explained = match ending {
            Ending::Exited(status) => cases.iter().any(Case::is_bad) || rule::explains_skip(&cases, *status),
            _ => false,
        };
        if verdict == Verdict::Passed && !documents && self.rule == FailOnKtap::Always {
            verdict = Verdict::Failed(rule::NO_DOCUMENT.to_owned(), output.clone());
        }
        if cases.is_empty() || (verdict != Verdict::Passed && !explained) {
            let name = self.name.clone();
            cases.push(Case { group: String::new(), name, time: elapsed, verdict });
        }
        let kernel_log = kernel_log_tail.to_owned();
        let (name, rule) = (self.name, self.rule);
        Suite { name, rule, time: elapsed, cases, documents, output, kernel_log, picture: None }
    }
}

impl Ending {
    fn verdict(&self, output: &str) -> Verdict {
        let error = |what: &str| Verdict::Error(what.to_owned(), output.to_owned());
        match self {
            Self::Exited(0) => Verdict::Passed,
            Self::Exited(status) => Verdict::Failed(format!("exit status {status}"), output.to_owned()),
            Self::Signalled(number) => match Signal::try_from(*number) {
                Ok(signal) => error(&format!("killed by {signal}")),
                Err(_) => error(&format!("killed by signal {number}")),
            },
            Self::TimedOut(limit) => error(limit),
            Self::Crashed(how) => error(&format!("the guest crashed: {how}")),
            Self::NotExecutable => error("the command cannot be executed"),
            Self::NotFound => error("there is no such command"),
            Self::Failed(how) => error(&format!("kite failed: {how}")),
        }
    }
}

/// The results of one run.
#[derive(Clone, Debug)]
pub struct Suite {
    name: String,
    rule: FailOnKtap,
    time: Duration,
    cases: Vec<Case>,
    /// Whether the output has a KTAP or TAP document.
    documents: bool,
    /// The end of the command's output.
    output: String,
    /// The end of the kernel's log.
    kernel_log: String,
    /// The file with what was on the screen.
    picture: Option<PathBuf>,
}

impl Suite {
    /// What the run is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The cases, in the order of their results.
    pub fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// How many cases failed or could not be run to their end.
    pub fn bad(&self) -> usize {
        self.cases.iter().filter(|case| case.is_bad()).count()
    }

    /// Has the results name the file with what was on the screen.
    pub fn attach(&mut self, picture: &Path) {
        self.picture = Some(picture.to_owned());
    }

    /// Writes a JUnit file with these results only; see [`junit::write`].
    ///
    /// # Errors
    /// The file cannot be written there.
    pub fn write_junit(&self, path: &Path) -> anyhow::Result<()> {
        junit::write(path, std::slice::from_ref(self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suite(output: &[u8], ending: &Ending) -> Suite {
        let mut recorder = Recorder::new("the command", FailOnKtap::Auto);
        output.chunks(7).for_each(|chunk| recorder.feed(chunk));
        recorder.finish(ending, Duration::from_secs(2), "log")
    }

    fn bad(output: &[u8], ending: &Ending) -> Vec<(String, bool)> {
        let suite = suite(output, ending);
        suite.cases().iter().map(|case| (case.name.clone(), case.is_bad())).collect()
    }

    const PASSING: &[u8] = b"TAP version 13\n1..1\nok 1 a\n";
    const FAILING: &[u8] = b"TAP version 13\n1..1\nnot ok 1 a\n";

    #[test]
    fn output_without_ktap_is_one_case_that_passes_with_exit_0_only() {
        assert_eq!(bad(b"ok\nokay 1\n", &Ending::Exited(0)), [("the command".to_owned(), false)]);
        let all = [
            Ending::Exited(1),
            Ending::Signalled(9),
            Ending::Signalled(64),
            Ending::TimedOut("it took 5s".to_owned()),
            Ending::Crashed("panic".to_owned()),
            Ending::NotExecutable,
            Ending::NotFound,
            Ending::Failed("no KVM".to_owned()),
        ];
        for ending in all {
            assert_eq!(bad(b"", &ending), [("the command".to_owned(), true)], "{ending:?}");
        }
    }

    #[test]
    fn a_status_that_failed_cases_explain_is_no_case_of_its_own() {
        let a = |bad| ("a".to_owned(), bad);
        let command = ("the command".to_owned(), true);
        assert_eq!(bad(PASSING, &Ending::Exited(0)), [a(false)]);
        assert_eq!(bad(FAILING, &Ending::Exited(0)), [a(true)]);
        assert_eq!(bad(FAILING, &Ending::Exited(1)), [a(true)]);
        assert_eq!(bad(PASSING, &Ending::Exited(1)), [a(false), command.clone()]);
        assert_eq!(bad(FAILING, &Ending::TimedOut(String::new())), [a(true), command]);
    }

    #[test]
    fn the_output_s_end_is_kept_and_no_more() {
        let long = b"0123456789".repeat(KEPT_OUTPUT);
        let suite = suite(&long, &Ending::Exited(3));
        assert!(suite.output.len() <= KEPT_OUTPUT + 100 && suite.output.ends_with("6789"));
        assert_eq!(
            suite.cases()[0].verdict,
            Verdict::Failed("exit status 3".to_owned(), suite.output.clone())
        );
    }
}
