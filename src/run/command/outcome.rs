//! What a run came to: the exit code, what the user is told, and the results that machines read.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::super::image::Boot;
use super::super::report_crash;
use super::kernel_log::KernelLog;
use super::streams::Tee;
use crate::cli::{self, CommandOptions};
use crate::machine::Running;
use crate::results::{Ending, Recorder, annotations};
use crate::task::End;
use crate::terminal;

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

    /// The user has had enough.
    pub fn quit() -> Self {
        Self::new(cli::DONE, Ending::Failed("ended by the user".to_owned()), None)
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
        self.log = lines.join("\n");
        self
    }
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
        let wanted = options.junit.is_some() || annotations::wanted();
        let recorder = wanted.then(|| Arc::new(Mutex::new(Recorder::new(&words.join(" ")))));
        Self { options, begun: Instant::now(), recorder }
    }

    /// Takes what the command prints.
    pub fn tee(&self) -> Option<Tee> {
        let recorder = self.recorder.clone()?;
        Some(Box::new(move |bytes| recorder.lock().unwrap_or_else(PoisonError::into_inner).feed(bytes)))
    }

    /// Writes what was recorded.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn finish(self, outcome: &anyhow::Result<Outcome>) -> anyhow::Result<()> {
        let Some(recorder) = &self.recorder else { return Ok(()) };
        let (ending, log) = match outcome {
            Ok(outcome) => (outcome.ending.clone(), outcome.log.as_str()),
            Err(error) => (Ending::Failed(format!("{error:#}")), ""),
        };
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = std::mem::replace(&mut *recorder, Recorder::new(""));
        let suite = recorder.finish(&ending, self.begun.elapsed(), log);
        // Whether anybody reads them changes nothing. Standard output is the command's.
        let _ = suite.annotate(&mut io::stderr());
        match &self.options.junit {
            Some(path) => suite.write_junit(path),
            None => Ok(()),
        }
    }
}
