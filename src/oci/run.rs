//! `run`: a container from its making to its removal, by one command, which passes on what signals it gets.

use std::process::Child;
use std::thread;

use anyhow::{Context, anyhow};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::create::{Options, create};
use super::log::Log;
use super::runtime::{Ask, ask, delete, start};
use crate::host::exit_code::{FAILED, of_signal};
use crate::host::signals::ENDING;
use crate::sandbox;

/// Makes a container, runs it to its end and removes it; answers its status.
///
/// # Errors
/// It cannot be made, started or removed.
pub fn run(options: &Options<'_>, log: &Log) -> anyhow::Result<u8> {
    // From here on none of them ends this process, and leaves the container.
    let signals = take_signals()?;
    let mut monitor = create(options, log)?;
    let (root, id) = (options.root.to_owned(), options.id.to_owned());
    let begin = move || {
        start(&root, &id).inspect_err(|_| {
            // One that has ended needs no end.
            let _ = ask(&root, &id, Ask::Signal(Signal::SIGKILL as i32));
        })
    };
    let starting = thread::Builder::new().spawn(begin).context("cannot start a thread");
    let ended = starting.and_then(|starting| {
        let status = attend(options, &signals, &mut monitor)?;
        starting.join().map_err(|_| anyhow!("a thread panicked"))??;
        Ok(status)
    });
    delete(options.root, options.id, true)?;
    ended
}

fn take_signals() -> anyhow::Result<SignalFd> {
    sandbox::reset(Signal::SIGCHLD)?;
    let mut signals: SigSet = ENDING.into_iter().collect();
    signals.add(Signal::SIGCHLD);
    signals.thread_block().context("cannot block signals")?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC).context("cannot make a signalfd")
}

/// Passes signals on to the container until its monitor has ended; answers the status.
fn attend(options: &Options<'_>, signals: &SignalFd, monitor: &mut Child) -> anyhow::Result<u8> {
    use std::os::unix::process::ExitStatusExt;
    loop {
        if let Some(status) = monitor.try_wait().context("cannot wait for the container's monitor")? {
            let code = status.code().map(|code| code as u8);
            return Ok(code.or_else(|| status.signal().map(of_signal)).unwrap_or(FAILED));
        }
        let Ok(Some(signal)) = signals.read_signal() else { continue };
        if signal.ssi_signo != Signal::SIGCHLD as u32 {
            // One that is about to end needs none.
            let _ = ask(options.root, options.id, Ask::Signal(signal.ssi_signo as i32));
        }
    }
}
