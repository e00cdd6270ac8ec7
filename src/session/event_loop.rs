//! Waits with a session while its machine runs: for the end, for signals, for what the session itself waits for, and for
//! a guest that has died without a word.

use std::os::fd::AsFd;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::signal::Signal;

use super::{Controls, Progress, Session, rounded_up};
use crate::host::rss;
use crate::host::signals::{self, Signals};
use crate::host::{messages, terminal, thread};
use crate::observe::crash::watchdog::{Verdict, Watch};
use crate::sandbox;
use crate::vcpu::PausedVcpus;
use crate::vcpu::stop::Exit;
use crate::vm::machine::Running;

/// Lets the guest begin, and attends the machine until it is asked to stop; it still runs then.
///
/// # Errors
/// The host refuses a thread, a wait, or the terminal its setting.
pub fn attend(
    session: &mut dyn Session,
    signals: &Signals,
    machine: &Running,
    controls: &Controls<'_>,
) -> anyhow::Result<()> {
    let started = session.start(machine);
    // All of them, as what stops the machine waits for them.
    thread::start_gathered()?;
    started?;
    sandbox::close()?;
    machine.release();
    let exit = machine.exit();
    let mut watch = Watch::new(session.idle_timeout());
    // While a command has them paused.
    let mut paused = None;
    let (mut is_quiet, mut settled) = (false, false);
    while exit.reason().is_none() {
        let ready = {
            let mut fds = vec![
                PollFd::new(exit.event(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            fds.extend(controls.readable().map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            session.descriptors(&mut fds);
            match (is_quiet, settled) {
                (true, false) => rss::shrink(),
                (true, true) => rss::drop_code(),
                (false, _) => {}
            }
            settled |= is_quiet;
            match poll(&mut fds, rounded_up(Some(session.timeout()))) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the guest"),
            }
            fds.iter().map(|fd| fd.any().unwrap_or(false)).collect::<Vec<_>>()
        };
        is_quiet = !ready.contains(&true);
        if ready[1] {
            take_signal(session, signals, machine, &mut paused);
        }
        let own = if controls.readable().is_some() { 3 } else { 2 };
        if ready[2..own].contains(&true) {
            let was_paused = paused.is_some();
            controls.serve(machine, &mut paused);
            if was_paused && paused.is_none() {
                watch = Watch::new(session.idle_timeout());
            }
        }
        session.serve(&ready[own..], machine);
        if paused.is_some() {
            // It is neither dead nor idle.
            continue;
        }
        let Progress { bytes, panic_seen } = session.progress();
        match watch.check(machine, bytes, panic_seen) {
            Verdict::Alive => {}
            Verdict::Dead(why) => exit.request(why),
            Verdict::Idle => exit.request(Exit::Idle(session.idle_timeout().unwrap_or_default())),
        }
    }
    // What is about to be stopped does not run before that.
    paused.into_iter().for_each(PausedVcpus::forget);
    Ok(())
}

fn take_signal<'a>(
    session: &mut dyn Session,
    signals: &Signals,
    machine: &'a Running,
    paused: &mut Option<PausedVcpus<'a>>,
) {
    let Some(signal) = signals.next() else { return };
    if signal == Signal::SIGWINCH as i32 {
        let (columns, rows) = terminal::size();
        session.resize(columns, rows);
    } else if signal != Signal::SIGIO as i32 {
        if session.take_signal(signal) {
            return;
        }
        machine.exit().request(Exit::Signal(signal));
    } else {
        let detached = machine.detach_files();
        if let Some(vcpus) = paused.take() {
            // What was paused for a moment has gone on after it.
            vcpus.forget();
            *paused = Some(machine.pause_vcpus());
        }
        if let Err(error) = detached {
            let error = anyhow!(error).context("cannot keep a copy of a file that is about to change");
            machine.exit().request(Exit::Failed(error));
        }
    }
}

/// The signal that ends kite, if one has come for a machine that has stopped.
pub fn ending_signal(signals: &Signals, machine: &Running) -> Option<i32> {
    while let Some(signal) = signals.next() {
        match signal {
            // Another program wants to write to a file that the guest was loaded from, and need not wait for this. A
            // copy that cannot be made is one that nothing runs from.
            _ if signal == Signal::SIGIO as i32 => _ = machine.detach_files(),
            _ if signals::is_notice(signal) => {}
            _ => return Some(signal),
        }
    }
    None
}

/// Waits until the user has read what kite had to say. A signal cuts it short, and is returned.
pub fn flush(signals: &Signals, machine: &Running) -> Option<i32> {
    let mut signal = None;
    messages::flush(|_| {
        signal = ending_signal(signals, machine);
        signal.is_some()
    });
    signal
}
