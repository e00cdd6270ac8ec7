//! The process of a container: its root folder and mounts, its rights, and the processes that join it.

mod mounts;
mod process;
mod processes;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, sync};

use super::child::{not_started, on_pipes, on_terminal};
use super::ports::Ports;
use super::streams::{Ends, Streams};
use super::user::User;
use crate::spec::container::{ContainerSpec, ProcessSpec};
use crate::spec::frames::GuestProcess;
use crate::spec::wire::{End, GuestCommand, Report};
use processes::{Processes, Reaped};

pub(super) use mounts::enter;

/// How often a child that has ended is looked at, while it may be one that is being started.
const TICK: Duration = Duration::from_millis(10);

/// Runs a container's process to its end, and those that join it by `port`.
///
/// # Errors
/// It cannot be prepared; what is wrong with the program itself is an [`End`].
pub(super) fn run(
    spec: &GuestCommand,
    container: &ContainerSpec,
    ports: Ports,
    port: File,
) -> anyhow::Result<End> {
    let process = GuestProcess {
        argv: spec.argv.clone(),
        env: spec.env.clone(),
        cwd: spec.cwd.clone(),
        process: container.process.clone(),
        terminal: spec.terminal,
    };
    let late = mounts::late(container)?;
    let (mut command, ends) = prepare(&process)?;
    process::mount_before(&mut command, late);
    process::become_process(&mut command, &process.process, process.terminal.is_some());
    ports.control.tell(&Report::Started);
    // It is the first process of its PID namespace, as a container's is; threads of this one stay in theirs.
    let started = thread::spawn(move || -> anyhow::Result<_> {
        unshare(CloneFlags::CLONE_NEWPID).context("the guest's kernel has no PID namespaces")?;
        Ok(command.spawn())
    });
    let child = match started.join().map_err(|_| anyhow!("a thread panicked"))?? {
        Ok(child) => child,
        Err(error) => return Ok(not_started(&spec.argv[0], &error)),
    };
    let own = Pid::from_raw(child.id() as i32);
    let processes = Processes::start(port, own)?;
    let streams = Streams::start(own, ends, ports)?;
    let end = wait_for(&processes)?;
    // Fails if there is none.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    processes.wait_until_ready();
    streams.finish();
    sync();
    Ok(end)
}

/// A process's program with its streams, but without its rights.
fn prepare(spec: &GuestProcess) -> anyhow::Result<(Command, Ends)> {
    let program = spec.argv.first().context("there is no program")?;
    let cwd = Path::new(&spec.cwd);
    // As other runtimes do; that it is a folder is seen when it is entered.
    let _ = fs::create_dir_all(cwd);
    let mut command = Command::new(program);
    command.args(&spec.argv[1..]).env_clear().envs(spec.env.iter().cloned()).current_dir(cwd);
    let ProcessSpec { uid, gid, groups, .. } = &spec.process;
    let user = User { uid: *uid, gid: *gid, groups: groups.clone(), env: Vec::new() };
    let ends = match spec.terminal {
        Some(terminal) => on_terminal(&mut command, terminal, &user)?,
        None => on_pipes(&mut command, &user)?,
    };
    Ok((command, ends))
}

/// Waits for the container's own process, and for every other: they are ours.
fn wait_for(processes: &Processes) -> anyhow::Result<End> {
    loop {
        match process::wait() {
            Ok(()) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for the container's process"),
        }
        match processes.reap() {
            Reaped::Own(end) => return Ok(end),
            Reaped::Other => {}
            Reaped::Nothing => sleep(TICK),
        }
    }
}
