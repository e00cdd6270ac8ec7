//! What the command line and kite's own surroundings make of a command.

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};

use anyhow::Context;
use nix::errno::Errno;
use nix::sys::resource::getrlimit;
use nix::sys::stat::{Mode, umask};
use nix::unistd::{getegid, geteuid, getgroups};

use super::image::RunImage;
use super::shares::Shares;
use crate::backend::image::config::{ContainerCommand, DEFAULT_PATH};
use crate::host::terminal;
use crate::spec::MachineSpec;
use crate::spec::command::{CommandSpec, UserSpec, VariableSpec};
use crate::spec::container::{ContainerSpec, ProcessSpec};
use crate::spec::wire::{GuestCommand, LIMITS, MissingCwd, Terminal, User};

/// The variable that says which kind of terminal there is.
const TERM: &str = "TERM";
/// What new files of a container do not permit, as Docker has it.
const CONTAINER_UMASK: u32 = 0o022;

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

/// What the guest is to do, in the image if there is one.
pub(super) fn guest_command(
    spec: &MachineSpec,
    command: &CommandSpec,
    image: Option<&RunImage>,
    shares: &Shares,
    terminal: Option<Terminal>,
    surroundings: Surroundings,
) -> anyhow::Result<GuestCommand> {
    if let Some(container) = &command.container {
        return Ok(container_command(spec, command, shares.container(container), shares, terminal));
    }
    let root = shares.root(spec, command);
    let shares = shares.mounts.clone();
    let networks = spec.nets().zip(0..).map(|(spec, index)| spec.guest_network(index)).collect();
    if let Some(image) = image {
        let container = &image.command;
        return Ok(GuestCommand {
            argv: container.argv.iter().map(OsString::from).collect(),
            env: container_environment(container, terminal.is_some()),
            cwd: container.working_dir.clone().into(),
            missing_cwd: MissingCwd::Make,
            user: image.user(),
            umask: CONTAINER_UMASK,
            limits: Vec::new(),
            root,
            shares,
            networks,
            terminal,
            container: None,
        });
    }
    let here =
        || env::current_dir().context("cannot tell the folder that kite was started in; name one with --cwd");
    let cwd = match &command.cwd {
        Some(cwd) => cwd.clone(),
        None => here()?,
    };
    // Another root folder need not have the folder.
    let may_lack = command.cwd.is_none() && command.root.is_some();
    Ok(GuestCommand {
        argv: command.argv.clone(),
        env: environment(command),
        cwd: cwd.into(),
        missing_cwd: if may_lack { MissingCwd::Root } else { MissingCwd::Fail },
        user: user(command)?,
        umask: surroundings.umask,
        limits: surroundings.limits,
        root,
        shares,
        networks,
        terminal,
        container: None,
    })
}

/// The same of a container, which has nothing of kite's surroundings.
fn container_command(
    spec: &MachineSpec,
    command: &CommandSpec,
    container: ContainerSpec,
    shares: &Shares,
    terminal: Option<Terminal>,
) -> GuestCommand {
    let ProcessSpec { uid, gid, groups, .. } = container.process.clone();
    let variable = |it: &VariableSpec| Some((OsString::from(&it.name), OsString::from(it.value.as_ref()?)));
    GuestCommand {
        argv: command.argv.clone(),
        env: command.env.iter().filter_map(variable).collect(),
        cwd: command.cwd.clone().unwrap_or_else(|| "/".into()).into(),
        missing_cwd: MissingCwd::Fail,
        user: User::Numbers { uid, gid, groups },
        umask: container.process.umask.unwrap_or_default(),
        limits: Vec::new(),
        root: shares.root(spec, command),
        shares: Vec::new(),
        networks: spec.nets().zip(0..).map(|(spec, index)| spec.guest_network(index)).collect(),
        terminal: terminal.filter(|_| container.terminal),
        container: Some(container),
    }
}

/// A container's environment, with the kind of the terminal that it has.
fn container_environment(command: &ContainerCommand, has_terminal: bool) -> Vec<(OsString, OsString)> {
    let mut env: Vec<_> = command.env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let is_set = command.env.iter().any(|(name, _)| name == TERM);
    if let Some(kind) = env::var_os(TERM).filter(|_| has_terminal && !is_set) {
        env.push((TERM.into(), kind));
    }
    env
}

fn environment(command: &CommandSpec) -> Vec<(OsString, OsString)> {
    let mut env: Vec<_> = env::vars_os().filter(|(name, _)| !command.clear_env || name == TERM).collect();
    for VariableSpec { name, value } in &command.env {
        let value = value.as_ref().map(OsString::from).or_else(|| env::var_os(name));
        env.retain(|(known, _)| known != name.as_str());
        env.extend(value.map(|value| (name.into(), value)));
    }
    // Without it a program is looked for in the C library's own idea of a path.
    if !env.iter().any(|(name, _)| name == "PATH") {
        env.push(("PATH".into(), DEFAULT_PATH.into()));
    }
    env
}

fn user(command: &CommandSpec) -> anyhow::Result<User> {
    Ok(match &command.user {
        Some(UserSpec { user, group }) => User::Named { user: user.clone(), group: group.clone() },
        None => {
            let groups = getgroups().context("cannot tell the groups of the user")?;
            let groups = groups.into_iter().map(|group| group.as_raw()).collect();
            User::Numbers { uid: geteuid().as_raw(), gid: getegid().as_raw(), groups }
        }
    })
}
