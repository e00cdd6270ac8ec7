//! A machine in a process of its own, and in a cgroup if one is wanted, seen to its end from outside; and what is told of
//! it if the host ended it.

use std::io;
use std::time::Instant;

use anyhow::anyhow;
use nix::sys::signal::Signal;

use super::{Outer, Run, command, die_by, machine};
use crate::backend::socket;
use crate::cli::{self, RunOptions};
use crate::host::signals;
use crate::sandbox::cgroup::{Cgroup, Limits, Name};
use crate::sandbox::{Chores, End, Inherited};

/// Runs the guest to its end; returns the exit code.
pub(super) fn run(options: &RunOptions, begun: Instant) -> anyhow::Result<u8> {
    let inherited = Inherited::now();
    let mut group = group(options)?;
    let run = machine(options, begun, inherited, &mut group);
    match run.map_err(|error| with_limit(error, &options.limits))? {
        Run::Here(code) => Ok(code),
        Run::Outside(outer) => attend(options, *outer, group),
    }
}

/// An error, with the limit that it may come from.
fn with_limit(error: anyhow::Error, limits: &[Limits]) -> anyhow::Error {
    let errno = error.root_cause().downcast_ref().and_then(io::Error::raw_os_error);
    match limits.iter().find_map(|limits| limits.pids).filter(|_| errno == Some(libc::EAGAIN)) {
        Some(most) => anyhow!("{error:#}; --limit pids={most} is too few for this machine: raise it"),
        None => error,
    }
}

/// The group, if there is to be one.
fn group(options: &RunOptions) -> anyhow::Result<Option<Cgroup>> {
    if options.cgroup.is_none() && options.limits.is_empty() {
        return Ok(None);
    }
    let mut limits = Limits::default();
    for more in &options.limits {
        limits.add(more.clone()).map_err(|why| anyhow!("--limit: {why}"))?;
    }
    let name = options.cgroup.clone().unwrap_or_else(Name::of_this_process);
    Cgroup::create(&name, &limits).map(Some)
}

/// Sees the machine's process to its end, and ends as it does; the user is told if it could not tell why itself.
fn attend(options: &RunOptions, outer: Outer, group: Option<Cgroup>) -> anyhow::Result<u8> {
    let Outer { mut outside, inherited, mut left } = outer;
    let names = left.names.iter().map(socket::Name::folder).collect();
    let memory = options.limits.iter().filter_map(|limits| limits.memory).min();
    memory.into_iter().for_each(|bytes| outside.limit_files(bytes));
    outside.lock(&inherited, &Chores { names, groups: group.iter().flat_map(Cgroup::folders).collect() });
    left.watch()?;
    let end = outside.attend()?;
    drop(left);
    let killed = end == End::Signalled(Signal::SIGKILL as i32);
    let memory = group.as_ref().filter(|_| killed).and_then(Cgroup::told_of_memory);
    drop(group);
    // All that is left is to say how it ended, to a reader who may not read.
    signals::release();
    match (memory, end) {
        (Some(memory), _) => {
            let why = format!("the host killed the machine: {memory}");
            cli::complain(&why);
            if options.has_command() {
                command::record_failure(options, &why)?;
            }
            Ok(cli::OUT_OF_MEMORY)
        }
        (None, End::Exited(code)) => Ok(code),
        (None, End::Signalled(signal)) => die_by(signal),
    }
}
