//! The thread that writes what the guest prints.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use devices::chipset::serial::Serial;
use devices::virtio::console::Port;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::keys::HELP;
use crate::host::event::awaited_event;
use crate::host::lock::lock;
use crate::host::messages::{self, write_all};
use crate::host::signals::{self, Signals};
use crate::host::thread::{self, Thread, ThreadKind};
use crate::observe::crash::text::PanicText;
use crate::observe::trace::{Milestones, Timeline};
use crate::vcpu::stop::{Exit, ExitRequest};

/// After a write, output gathers for this long: what a person reads as at once, and a thousand bytes for a guest.
const GATHER: Duration = Duration::from_millis(1);
/// How long a reader that does not read may hold up the end of a kite that the user ends, in milliseconds.
const GRACE: u16 = 1000;

/// A device that the guest prints to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Line {
    /// The serial port.
    Serial,
    /// The virtio console.
    Hvc,
}

/// Whether there is output to write.
#[derive(Default)]
pub(super) struct Ready {
    state: Mutex<State>,
    changed: Condvar,
    printed: Mutex<Printed>,
}

/// What a machine has printed so far.
#[derive(Default)]
pub(super) struct Printed {
    /// How many bytes, on either console.
    pub bytes: u64,
    /// What the kernel said on the serial port.
    pub panic: PanicText,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// Where output came first since it was last taken.
    first: Option<Line>,
    help: bool,
    closing: bool,
}

impl Ready {
    /// There is output from `line`.
    pub fn set(&self, line: Line) {
        self.state().first.get_or_insert(line);
        self.changed.notify_one();
    }

    /// The user wants to see the list of keys. Not the thread that reads keys writes it, for that one must not wait.
    pub fn ask_for_help(&self) {
        self.state().help = true;
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until there is something to write, and returns what.
    fn wait(&self) -> State {
        let mut state = self.state();
        while state.first.is_none() && !state.help && !state.closing {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let now = *state;
        (state.first, state.help) = (None, false);
        now
    }

    /// Lets output gather, unless it is the last.
    fn gather(&self) {
        let until = Instant::now() + GATHER;
        let mut state = self.state();
        while !state.closing {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return };
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What the machine has printed.
    pub fn printed(&self) -> MutexGuard<'_, Printed> {
        lock(&self.printed)
    }

    fn set_closing(&self, closing: bool) {
        self.state().closing = closing;
        self.changed.notify_one();
    }
}

/// The writing thread of one machine.
pub(super) struct Output {
    ready: Arc<Ready>,
    done: Arc<EventFd>,
    exit: Arc<ExitRequest>,
    thread: Thread<nix::Result<()>>,
}

impl Output {
    /// Starts to write what `serial` and `hvc` have to say.
    pub fn start(
        serial: Arc<Mutex<Serial>>,
        hvc: Arc<Port>,
        ready: Arc<Ready>,
        exit: Arc<ExitRequest>,
        timeline: Arc<Timeline>,
    ) -> anyhow::Result<Self> {
        let done = Arc::new(awaited_event()?);
        ready.set_closing(false);
        *ready.printed() = Printed::default();
        let (to, why, end) = (ready.clone(), exit.clone(), done.clone());
        let mut writer =
            Writer { serial, hvc, ready: to, exit: why, done: end, ears: Default::default(), timeline };
        let thread = thread::spawn_gathered("console", 128 << 10, ThreadKind::Io, move || writer.run())?;
        Ok(Self { ready, done, exit, thread })
    }

    /// Waits until everything is written. A signal cuts it short, and is returned: kite must not hang on a reader that
    /// does not read. Where the user ends kite, the wait is short to begin with.
    ///
    /// # Errors
    /// Standard output did not take all of it, and not because the user wanted an end.
    pub fn finish(self, signals: &Signals) -> anyhow::Result<Option<i32>> {
        self.ready.set_closing(true);
        let ends_at_once = matches!(self.exit.reason(), Some(Exit::Signal(_) | Exit::Quit));
        let timeout = if ends_at_once { PollTimeout::from(GRACE) } else { PollTimeout::NONE };
        let mut fds = [
            PollFd::new(self.done.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        ];
        loop {
            let polled = poll(&mut fds, timeout);
            if fds[0].any() == Some(true) {
                return match self.thread.join() {
                    Err(error) if !ends_at_once => Err(not_written(error)),
                    _ => Ok(None),
                };
            }
            match signals.next() {
                Some(signal) if signals::is_notice(signal) => {} // the guest is past caring
                Some(signal) => return Ok(Some(signal)),
                _ if polled == Ok(0) => return Ok(None),
                _ => {}
            }
        }
    }
}

fn not_written(error: Errno) -> anyhow::Error {
    anyhow!(error).context("cannot write the guest's output to standard output")
}

struct Writer {
    serial: Arc<Mutex<Serial>>,
    hvc: Arc<Port>,
    ready: Arc<Ready>,
    exit: Arc<ExitRequest>,
    done: Arc<EventFd>,
    /// One for each console.
    ears: [Milestones; 2],
    timeline: Arc<Timeline>,
}

impl Writer {
    fn run(&mut self) -> nix::Result<()> {
        let mut buffer = Vec::new();
        let mut written = Ok(());
        loop {
            let wanted = self.ready.wait();
            if wanted.help {
                messages::say(HELP.as_bytes().to_vec());
            }
            self.take_output(wanted.first, &mut buffer);
            if written.is_ok() {
                written = write_all(io::stdout().as_fd(), &buffer);
                if let Err(error) = written {
                    // The guest's output goes nowhere from here on; there is no use in going on.
                    self.exit.request(Exit::Failed(not_written(error)));
                }
            }
            buffer.clear();
            if wanted.closing {
                break;
            }
            self.ready.gather();
        }
        let _ = self.done.write(1);
        written
    }

    /// Takes what there is from both, in the order it came as far as that is known.
    fn take_output(&mut self, first: Option<Line>, buffer: &mut Vec<u8>) {
        if first == Some(Line::Hvc) {
            self.hvc.take_output(buffer);
        }
        let start = buffer.len();
        lock(&self.serial).take_output(buffer);
        let mut printed = self.ready.printed();
        printed.panic.feed(&buffer[start..]);
        let end = buffer.len();
        if first != Some(Line::Hvc) {
            self.hvc.take_output(buffer);
        }
        self.ears[0].feed(&buffer[start..end], &self.timeline);
        let hvc = if first == Some(Line::Hvc) { &buffer[..start] } else { &buffer[end..] };
        self.ears[1].feed(hvc, &self.timeline);
        printed.bytes += buffer.len() as u64;
    }
}
