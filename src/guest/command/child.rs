//! The command itself: started with its streams, its user and its environment, and waited for.
#![expect(unsafe_code, reason = "a child becomes another user before it becomes the command")]

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, ErrorKind, pipe};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, fchown, setgid, setgroups, setsid, setuid, write};

use super::ports::Ports;
use super::root::{HOST_NAME, OPEN_FILES};
use super::streams::{Ends, Streams, open_terminal};
use super::user::User;
use crate::spec::wire::{self, End, GuestCommand, LIMITS, MissingCwd, Output, Report, Terminal};

/// What the command's process has of the guest.
pub(super) struct Process {
    pub user: User,
    pub env: Vec<(OsString, OsString)>,
    /// The file of processes of the cgroup that it enters, if it is to leave this one's.
    pub group: Option<File>,
}

impl Process {
    /// That of a command whose user is looked up, in the cgroup of this process.
    ///
    /// # Errors
    /// There is no such user or group.
    pub fn of(spec: &GuestCommand) -> anyhow::Result<Self> {
        let user = User::find(&spec.user)?;
        let env = environment(spec, &user);
        Ok(Self { user, env, group: None })
    }

    /// The folder that its environment says is the user's.
    pub fn home(&self) -> Option<&OsStr> {
        self.variable("HOME")
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_os_str())
    }
}

/// Runs the command to its end, and ends with it all else that it has left running.
///
/// # Errors
/// It cannot be prepared; what is wrong with the program itself is an [`End`].
pub(super) fn run(spec: &GuestCommand, process: Process, ports: Ports) -> anyhow::Result<End> {
    let Process { user, env, group } = process;
    let program = spec.argv.first().context("there is no command")?;
    let mut command = Command::new(program);
    command.args(&spec.argv[1..]).env_clear().envs(env);
    command.current_dir(folder(spec)?);
    let ends = match spec.terminal {
        Some(terminal) => on_terminal(&mut command, terminal, &user)?,
        None => on_pipes(&mut command, &user)?,
    };
    if let Some(group) = group {
        enter_group(&mut command, group);
    }
    inherit(&mut command, spec);
    become_user(&mut command, user, spec.terminal.is_some());
    ports.control.tell(&Report::Started);
    let started = command.spawn();
    // What is the command's of the streams is closed here: it ends when the command lets go of it.
    drop(command);
    let child = match started {
        Ok(child) => child,
        Err(error) => return Ok(not_started(program, &error)),
    };
    let command = Pid::from_raw(child.id() as libc::pid_t);
    let streams = Streams::start(command, ends, ports)?;
    let end = wait_for(command)?;
    // Fails if there is none.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    streams.finish();
    Ok(end)
}

/// The folder to start in.
fn folder(spec: &GuestCommand) -> anyhow::Result<&Path> {
    let cwd = Path::new(&spec.cwd);
    match spec.missing_cwd {
        _ if cwd.is_dir() => Ok(cwd),
        MissingCwd::Root => Ok(Path::new("/")),
        MissingCwd::Make => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(cwd);
            made.with_context(|| format!("cannot make folder {} to start in", cwd.display()))?;
            Ok(cwd)
        }
        MissingCwd::Fail => {
            bail!("the guest has no folder {} to start in: choose one with --cwd", cwd.display())
        }
    }
}

/// The environment, with what is the user's. A container's own goes before that.
fn environment(spec: &GuestCommand, user: &User) -> Vec<(OsString, OsString)> {
    let mut env = spec.env.clone();
    let is_container = matches!(spec.user, wire::User::Container { .. });
    let host_name = is_container.then(|| ("HOSTNAME", HOST_NAME.to_owned()));
    for (name, value) in user.env.iter().cloned().chain(host_name) {
        let is_set = env.iter().any(|(known, _)| known == name);
        if is_container && is_set {
            continue;
        }
        env.retain(|(known, _)| known != name);
        env.push((name.into(), value.into()));
    }
    env
}

/// Has the child enter a cgroup, by the file of its processes.
fn enter_group(command: &mut Command, group: File) {
    let enter = move || -> io::Result<()> {
        write(&group, b"0")?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(enter) };
}

pub(super) fn on_pipes(command: &mut Command, user: &User) -> anyhow::Result<Ends> {
    let (stdin, to_stdin) = pipe().context("cannot make a pipe")?;
    let (from_stdout, stdout) = pipe().context("cannot make a pipe")?;
    let (from_stderr, stderr) = pipe().context("cannot make a pipe")?;
    for end in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        give(end, user)?;
    }
    command.stdin(stdin).stdout(stdout).stderr(stderr);
    Ok(Ends {
        stdin: to_stdin.into(),
        outputs: [Some(from_stdout.into()), Some(from_stderr.into())],
        terminal: None,
    })
}

pub(super) fn on_terminal(command: &mut Command, terminal: Terminal, user: &User) -> anyhow::Result<Ends> {
    let (master, slave) = open_terminal(terminal)?;
    give(&slave, user)?;
    let copy = |fd: &OwnedFd| fd.try_clone().context("cannot share a terminal");
    let mut outputs = [Some(master.try_clone().context("cannot share a terminal")?.into()), None];
    match terminal.stderr {
        true => {
            command.stderr(Stdio::from(copy(&slave)?));
        }
        false => {
            let (from, stderr) = pipe().context("cannot make a pipe")?;
            give(&stderr, user)?;
            command.stderr(stderr);
            outputs[Output::Stderr as usize] = Some(from.into());
        }
    }
    command.stdin(Stdio::from(copy(&slave)?)).stdout(Stdio::from(slave));
    let stdin = master.try_clone().context("cannot share a terminal")?.into();
    Ok(Ends { stdin, outputs, terminal: Some(Arc::new(master)) })
}

/// Makes a stream its user's, who may then open it by its name: `/dev/stdout`, `/proc/self/fd/1`.
fn give(end: impl AsFd, user: &User) -> anyhow::Result<()> {
    fchown(end, Some(Uid::from_raw(user.uid)), None).context("cannot give a stream to its user")
}

/// Has the child begin with the mask and the limits of kite's caller.
fn inherit(command: &mut Command, spec: &GuestCommand) {
    let mask = Mode::from_bits_truncate(spec.umask);
    // The kernel refuses more open files than it allows any process (fs.nr_open).
    let most = |resource| if resource == Resource::RLIMIT_NOFILE { OPEN_FILES.1 } else { u64::MAX };
    let limits = LIMITS.into_iter().zip(&spec.limits);
    let limits: Vec<_> =
        limits.map(|(it, (soft, hard))| (it, *soft.min(&most(it)), *hard.min(&most(it)))).collect();
    let inherit = move || -> io::Result<()> {
        umask(mask);
        limits.iter().try_for_each(|(resource, soft, hard)| setrlimit(*resource, *soft, *hard))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(inherit) };
}

/// Has the child lead a session of its own, with the terminal if there is one, as its user.
fn become_user(command: &mut Command, user: User, terminal: bool) {
    let groups: Vec<Gid> = user.groups.iter().copied().map(Gid::from_raw).collect();
    let become_it = move || -> io::Result<()> {
        lead_session(terminal)?;
        setgroups(&groups)?;
        setgid(Gid::from_raw(user.gid))?;
        setuid(Uid::from_raw(user.uid))?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls and nothing else: it neither allocates nor locks.
    unsafe { command.pre_exec(become_it) };
}

/// Begins a session, with the terminal that is standard input if there is one; neither allocates nor locks.
pub(super) fn lead_session(terminal: bool) -> nix::Result<()> {
    setsid()?;
    if terminal {
        // SAFETY: takes no pointer; standard input is the terminal.
        Errno::result(unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) })?;
    }
    Ok(())
}

pub(super) fn not_started(program: &OsString, error: &io::Error) -> End {
    let program = program.display();
    match error.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => {
            End::NotFound(format!("{program}: not found in the guest"))
        }
        _ => End::NotExecutable(format!("{program}: cannot be executed in the guest: {error}")),
    }
}

/// How a process ended, by its status from wait(2).
pub(super) fn end_of(status: libc::c_int) -> End {
    if libc::WIFSIGNALED(status) {
        End::Signalled(libc::WTERMSIG(status))
    } else {
        End::Exited(libc::WEXITSTATUS(status) as u8)
    }
}

/// Waits for the command, and for every process that it orphans: they are ours now.
fn wait_for(command: Pid) -> anyhow::Result<End> {
    loop {
        let mut status = 0;
        // SAFETY: the status is written and outlives the call.
        let pid = unsafe { libc::wait(&raw mut status) };
        if pid == command.as_raw() {
            return Ok(end_of(status));
        }
        if pid < 0 && Errno::last() != Errno::EINTR {
            return Err(Errno::last()).context("cannot wait for the command");
        }
    }
}
