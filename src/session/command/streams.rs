//! The host's side of the command's streams: a thread each between kite's own standard streams and a port of the virtio
//! console. No thread waits for another, nor the main thread for any.

use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use devices::virtio::console::{Host, Port};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;
use nix::sys::stat::Mode;
use nix::unistd::dup2_stdout;

use crate::host::event;
use crate::host::lock::lock;
use crate::host::messages::{self, write_all};
use crate::host::terminal;
use crate::host::thread::{self, ThreadKind};
use crate::observe::trace::{Mark, Timeline};
use crate::session::console::keys::{HELP, Key, Keys};
use crate::spec::wire::{Output, STDIN};

/// How much of standard input is read at once, in bytes.
const CHUNK: usize = 32 << 10;
/// The stack of a thread that carries bytes, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// How long a command that has closed an output may take to end without kite's closing it too.
const CLOSING: Duration = Duration::from_millis(100);

/// An eventfd that wakes the thread that waits for a port.
pub(super) struct Wake(EventFd);

impl Wake {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self(event::event()?)))
    }

    /// Wakes. The counter cannot get full: the thread that wakes takes it down to zero.
    pub fn wake(&self) {
        let _ = self.0.write(1);
    }

    /// Makes it unreadable until it is woken again.
    pub fn clear(&self) {
        let _ = self.0.read();
    }

    /// Becomes readable when it is woken.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// A port at whose host's end this is woken, with someone there.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn port(self: &Arc<Self>, name: &str) -> anyhow::Result<Arc<Port>> {
        let port = Port::new(name, Box::new(Woken(self.clone()))).context("cannot make an eventfd")?;
        port.connect(true);
        Ok(Arc::new(port))
    }
}

struct Woken(Arc<Wake>);

impl Host for Woken {
    fn output_ready(&self) {
        self.0.wake();
    }

    fn changed(&self) {
        self.0.wake();
    }
}

/// What a stream reports to the main thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// What kite writes of this output has no reader.
    Unread(Output),
    /// The user asked kite to quit.
    Quit,
}

/// The events that streams report to the main thread.
pub(super) struct Inbox {
    events: Mutex<Vec<Event>>,
    pub wake: Arc<Wake>,
}

impl Inbox {
    /// Wakes `wake`.
    pub fn new(wake: Arc<Wake>) -> Arc<Self> {
        Arc::new(Self { events: Mutex::default(), wake })
    }

    fn send(&self, event: Event) {
        lock(&self.events).push(event);
        self.wake.wake();
    }

    /// Takes the events since the last call.
    pub fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *lock(&self.events))
    }
}

/// Takes what the command writes to standard output, besides kite's own.
pub type Tee = Box<dyn FnMut(&[u8]) + Send>;

/// One of the command's outputs.
pub(super) struct OutputStream {
    output: Output,
    pub port: Arc<Port>,
    wake: Arc<Wake>,
    state: Mutex<State>,
    /// What takes the place of kite's standard output when the command closes its own, if the host has it. kite's standard
    /// error stays open to its end: it has kite's own messages, too, of a crash or a limit.
    null: Option<OwnedFd>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// How many bytes the guest has written, once it has said that it writes no more.
    whole: Option<u64>,
    /// How many have been taken from the port, and are written or have no reader.
    done: u64,
    /// Bytes that are being written.
    writing: bool,
    /// The command is known to have ended.
    command_ended: bool,
    /// The machine has stopped, so the port gets no more.
    closing: bool,
    ended: bool,
    /// Why what came could not be written, unless its reader had gone.
    failure: Option<Errno>,
}

impl OutputStream {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(output: Output) -> anyhow::Result<Arc<Self>> {
        let wake = Wake::new()?;
        let port = wake.port(output.port())?;
        let null = match output {
            Output::Stdout => open("/dev/null", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty()).ok(),
            Output::Stderr => None,
        };
        Ok(Arc::new(Self { output, port, wake, state: Mutex::default(), null }))
    }

    /// The guest says that it has written so many bytes and writes no more. What it says first counts.
    pub fn close_after(&self, bytes: u64) {
        lock(&self.state).whole.get_or_insert(bytes);
        self.wake.wake();
    }

    /// The command has ended, and what the guest has said of this output is all it will.
    pub fn command_ended(&self) {
        lock(&self.state).command_ended = true;
        self.close_after(0);
    }

    /// The machine has stopped: what the port has is all there is.
    pub fn close(&self) {
        lock(&self.state).closing = true;
        self.wake.wake();
    }

    /// Whether all that the guest has written is written here.
    pub fn has_ended(&self) -> bool {
        lock(&self.state).ended
    }

    /// Why what the command wrote could not be written, if it could not, and not because its reader had gone.
    pub fn failure(&self) -> Option<String> {
        lock(&self.state).failure.map(|error| self.not_written(error))
    }

    fn not_written(&self, error: Errno) -> String {
        let stream = match self.output {
            Output::Stdout => "standard output",
            Output::Stderr => "standard error",
        };
        format!("cannot write the command's {stream}: {}", io::Error::from(error))
    }

    /// How many bytes came, and whether some of them wait for their reader.
    pub fn progress(&self) -> (u64, bool) {
        let state = lock(&self.state);
        (state.done, state.writing)
    }

    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(
        self: &Arc<Self>,
        inbox: Arc<Inbox>,
        tee: Option<Tee>,
        timeline: Arc<Timeline>,
    ) -> anyhow::Result<()> {
        let this = self.clone();
        let run = move || this.run(&inbox, tee, &timeline);
        thread::spawn_gathered(self.output.port(), STACK, ThreadKind::Io, run).map(drop)
    }

    fn run(&self, inbox: &Inbox, mut tee: Option<Tee>, timeline: &Timeline) {
        let mut buffer = Vec::new();
        let mut unread = false;
        loop {
            self.wake.clear();
            let closing = lock(&self.state).closing;
            self.port.take_output(&mut buffer);
            if buffer.is_empty() {
                let whole = lock(&self.state).is_whole();
                if whole || closing {
                    break;
                }
                wait(self.wake.event());
                continue;
            }
            timeline.mark(Mark::CommandOutput);
            lock(&self.state).writing = true;
            if let Some(tee) = &mut tee {
                tee(&buffer);
            }
            if !unread && let Err(error) = self.write(&buffer) {
                unread = true;
                if error != Errno::EPIPE {
                    lock(&self.state).failure = Some(error);
                    terminal::tell(&self.not_written(error));
                }
                // Either way the command writes no more: it is as if its reader had gone.
                inbox.send(Event::Unread(self.output));
            }
            let mut state = lock(&self.state);
            state.done += buffer.len() as u64;
            state.writing = false;
            drop(state);
            buffer.clear();
        }
        lock(&self.state).ended = true;
        inbox.wake.wake();
        if self.null.is_some() && !self.goes_with_the_command() {
            self.close_host();
        }
    }

    /// Whether the output is closed because the command has ended, which the guest reports a little later: kite is about to end
    /// then, and closes it itself.
    fn goes_with_the_command(&self) -> bool {
        let until = Instant::now() + CLOSING;
        loop {
            let state = *lock(&self.state);
            if state.command_ended || state.closing {
                return true;
            }
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            let milliseconds = left.as_millis() as u16 + 1;
            let _ = poll(&mut [PollFd::new(self.wake.event(), PollFlags::POLLIN)], milliseconds);
            self.wake.clear();
        }
    }

    fn write(&self, bytes: &[u8]) -> nix::Result<()> {
        match self.output {
            Output::Stdout => write_all(io::stdout().as_fd(), bytes),
            Output::Stderr => write_all(io::stderr().as_fd(), bytes),
        }
    }

    /// The reader of kite's standard output sees it end when the command's does.
    fn close_host(&self) {
        let Some(null) = &self.null else { return };
        let _ = io::stdout().flush().map_err(drop).and_then(|()| dup2_stdout(null).map_err(drop));
    }
}

impl State {
    fn is_whole(&self) -> bool {
        self.whole.is_some_and(|whole| self.done >= whole)
    }
}

/// The command's standard input.
pub(super) struct InputStream {
    pub port: Arc<Port>,
    wake: Arc<Wake>,
    stop: AtomicBool,
    carried: AtomicU64,
}

impl InputStream {
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> anyhow::Result<Arc<Self>> {
        let wake = Wake::new()?;
        let port = wake.port(STDIN)?;
        Ok(Arc::new(Self { port, wake, stop: AtomicBool::new(false), carried: AtomicU64::new(0) }))
    }

    /// Reads no more, as no process in the guest does.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
        self.wake.wake();
    }

    /// How many bytes the guest has been given.
    pub fn progress(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }

    /// Starts the thread that reads; with `keys`, kite's own keys are separated from the command's.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn start(self: &Arc<Self>, inbox: Arc<Inbox>, keys: bool) -> anyhow::Result<()> {
        let this = self.clone();
        let run = move || this.run(&inbox, keys.then(Keys::default));
        thread::spawn_gathered(STDIN, STACK, ThreadKind::Io, run).map(drop)
    }

    fn run(&self, inbox: &Inbox, mut keys: Option<Keys>) {
        let mut chunk = vec![0; CHUNK];
        let mut bytes = Vec::new();
        while let Some(count) = self.read(&mut chunk) {
            bytes.clear();
            match &mut keys {
                None => bytes.extend_from_slice(&chunk[..count]),
                Some(keys) => translate(keys, &chunk[..count], &mut bytes, inbox),
            }
            if !self.give(&bytes, keys.is_some()) {
                return;
            }
        }
        // At its end, everything that it had is the guest's first.
        while !self.stop.load(Ordering::SeqCst) && !self.port.is_drained() {
            self.pause();
        }
        self.port.connect(false);
    }

    /// Waits for input; nothing at its end, or when the guest wants none.
    fn read(&self, chunk: &mut [u8]) -> Option<usize> {
        let stdin = io::stdin();
        loop {
            if self.stop.load(Ordering::SeqCst) {
                return None;
            }
            let mut fds = [
                PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.wake.event(), PollFlags::POLLIN),
            ];
            let polled = poll(&mut fds, PollTimeout::NONE);
            if fds[1].any() == Some(true) {
                self.wake.clear();
            }
            if polled.is_err() || fds[0].any() != Some(true) {
                continue;
            }
            match nix::unistd::read(&stdin, chunk) {
                Ok(0) => return None,
                Ok(count) => return Some(count),
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // A terminal that has gone, say: there is no more to read.
                Err(_) => return None,
            }
        }
    }

    /// Gives the guest all of `bytes`; answers whether it wants more. What is typed too far ahead of a guest that takes
    /// nothing is lost: kite's own keys must work.
    fn give(&self, mut bytes: &[u8], typed: bool) -> bool {
        while !bytes.is_empty() {
            let taken = self.port.receive(bytes);
            self.carried.fetch_add(taken as u64, Ordering::Relaxed);
            bytes = &bytes[taken..];
            if typed && self.port.is_open() {
                return true;
            }
            if self.stop.load(Ordering::SeqCst) {
                return false;
            }
            if taken == 0 {
                self.pause();
            }
        }
        true
    }

    fn pause(&self) {
        wait(self.wake.event());
        self.wake.clear();
    }
}

fn translate(keys: &mut Keys, typed: &[u8], bytes: &mut Vec<u8>, inbox: &Inbox) {
    for byte in typed {
        match keys.feed(*byte) {
            Key::Byte(byte) => bytes.push(byte),
            Key::Nothing => {}
            Key::Help => messages::say(HELP.as_bytes().to_vec()),
            Key::Quit => inbox.send(Event::Quit),
        }
    }
}

/// Waits until `event` is readable. A signal may end the wait early: every caller looks again.
fn wait(event: BorrowedFd<'_>) {
    let _ = poll(&mut [PollFd::new(event, PollFlags::POLLIN)], PollTimeout::NONE);
}
