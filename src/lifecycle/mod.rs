//! The life of a machine: opened, parted, built, locked, run, and what its end comes to.

mod ahead;
mod boot_plan;
mod command;
mod devices;
mod image;
mod kernel;
mod measurements;
mod modules;
mod resources;
mod run;
mod shares;
mod supervise;

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::sysinfo::sysinfo;

use crate::host::exit_code;
use crate::host::messages;
use crate::sandbox;
use crate::spec::RunSpec;

pub use ahead::Ahead;
pub(crate) use boot_plan::BootPlan;

/// Runs the guest to its end, in a cgroup if that is wanted; returns the exit code. `begun` is when kite was started, and
/// `ahead` what it has begun since.
///
/// # Errors
/// kite or the host failed.
pub fn run(spec: &RunSpec, begun: Instant, ahead: Ahead) -> anyhow::Result<u8> {
    kernel::say_which_is_built(&spec.machine.boot);
    supervise::run(spec, begun, ahead)
}

/// Whether a machine can be begun, as far as that is known before anything of it is opened but its kernel.
///
/// # Errors
/// Why not: it has more devices than there is room for, more memory than the host, or no kernel.
pub fn check(spec: &RunSpec) -> anyhow::Result<()> {
    check_memory(spec.machine.memory)?;
    devices::check_room(spec)?;
    kernel::open(spec).map(drop)
}

/// More memory than the host has can only end in the host's killing things.
fn check_memory(size: u64) -> anyhow::Result<()> {
    let info = sysinfo().context("cannot ask how much memory the host has")?;
    let host = info.ram_total().saturating_add(info.swap_total());
    ensure!(
        size <= host,
        "--memory asks for {} MiB, and this host has {} MiB with its swap",
        size >> 20,
        host >> 20
    );
    Ok(())
}

/// How long a reader that reads nothing holds up the end by a signal.
const BRIEF: Duration = Duration::from_secs(1);

/// Ends the process by the signal that it was sent, so that its parent sees that.
pub(crate) fn die_by(signal: i32) -> anyhow::Result<u8> {
    use nix::sys::signal::{SigSet, Signal, raise};
    if sandbox::end_by(signal) {
        return Ok(exit_code::FAILED);
    }
    let signal = Signal::try_from(signal).context("an unknown signal")?;
    messages::flush(|stuck| stuck > BRIEF);
    let mut mask = SigSet::empty();
    mask.add(signal);
    // The standard library has a handler for these.
    if matches!(signal, Signal::SIGSEGV | Signal::SIGBUS) {
        sandbox::reset(signal)?;
    }
    raise(signal).context("cannot raise a signal")?;
    mask.thread_unblock().context("cannot unblock a signal")?;
    bail!("{signal} did not end kite")
}
