//! What a machine that has stopped came to, and what kite makes of it.

use std::time::Duration;

use crate::host::exit_code::FAILED;
use crate::observe::results::Ending;
use crate::spec::wire;
use crate::vcpu::stop::{Exit, Panic};
use crate::vm::machine::{ResetWord, Running};

/// What the guest makes of the reset word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conventions {
    /// Nothing, as it is no Linux: a triple fault is a crash, whatever it has written there.
    None,
    /// It is Linux's to write.
    Linux,
    /// And a warm reset means a panic: it does with kite's command line, unless the user makes every reset warm.
    WarmIsPanic,
}

/// How a machine ended.
#[derive(Debug)]
pub enum End {
    /// The guest switched it off.
    Off,
    /// The guest asked for a reset.
    Reboot,
    /// A unit test ended, and kite ends with this exit code.
    Status(u8),
    /// The command ended.
    Command(wire::End),
    /// The command took longer than it may.
    TimedOut,
    /// The guest neither ran nor printed for so long.
    Idle(Duration),
    /// The user asked kite to quit.
    Quit,
    /// The guest crashed.
    Crashed(String),
    /// kite or the host failed.
    Failed(String),
    /// A signal ends kite.
    Signal(i32),
}

impl End {
    /// What the reason and the reset word of a stopped machine say. Linux writes that word before every reset that it asks
    /// for, whichever way it then takes, so a triple fault without it was none of Linux's doing.
    pub fn of(machine: &Running, conventions: Conventions, panic_seen: bool) -> Self {
        let linux = conventions != Conventions::None;
        let word = if linux { machine.reset_word() } else { ResetWord::Untouched };
        let reported = linux && (panic_seen || machine.exit().panic() != Panic::None);
        let panicked = reported || conventions == Conventions::WarmIsPanic && word == ResetWord::Warm;
        if let Some(Exit::Failed(_) | Exit::Crash(_)) = machine.exit().reason()
            && let Some(why) = machine.ram().cut_file()
        {
            return Self::Failed(why);
        }
        match machine.exit().reason() {
            Some(Exit::Panicked) => Self::Crashed("kernel panic".to_owned()),
            Some(Exit::Reset | Exit::TripleFault { .. }) if panicked => {
                Self::Crashed("kernel panic".to_owned())
            }
            Some(Exit::TripleFault { vcpu }) if word == ResetWord::Untouched => {
                Self::Crashed(format!("triple fault on vCPU {vcpu}"))
            }
            Some(Exit::Reset | Exit::TripleFault { .. }) => Self::Reboot,
            Some(Exit::PowerOff) => Self::Off,
            Some(Exit::Quit) => Self::Quit,
            Some(Exit::Command(end)) => Self::Command(end.clone()),
            Some(Exit::TimedOut) => Self::TimedOut,
            Some(Exit::Idle(idle)) => Self::Idle(*idle),
            Some(Exit::Status(code)) => Self::Status(*code),
            Some(Exit::Crash(what)) => Self::Crashed(what.clone()),
            Some(Exit::Signal(signal)) => Self::Signal(*signal),
            Some(Exit::Failed(error)) => Self::Failed(format!("{error:#}")),
            None => Self::Failed("the event loop stopped without a reason".to_owned()),
        }
    }
}

/// What follows from a machine's end.
pub enum Next {
    /// The guest boots again, in a new machine.
    Restart,
    /// kite ends.
    Exit(Outcome),
}

/// What a run came to.
pub struct Outcome {
    /// The exit code.
    pub code: u8,
    /// The signal that ended kite, by which it ends itself.
    pub signal: Option<i32>,
    /// What results that machines read say of it.
    pub ending: Ending,
    /// The kernel's last lines, if they say why.
    pub log: String,
}

impl Outcome {
    /// An end with this exit code.
    pub fn new(code: u8, ending: Ending) -> Self {
        Self { code, signal: None, ending, log: String::new() }
    }

    /// An end by a signal.
    pub fn signalled(signal: i32) -> Self {
        let ending = Ending::Failed(format!("ended by signal {signal}"));
        Self { signal: Some(signal), ..Self::new(FAILED, ending) }
    }
}

impl From<Outcome> for Next {
    fn from(outcome: Outcome) -> Self {
        Self::Exit(outcome)
    }
}
