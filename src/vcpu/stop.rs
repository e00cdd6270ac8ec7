//! Why the machine stops. Any thread may say so; the first reason wins.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use devices::chipset::power::{PowerSwitch, Request};
use nix::sys::eventfd::EventFd;

use crate::host::event::event;
use crate::spec::wire::End;

/// Bits of what the guest's kernel has reported.
const TOLD: u8 = 1 << 0;
const CRASH_KERNEL: u8 = 1 << 1;

/// Why the machine stops.
#[derive(Debug)]
pub enum Exit {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset by one of the board's registers.
    Reset,
    /// A vCPU met a triple fault, which resets a PC: on purpose or not.
    TripleFault {
        /// Its index.
        vcpu: u32,
    },
    /// The guest did what no machine can carry out.
    Crash(String),
    /// The command that the guest was to run has ended.
    Command(End),
    /// A unit test has ended, and kite is to end with this exit code.
    Status(u8),
    /// The guest has run for as long as it may.
    TimedOut,
    /// The guest has neither run nor printed for so long.
    Idle(Duration),
    /// The guest's kernel has panicked, and did not end the machine itself.
    Panicked,
    /// The user asked kite to quit.
    Quit,
    /// kite was sent this signal.
    Signal(i32),
    /// kite or the host failed.
    Failed(anyhow::Error),
}

/// Where the reason is left, and how those who wait for it are woken.
pub struct ExitRequest {
    reason: OnceLock<Exit>,
    event: EventFd,
    panic: AtomicU8,
}

/// What the guest's kernel has reported of a panic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Panic {
    /// Nothing.
    None,
    /// That it has panicked: it has yet to print the last of its messages, and to reset the machine if it is to.
    Told,
    /// That a crash kernel, loaded before, takes over.
    CrashKernel,
}

impl ExitRequest {
    /// No reason yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self { reason: OnceLock::new(), event: event()?, panic: AtomicU8::new(0) })
    }

    /// Asks the machine to stop. A later reason than the first is dropped.
    pub fn request(&self, reason: Exit) {
        if self.reason.set(reason).is_ok() {
            // The counter cannot be full: it is written once.
            let _ = self.event.write(1);
        }
    }

    /// What the guest's kernel has reported of a panic.
    pub fn panic(&self) -> Panic {
        match self.panic.load(Ordering::Acquire) {
            0 => Panic::None,
            TOLD => Panic::Told,
            _ => Panic::CrashKernel,
        }
    }

    /// Why the machine stops, once it was asked to.
    pub fn reason(&self) -> Option<&Exit> {
        self.reason.get()
    }

    /// Readable once there is a reason.
    pub fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl PowerSwitch for ExitRequest {
    fn request(&self, request: Request) {
        match request {
            Request::PowerOff => self.request(Exit::PowerOff),
            Request::Reset => self.request(Exit::Reset),
            Request::Panicked => _ = self.panic.fetch_or(TOLD, Ordering::AcqRel),
            Request::CrashLoaded => _ = self.panic.fetch_or(CRASH_KERNEL, Ordering::AcqRel),
        }
    }
}
