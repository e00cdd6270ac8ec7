//! A parent for the machine's process: it stays outside of what confines the machine, hands on the signals that it gets,
//! and is there to tell how it ended, should the host have killed it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, kill, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, getpid, getppid, pipe2};

use crate::signals;
use crate::terminal::Saved;

/// The machine's end of the pipe by which it tells that it has closed standard error, and which file that is: a sandbox
/// may close the descriptor, and another file get its number.
static CLOSED: OnceLock<(File, u64)> = OnceLock::new();

/// Which of the two processes this is.
#[derive(Debug)]
pub enum Side {
    /// The child, which is to go on.
    Machine,
    /// The parent, once the child has ended.
    Supervisor(End),
}

/// How the child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status.
    Exited(u8),
    /// By this signal.
    Killed(Signal),
}

/// Makes a child, which is the machine's process from now on, and in the parent waits for its end. The child ends at once if
/// the parent does.
///
/// # Errors
/// This process has threads already, or the host refuses what it takes.
pub fn supervise() -> anyhow::Result<Side> {
    let threads = fs::read_dir("/proc/self/task").context("cannot read /proc/self/task")?.count();
    ensure!(threads == 1, "a process with {threads} threads cannot be divided");
    let screen = Saved::now();
    let (told, tell) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    // An ignored SIGCHLD would leave nobody to wait for.
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    let mut waited = signals::ending();
    waited.add(Signal::SIGCHLD);
    let before = waited.thread_swap_mask(SigmaskHow::SIG_BLOCK).context("cannot block signals")?;
    set_action(Signal::SIGCHLD, &default)?;
    let parent = getpid();
    match divide().context("cannot start a process")? {
        ForkResult::Child => {
            drop(told);
            prctl::set_pdeathsig(Signal::SIGKILL).context("cannot be bound to the supervisor")?;
            ensure!(getppid() == parent, "the supervisor has gone");
            before.thread_set_mask().context("cannot unblock signals")?;
            // There is one only if this process is a machine already, which has a single thread for this.
            let tell = File::from(tell);
            let inode = tell.metadata().context("cannot look at a pipe")?.ino();
            let _ = CLOSED.set((tell, inode));
            Ok(Side::Machine)
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let end = attend(child, &waited, File::from(told));
            if end.is_err() {
                let _it_has_ended = kill(child, Signal::SIGKILL);
            }
            let end = end?;
            if let (End::Killed(_), Some(screen)) = (end, screen) {
                screen.restore();
            }
            before.thread_set_mask().context("cannot unblock signals")?;
            Ok(Side::Supervisor(end))
        }
    }
}

#[expect(unsafe_code, reason = "fork has no safe interface")]
fn divide() -> nix::Result<ForkResult> {
    // SAFETY: this process has one thread, so no lock is held by another, and the child may go on as this would.
    unsafe { fork() }
}

#[expect(unsafe_code, reason = "setting a signal's action has no safe interface")]
fn set_action(signal: Signal, action: &SigAction) -> anyhow::Result<()> {
    // SAFETY: the action is the default one, no function of ours.
    unsafe { sigaction(signal, action) }.map(drop).context("cannot reset SIGCHLD")
}

/// The machine has closed its standard error, so that nobody is to wait for more of it; without a supervisor, nothing to do.
pub fn stderr_is_closed() {
    if let Some((tell, inode)) = CLOSED.get()
        && tell.metadata().is_ok_and(|it| it.ino() == *inode)
    {
        let mut tell = tell;
        let _it_has_gone = tell.write(&[1]);
    }
}

/// Waits for the child's end and hands on signals.
fn attend(child: Pid, waited: &SigSet, mut told: File) -> anyhow::Result<End> {
    let signals = SignalFd::with_flags(waited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("cannot make a signalfd")?;
    // They are the machine's: whoever is at their other end is to see when it closes them.
    let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).context("cannot let go of standard output")?;
    let mut listening = true;
    loop {
        if let Some(end) = ended(child)? {
            return Ok(end);
        }
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(listening.then(|| PollFd::new(told.as_fd(), PollFlags::POLLIN)));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the machine"),
        }
        let hears = listening && fds.get(1).and_then(PollFd::any).unwrap_or(false);
        drop(fds);
        if hears {
            // Nothing to read means that the machine is about to end.
            if matches!(told.read(&mut [0]), Ok(1)) {
                dup2_stderr(&null).context("cannot let go of standard error")?;
            }
            listening = false;
        }
        while let Some(info) = signals.read_signal().context("cannot read signals")? {
            hand_on(child, i32::try_from(info.ssi_signo).unwrap_or_default(), info.ssi_code);
        }
    }
}

/// The end, if the child has come to it.
fn ended(child: Pid) -> anyhow::Result<Option<End>> {
    match waitpid(child, Some(WaitPidFlag::WNOHANG)).context("cannot wait for the machine")? {
        WaitStatus::Exited(_, code) => Ok(Some(End::Exited(u8::try_from(code).unwrap_or(u8::MAX)))),
        WaitStatus::Signaled(_, signal, _) => Ok(Some(End::Killed(signal))),
        _ => Ok(None),
    }
}

/// A signal of somebody's goes on to the machine. A key's has gone to it already: it is in the same process group.
fn hand_on(child: Pid, signal: i32, code: i32) {
    /// The kernel's own, as for a key.
    const SI_KERNEL: i32 = 0x80;
    let Ok(signal) = Signal::try_from(signal) else { return };
    let by_key = matches!(signal, Signal::SIGINT | Signal::SIGQUIT) && code == SI_KERNEL;
    if signal != Signal::SIGCHLD && !by_key {
        let _it_has_ended = kill(child, signal);
    }
}

/// Ends this process as the child has ended: gives its exit code, or does not return.
///
/// # Errors
/// The signal does not end this process.
pub fn end_alike(end: End) -> anyhow::Result<u8> {
    match end {
        End::Exited(code) => Ok(code),
        End::Killed(signal) => {
            // The core dump, if there is to be one, is the machine's.
            prctl::set_dumpable(false).context("cannot do without a core dump")?;
            crate::run::die_by(signal as i32)?;
            bail!("{signal} did not end kite")
        }
    }
}
