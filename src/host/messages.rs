//! What kite itself says on standard error. While a guest runs, a thread of its own writes it from a queue: neither a
//! device, nor a vCPU, nor the main thread ever waits for the reader of standard error.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::host::lock::lock;
use crate::host::thread::{ThreadKind, spawn_gathered};

/// How many bytes may wait when one more line comes that can be done without.
const LOG_ROOM: usize = 64 << 10;
/// How many bytes may wait when a line comes that the user should see: several whole crash reports.
const ROOM: usize = 4 << 20;
/// How often a wait for the reader asks whether to go on.
const TICK: Duration = Duration::from_millis(20);
/// How long a reader who reads nothing holds up the end of kite, where nothing else limits the wait.
pub const PATIENCE: Duration = Duration::from_secs(2);
/// The thread's stack in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;

/// The messages on their way. A process has one standard error.
static QUEUE: Queue = Queue { state: Mutex::new(State::new()), changed: Condvar::new() };

/// The messages on their way, and what wakes their writer and those who wait for it.
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

/// The messages on their way.
struct State {
    /// Each is written in one piece, so that lines stay whole among the guest's.
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    /// How many found no room since the last that did.
    dropped: u64,
    /// Whether there is a thread that writes.
    threaded: bool,
    /// Since when a message is being written.
    writing: Option<Instant>,
    /// Why the first message that could not be written was not, unless its reader had gone.
    failure: Option<Errno>,
}

impl State {
    const fn new() -> Self {
        let waiting = VecDeque::new();
        Self { waiting, bytes: 0, dropped: 0, threaded: false, writing: None, failure: None }
    }

    /// Takes a message in, if no more than `room` bytes wait.
    fn push(&mut self, message: Vec<u8>, room: usize) {
        if self.bytes.saturating_add(message.len()) > room {
            self.dropped += 1;
            return;
        }
        self.bytes += message.len();
        self.waiting.push_back(message);
    }

    fn pop(&mut self) -> Option<Vec<u8>> {
        let message = self.waiting.pop_front();
        if let Some(message) = message {
            self.bytes -= message.len();
            return Some(message);
        }
        let dropped = std::mem::take(&mut self.dropped);
        let lines = if dropped == 1 { "line" } else { "lines" };
        (dropped > 0)
            .then(|| format!("kite: {dropped} more {lines} found standard error full\n").into_bytes())
    }
}

fn state() -> MutexGuard<'static, State> {
    lock(&QUEUE.state)
}

/// Starts the thread that writes, once.
///
/// # Errors
/// The host has no thread left.
pub fn start() -> anyhow::Result<()> {
    if std::mem::replace(&mut state().threaded, true) {
        return Ok(());
    }
    let started = spawn_gathered("messages", STACK, ThreadKind::Io, || run());
    started.map(drop).inspect_err(|_| state().threaded = false)
}

fn run() -> ! {
    let mut state = state();
    loop {
        let Some(message) = state.pop() else {
            state.writing = None;
            QUEUE.changed.notify_all();
            state = QUEUE.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.writing = Some(Instant::now());
        drop(state);
        write_now(&message);
        state = self::state();
    }
}

/// Says what the user should see.
pub fn say(message: Vec<u8>) {
    push(message, ROOM);
}

/// Tells the user on standard error, in one line. Whether the line is read changes nothing.
pub fn complain(message: &str) {
    say(format!("kite: {}\n", printable(message)).into_bytes());
}

/// `text` with its control characters escaped: paths and arguments can hold some, and a terminal must not obey them.
pub fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() {
            printable.extend(char.escape_default());
        } else {
            printable.push(char);
        }
    }
    printable
}

/// Says what can be done without where the reader does not read.
pub fn log(message: Vec<u8>) {
    push(message, LOG_ROOM);
}

fn push(message: Vec<u8>, room: usize) {
    let mut state = state();
    if state.threaded {
        state.push(message, room);
        drop(state);
        QUEUE.changed.notify_all();
    } else {
        drop(state);
        write_now(&message);
    }
}

/// Writes a message on this thread, which may wait for the reader for ever.
pub fn write_now(message: &[u8]) {
    if let Err(error) = write_all(io::stderr().as_fd(), message)
        && error != Errno::EPIPE
    {
        state().failure.get_or_insert(error);
    }
}

/// Says something unless it would have to wait for the reader.
pub fn say_if_read(message: &[u8]) {
    let stderr = io::stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
        write_now(message);
    }
}

/// Waits until everything is written, or `is_enough` answers so: it is asked from time to time how long one message has
/// been waiting for its reader.
pub fn flush(mut is_enough: impl FnMut(Duration) -> bool) {
    let mut state = state();
    while state.threaded && !(state.waiting.is_empty() && state.dropped == 0 && state.writing.is_none()) {
        let stuck = state.writing.map_or(Duration::ZERO, |since| since.elapsed());
        drop(state);
        if is_enough(stuck) {
            return;
        }
        let again = self::state();
        state = QUEUE.changed.wait_timeout(again, TICK).unwrap_or_else(PoisonError::into_inner).0;
    }
}

/// Why a message could not be written, if one could not, and not because its reader had gone.
pub fn failure() -> Option<Errno> {
    state().failure
}

/// Prints a command's result on standard output. A reader that goes early has seen enough.
///
/// # Errors
/// It cannot be written; `what` is named.
pub fn print(text: impl AsRef<[u8]>, what: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_ref()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).with_context(|| format!("cannot write {what} to standard output"))
        }
        _ => Ok(()),
    }
}

/// Writes everything, also to a descriptor that its opener made non-blocking.
///
/// # Errors
/// The descriptor does not take it.
pub fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(to, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => bytes = &bytes[written..],
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                poll(&mut [PollFd::new(to, PollFlags::POLLOUT)], PollTimeout::NONE)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_bounded_and_says_how_much_it_has_dropped() {
        let mut state = State::new();
        for _ in 0..4 {
            state.push(b"12345".to_vec(), 12);
        }
        // What matters more has more room.
        state.push(b"last".to_vec(), 14);
        let said: Vec<_> = std::iter::from_fn(|| state.pop()).collect();
        let dropped = b"kite: 2 more lines found standard error full\n";
        assert_eq!(said, [&b"12345"[..], b"12345", b"last", dropped]);
        assert_eq!((state.bytes, state.pop()), (0, None));
        state.push(b"123456789".to_vec(), 12);
        assert_eq!(state.pop().as_deref(), Some(&b"123456789"[..]));
    }
}
