//! The consoles' host side: standard input to the guest, the guest's output to standard output, and signals.
//!
//! There are two, the serial port and the virtio console. What either prints is written; what is typed goes to the one
//! that the guest listens to.
//!
//! The main thread waits here while the guest runs. What the guest prints is written by a thread of its own, so that
//! neither a vCPU nor a signal ever waits for its reader.

pub(crate) mod keys;
mod output;

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use devices::chipset::serial::{Host, Serial};
use devices::virtio::console::{self as hvc, Port};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::eventfd::EventFd;

use super::{End, Next, Outcome, Progress, Session, Stopped, Wiring, event_loop};
use crate::host::event::event;
use crate::host::lock::lock;
use crate::host::signals::Signals;
use crate::host::terminal::{self, RawTerminal};
use crate::host::{exit_code, messages};
use crate::observe::crash::watchdog;
use crate::observe::results::Ending;
use crate::observe::trace::Timeline;
use crate::vcpu::stop::{Exit, ExitRequest};
use crate::vm::machine::Running;
use keys::{Key, Keys};
use output::{Line, Output, Ready};

/// How much input waits for a guest that takes none; the rest stays where it comes from, and what is typed is lost.
const PENDING: usize = 4096;

/// When nothing has happened for so long, the start is over.
const SETTLING: Duration = Duration::from_millis(200);

/// The host's end of both consoles. It outlives the machines that are built one after the other at the other end.
pub struct Console {
    stdin: io::Stdin,
    terminal: Option<RawTerminal>,
    keys: Keys,
    /// Read and not yet taken by the guest.
    pending: Vec<u8>,
    input_open: bool,
    wanted: Arc<EventFd>,
    ready: Arc<Ready>,
    hvc: Arc<Port>,
    prefers_hvc: bool,
    /// Whether the guest has the virtio console.
    has_hvc: bool,
    /// Whether a reset of the guest's boots it again.
    restarts: bool,
    settled: bool,
    output: Option<Output>,
    timeline: Arc<Timeline>,
}

/// How a plain machine is attended.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Whether input goes to the virtio console once the guest has that open.
    pub prefers_hvc: bool,
    /// Whether the guest has the virtio console.
    pub has_hvc: bool,
    /// Whether a reset of the guest's boots it again.
    pub restarts: bool,
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
    /// A console that is not connected yet. What the guest comes to is noted in `timeline`.
    ///
    /// # Errors
    /// The host refuses a descriptor.
    pub fn new(setup: Setup, timeline: Arc<Timeline>) -> anyhow::Result<Self> {
        let wake = Wake { wanted: Arc::new(event()?), ready: Arc::default() };
        let hvc = Port::new("", Box::new(wake.clone())).context("cannot make an eventfd")?;
        hvc.connect(true);
        Ok(Self {
            stdin: io::stdin(),
            terminal: None,
            keys: Keys::default(),
            pending: Vec::new(),
            input_open: true,
            wanted: wake.wanted,
            ready: wake.ready,
            hvc: Arc::new(hvc),
            prefers_hvc: setup.prefers_hvc,
            has_hvc: setup.has_hvc,
            restarts: setup.restarts,
            settled: false,
            output: None,
            timeline,
        })
    }

    /// Whether standard input is read: not while the guest takes nothing, unless it is a terminal, whose keys must work.
    fn is_reading(&self) -> bool {
        self.input_open && (self.terminal.is_some() || self.pending.len() < PENDING)
    }

    fn report_lost_output(&self, machine: &Running) {
        let lost = lock(machine.serial()).dropped() + self.hvc.lost();
        if lost > 0 {
            messages::complain(&format!(
                "{lost} bytes of the guest's output were lost: standard output took none, and the guest went on"
            ));
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

impl Session for Console {
    fn wiring(&self) -> Wiring {
        Wiring { hvc: self.has_hvc.then(|| self.hvc.clone()), ports: Vec::new() }
    }

    fn serial_host(&self) -> Box<dyn Host> {
        Box::new(Wake { wanted: self.wanted.clone(), ready: self.ready.clone() })
    }

    fn start(&mut self, machine: &Running) -> anyhow::Result<()> {
        self.terminal = RawTerminal::new()?;
        self.settled = false;
        self.measure_terminal();
        messages::start()?;
        let (serial, hvc) = (machine.serial().clone(), self.hvc.clone());
        let (ready, exit) = (self.ready.clone(), machine.exit().clone());
        self.output = Some(Output::start(serial, hvc, ready, exit, self.timeline.clone())?);
        Ok(())
    }

    fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::new(self.wanted.as_fd(), PollFlags::POLLIN));
        // A closed pipe is always ready; once it has been read to its end it must not be asked about again.
        if self.is_reading() {
            fds.push(PollFd::new(self.stdin.as_fd(), PollFlags::POLLIN));
        }
    }

    fn timeout(&self) -> Duration {
        if self.settled { watchdog::INTERVAL } else { SETTLING }
    }

    fn serve(&mut self, ready: &[bool], machine: &Running) {
        self.settled |= !ready.contains(&true);
        if ready[0] {
            let _ = self.wanted.read();
        }
        if ready.get(1) == Some(&true) {
            self.read_input(machine.exit());
        }
        self.offer(machine.serial());
    }

    fn resize(&mut self, columns: u16, rows: u16) {
        self.hvc.resize(columns, rows);
    }

    fn progress(&self) -> Progress {
        let printed = self.ready.printed();
        Progress { bytes: printed.bytes, panic_seen: printed.panic.seen() }
    }

    fn finish(&mut self, _machine: &Running, signals: &Signals) -> anyhow::Result<Option<i32>> {
        // The keys go nowhere from here on, and while output waits for its reader Ctrl-C is the way out.
        self.terminal = None;
        self.output.take().map_or(Ok(None), |output| output.finish(signals))
    }

    fn conclude(&mut self, end: End, stopped: &Stopped<'_>) -> anyhow::Result<Next> {
        let machine = stopped.machine;
        // A user who ends kite may be the one who reads nothing, and a test's status is all it has to say.
        if !matches!(end, End::Quit | End::Status(_) | End::Signal(_)) {
            self.report_lost_output(machine);
        }
        let done = |code| Outcome::new(code, Ending::Exited(code));
        let outcome = match end {
            End::Reboot if machine.is_stuck() => bail!("the guest cannot boot again"),
            // A guest that resets itself at once, over and over, leaves the event loop no time to look at signals.
            End::Reboot if self.restarts => match event_loop::ending_signal(stopped.signals, machine) {
                Some(signal) => Outcome::signalled(signal),
                None => return Ok(Next::Restart),
            },
            End::Failed(what) => bail!(what),
            End::Crashed(what) => {
                terminal::restore();
                messages::complain(&format!("the guest crashed: {what}"));
                stopped.report_crash();
                match event_loop::flush(stopped.signals, machine) {
                    Some(signal) => Outcome::signalled(signal),
                    None => done(exit_code::CRASHED),
                }
            }
            End::Signal(signal) => {
                terminal::restore();
                Outcome::signalled(signal)
            }
            End::Status(code) => done(code),
            // The last three come with a command alone.
            End::Off | End::Reboot | End::Quit | End::Command(_) | End::TimedOut | End::Idle(_) => {
                done(exit_code::DONE)
            }
        };
        Ok(outcome.into())
    }
}
