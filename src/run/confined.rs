//! A machine in a cgroup of its own, and what is told of it if the host ended it there.

use std::time::Instant;

use nix::sys::signal::Signal;

use super::{command, machine};
use crate::cgroup::{Cgroup, Limits, Name};
use crate::cli::{self, RunOptions};
use crate::supervise::{End, Side, end_alike, supervise};

/// Runs the guest to its end, in a cgroup if one is wanted; returns the exit code.
pub(super) fn run(options: &RunOptions, begun: Instant) -> anyhow::Result<u8> {
    let Some((name, limits)) = wanted(options)? else { return machine(options, begun) };
    let cgroup = Cgroup::create(&name, &limits)?;
    match supervise()? {
        Side::Machine => {
            cgroup.join()?;
            machine(options, begun)
        }
        Side::Supervisor(end) => told(options, cgroup, end),
    }
}

/// The group's name and limits, if there is to be one.
fn wanted(options: &RunOptions) -> anyhow::Result<Option<(Name, Limits)>> {
    if options.cgroup.is_none() && options.limits.is_empty() {
        return Ok(None);
    }
    let mut limits = Limits::default();
    for more in &options.limits {
        limits.add(more.clone()).map_err(|why| anyhow::anyhow!("--limit: {why}"))?;
    }
    Ok(Some((options.cgroup.clone().unwrap_or_else(Name::of_this_process), limits)))
}

/// What the machine's end comes to, which the user is told if the machine could not.
fn told(options: &RunOptions, cgroup: Cgroup, end: End) -> anyhow::Result<u8> {
    let memory = (end == End::Killed(Signal::SIGKILL)).then(|| cgroup.told_of_memory()).flatten();
    drop(cgroup);
    let Some(memory) = memory else { return end_alike(end) };
    let why = format!("the host killed the machine: {memory}");
    cli::complain(&why);
    if options.has_command() {
        command::record_failure(options, &why)?;
    }
    Ok(cli::OUT_OF_MEMORY)
}
