//! One run of the matrix, and what became of it.

use std::fs;
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::keep::{Files, Folder};
use super::plan::Cell;
use super::progress::Progress;
use crate::host::child::{self, End, Stream};
use crate::host::exit_code;
use crate::observe::results::{Ending, Recorder, Suite, Tail};
use crate::session::command::GUEST_ENDED;

/// How much of each stream is kept for its last lines, in bytes.
const KEPT: usize = 64 << 10;
/// How long kite may take to end a guest whose time is over.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a signal's number is added to.
const SIGNALLED: u8 = 128;
/// Linux has signals up to this one.
const LAST_SIGNAL: u8 = 64;

/// How each run is made.
pub(super) struct Runner<'a> {
    pub program: PathBuf,
    /// Readable once all is to stop.
    pub stop: BorrowedFd<'a>,
    pub progress: &'a Progress,
    pub files: Option<&'a Folder>,
}

/// What became of a run.
pub(super) struct Outcome {
    /// In a word or two.
    pub told: String,
    pub elapsed: Duration,
    /// Whether the command ran to its end.
    pub is_ended: bool,
    pub code: u8,
    pub suite: Suite,
}

impl Runner<'_> {
    /// Runs it, shows its progress, and returns its outcome.
    pub(super) fn run(&self, cell: &Cell) -> Outcome {
        let name = cell.name();
        let mut recorder = Recorder::new(&name, cell.fail_on_ktap);
        if child::is_readable(self.stop) {
            let ending = Ending::Failed("the run was not begun".to_owned());
            let suite = recorder.finish(&ending, Duration::ZERO, "");
            let (told, elapsed) = ("not run".to_owned(), Duration::ZERO);
            return Outcome { told, elapsed, is_ended: false, code: exit_code::FAILED, suite };
        }
        self.progress.started(&name);
        let mut files = self.files.map(|folder| folder.files(cell));
        let mut shown = self.progress.output(&name);
        let (mut stdout, mut stderr) = (Tail::new(KEPT), Tail::new(KEPT));
        let mut take = |stream, bytes: &[u8]| {
            match stream {
                Stream::Stdout => {
                    recorder.feed(bytes);
                    stdout.push(bytes);
                }
                Stream::Stderr => stderr.push(bytes),
            }
            shown.take(stream, bytes);
            files.iter_mut().for_each(|files| files.write(stream, bytes));
        };
        // Only what this run shows is its picture.
        cell.picture().into_iter().for_each(|path| _ = fs::remove_file(path));
        let started = Instant::now();
        let limit = cell.timeout().and_then(|timeout| timeout.checked_add(PATIENCE));
        let spec = cell.spec.to_json();
        let end = child::run(&mut self.command(), spec.as_bytes(), Some(self.stop), limit, &mut take);
        let elapsed = started.elapsed();
        shown.end();
        let problem = files.and_then(Files::problem);
        let (stdout, stderr) = (stdout.text(), stderr.text());
        let stopped = matches!(end, Ok(End::Stopped));
        let ending = match end {
            Ok(End::Status(status)) => ending(status, &stderr),
            Ok(End::Stopped) => Ending::Failed("the run was stopped".to_owned()),
            Ok(End::Late) => Ending::Failed("kite did not stop it when its time was over".to_owned()),
            Err(error) => Ending::Failed(format!("{error:#}")),
        };
        let mut suite = recorder.finish(&ending, elapsed, &stderr);
        let picture = cell.picture().filter(|path| path.symlink_metadata().is_ok_and(|it| it.is_file()));
        picture.into_iter().for_each(|path| suite.attach(path));
        let outcome = Outcome::new(&ending, stopped, elapsed, suite);
        self.progress.finished(&name, &outcome, [&stdout, &stderr]);
        if let Some(problem) = problem {
            self.progress.complain(&problem);
        }
        outcome
    }

    /// What reads a run's spec and does it.
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0("kite").args(["run", "--spec", "-"]);
        // The matrix makes the annotations itself, with the names of kernel and command.
        command.env_remove("GITHUB_ACTIONS");
        command
    }
}

/// What the status of `kite run` says; the reason is in what it has printed.
fn ending(status: ExitStatus, stderr: &str) -> Ending {
    let Some(code) = status.code().and_then(|code| u8::try_from(code).ok()) else {
        let number = status.signal().unwrap_or_default();
        let signal =
            Signal::try_from(number).map_or_else(|_| number.to_string(), |signal| signal.to_string());
        return Ending::Failed(format!("kite was killed by {signal}"));
    };
    let lines = || stderr.lines().rev().filter_map(|line| line.strip_prefix("kite: "));
    let said = || {
        let line = lines().next().unwrap_or("it did not say why");
        line.strip_prefix("the guest crashed: ").unwrap_or(line).to_owned()
    };
    let limit = || lines().find_map(|line| line.strip_prefix(GUEST_ENDED));
    match (code, limit()) {
        (exit_code::TIMED_OUT, Some(limit)) => return Ending::TimedOut(limit.to_owned()),
        // So a command may end, too.
        (exit_code::TIMED_OUT, None) => return Ending::Exited(code),
        _ => {}
    }
    match code {
        exit_code::FAILED | exit_code::OUT_OF_MEMORY => Ending::Failed(said()),
        exit_code::CRASHED => Ending::Crashed(said()),
        exit_code::NOT_EXECUTABLE => Ending::NotExecutable,
        exit_code::NOT_FOUND => Ending::NotFound,
        code if code > SIGNALLED && code - SIGNALLED <= LAST_SIGNAL => {
            Ending::Signalled((code - SIGNALLED).into())
        }
        code => Ending::Exited(code),
    }
}

impl Outcome {
    fn new(ending: &Ending, stopped: bool, elapsed: Duration, suite: Suite) -> Self {
        let (cases, bad) = (suite.cases().len(), suite.bad());
        let (told, code) = match ending {
            Ending::Exited(status) => match (*status, suite.status(*status)) {
                (_, 0) if suite.is_skipped() => ("skipped".to_owned(), 0),
                // Its own status is all that counts.
                (0, 0) if bad > 0 => (format!("ok, {bad} of {cases} cases failed"), 0),
                (_, 0) => ("ok".to_owned(), 0),
                (0, code) if suite.remark().is_some() => ("no KTAP".to_owned(), code),
                (0, code) => (format!("{bad} of {cases} failed"), code),
                (_, code) if bad > 1 || cases > 1 => (format!("{bad} of {cases} failed"), code),
                (_, code) => (format!("exit {code}"), code),
            },
            Ending::Signalled(number) => {
                let name =
                    Signal::try_from(*number).map_or_else(|_| format!("signal {number}"), |s| s.to_string());
                (name, u8::try_from(*number).map_or(u8::MAX - 1, |number| SIGNALLED.saturating_add(number)))
            }
            Ending::TimedOut(_) => ("timeout".to_owned(), exit_code::TIMED_OUT),
            Ending::Crashed(_) => ("crash".to_owned(), exit_code::CRASHED),
            Ending::NotExecutable => ("not executable".to_owned(), exit_code::NOT_EXECUTABLE),
            Ending::NotFound => ("not found".to_owned(), exit_code::NOT_FOUND),
            Ending::Failed(_) if stopped => ("stopped".to_owned(), exit_code::FAILED),
            Ending::Failed(_) => ("kite failed".to_owned(), exit_code::FAILED),
        };
        Self { told, elapsed, is_ended: matches!(ending, Ending::Exited(_)), code, suite }
    }

    /// Whether it is one that somebody must look at.
    pub(super) fn is_bad(&self) -> bool {
        self.code != 0
    }
}

/// The worst of these statuses: 0, then what commands end with, then 124, 255, 125.
pub(super) fn worst(codes: impl Iterator<Item = u8>) -> u8 {
    let rank = |code: &u8| match *code {
        0 => (0, 0),
        exit_code::TIMED_OUT => (2, 0),
        exit_code::CRASHED => (3, 0),
        exit_code::FAILED => (4, 0),
        code => (1, code),
    };
    codes.max_by_key(rank).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_status_is_that_of_kite_s_own_failure() {
        for (codes, expected) in [
            (&[0, 0][..], 0),
            (&[0, 1, 3, 2], 3),
            (&[1, 137, 126], 137),
            (&[137, 124, 1], 124),
            (&[124, 255, 254], 255),
            (&[255, 125, 124], 125),
            (&[], 0),
        ] {
            assert_eq!(worst(codes.iter().copied()), expected, "{codes:?}");
        }
    }

    #[test]
    fn a_status_becomes_an_ending_with_kite_s_own_reason() {
        let of = |code: i32, stderr: &str| ending(ExitStatus::from_raw(code << 8), stderr);
        assert_eq!(of(0, ""), Ending::Exited(0));
        assert_eq!(of(124, "kite: x\nkite: the guest was ended: 5s\n"), Ending::TimedOut("5s".to_owned()));
        assert_eq!(of(124, "kite: slow\n"), Ending::Exited(124));
        assert_eq!(of(255, "x\nkite: the guest crashed: panic\ny"), Ending::Crashed("panic".to_owned()));
        assert_eq!(of(255, "kite: the guest went off\n"), Ending::Crashed("the guest went off".to_owned()));
        assert_eq!(of(125, "kite: no KVM\n"), Ending::Failed("no KVM".to_owned()));
        assert_eq!(of(125, ""), Ending::Failed("it did not say why".to_owned()));
        assert_eq!(of(137, ""), Ending::Signalled(9));
        assert_eq!(of(192, ""), Ending::Signalled(64));
        assert_eq!(of(193, ""), Ending::Exited(193));
        assert_eq!(of(128, ""), Ending::Exited(128));
        assert_eq!(
            ending(ExitStatus::from_raw(9), ""),
            Ending::Failed("kite was killed by SIGKILL".to_owned())
        );
    }
}
