//! The signals that kite waits for instead of dying of them: there is a terminal to restore first.

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// What ends kite. `SIGXCPU` is what `ulimit -t` sends.
const ENDING: [Signal; 8] = [
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
/// is a second thread, and before [`take_over`].
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

/// Takes over what ends kite, and what does not: `SIGIO` and `SIGWINCH`; to be called before there is a second thread.
///
/// # Errors
/// The host refuses a descriptor.
pub fn take_over() -> anyhow::Result<SignalFd> {
    let mut waited = SigSet::empty();
    waited.add(Signal::SIGIO);
    waited.add(Signal::SIGWINCH);
    ending().iter().for_each(|signal| waited.add(signal));
    let mut blocked = waited;
    // Reading a terminal that another job has then fails instead of stopping us, and the guest with us.
    blocked.add(Signal::SIGTTIN);
    blocked.thread_block().context("cannot block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&waited, flags).context("cannot make a signalfd")
}

/// The signals that are to end kite.
pub(crate) fn ending() -> SigSet {
    let is_asked = IS_ASKED.load(Ordering::SeqCst);
    let is_question = |signal| is_asked && signal == Signal::SIGUSR1;
    let ends = |signal: &Signal| !is_ignored(*signal) && !is_question(*signal);
    ENDING.into_iter().filter(ends).collect()
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

/// Whether the signal is about files or the terminal, and ends nothing.
pub fn is_news(signal: u32) -> bool {
    [Signal::SIGIO, Signal::SIGWINCH].iter().any(|it| *it as u32 == signal)
}
