//! What attends a running machine: the plain console, or the streams of a command.
//!
//! A session is all that one way of running a machine has of its own. The order of steps is the lifecycle's.

pub mod command;
pub mod console;
mod controls;
mod end;
pub mod event_loop;

use std::sync::Arc;
use std::time::Duration;

use boot::kallsyms::Files;
use devices::chipset::serial::Host;
use devices::virtio::console::Port;
use nix::poll::{PollFd, PollTimeout};

use crate::host::messages;
use crate::host::signals::Signals;
use crate::observe::crash;
use crate::vm::machine::Running;

pub use controls::Controls;
pub use end::{Conventions, End, Next, Outcome};

/// What attends a machine from before its guest begins until kite knows how it ended.
pub trait Session {
    /// The host's ends of the virtio console's ports.
    fn wiring(&self) -> Wiring;

    /// What the serial port of a new machine wakes.
    fn serial_host(&self) -> Box<dyn Host>;

    /// Starts the threads that carry bytes, before the guest begins.
    ///
    /// # Errors
    /// The host refuses a thread, or the terminal its setting.
    fn start(&mut self, machine: &Running) -> anyhow::Result<()>;

    /// Adds the descriptors that it waits for.
    fn descriptors<'a>(&'a self, fds: &mut Vec<PollFd<'a>>);

    /// How long it waits for them at most.
    fn timeout(&self) -> Duration;

    /// How long the guest may neither run nor print; nothing if for ever.
    fn idle_timeout(&self) -> Option<Duration> {
        None
    }

    /// Serves those of its descriptors that are `ready`, in the order in which it added them, and its own clock.
    fn serve(&mut self, ready: &[bool], machine: &Running);

    /// Passes on that the user's terminal has another size.
    fn resize(&mut self, columns: u16, rows: u16);

    /// Takes a signal that would end kite for what runs in the guest; answers whether it did.
    fn take_signal(&mut self, _signal: i32) -> bool {
        false
    }

    /// What has passed between the guest and the outside world.
    fn progress(&self) -> Progress;

    /// Writes the last of the output of a machine that has stopped. A signal that ends kite cuts it short, and is returned.
    ///
    /// # Errors
    /// The host refuses to wait, or what the guest printed cannot be written.
    fn finish(&mut self, machine: &Running, signals: &Signals) -> anyhow::Result<Option<i32>>;

    /// Says what the user needs to know of the machine's end, and decides what follows from it.
    ///
    /// # Errors
    /// The machine failed for a reason of kite's or the host's.
    fn conclude(&mut self, end: End, stopped: &Stopped<'_>) -> anyhow::Result<Next>;
}

/// The host's ends of the virtio console's ports.
#[derive(Default)]
pub struct Wiring {
    /// That of `hvc0`, if the guest has it.
    pub hvc: Option<Arc<Port>>,
    /// Those of named ports.
    pub ports: Vec<Arc<Port>>,
}

/// What has passed between a guest and the outside world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How much, in bytes.
    pub bytes: u64,
    /// Whether the kernel's text of a panic was among it.
    pub panic_seen: bool,
}

/// A machine that has stopped, and what is known of its kernel.
pub struct Stopped<'a> {
    /// The machine.
    pub machine: &'a Running,
    /// kite's own signals.
    pub signals: &'a Signals,
    /// Files that may have the kernel's symbols.
    pub symbols: &'a Files,
    /// The kernel's version, if it says one.
    pub version: Option<String>,
    /// Whether a folder of its modules was found.
    pub has_modules: bool,
}

impl Stopped<'_> {
    /// Says where each vCPU was. Whether it is read changes nothing.
    fn report_crash(&self) {
        let mut text = Vec::new();
        if crash::report(self.machine, self.symbols, &mut text).is_ok() {
            messages::say(text);
        }
    }
}

/// A wait for poll(2), rounded up: one that is a little short is repeated without rest until the time is there.
fn rounded_up(timeout: Option<Duration>) -> PollTimeout {
    let Some(timeout) = timeout else { return PollTimeout::NONE };
    let milliseconds = timeout.as_nanos().div_ceil(1_000_000);
    PollTimeout::try_from(milliseconds.min(i32::MAX as u128) as i32).unwrap_or(PollTimeout::MAX)
}
