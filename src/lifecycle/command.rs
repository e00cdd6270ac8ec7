//! What the command line and kite's own surroundings make of a command: its task.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::sys::resource::getrlimit;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getegid, geteuid, getgroups};

use super::shares::Shares;
use crate::cli::{CommandOptions, OnReboot, Root, RunOptions};
use crate::host::terminal;
use crate::spec::task::{LIMITS, Task, Terminal, User};

/// What the command line alone does not say of options that do not go together.
pub(super) fn check(options: &RunOptions) -> anyhow::Result<()> {
    ensure!(options.initrd.is_none(), "a command needs kite's own initrd: leave out --initrd");
    ensure!(
        !options.no_acpi,
        "a command needs virtio devices, which only ACPI tells of: leave out --no-acpi"
    );
    ensure!(options.on_reboot == OnReboot::Exit, "a command is run once: leave out --on-reboot restart");
    ensure!(!options.test_devices, "a command ends with its own status: leave out --test-devices");
    ensure!(options.console.is_none(), "a command has streams instead of a console: leave out --console");
    ensure!(
        options.command.root != Some(Root::Disk) || !options.disks.is_empty(),
        "--root disk needs a disk: name one with --disk"
    );
    Ok(())
}

/// What a process has of its caller that no option says.
pub(super) struct Surroundings {
    umask: u32,
    limits: Vec<(u64, u64)>,
}

impl Surroundings {
    /// This process' own, as long as it has changed nothing, and has one thread.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn now() -> anyhow::Result<Self> {
        // It can only be read by being set.
        let mask = umask(Mode::empty());
        umask(mask);
        let limits = LIMITS.into_iter().map(getrlimit).collect::<Result<_, Errno>>();
        let limits = limits.context("cannot read the limits that kite was started with")?;
        Ok(Self { umask: mask.bits(), limits })
    }
}

/// The terminal that the command is to have: if kite itself has one to read from and to write to.
pub(super) fn terminal() -> Option<Terminal> {
    let has_it = io::stdin().is_terminal() && io::stdout().is_terminal() && terminal::is_ours();
    has_it.then(|| {
        let (columns, rows) = terminal::size();
        Terminal { columns, rows, stderr: io::stderr().is_terminal() }
    })
}

pub(super) fn task(
    options: &RunOptions,
    shares: &Shares,
    terminal: Option<Terminal>,
    surroundings: Surroundings,
) -> anyhow::Result<Task> {
    let command = &options.command;
    let here =
        || env::current_dir().context("cannot tell the folder that kite was started in; name one with --cwd");
    let cwd = match &command.cwd {
        Some(cwd) => cwd.clone(),
        None => here()?,
    };
    Ok(Task {
        argv: command.command.clone(),
        env: environment(command),
        cwd: cwd.into(),
        // Another root folder need not have the folder.
        cwd_or_root: command.cwd.is_none() && command.root.is_some(),
        user: user(command)?,
        umask: surroundings.umask,
        limits: surroundings.limits,
        root: shares.root(options),
        shares: shares.mounts.clone(),
        networks: options.networks.iter().zip(0..).map(|(spec, index)| spec.task(index)).collect(),
        terminal,
    })
}

fn environment(command: &CommandOptions) -> Vec<(OsString, OsString)> {
    let mut env: Vec<_> = env::vars_os().filter(|(name, _)| !command.clear_env || name == "TERM").collect();
    for (name, value) in &command.env {
        let value = value.as_ref().map(OsString::from).or_else(|| env::var_os(name));
        env.retain(|(known, _)| known != name.as_str());
        env.extend(value.map(|value| (name.into(), value)));
    }
    // Without it a program is looked for in the C library's own idea of a path.
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()));
    }
    env
}

fn user(command: &CommandOptions) -> anyhow::Result<User> {
    Ok(match &command.user {
        Some((user, group)) => User::Named { user: user.clone(), group: group.clone() },
        None => {
            let groups = getgroups().context("cannot tell the groups of the user")?;
            let groups = groups.into_iter().map(|group| group.as_raw()).collect();
            User::Numbers { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
        }
    })
}
