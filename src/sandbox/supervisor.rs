//! The supervisor: the process that the user started, and knows. It passes signals on to the VM process, stops and goes on
//! with it, and ends as it ends. It writes the files that the machine reports in, and then removes what is of no use any
//! more on the host, such as a socket's name and the machine's group.
//!
//! It reads what the VM process sends, which a guest may have taken over. So it locks itself in, too, as far as its chores
//! allow, and before the guest's first instruction.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ::landlock::Scope;
use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, geteuid};

use super::cgroup::Cgroup;
use super::channel::{FromVm, Inbox, Lie, ToVm};
use super::control::{Server, Unasked, Wish};
use super::file_proxy::FileProxy;
use super::{
    Chores, Cleanup, InheritedFds, Lacks, Layer, Thread, close_as, landlock, no_new_privs, privileges,
    seccomp,
};
use crate::host::atomic_file;
use crate::host::messages;
use crate::host::rss;
use crate::host::signals::{self, Interrupts};
use crate::host::terminal::Saved;
use crate::spec::sandbox::SandboxSpec;

/// How many messages are looked at before signals are.
const BATCH: usize = 64;

/// When nothing has happened for so long, in milliseconds, not much will.
const SETTLING: u16 = 200;

/// How long the VM process may take to end by a signal that was passed on to it.
const GRACE: Duration = Duration::from_secs(10);

/// How the terminal was, if it is ours, for every way out.
static TERMINAL: OnceLock<Saved> = OnceLock::new();

/// Restores the terminal, if there is one. Makes one system call, and may be called in a signal's handler.
pub(super) fn restore_terminal() {
    TERMINAL.get().into_iter().for_each(Saved::restore);
}

/// The supervisor of a VM process, which ends when this is dropped.
pub struct Supervisor {
    options: SandboxSpec,
    inherited: InheritedFds,
    cleanup: Cleanup,
    vm: Pid,
    /// Whether this process is locked in as is required.
    locked: anyhow::Result<()>,
    inbox: Inbox,
    /// Commands that ask for the machine.
    control: Option<Server>,
    files: FileProxy,
    signals: SignalFd,
    /// Whether signals are the command's, which may go on after them.
    are_commands: bool,
    interrupts: Interrupts,
    /// The signal that kite ends by, once the VM process has ended.
    ends_by: Option<i32>,
    /// Nothing has happened for [`SETTLING`]: the next wait is a long one, with little memory.
    is_quiet: bool,
    /// The first signal that was passed on to end the VM process, and until when that has to have ended.
    passed_on: Option<PassedOn>,
    end: Option<ProcessEnd>,
}

/// A signal that was passed on, which has to end the VM process.
struct PassedOn {
    signal: i32,
    grace: Duration,
    until: Instant,
}

/// How the VM process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProcessEnd {
    /// With this exit code.
    Exited(u8),
    /// By this signal, or with the wish to.
    Signalled(i32),
    /// The host killed it for this reason, which has to do with memory.
    OutOfMemory(String),
}

impl Supervisor {
    /// Of a process that has one thread and has taken the `signals`.
    pub(super) fn new(
        options: SandboxSpec,
        inherited: InheritedFds,
        mut cleanup: Cleanup,
        signals: SignalFd,
        vm: Pid,
        inbox: Inbox,
    ) -> Self {
        let files = FileProxy::new(atomic_file::places());
        let are_commands = cleanup.passes_signals_on;
        let control = cleanup.control.take().map(Server::new);
        Self {
            options,
            inherited,
            cleanup,
            vm,
            locked: Ok(()),
            inbox,
            control,
            files,
            signals,
            are_commands,
            interrupts: Interrupts::default(),
            ends_by: None,
            is_quiet: false,
            passed_on: None,
            end: None,
        }
    }

    /// Attends the VM process to its end, and then removes what the machine had on the host.
    ///
    /// # Errors
    /// The host has no thread left, or those of [`Self::attend`].
    pub fn run(mut self) -> anyhow::Result<ProcessEnd> {
        let mut cleanup = std::mem::take(&mut self.cleanup);
        let memory = cleanup.group.as_ref().and_then(Cgroup::limited_memory);
        memory.into_iter().for_each(|bytes| self.files.limit(bytes));
        self.lock(&cleanup.chores());
        // The VM process ends before what it uses is removed.
        let end = cleanup.watch().and_then(|()| self.attend())?;
        cleanup.names.clear();
        let killed = end == ProcessEnd::Signalled(Signal::SIGKILL as i32);
        let group = cleanup.group.as_ref().filter(|_| killed);
        Ok(group.and_then(Cgroup::memory_kill).map_or(end, ProcessEnd::OutOfMemory))
    }

    /// Gives up all that this process, which has one thread, does not need for its `chores`. Where a layer is required that
    /// the host does not allow, the VM process ends, and reports why.
    pub fn lock(&mut self, chores: &Chores<'_>) {
        if !self.options.splits() {
            return;
        }
        privileges::close(&self.inherited.0);
        let needs = seccomp::SupervisorNeeds {
            vm: self.vm,
            files: self.files.folders().next().is_some(),
            names: !chores.names.is_empty(),
            control: self.control.is_some(),
            groups: !chores.groups.is_empty(),
        };
        let mut lacks = Lacks::new(self.options);
        lacks.try_layer(Layer::NoNewPrivs, no_new_privs);
        lacks.try_layer(Layer::Capabilities, || privileges::drop_capabilities(needed(needs), false));
        lacks.try_layer(Layer::Landlock, || {
            let files = self.files.folders().map(|it| (it, landlock::writes()));
            let names = chores.names.iter().map(|it| (*it, landlock::removes()));
            let groups = chores.groups.iter().map(|it| (*it, landlock::ends_groups()));
            let folders: Vec<_> = files.chain(names).chain(groups).collect();
            // Signals are what it is there for.
            landlock::restrict(&folders, Scope::AbstractUnixSocket.into())
        });
        lacks.try_layer(Layer::Seccomp, || seccomp::prepare_supervisor(needs));
        // What may be missing is missing in the VM process, too, which reports it.
        self.locked = lacks.answer().map(drop);
    }

    /// Attends the VM process to its end.
    ///
    /// # Errors
    /// The host refuses to wait, a file that the VM process has sent cannot be written, or that process sends without end.
    pub fn attend(mut self) -> anyhow::Result<ProcessEnd> {
        close_as(Thread::Supervisor)?;
        self.inbox.reply(&match &self.locked {
            Ok(()) => ToVm::Locked,
            Err(why) => ToVm::NotLocked(format!("{why:#}")),
        });
        loop {
            self.listen()?;
            if let Some(end) = self.ended()? {
                return self.files.failure().map_or(Ok(end), Err);
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // While a file is written, the next message waits.
            let readable = self.inbox.readable().filter(|_| !self.files.is_busy());
            fds.extend(readable.map(|channel| PollFd::new(channel, PollFlags::POLLIN)));
            self.control.iter().for_each(|control| control.descriptors(&mut fds));
            let timeout = self.time_left();
            let is_short = timeout != PollTimeout::NONE && timeout < PollTimeout::from(SETTLING);
            if self.is_quiet {
                rss::shrink();
            }
            let ready = poll(&mut fds, if self.is_quiet || is_short { timeout } else { SETTLING.into() });
            self.is_quiet = ready == Ok(0) && !is_short;
            match ready {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(anyhow!(error).context("cannot wait for the VM process")),
            }
            self.end_if_late();
            self.serve_commands();
            while let Ok(Some(info)) = self.signals.read_signal() {
                self.take_signal(info.ssi_signo as i32);
            }
        }
    }

    /// Does what commands ask for, without waiting for any.
    fn serve_commands(&mut self) {
        let wishes = self.control.as_mut().map(|control| control.serve(Instant::now())).unwrap_or_default();
        for wish in wishes {
            match wish {
                Wish::Ask(question) => self.inbox.reply(&ToVm::Ask(question)),
                Wish::Stop(grace) => {
                    self.expect_end(Signal::SIGTERM as i32, grace);
                    let _ = signals::pass_on(self.vm, Signal::SIGTERM as i32);
                }
            }
        }
    }

    /// Does a bounded part of what the VM process asks for. A lie ends it.
    fn listen(&mut self) -> anyhow::Result<()> {
        for _ in 0..BATCH {
            if !self.answer().map_err(lie)? {
                break;
            }
        }
        Ok(())
    }

    /// Goes on with a file, or takes a message; answers whether there was one.
    fn answer(&mut self) -> Result<bool, Lie> {
        if self.files.is_busy() {
            self.files.step();
            return Ok(true);
        }
        let Some(message) = self.inbox.next()? else { return Ok(false) };
        match message {
            FromVm::RestoreTerminal => restore_terminal(),
            FromVm::EndBy(signal) => self.ends_by = Some(signal),
            FromVm::File { index, content } => self.files.begin(index, content)?,
            FromVm::Answer(answer) => {
                let control = self.control.as_mut().ok_or(Lie::Unasked)?;
                control.pass_on(answer).map_err(|Unasked| Lie::Unasked)?;
            }
        }
        Ok(true)
    }

    fn ended(&mut self) -> anyhow::Result<Option<ProcessEnd>> {
        let status = waitpid(self.vm, Some(WaitPidFlag::WNOHANG));
        let end = match status.context("cannot wait for the VM process")? {
            WaitStatus::Exited(_, code) => ProcessEnd::Exited(code as u8),
            WaitStatus::Signaled(_, signal, _) => ProcessEnd::Signalled(signal as i32),
            _ => return Ok(None),
        };
        // It may not have been ours any more.
        restore_terminal();
        // What it sent last may not have been read yet. No more comes, and a file ends in bounds.
        self.end = Some(end.clone());
        while self.answer().map_err(lie)? {}
        self.end = Some(self.ends_by.map_or(end, ProcessEnd::Signalled));
        Ok(self.end.clone())
    }

    /// How long to wait, for the VM process to end and for commands.
    fn time_left(&self) -> PollTimeout {
        if self.files.is_busy() {
            return PollTimeout::ZERO;
        }
        let of_commands = self.control.as_ref().and_then(Server::until);
        let until = self.passed_on.as_ref().map(|it| it.until).into_iter().chain(of_commands).min();
        let Some(until) = until else { return PollTimeout::NONE };
        // Rounded up: a wait that is a little short would be repeated without rest.
        let rest = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(rest).unwrap_or(PollTimeout::MAX)
    }

    /// Ends the VM process if it has not ended by the signal that was passed on to it; kite ends by that signal then.
    fn end_if_late(&mut self) {
        if let Some(PassedOn { signal, grace, .. }) = self.passed_on.take_if(|it| Instant::now() >= it.until)
        {
            self.ends_by.get_or_insert(signal);
            let _ = kill(self.vm, Signal::SIGKILL);
            let name = Signal::try_from(signal).map_or("the signal", Signal::as_str);
            let seconds = grace.as_secs_f32();
            let why = format!("kite: the machine did not end within {seconds} s of {name}, and was killed\n");
            messages::say_if_read(why.as_bytes());
        }
    }

    fn take_signal(&mut self, signal: i32) {
        let Ok(name) = Signal::try_from(signal) else { return };
        match name {
            Signal::SIGCHLD => {}
            Signal::SIGTSTP | Signal::SIGTTOU => self.stop(name),
            // A question is the machine's to answer, by its own name.
            Signal::SIGUSR1 if signals::are_asked() => _ = kill(self.vm, name),
            _ => {
                let ends = name == Signal::SIGTERM || self.interrupts.take(name) == Some(true);
                if ends || !self.are_commands {
                    self.expect_end(signal, GRACE);
                }
                let _ = signals::pass_on(self.vm, signal);
            }
        }
    }

    /// Has the VM process end by a signal within `grace`, unless it has to earlier.
    fn expect_end(&mut self, signal: i32, grace: Duration) {
        // A time that no clock has is never.
        let Some(until) = Instant::now().checked_add(grace) else { return };
        match &mut self.passed_on {
            Some(known) if until < known.until => (known.until, known.grace) = (until, grace),
            Some(_) => {}
            none => *none = Some(PassedOn { signal, grace, until }),
        }
    }

    /// Stops with the machine until the user's shell lets both go on. As the first process of its namespace, the VM process
    /// would be stopped by nothing else.
    fn stop(&self, signal: Signal) {
        let _ = kill(self.vm, Signal::SIGSTOP);
        let mut mask = SigSet::empty();
        mask.add(signal);
        // A process that no shell would let go on is not stopped.
        let _ = raise(signal);
        let _ = mask.thread_unblock();
        let _ = mask.thread_block();
        let _ = kill(self.vm, Signal::SIGCONT);
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.end.is_none() {
            // No other process attends it.
            let _ = kill(self.vm, Signal::SIGKILL);
            let _ = waitpid(self.vm, None);
            restore_terminal();
        }
    }
}

/// What is reported of a VM process that lies.
fn lie(lie: Lie) -> anyhow::Error {
    anyhow!("the VM process sends {lie}, as if the guest had taken it over: it was killed")
}

/// CAP_DAC_OVERRIDE and CAP_FOWNER: root's files in folders of others.
const FOLDERS: u64 = 1 << 1 | 1 << 3;
/// CAP_KILL: a process in a group may be another user's.
const KILL: u64 = 1 << 5;

/// The capabilities that root needs: in folders of others, and to end processes of others.
fn needed(needs: seccomp::SupervisorNeeds) -> u64 {
    if !geteuid().is_root() {
        return 0;
    }
    let folders = if needs.files || needs.names || needs.groups { FOLDERS } else { 0 };
    folders | if needs.groups { KILL } else { 0 }
}

/// Takes over from the VM process what is the supervisor's, and gives it the rest: standard input and output, and a core
/// dump, where one is wanted. This process has one thread: a second one would take signals away.
///
/// # Errors
/// The host refuses a descriptor.
pub(super) fn take_signals() -> anyhow::Result<SignalFd> {
    let signals = signal_fd()?;
    // Where the host has no such device, a pipe without another end will do.
    let null = File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
    let null = null.or_else(|_| io::pipe().map(|(_, writer)| writer.into()));
    let null = null.context("cannot let go of standard output")?;
    setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core dumps")?;
    if let Some(terminal) = Saved::now() {
        // A process forks once.
        let _ = TERMINAL.set(terminal);
    }
    // A reader at the other end sees when the VM process closes them.
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).context("cannot let go of standard output")?;
    Ok(signals)
}

/// Takes over the signals that are passed on, and those that stop the machine, too.
fn signal_fd() -> anyhow::Result<SignalFd> {
    let mut waited = signals::ending();
    for signal in [Signal::SIGCHLD, Signal::SIGTSTP, Signal::SIGTTOU] {
        waited.add(signal);
    }
    if signals::are_asked() {
        waited.add(Signal::SIGUSR1);
    }
    waited.thread_block().context("cannot block signals")?;
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&waited, flags).context("cannot make a signalfd")
}
