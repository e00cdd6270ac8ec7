//! `kite run -- COMMAND`: runs a command in a guest, on the host's files or others, and ends as it ends.

mod kernel_log;
mod session;
mod shares;
mod streams;

use std::env;
use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use nix::unistd::{getegid, geteuid, getgroups};

use super::devices::{Devices, Extra};
use super::image::Boot;
use super::{End as MachineEnd, check_memory, die_by, start};
use crate::cli::{self, CommandOptions, Root, RunOptions};
use crate::exit::Exit;
use crate::footprint;
use crate::machine::Board;
use crate::task::{self, End, Task, Terminal, User};
use crate::terminal;
use kernel_log::KernelLog;
use session::{Limits, Session};
use shares::Shares;

/// How many of the kernel's last lines tell of a crash.
const LAST_LINES: usize = 60;

/// Runs the command; returns the exit code.
///
/// # Errors
/// kite or the host failed.
pub(super) fn run(options: &RunOptions) -> anyhow::Result<u8> {
    let begun = Instant::now();
    let command = &options.command;
    footprint::keep_one_heap();
    check_memory(options.memory())?;
    check(options)?;
    let terminal = terminal();
    let shares = Shares::open(command)?;
    let mut boot = Boot::prepare(options)?;
    boot.task = Some(task::encode(&task(options, &shares, terminal)?));
    let log = KernelLog::new(command.kernel_log.as_deref(), command.verbose)?;
    let mut session = Session::new(terminal, log)?;
    let extra = Extra { hvc: None, ports: session.ports(), shares: shares.folders };
    let devices = Devices::open(options, extra)?;
    let board = Board {
        cpus: options.cpus,
        ram: options.memory(),
        acpi: true,
        virtio: devices.count(),
        test_devices: false,
    };
    let mut running = start(options, board, &boot, &devices, &mut None, session.log.host())?;
    let limits = Limits { start: begun, timeout: command.timeout };
    let attended = session.attend(&running, &limits, None);
    running.stop();
    let told_to_end = matches!(running.exit().reason(), Some(Exit::Signal(_) | Exit::Quit));
    let signal = session.finish(told_to_end)?;
    attended?;
    if let Some(signal) = signal {
        drop(devices);
        return die_by(signal);
    }
    match running.exit().reason() {
        Some(Exit::Command(end)) => Ok(status(end)),
        Some(Exit::TimedOut) => {
            let limit = command.timeout.unwrap_or_default();
            tell_of_death(
                &session.log,
                &format!("the guest was ended after {} s: timed out", limit.as_secs_f64()),
            );
            Ok(cli::TIMED_OUT)
        }
        _ => match MachineEnd::of(&running, boot.conventions) {
            MachineEnd::Crashed(what) => {
                tell_of_death(&session.log, &format!("the guest crashed: {what}"));
                Ok(cli::CRASHED)
            }
            MachineEnd::Reboot | MachineEnd::Done if !told_to_end => {
                tell_of_death(&session.log, "the guest went off before the command had ended");
                Ok(cli::CRASHED)
            }
            MachineEnd::Reboot | MachineEnd::Done => Ok(cli::DONE),
            MachineEnd::Status(code) => Ok(code),
            MachineEnd::Failed(what) => bail!(what),
            MachineEnd::Signal(signal) => {
                drop(devices);
                die_by(signal)
            }
        },
    }
}

/// What the command line alone does not say of options that do not go together.
fn check(options: &RunOptions) -> anyhow::Result<()> {
    ensure!(options.initrd.is_none(), "a command needs kite's own initrd: leave out --initrd");
    ensure!(
        !options.no_acpi,
        "a command needs virtio devices, which only ACPI tells of: leave out --no-acpi"
    );
    ensure!(options.console.is_none(), "a command has streams instead of a console: leave out --console");
    ensure!(
        options.command.root != Some(Root::Disk) || !options.disks.is_empty(),
        "--root disk needs a disk: name one with --disk"
    );
    Ok(())
}

/// The terminal that the command is to have: if kite itself has one to read from and to write to.
fn terminal() -> Option<Terminal> {
    let has_it = io::stdin().is_terminal() && io::stdout().is_terminal() && terminal::is_ours();
    has_it.then(|| {
        let (columns, rows) = terminal::size();
        Terminal { columns, rows, stderr: io::stderr().is_terminal() }
    })
}

fn task(options: &RunOptions, shares: &Shares, terminal: Option<Terminal>) -> anyhow::Result<Task> {
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
        root: shares.root(options),
        shares: shares.mounts.clone(),
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

/// The exit code of a command that has ended.
fn status(end: &End) -> u8 {
    match end {
        End::Exited(status) => *status,
        // Whatever the guest says, it is no more than a byte.
        End::Signalled(signal) => (128 + (signal & 0x7f)) as u8,
        End::NotFound(what) => {
            cli::complain(what);
            cli::NOT_FOUND
        }
        End::NotExecutable(what) => {
            cli::complain(what);
            cli::NOT_EXECUTABLE
        }
        End::Failed(what) => {
            cli::complain(what);
            cli::FAILED
        }
    }
}

/// Why the command did not come to its end, and what the kernel said last.
fn tell_of_death(log: &KernelLog, why: &str) {
    let lines = if log.is_shown() { Vec::new() } else { log.last_lines(LAST_LINES) };
    if !lines.is_empty() {
        cli::complain("the kernel's last lines:");
        lines.iter().for_each(|line| terminal::line(&format!("  {line}")));
    }
    cli::complain(why);
}
