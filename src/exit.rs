//! Why the machine stops. Any thread may say so; the first reason wins.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;

use anyhow::Context;
use devices::power::{PowerSwitch, Request};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::task::End;

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
}

impl ExitRequest {
    /// No reason yet.
    ///
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> anyhow::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self { reason: OnceLock::new(), event: event.context("cannot make an eventfd")? })
    }

    /// Asks the machine to stop. A later reason than the first is dropped.
    pub fn request(&self, reason: Exit) {
        if self.reason.set(reason).is_ok() {
            // The counter cannot be full: it is written once.
            let _ = self.event.write(1);
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
        self.request(match request {
            Request::PowerOff => Exit::PowerOff,
            Request::Reset => Exit::Reset,
        });
    }
}
