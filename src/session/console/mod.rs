//! The consoles' host side: standard input to the guest, the guest's output to standard output, and signals.
//!
//! There are two, the serial port and the virtio console. What either prints is written; what is typed goes to the one
//! that the guest listens to.
//!
//! The main thread waits here while the guest runs. What the guest prints is written by a thread of its own, so that
//! neither a vCPU nor a signal ever waits for whoever reads it.

pub(crate) mod keys;
mod output;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, anyhow};
use devices::chipset::serial::{Host, Serial};
use devices::virtio::console::{self as hvc, Port};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;

use crate::host::messages;
use crate::host::rss;
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal};
use crate::observe::crash::watchdog::{self, Verdict, Watch};
use crate::observe::trace::Timeline;
use crate::sandbox;
use crate::vcpu::stop::{Exit, ExitRequest};
use crate::vm::machine::Running;
use keys::{Key, Keys};
use output::{Line, Output, Ready};

/// How much input waits for a guest that takes none; the rest stays where it comes from, and what is typed is lost.
const PENDING: usize = 4096;

/// When nothing has happened for so long, in milliseconds, the start is over.
const SETTLING: u16 = 200;

/// The host's end of both consoles. It outlives the machines that are built one after the other at the other end.
pub struct Console {
    signals: Signals,
    terminal: Option<RawTerminal>,
    keys: Keys,
    /// Read and not yet taken by the guest.
    pending: Vec<u8>,
    input_open: bool,
    wanted: Arc<EventFd>,
    ready: Arc<Ready>,
    hvc: Arc<Port>,
    prefers_hvc: bool,
    timeline: Arc<Timeline>,
}

/// Wakes the host's threads when a device has something for them.
#[derive(Clone)]
struct Wake {
    wanted: Arc<EventFd>,
    ready: Arc<Ready>,
}

impl Host for Wake {
    fn output_ready(&self) {
        self.ready.set(Line::Serial);
    }

    fn input_wanted(&self) {
        // The counter cannot get full: the reader takes it down to zero.
        let _ = self.wanted.write(1);
    }
}

impl hvc::Host for Wake {
    fn output_ready(&self) {
        self.ready.set(Line::Hvc);
    }

    fn changed(&self) {
        self.input_wanted();
    }
}

impl Console {
    /// At the process's `signals`. With `prefers_hvc`, input goes to the virtio console once the guest has that open. What the
    /// guest comes to is noted in `timeline`.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn new(signals: Signals, prefers_hvc: bool, timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let wanted = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake =
            Wake { wanted: Arc::new(wanted.context("cannot make an eventfd")?), ready: Arc::default() };
        let hvc = Port::new("", Box::new(wake.clone())).context("cannot make an eventfd")?;
        hvc.connect(true);
        Ok(Self {
            signals,
            terminal: None,
            keys: Keys::default(),
            pending: Vec::new(),
            input_open: true,
            wanted: wake.wanted,
            ready: wake.ready,
            hvc: Arc::new(hvc),
            prefers_hvc,
            timeline,
        })
    }

    /// What a new machine's serial port is to wake.
    pub fn host(&self) -> Box<dyn Host> {
        Box::new(Wake { wanted: self.wanted.clone(), ready: self.ready.clone() })
    }

    /// The host's end of a new machine's virtio console.
    pub fn hvc(&self) -> &Arc<Port> {
        &self.hvc
    }

    /// Lets the guest begin, and carries bytes both ways until the machine is asked to stop, and stops it; what the guest has printed by then is
    /// still written. Returns the signal that came while it was, if one did.
    ///
    /// # Errors
    /// The host refuses a thread, or the terminal its setting.
    pub fn attend(&mut self, machine: &mut Running) -> anyhow::Result<Option<i32>> {
        self.terminal = RawTerminal::new()?;
        self.measure_terminal();
        messages::start()?;
        let (serial, hvc) = (machine.serial().clone(), self.hvc.clone());
        let (ready, exit) = (self.ready.clone(), machine.exit().clone());
        let output = Output::start(serial, hvc, ready, exit, self.timeline.clone())?;
        sandbox::close();
        machine.release();
        let waited = self.wait(machine);
        machine.stop();
        // The keys go nowhere from here on, and while output waits for its reader Ctrl-C is the way out.
        self.terminal = None;
        let signal = output.finish(&self.signals);
        waited?;
        signal
    }

    fn wait(&mut self, machine: &Running) -> anyhow::Result<()> {
        let stdin = io::stdin();
        let exit = machine.exit();
        let mut settled = false;
        let mut watch = Watch::new(None);
        let interval = PollTimeout::try_from(watchdog::INTERVAL).expect("a second is no long time");
        while exit.reason().is_none() {
            let reading = self.input_open && (self.terminal.is_some() || self.pending.len() < PENDING);
            let watched = if reading { PollFlags::POLLIN } else { PollFlags::empty() };
            let wanted = self.wanted.clone();
            let mut fds = [
                PollFd::new(exit.event(), PollFlags::POLLIN),
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(wanted.as_fd(), PollFlags::POLLIN),
                PollFd::new(stdin.as_fd(), watched),
            ];
            // A closed pipe is always ready; once it has been read to its end it must not be asked about again.
            let count = if reading { 4 } else { 3 };
            match poll(&mut fds[..count], if settled { interval } else { SETTLING.into() }) {
                Ok(0) if !settled => {
                    settled = true;
                    rss::shrink();
                }
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(anyhow!(error).context("cannot wait for input")),
            }
            let ready = fds.map(|fd| fd.any().unwrap_or(false));
            if ready[1] {
                self.take_signal(machine);
            }
            if ready[2] {
                let _ = self.wanted.read();
            }
            if ready[3] {
                self.read_input(exit);
            }
            self.offer(machine.serial());
            let (printed, panic_seen) = self.printed();
            if let Verdict::Dead(why) = watch.check(machine, printed, panic_seen) {
                exit.request(why);
            }
        }
        Ok(())
    }

    /// How much the machine has printed, in bytes, and whether that was a panic in the end.
    pub fn printed(&self) -> (u64, bool) {
        let heard = self.ready.heard();
        (heard.bytes, heard.panic.seen())
    }

    /// The signal that tells kite to end, if one waits: a guest that resets itself at once, over and over, leaves
    /// [`Self::attend`] no time to look.
    pub fn ending_signal(&self) -> Option<i32> {
        while let Some(signal) = self.signals.next() {
            // The next machine measures the terminal and takes its leases anew.
            if signal != Signal::SIGWINCH as i32 && signal != Signal::SIGIO as i32 {
                return Some(signal);
            }
        }
        None
    }

    /// Waits until the user has what kite had to say. A signal cuts it short, and is returned.
    pub fn flush(&self) -> Option<i32> {
        let mut signal = None;
        messages::flush(|_| {
            signal = self.ending_signal();
            signal.is_some()
        });
        signal
    }

    fn take_signal(&self, machine: &Running) {
        let Some(signal) = self.signals.next() else { return };
        if signal == Signal::SIGWINCH as i32 {
            self.measure_terminal();
        } else if signal != Signal::SIGIO as i32 {
            machine.exit().request(Exit::Signal(signal));
        } else if let Err(error) = machine.detach_files() {
            let error = anyhow!(error).context("cannot keep a copy of a file that is about to change");
            machine.exit().request(Exit::Failed(error));
        }
    }

    fn measure_terminal(&self) {
        let (columns, rows) = terminal::size();
        self.hvc.resize(columns, rows);
    }

    fn read_input(&mut self, exit: &ExitRequest) {
        let mut buffer = [0; PENDING];
        let got = match nix::unistd::read(io::stdin(), &mut buffer) {
            Ok(got) => got,
            Err(Errno::EINTR | Errno::EAGAIN) => return,
            // A terminal that has gone, say: there is no more to read.
            Err(_) => 0,
        };
        self.input_open = got > 0;
        for byte in &buffer[..got] {
            match self.keys.feed(*byte) {
                Key::Byte(byte) => self.pending.push(byte),
                Key::Nothing => {}
                Key::Help => self.ready.ask_for_help(),
                Key::Quit => exit.request(Exit::Quit),
            }
        }
        // Only a terminal is read when this much waits: its keys must work, and what was typed too far ahead is lost.
        self.pending.truncate(2 * PENDING);
    }

    fn offer(&mut self, serial: &Mutex<Serial>) {
        if !self.pending.is_empty() {
            let taken = match self.prefers_hvc && self.hvc.is_open() {
                true => self.hvc.receive(&self.pending),
                false => lock(serial).receive(&self.pending),
            };
            self.pending.drain(..taken);
        }
    }
}

fn lock(serial: &Mutex<Serial>) -> MutexGuard<'_, Serial> {
    serial.lock().unwrap_or_else(PoisonError::into_inner)
}
