//! A machine in a process of its own, and in a cgroup if one is wanted, supervised to its end; and the report if the host
//! ended it.

use std::io;
use std::time::Instant;

use anyhow::anyhow;

use super::{Ahead, die_by, run as machine};
use crate::host::exit_code;
use crate::host::messages;
use crate::host::signals;
use crate::sandbox::cgroup::Cgroup;
use crate::sandbox::{Fork, ProcessEnd, Supervisor};
use crate::session::Outcome;
use crate::session::command::results::Results;
use crate::spec::limits::{CgroupName, Limits};
use crate::spec::{MachineSpec, RunSpec};

/// Runs the guest to its end; returns the exit code.
pub(super) fn run(spec: &RunSpec, begun: Instant, mut ahead: Ahead) -> anyhow::Result<u8> {
    let inherited = ahead.inherited();
    let run = machine::run(spec, begun, ahead, inherited, group(&spec.machine)?);
    match run.map_err(|error| with_limit(error, &spec.machine.limits))? {
        Fork::Vm(Outcome { signal: Some(signal), .. }) => die_by(signal),
        Fork::Vm(outcome) => Ok(outcome.code),
        Fork::Supervisor(supervisor) => supervise(spec, *supervisor),
    }
}

/// An error, with the limit that it may come from.
fn with_limit(error: anyhow::Error, limits: &Limits) -> anyhow::Error {
    let errno = error.root_cause().downcast_ref().and_then(io::Error::raw_os_error);
    match limits.pids.filter(|_| errno == Some(libc::EAGAIN)) {
        Some(most) => anyhow!("{error:#}; --limit pids={most} is too few for this machine: raise it"),
        None => error,
    }
}

/// The group, if the spec asks for one.
fn group(machine: &MachineSpec) -> anyhow::Result<Option<Cgroup>> {
    if machine.cgroup.is_none() && machine.limits.is_empty() {
        return Ok(None);
    }
    let name = machine.cgroup.clone().unwrap_or_else(CgroupName::of_this_process);
    Cgroup::create(&name, &machine.limits).map(Some)
}

/// Supervises the VM process to its end, and ends as it does; why is reported here if that process could not.
fn supervise(spec: &RunSpec, supervisor: Supervisor) -> anyhow::Result<u8> {
    let end = supervisor.run()?;
    // All that is left is to say how it ended, to a reader who may not read.
    signals::release();
    match end {
        ProcessEnd::OutOfMemory(why) => {
            let why = format!("the host killed the machine: {why}");
            messages::complain(&why);
            Results::record_failure(spec.command.as_ref(), &why)?;
            Ok(exit_code::OUT_OF_MEMORY)
        }
        ProcessEnd::Exited(code) => Ok(code),
        ProcessEnd::Signalled(signal) => die_by(signal),
    }
}
