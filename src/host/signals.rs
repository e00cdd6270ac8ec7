//! The signals that kite waits for instead of dying of them: there is a terminal to restore first.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// Signals about files or the terminal, which end nothing.
const NOTICES: [Signal; 2] = [Signal::SIGIO, Signal::SIGWINCH];
/// Signals that end kite. `SIGXCPU` is what `ulimit -t` sends.
pub const ENDING: [Signal; 8] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGALRM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGXCPU,
];

/// Whether `SIGUSR1` is a question: what a process does with a signal goes for the whole of it.
static IS_ASKED: AtomicBool = AtomicBool::new(false);

/// Makes `SIGUSR1` a question instead of an end, and gives the descriptor that it is read from; to be called before there
/// is a second thread, and before [`Signals::take_over`].
///
/// # Errors
/// The host refuses a descriptor.
pub fn take_questions() -> anyhow::Result<SignalFd> {
    let mut asking = SigSet::empty();
    asking.add(Signal::SIGUSR1);
    asking.thread_block().context("cannot block a signal")?;
    IS_ASKED.store(true, Ordering::SeqCst);
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&asking, flags).context("cannot make a signalfd")
}

/// Whether `SIGUSR1` is a question, which is the machine's to answer.
pub(crate) fn are_asked() -> bool {
    IS_ASKED.load(Ordering::SeqCst)
}

/// The signals that came, and were taken over.
pub struct Signals {
    descriptor: SignalFd,
    /// How often each has come by itself, and how often from the supervisor, if there is one.
    passed_on: Option<RefCell<[[u32; 2]; HIGHEST]>>,
}

/// Signals have lower numbers.
const HIGHEST: usize = 65;

impl Signals {
    /// Takes over what ends kite, and what does not: `SIGIO` and `SIGWINCH`; to be called before there is a second thread.
    /// With `passed_on`, what ends kite may also come from the supervisor ([`pass_on`]).
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn take_over(passed_on: bool) -> anyhow::Result<Self> {
        let notices = NOTICES.map(|signal| signal as i32);
        let ending: Vec<i32> = ending().iter().map(|signal| signal as i32).collect();
        let stand_ins: Vec<i32> = ending.iter().map(|signal| stand_in(*signal)).collect();
        let waited = set([&notices[..], &ending, if passed_on { &stand_ins } else { &[] }]);
        // Reading a terminal that another job has fails with the last one blocked, instead of stopping us, and the guest
        // with us.
        let blocked = set([&notices[..], &ending, &stand_ins, &[Signal::SIGTTIN as i32]]);
        blocked.thread_block().context("cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let descriptor = SignalFd::with_flags(&waited, flags).context("cannot make a signalfd")?;
        let passed_on = passed_on.then(|| RefCell::new([[0; 2]; HIGHEST]));
        Ok(Self { descriptor, passed_on })
    }

    /// The next signal, if one has come.
    pub fn next(&self) -> Option<i32> {
        loop {
            let signal = self.descriptor.read_signal().ok()??.ssi_signo as i32;
            let is_stand_in = signal >= SIGRTMIN();
            let signal = if is_stand_in { signal - stand_in(0) } else { signal };
            if is_notice(signal) || self.is_new(signal, is_stand_in) {
                return Some(signal);
            }
        }
    }

    /// Whether it has not come the other way yet: a terminal's signals, and those to a whole group, reach the process
    /// outside too, which hands them on.
    fn is_new(&self, signal: i32, is_stand_in: bool) -> bool {
        let Some(passed_on) = &self.passed_on else { return true };
        let mut passed_on = passed_on.borrow_mut();
        let Some(ways) = passed_on.get_mut(signal as usize) else { return false };
        let (this, other) = (usize::from(is_stand_in), usize::from(!is_stand_in));
        ways[this] += 1;
        ways[this] > ways[other]
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// A set of signals, by their numbers, as some have no names.
#[expect(unsafe_code, reason = "a set of signals without names has no safe interface")]
fn set<const N: usize>(parts: [&[i32]; N]) -> SigSet {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: makes the set an empty one, which is then initialised; numbers that are no signal's are refused.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in parts.into_iter().flatten() {
            libc::sigaddset(set.as_mut_ptr(), *signal);
        }
        SigSet::from_sigset_t_unchecked(set.assume_init())
    }
}

/// Lets the signals that end kite do so again, of themselves: where nothing more is done than to say something to a reader
/// who may not read.
pub fn release() {
    // One that is ignored stays so. Who may not unblock them cannot be ended by them.
    let _ = ENDING.into_iter().filter(|signal| !is_question(*signal)).collect::<SigSet>().thread_unblock();
}

/// Makes a write beyond the limit of a file's size (`ulimit -f`) fail, as any other does, instead of ending kite. Programs
/// that kite starts have the signal as kite had it: a handler is nothing that they take over.
pub fn survive_file_limits() {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    if !is_ignored(Signal::SIGXFSZ) {
        // A kernel that has no such signal sends none.
        let _ = register_signal_handler(Signal::SIGXFSZ as libc::c_int, nothing);
    }
}

/// Passes `signal` on to the VM process.
///
/// # Errors
/// It has gone.
#[expect(unsafe_code, reason = "a signal without a name has no safe interface")]
pub fn pass_on(machine: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: takes numbers.
    Errno::result(unsafe { libc::kill(machine.as_raw(), stand_in(signal)) }).map(drop)
}

/// What stands in for a signal on its way from the supervisor to the VM process. The first of those free for use is
/// the vCPUs'.
fn stand_in(signal: i32) -> i32 {
    SIGRTMIN() + 1 + signal
}

/// Whether this signal ends kite.
pub(crate) fn ends(signal: i32) -> bool {
    ENDING.iter().any(|it| *it as i32 == signal)
}

/// The signals that are to end kite.
pub(crate) fn ending() -> SigSet {
    let ends = |signal: &Signal| !is_ignored(*signal) && !is_question(*signal);
    ENDING.into_iter().filter(ends).collect()
}

fn is_question(signal: Signal) -> bool {
    signal == Signal::SIGUSR1 && are_asked()
}

/// Whether who started kite wants it to outlive the signal, as `nohup` does.
#[expect(unsafe_code, reason = "asking for a signal's action has no safe interface")]
fn is_ignored(signal: Signal) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: changes no action; the current one goes into memory of its own.
    let asked = unsafe { libc::sigaction(signal as libc::c_int, std::ptr::null(), action.as_mut_ptr()) };
    // SAFETY: the call succeeded, so it has filled in all of it.
    asked == 0 && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Signals that a command gets once, and that end the machine when they come again.
const INTERRUPTS: [Signal; 2] = [Signal::SIGINT, Signal::SIGQUIT];

/// Which interrupts have come.
#[derive(Default)]
pub struct Interrupts([bool; INTERRUPTS.len()]);

impl Interrupts {
    /// Whether this one has come before; nothing if it is no interrupt.
    pub fn take(&mut self, signal: Signal) -> Option<bool> {
        let at = INTERRUPTS.iter().position(|it| *it == signal)?;
        Some(std::mem::replace(&mut self.0[at], true))
    }
}

/// Whether the signal is about files or the terminal, and ends nothing.
pub fn is_notice(signal: i32) -> bool {
    NOTICES.iter().any(|it| *it as i32 == signal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_both_ways_is_one() {
        const TERM: i32 = Signal::SIGTERM as i32;
        let signals = Signals::take_over(true).unwrap();
        // By itself, then handed on; the other way round; and twice by itself.
        let ways = [false, true, true, false, false, false, true];
        let new = ways.map(|is_stand_in| signals.is_new(TERM, is_stand_in));
        assert_eq!(new, [true, false, true, false, true, true, false]);
        assert!(signals.is_new(Signal::SIGINT as i32, true) && !signals.is_new(999, false));
    }
}
