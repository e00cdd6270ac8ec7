//! What a run came to: the exit code, what the user is told, and the results that machines read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::super::image::Boot;
use super::super::report_crash;
use super::kernel_log::KernelLog;
use super::streams::Tee;
use crate::cli::{self, CommandOptions};
use crate::host::messages;
use crate::host::terminal;
use crate::observe::results::{Ending, FailOnKtap, Recorder, annotations};
use crate::spec::task::{End, NO_PORT};
use crate::vm::machine::Running;

/// How many of the kernel's last lines tell of a crash.
const LAST_LINES: usize = 60;

/// What a run came to.
pub(super) struct Outcome {
    /// The exit code.
    pub code: u8,
    /// The signal that ended kite, and is to end it now.
    pub signal: Option<i32>,
    ending: Ending,
    /// What the user is told, if the command itself says nothing.
    why: Option<String>,
    /// The kernel's last lines.
    log: String,
}

impl Outcome {
    fn new(code: u8, ending: Ending, why: Option<String>) -> Self {
        Self { code, signal: None, ending, why, log: String::new() }
    }

    /// The command has ended.
    pub fn of(end: &End) -> Self {
        let told = match end {
            End::Exited(status) => return Self::new(*status, Ending::Exited(*status), None),
            // Whatever the guest says, it is no more than a byte.
            End::Signalled(signal) => {
                let signal = signal & 0x7f;
                return Self::new(128 + signal as u8, Ending::Signalled(signal), None);
            }
            End::NotFound(what) => Self::new(cli::NOT_FOUND, Ending::NotFound, Some(what.clone())),
            End::NotExecutable(what) => {
                Self::new(cli::NOT_EXECUTABLE, Ending::NotExecutable, Some(what.clone()))
            }
            End::Failed(what) => Self::new(cli::FAILED, Ending::Failed(what.clone()), Some(what.clone())),
        };
        cli::complain(told.why.as_deref().unwrap_or_default());
        told
    }

    /// It took too long.
    pub fn timed_out(limit: Duration) -> Self {
        Self::late(format!("the command did not end within {limit:?} (--timeout)"))
    }

    /// It did nothing for too long.
    pub fn idle(limit: Duration) -> Self {
        Self::late(format!("it neither ran nor printed for {limit:?} (--idle-timeout)"))
    }

    fn late(limit: String) -> Self {
        let why = format!("{}{limit}", cli::GUEST_ENDED);
        Self::new(cli::TIMED_OUT, Ending::TimedOut(limit), Some(why))
    }

    /// The guest crashed.
    pub fn crashed(what: &str) -> Self {
        let why = format!("the guest crashed: {what}");
        Self::new(cli::CRASHED, Ending::Crashed(what.to_owned()), Some(why))
    }

    /// The guest switched itself off, or restarted.
    pub fn gone() -> Self {
        let what = "the guest went off before the command had ended".to_owned();
        Self::new(cli::CRASHED, Ending::Crashed(what.clone()), Some(what))
    }

    /// The command has ended, but what it or its kernel wrote is lost, which the user was told.
    pub fn failed(why: String) -> Self {
        Self::new(cli::FAILED, Ending::Failed(why), None)
    }

    /// The user has had enough.
    pub fn quit() -> Self {
        Self::new(cli::QUIT, Ending::Failed("ended by the user".to_owned()), None)
    }

    /// A signal ended kite.
    pub fn signalled(signal: i32) -> Self {
        let ending = Ending::Failed(format!("ended by signal {signal}"));
        Self { signal: Some(signal), ..Self::new(cli::FAILED, ending, None) }
    }

    /// Tells the user why the command did not come to its end: what the kernel said last, what each vCPU was at, and
    /// last, where eyes fall first, what happened.
    pub fn tell(mut self, log: &KernelLog, running: &Running, boot: &Boot) -> Self {
        let lines = log.last_lines(LAST_LINES);
        if !lines.is_empty() && !log.is_shown() {
            cli::complain("the kernel's last lines:");
            lines.iter().for_each(|line| terminal::line(&format!("  {line}")));
        }
        report_crash(running, boot);
        cli::complain(self.why.as_deref().unwrap_or_default());
        if boot.modules.is_none() && lines.iter().any(|line| line.contains(NO_PORT)) {
            let version = boot.image.version();
            cli::complain(&lacks_modules(version.as_deref().unwrap_or("(which does not tell its version)")));
        }
        self.log = lines.join("\n");
        self
    }
}

/// What helps where a kernel has its drivers neither built in nor in a folder that kite has found.
fn lacks_modules(version: &str) -> String {
    format!(
        "there is no folder of modules for kernel {version}, which has not all that it needs built in: install it in \
         /lib/modules/{version}, or name it with --modules DIR"
    )
}

/// What machines read of a run, if somebody wants it.
pub(super) struct Results<'a> {
    options: &'a CommandOptions,
    begun: Instant,
    recorder: Option<Arc<Mutex<Recorder>>>,
}

impl<'a> Results<'a> {
    /// Begins to record, if there is a file to be written or annotations are wanted.
    pub fn new(options: &'a CommandOptions) -> Self {
        let words: Vec<_> = options.command.iter().map(|word| word.to_string_lossy()).collect();
        let rule = options.fail_on_ktap;
        let wanted = options.junit.is_some() || annotations::wanted() || rule == FailOnKtap::Always;
        let recorder = wanted.then(|| Arc::new(Mutex::new(Recorder::new(&words.join(" "), rule))));
        Self { options, begun: Instant::now(), recorder }
    }

    /// Takes what the command prints.
    pub fn tee(&self) -> Option<Tee> {
        let recorder = self.recorder.clone()?;
        Some(Box::new(move |bytes| recorder.lock().unwrap_or_else(PoisonError::into_inner).feed(bytes)))
    }

    /// Writes what was recorded, and gives the outcome the exit code that its cases ask for.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self, outcome: &mut anyhow::Result<Outcome>) -> anyhow::Result<()> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        let (ending, log) = match outcome {
            Ok(outcome) => (outcome.ending.clone(), outcome.log.as_str()),
            Err(error) => (Ending::Failed(format!("{error:#}")), ""),
        };
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = std::mem::replace(&mut *recorder, Recorder::new("", self.options.fail_on_ktap));
        let suite = recorder.finish(&ending, self.begun.elapsed(), log);
        // Standard output is the command's.
        let mut annotations = Vec::new();
        suite.annotate(&mut annotations).context("cannot write annotations")?;
        messages::say(annotations);
        if let Ok(Outcome { code, ending: Ending::Exited(status), signal: None, .. }) = outcome {
            *code = suite.status(*status);
            let asked = self.options.junit.is_some() || self.options.fail_on_ktap == FailOnKtap::Always;
            suite.remark().filter(|_| asked).into_iter().for_each(cli::complain);
        }
        match &self.options.junit {
            Some(path) => suite.write_junit(path),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: CommandOptions,
    }

    /// The exit code of a command that has printed this, and its JUnit file if there is one.
    fn end(words: &[&str], printed: &str, end: &End) -> (u8, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("junit.xml");
        let junit = format!("--junit={}", path.display());
        let words = words.iter().map(|word| if *word == "--junit" { junit.as_str() } else { word });
        let line = Line::parse_from(["kite"].into_iter().chain(words).chain(["--", "c"]));
        let results = Results::new(&line.options);
        if let Some(mut tee) = results.tee() {
            tee(printed.as_bytes());
        }
        let mut outcome = Ok(Outcome::of(end));
        results.finish(&mut outcome).unwrap();
        (outcome.unwrap().code, std::fs::read_to_string(path).unwrap_or_default())
    }

    const FAILING: &str = "[ 1.2] [  T1] KTAP version 1\n[ 1.2] [  T1] 1..1\n[ 1.2] [  T1] not ok 1 a\n";

    #[test]
    fn a_failed_case_makes_the_command_fail_where_results_are_written() {
        for (words, expected) in [
            (&["--junit"][..], 1),
            (&["--junit", "--fail-on-ktap=auto"], 1),
            (&["--fail-on-ktap=always"], 1),
            (&["--junit", "--fail-on-ktap=never"], 0),
            (&["--fail-on-ktap=never"], 0),
        ] {
            assert_eq!(end(words, FAILING, &End::Exited(0)).0, expected, "{words:?}");
            assert_eq!(end(words, FAILING, &End::Exited(3)).0, 3, "{words:?}");
            assert_eq!(end(words, FAILING, &End::Signalled(9)).0, 137, "{words:?}");
        }
    }

    #[test]
    fn a_selftest_that_skipped_everything_ends_with_0_and_is_a_skip() {
        let (code, junit) =
            end(&["--junit"], "TAP version 13\n1..0 # SKIP needs a device\n", &End::Exited(4));
        assert_eq!(code, 0);
        assert!(junit.contains("tests=\"1\" failures=\"0\" errors=\"0\" skipped=\"1\""), "{junit}");
        assert!(junit.contains("<skipped message=\"needs a device\"/>"), "{junit}");
    }

    #[test]
    fn an_output_without_a_document_fails_only_if_there_must_be_one() {
        let (code, junit) = end(&["--junit"], "hello\n", &End::Exited(0));
        assert_eq!(code, 0);
        assert!(junit.contains("<property name=\"ktap\" value=\"no document\"/>"), "{junit}");
        let (code, junit) = end(&["--junit", "--fail-on-ktap=always"], "hello\n", &End::Exited(0));
        assert_eq!(code, 1);
        assert!(
            junit.contains("<failure message=\"the command printed no KTAP or TAP document\">"),
            "{junit}"
        );
    }
}
