//! The command's streams: threads that carry bytes between its pipes, or its terminal, and the ports to kite.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::Winsize;
use nix::sys::eventfd::EventFd;
use nix::unistd::Pid;

use super::ports::Ports;
use crate::host::event::awaited_event;
use crate::spec::wire::{Messages, Order, Output, Report, Terminal};

/// How much is carried at once, in bytes: what the port's driver takes of one write.
const CHUNK: usize = 32 << 10;
/// How long what the command has written may take to leave, if nothing blocks it.
const PATIENCE: Duration = Duration::from_secs(2);

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// The ends of the streams that are not the command's.
pub(super) struct Ends {
    /// What goes to the command.
    pub stdin: OwnedFd,
    /// What comes from it.
    pub outputs: [Option<OwnedFd>; 2],
    /// The terminal, if it has one.
    pub terminal: Option<Arc<File>>,
}

/// The threads.
pub(super) struct Streams {
    outputs: Vec<Carrier>,
}

/// A thread that carries an output.
struct Carrier {
    stop: Arc<Stop>,
    thread: JoinHandle<()>,
}

/// What ends a carrier.
struct Stop {
    event: EventFd,
    /// What has been written has no reader.
    unread: AtomicBool,
}

impl Stop {
    fn new() -> anyhow::Result<Arc<Self>> {
        Ok(Arc::new(Self { event: awaited_event()?, unread: AtomicBool::new(false) }))
    }

    /// Ends it: at once if what it carries is `unread`, else when it has carried all there is.
    fn stop(&self, unread: bool) {
        self.unread.fetch_or(unread, Ordering::SeqCst);
        // The counter is written a few times in all.
        let _ = self.event.write(1);
    }
}

impl Streams {
    /// Starts to carry, and to do what kite says of the command.
    ///
    /// # Errors
    /// There is no thread or descriptor left.
    pub fn start(command: Pid, ends: Ends, ports: Ports) -> anyhow::Result<Self> {
        let Ports { control, orders, stdin, outputs } = ports;
        let (mut carriers, mut stops) = (Vec::new(), Vec::new());
        for ((output, from), port) in Output::ALL.into_iter().zip(ends.outputs).zip(outputs) {
            let Some(from) = from else {
                control.tell(&Report::Closed { output, bytes: 0 });
                continue;
            };
            let stop = Stop::new()?;
            let (stopped, told) = (stop.clone(), control.clone());
            let carry = move || {
                let bytes = carry_output(File::from(from), port, &stopped);
                told.tell(&Report::Closed { output, bytes });
            };
            let name = output.port().to_owned();
            let thread = thread::Builder::new().name(name).spawn(carry).context("cannot start a thread")?;
            stops.push((output, stop.clone()));
            carriers.push(Carrier { stop, thread });
        }
        let told = control;
        let input = move || {
            if carry_input(stdin, File::from(ends.stdin)).is_err() {
                told.tell(&Report::Unread);
            }
        };
        thread::Builder::new().name("stdin".to_owned()).spawn(input).context("cannot start a thread")?;
        let terminal = ends.terminal;
        let obey = move || obey(orders, command, terminal.as_deref(), stops);
        thread::Builder::new().name("orders".to_owned()).spawn(obey).context("cannot start a thread")?;
        Ok(Self { outputs: carriers })
    }

    /// Waits until all that the command has written has left. Nobody writes any more, but for what the kernel cannot
    /// end.
    pub fn finish(self) {
        let start = Instant::now();
        for carrier in self.outputs {
            // A thread that waits for kite to take more has every time it needs.
            while !carrier.thread.is_finished() && start.elapsed() < PATIENCE {
                thread::sleep(Duration::from_micros(100));
            }
            carrier.stop.stop(false);
            let _cannot_panic = carrier.thread.join();
        }
    }
}

/// Carries an output to its port until its end, or until `stop`; answers how many bytes that were.
fn carry_output(mut from: File, mut port: File, stop: &Stop) -> u64 {
    let mut buffer = vec![0; CHUNK];
    let mut carried = 0;
    loop {
        let mut fds = [
            PollFd::new(from.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.event.as_fd(), PollFlags::POLLIN),
        ];
        let polled = poll(&mut fds, PollTimeout::NONE);
        let (ready, stopped) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
        let unread = stop.unread.load(Ordering::SeqCst);
        if polled.is_err() || unread || (stopped && !ready) {
            return carried;
        }
        match from.read(&mut buffer) {
            // A terminal that no process has open any more is EIO.
            Ok(0) => return carried,
            Ok(count) => match port.write_all(&buffer[..count]) {
                Ok(()) => carried += count as u64,
                Err(_) => return carried,
            },
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return carried,
        }
    }
}

/// Carries standard input to the command until its end; an error if the command does not read it.
fn carry_input(mut port: File, mut to: File) -> io::Result<()> {
    fcntl(&port, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        poll(&mut [PollFd::new(port.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        let (count, ended) = read_what_there_is(&mut port, &mut buffer);
        to.write_all(&buffer[..count])?;
        if ended {
            return Ok(());
        }
    }
}

/// Fills the buffer as far as there is something, which the port gives a page at a time; answers how far that is, and
/// whether there is no more to come.
fn read_what_there_is(port: &mut File, buffer: &mut [u8]) -> (usize, bool) {
    let mut count = 0;
    while count < buffer.len() {
        match port.read(&mut buffer[count..]) {
            Ok(0) => return (count, true),
            Ok(got) => count += got,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (count, error.kind() != ErrorKind::WouldBlock),
        }
    }
    (count, false)
}

/// Does what kite says, until it says no more.
fn obey(mut port: File, command: Pid, terminal: Option<&File>, stops: Vec<(Output, Arc<Stop>)>) {
    let mut messages = Messages::default();
    let mut buffer = vec![0; 4096];
    while let Ok(count @ 1..) = port.read(&mut buffer) {
        messages.feed(&buffer[..count], |order| match order {
            Order::Resize { columns, rows } => {
                if let Some(terminal) = terminal {
                    resize(terminal, columns, rows);
                }
            }
            Order::HangUp(output) => {
                for (_, stop) in stops.iter().filter(|(of, _)| *of == output) {
                    stop.stop(true);
                }
            }
            Order::Signal(signal) => send(command, signal),
        });
    }
}

/// Sends a signal, which may be one without a name; to a process that has just ended it goes nowhere.
#[expect(unsafe_code, reason = "a signal without a name has no safe interface")]
fn send(process: Pid, signal: i32) {
    // SAFETY: takes numbers.
    let _ = unsafe { libc::kill(process.as_raw(), signal) };
}

/// Sets the size of a terminal, which signals its foreground processes.
#[expect(unsafe_code, reason = "an ioctl")]
pub(super) fn resize(terminal: &File, columns: u16, rows: u16) {
    use std::os::fd::AsRawFd;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the size is read and outlives the call. A terminal that does not take it keeps its own.
    let _ = unsafe { set_size(terminal.as_raw_fd(), &raw const size) };
}

/// What the ends of a terminal are, kite's and the command's.
pub(super) fn open_terminal(terminal: Terminal) -> anyhow::Result<(File, OwnedFd)> {
    let pair = nix::pty::openpty(None, None).context("cannot make a terminal")?;
    // The command is to have its own end, and only as its standard streams.
    for end in [&pair.master, &pair.slave] {
        fcntl(end, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("cannot keep a terminal to ourselves")?;
    }
    let master = File::from(pair.master);
    resize(&master, terminal.columns, terminal.rows);
    Ok((master, pair.slave))
}
