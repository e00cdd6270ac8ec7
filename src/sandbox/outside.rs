//! The process outside: the one that the user has started, and knows. It hands signals on to the machine's process, stops
//! and goes on with it, and ends as it ends. What the host is to be rid of then, such as a socket's name, is its to remove,
//! and what the machine has to tell in files its to write.
//!
//! It reads what a machine's process says that a guest may have taken over. So it locks itself in, too, as far as its
//! chores allow, and before the guest's first instruction.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ::landlock::Scope;
use anyhow::{Context, anyhow, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, geteuid};

use super::news::{self, News};
use super::split::Start;
use super::{
    Inherited, Lacks, Layer, Options, Thread, close_as, landlock, no_new_privs, post, privileges, seccomp,
};
use crate::host::messages;
use crate::host::signals;
use crate::host::terminal::Saved;

/// How often the post is looked at when the machine's process has ended: more often than its pipe can have left something.
const LAST_LOOKS: usize = 64;

/// How long the machine's process may take to end by a signal that was handed on to it.
const GRACE: Duration = Duration::from_secs(10);

/// How the terminal was, if it is ours, for every way out.
static TERMINAL: OnceLock<Saved> = OnceLock::new();

/// What the machine's process had no time for. Makes one system call, and may be called in a signal's handler.
pub(super) fn restore_terminal() {
    TERMINAL.get().into_iter().for_each(Saved::restore);
}

/// The machine's process, seen from outside. It ends when this is dropped.
pub struct Outside {
    options: Options,
    machine: Pid,
    start: Option<Start>,
    /// Whether this process is locked in as is required.
    locked: anyhow::Result<()>,
    news: news::Reader,
    post: post::Reader,
    signals: SignalFd,
    /// The signal that kite is to end by.
    told: Option<i32>,
    /// The first signal that was handed on to end the machine's process, and when that is to have ended.
    handed_on: Option<(i32, Instant)>,
    end: Option<End>,
}

/// What is left to be done outside, beside what is to be done in any case: where names are removed, and where groups of
/// processes.
pub struct Chores<'a> {
    /// Folders that have a name to be removed.
    pub names: Vec<BorrowedFd<'a>>,
    /// Folders of a group that has to be ended and removed.
    pub groups: Vec<BorrowedFd<'a>>,
}

/// How the machine's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(u8),
    /// By this signal, or with the wish to.
    Signalled(i32),
}

impl Outside {
    /// To be called before there is a second thread, which would take signals away.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub(super) fn new(
        options: Options,
        machine: Pid,
        start: Start,
        news: io::PipeReader,
        post: io::PipeReader,
    ) -> anyhow::Result<Self> {
        let news = news::Reader::new(news).context("cannot set up a pipe")?;
        let post = post::Reader::new(post).context("cannot set up a pipe")?;
        let signals = take_signals()?;
        // Where the host has nothing, a pipe that nobody writes to or reads will do.
        let null = File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let null = null.or_else(|_| io::pipe().map(|(_, writer)| writer.into()));
        let null = null.context("cannot let go of standard output")?;
        // The core dump, if there is to be one, is the machine's.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot forbid core dumps")?;
        if let Some(terminal) = Saved::now() {
            // A process is split once.
            let _ = TERMINAL.set(terminal);
        }
        // They are the machine's: whoever is at their other end is to see when it closes them.
        dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).context("cannot let go of standard output")?;
        let (start, locked) = (Some(start), Ok(()));
        Ok(Self {
            options,
            machine,
            start,
            locked,
            news,
            post,
            signals,
            told: None,
            handed_on: None,
            end: None,
        })
    }

    /// Gives up all that this process, which has one thread, does not need for its `chores`. Where a layer is required that
    /// the host does not allow, the machine's process will end, and tell why.
    pub fn lock(&mut self, inherited: &Inherited, chores: &Chores<'_>) {
        if !self.options.splits() {
            return;
        }
        privileges::close(&inherited.0);
        let needs = seccomp::Outside {
            machine: self.machine,
            files: self.post.folders().next().is_some(),
            names: !chores.names.is_empty(),
            groups: !chores.groups.is_empty(),
        };
        let mut lacks = Lacks::new(self.options);
        lacks.try_layer(Layer::NoNewPrivs, no_new_privs);
        lacks.try_layer(Layer::Capabilities, || privileges::drop_capabilities(kept(needs), false));
        lacks.try_layer(Layer::Landlock, || {
            let files = self.post.folders().map(|it| (it, landlock::writes()));
            let names = chores.names.iter().map(|it| (*it, landlock::removes()));
            let groups = chores.groups.iter().map(|it| (*it, landlock::ends_groups()));
            let folders: Vec<_> = files.chain(names).chain(groups).collect();
            // Signals are what it is there for.
            landlock::restrict(&folders, Scope::AbstractUnixSocket.into())
        });
        lacks.try_layer(Layer::Seccomp, || seccomp::prepare_outside(needs));
        // What may be missing is missing inside, too, and told there.
        self.locked = lacks.answer().map(drop);
    }

    /// Takes no file of the machine's that is longer than so many bytes: as much as it may have in its own memory.
    pub fn limit_files(&mut self, bytes: u64) {
        self.post.limit(bytes);
    }

    /// Attends the machine's process to its end.
    ///
    /// # Errors
    /// The host refuses to wait, a file that the machine's process has sent cannot be written, or that process does not stop
    /// to tell.
    pub fn attend(mut self) -> anyhow::Result<End> {
        close_as(Thread::Outside);
        self.start.take().into_iter().for_each(|start| start.go_on(&self.locked));
        loop {
            self.hear();
            self.post.take();
            if let Some(end) = self.ended()? {
                return self.post.failure().map_or(Ok(end), Err);
            }
            if self.news.is_flooded() {
                bail!(
                    "the machine's process tells without end, as if the guest had taken it over: it was killed"
                );
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            let pipes = self.news.more().into_iter().chain(self.post.more());
            fds.extend(pipes.map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
            match poll(&mut fds, self.time_left()) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(anyhow!(error).context("cannot wait for the machine's process")),
            }
            self.end_if_late();
            while let Ok(Some(info)) = self.signals.read_signal() {
                self.take_signal(info.ssi_signo as i32);
            }
        }
    }

    fn hear(&mut self) {
        for news in self.news.take() {
            match news {
                News::Refused => restore_terminal(),
                News::EndBy(signal) => self.told = Some(signal),
            }
        }
    }

    fn ended(&mut self) -> anyhow::Result<Option<End>> {
        let status = waitpid(self.machine, Some(WaitPidFlag::WNOHANG));
        let end = match status.context("cannot wait for the machine's process")? {
            WaitStatus::Exited(_, code) => End::Exited(code as u8),
            WaitStatus::Signaled(_, signal, _) => End::Signalled(signal as i32),
            _ => return Ok(None),
        };
        // It may not have been ours any more.
        restore_terminal();
        // What it told and sent last may not have been read yet.
        self.hear();
        for _ in 0..LAST_LOOKS {
            self.post.take();
        }
        self.end = Some(self.told.map_or(end, End::Signalled));
        Ok(self.end)
    }

    /// How long to wait for the machine's process to end.
    fn time_left(&self) -> PollTimeout {
        let Some((_, until)) = self.handed_on else { return PollTimeout::NONE };
        // Rounded up: a wait that is a little short would be repeated without rest.
        let left = until.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
        PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
    }

    /// Ends the machine's process if it has not ended by the signal that was handed on to it: then kite does.
    fn end_if_late(&mut self) {
        if let Some((signal, _)) = self.handed_on.take_if(|(_, until)| Instant::now() >= *until) {
            self.told.get_or_insert(signal);
            let _ = kill(self.machine, Signal::SIGKILL);
            let name = Signal::try_from(signal).map_or("the signal", Signal::as_str);
            let seconds = GRACE.as_secs();
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
            Signal::SIGUSR1 if signals::are_asked() => _ = kill(self.machine, name),
            _ => {
                self.handed_on.get_or_insert((signal, Instant::now() + GRACE));
                let _ = signals::pass_on(self.machine, signal);
            }
        }
    }

    /// Stops with the machine until the user's shell lets both go on. As the first process of its namespace, the machine's
    /// would be stopped by nothing else.
    fn stop(&self, signal: Signal) {
        let _ = kill(self.machine, Signal::SIGSTOP);
        let mut mask = SigSet::empty();
        mask.add(signal);
        // Where nobody would let it go on, it is not stopped.
        let _ = raise(signal);
        let _ = mask.thread_unblock();
        let _ = mask.thread_block();
        let _ = kill(self.machine, Signal::SIGCONT);
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        if self.end.is_none() {
            // There is nobody left to attend it.
            let _ = kill(self.machine, Signal::SIGKILL);
            let _ = waitpid(self.machine, None);
            restore_terminal();
        }
    }
}

/// CAP_DAC_OVERRIDE and CAP_FOWNER: root's files in folders of others.
const FOLDERS: u64 = 1 << 1 | 1 << 3;
/// CAP_KILL: what is left in a group may be another user's.
const KILL: u64 = 1 << 5;

/// The capabilities that root needs: in folders of others, and to end processes of others.
fn kept(needs: seccomp::Outside) -> u64 {
    if !geteuid().is_root() {
        return 0;
    }
    let folders = if needs.files || needs.names || needs.groups { FOLDERS } else { 0 };
    folders | if needs.groups { KILL } else { 0 }
}

/// Takes over what is to be handed on, or to be done with the machine.
fn take_signals() -> anyhow::Result<SignalFd> {
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
