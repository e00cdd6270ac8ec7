//! The process outside: the one that the user has started, and knows. It hands signals on to the machine's process, stops
//! and goes on with it, and ends as it ends. What the host is to be rid of then, such as a socket's name, is its to remove.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stderr, dup2_stdout};

use super::news::{News, Reader};
use super::post;
use crate::signals;
use crate::supervise;
use crate::terminal::Saved;
use crate::whole_file;

/// The machine's process, seen from outside.
pub struct Outside {
    machine: Pid,
    news: Reader,
    post: post::Reader,
    /// Why a file could not be written.
    unwritten: Option<anyhow::Error>,
    signals: SignalFd,
    /// How the terminal was, if it is ours.
    terminal: Option<Saved>,
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
    pub(super) fn new(machine: Pid, news: Reader, post: post::Reader) -> anyhow::Result<Self> {
        let signals = take_signals()?;
        Ok(Self { machine, news, post, unwritten: None, signals, terminal: Saved::now() })
    }

    /// Attends the machine's process to its end.
    ///
    /// # Errors
    /// The host refuses to wait, or a file that the machine's process has sent cannot be written.
    pub fn attend(mut self) -> anyhow::Result<End> {
        // Whoever reads what the guest prints sees the end of it when the machine's process closes it.
        self.close(|null| dup2_stdout(null));
        loop {
            for news in self.news.take() {
                match news {
                    News::StderrClosed => {
                        // There may be one further outside.
                        supervise::stderr_is_closed();
                        self.close(|null| dup2_stderr(null));
                    }
                    News::Refused => self.restore_terminal(),
                    News::EndBy(signal) => self.news.end = Some(signal),
                }
            }
            let end = self.ended()?;
            self.write_files();
            match (end, self.unwritten.take()) {
                (None, unwritten) => self.unwritten = unwritten,
                (Some(_), Some(error)) => return Err(error),
                (Some(end), None) => return Ok(end),
            }
            let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
            // A pipe without writers is always ready.
            let news = self.news.is_open().then(|| self.news.as_fd());
            let post = self.post.is_open().then(|| self.post.as_fd());
            fds.extend(news.into_iter().chain(post).map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(anyhow!(error).context("cannot wait for the machine's process")),
            }
            while let Ok(Some(info)) = self.signals.read_signal() {
                self.take_signal(info.ssi_signo as i32);
            }
        }
    }

    /// Puts nothing in the place of a stream. Where the host has nothing, a pipe that nobody reads will do.
    fn close(&self, replace: impl FnOnce(BorrowedFd<'_>) -> nix::Result<()>) {
        let null = File::options().write(true).open("/dev/null").map(OwnedFd::from);
        if let Ok(null) = null.or_else(|_| io::pipe().map(|(_, writer)| writer.into())) {
            let _ = replace(null.as_fd());
        }
    }

    fn write_files(&mut self) {
        for (path, content) in self.post.take() {
            if let Err(error) = whole_file::write(&path, |file| file.write_all(&content)) {
                self.unwritten.get_or_insert(error);
            }
        }
    }

    fn ended(&mut self) -> anyhow::Result<Option<End>> {
        let status = waitpid(self.machine, Some(WaitPidFlag::WNOHANG));
        let end = match status.context("cannot wait for the machine's process")? {
            WaitStatus::Exited(_, code) => End::Exited(code as u8),
            WaitStatus::Signaled(_, signal, _) => {
                self.restore_terminal();
                End::Signalled(signal as i32)
            }
            _ => return Ok(None),
        };
        // What it told last may not have been read yet.
        let told = self.news.take().into_iter().find_map(|news| match news {
            News::EndBy(signal) => Some(signal),
            _ => None,
        });
        Ok(Some(told.or(self.news.end).map_or(end, End::Signalled)))
    }

    fn take_signal(&self, signal: i32) {
        // Those of the terminal reach both, but only what comes from here is heard inside.
        let Ok(name) = Signal::try_from(signal) else { return };
        match name {
            Signal::SIGCHLD => {}
            Signal::SIGTSTP | Signal::SIGTTOU => self.stop(name),
            // A question is the machine's to answer, by its own name.
            Signal::SIGUSR1 if signals::are_asked() => _ = kill(self.machine, name),
            _ => _ = signals::pass_on(self.machine, signal),
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

    /// What the machine's process had no time for.
    fn restore_terminal(&self) {
        self.terminal.iter().for_each(Saved::restore);
    }
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
