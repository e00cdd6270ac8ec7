//! A port's host end: bounded buffers both ways, and which ends are open. It outlives the machines that are built one
//! after the other at its other end.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::GuestMemory;
use crate::virtio::{Buffers, Served};

/// How many output bytes wait for the host at most.
pub const OUTPUT_LIMIT: usize = 64 << 10;
/// How many input bytes wait for the guest at most.
pub const INPUT_LIMIT: usize = 32 << 10;
/// How long a port's name may be, in bytes.
pub const NAME_LIMIT: usize = 64;

/// What is at the host's end of a port. All are called with the device's lock held: they wake a thread, no more.
pub trait Host: Send + Sync {
    /// There is output again: [`Port::take_output`] has something.
    fn output_ready(&self);
    /// The guest has room for the input that [`Port::receive`] refused, or has opened or closed the port.
    fn changed(&self);
}

/// The host's end of one port.
pub struct Port {
    name: String,
    host: Box<dyn Host>,
    /// Has the device look at the port.
    event: EventFd,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    output: Vec<u8>,
    input: VecDeque<u8>,
    /// The guest has the port open.
    open: bool,
    /// The host's end is open.
    connected: bool,
    /// The host's end has closed, and the device has not noticed.
    hung_up: bool,
    /// Columns and rows.
    size: (u16, u16),
    /// The guest has output for which there was no room.
    blocked: bool,
    /// The host has input for which there was no room.
    refused: bool,
    lost: u64,
}

/// What the device has to know of the host's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Changes {
    pub connected: bool,
    pub hung_up: bool,
    pub size: (u16, u16),
}

impl Port {
    /// A port that is closed at both ends. A console has an empty name; others have one of at most [`NAME_LIMIT`] bytes.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new(name: &str, host: Box<dyn Host>) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { name: name.to_owned(), host, event, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The counter is taken down to zero whenever the device looks, and would not get full in any case.
    fn wake_device(&self) {
        let _ = self.event.write(1);
    }

    /// Appends all waiting output to `into` and lets the guest go on writing. An empty `into` is swapped, not copied:
    /// hand the same one in each time.
    pub fn take_output(&self, into: &mut Vec<u8>) {
        let mut state = self.state();
        if into.is_empty() {
            std::mem::swap(into, &mut state.output);
        } else {
            into.append(&mut state.output);
        }
        if std::mem::take(&mut state.blocked) {
            self.wake_device();
        }
    }

    /// Offers input and returns how many of `bytes` are taken; none while the guest does not have the port open. If it is
    /// not all of them, [`Host::changed`] follows when more can be.
    pub fn receive(&self, bytes: &[u8]) -> usize {
        let mut state = self.state();
        let room = if state.open { INPUT_LIMIT.saturating_sub(state.input.len()) } else { 0 };
        let taken = room.min(bytes.len());
        state.input.extend(&bytes[..taken]);
        state.refused = taken < bytes.len();
        if taken > 0 {
            self.wake_device();
        }
        taken
    }

    /// Opens or closes the host's end. While it is closed, output is thrown away; when it closes, what waits at either end
    /// is too.
    pub fn connect(&self, connected: bool) {
        let mut state = self.state();
        if state.connected && !connected {
            state.hung_up = true;
            state.output.clear();
            state.input.clear();
        }
        state.connected = connected;
        self.wake_device();
    }

    /// Says how large the host's terminal is.
    pub fn resize(&self, columns: u16, rows: u16) {
        let mut state = self.state();
        if state.size != (columns, rows) {
            state.size = (columns, rows);
            self.wake_device();
        }
    }

    /// Whether the guest has the port open.
    pub fn is_open(&self) -> bool {
        self.state().open
    }

    /// Whether the guest has taken all the input. If not, [`Host::changed`] follows when it has.
    pub fn is_drained(&self) -> bool {
        let mut state = self.state();
        state.refused |= !state.input.is_empty();
        state.input.is_empty()
    }

    /// How many bytes of output were lost since the host did not keep up with a driver that does not wait.
    pub fn lost(&self) -> u64 {
        self.state().lost
    }

    /// What the guest knows the port by.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Becomes readable when the device is to look at the port.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Makes the event ready again for what comes from here on: to be called before the device looks at anything.
    pub(super) fn clear_event(&self) {
        let _ = self.event.read();
    }

    /// How the host's end is now. That it hung up is answered once.
    pub(super) fn take_changes(&self) -> Changes {
        let mut state = self.state();
        Changes { connected: state.connected, hung_up: std::mem::take(&mut state.hung_up), size: state.size }
    }

    /// The guest opens the port, or closes it; then what it has not taken of the input is no longer for it.
    pub(super) fn set_open(&self, open: bool) {
        let mut state = self.state();
        if state.open != open {
            state.open = open;
            if !open {
                state.input.clear();
            }
            drop(state);
            self.host.changed();
        }
    }

    /// The device is reset: nothing in the guest waits any more.
    pub(super) fn reset(&self) {
        self.set_open(false);
        self.state().blocked = false;
    }

    /// Takes what `buffers` has from `done` on, as far as there is room, and moves `done` on by that. Answers whether
    /// the buffers are done with: all is taken, or the host's end is closed. What the guest wrote before it closed is not
    /// for what has opened it since, so nothing is taken before [`Self::take_changes`] has answered that it hung up.
    pub(super) fn put_output(&self, memory: &GuestMemory, buffers: &Buffers, done: &mut usize) -> bool {
        let mut state = self.state();
        if !state.connected || state.hung_up {
            return true;
        }
        let rest = buffers.len().saturating_sub(*done);
        let before = state.output.len();
        let taken = rest.min(OUTPUT_LIMIT.saturating_sub(before));
        state.output.resize(before + taken, 0);
        buffers.read(memory, *done, &mut state.output[before..]);
        *done += taken;
        state.blocked = taken < rest;
        let whole = !state.blocked;
        drop(state);
        if before == 0 && taken > 0 {
            self.host.output_ready();
        }
        whole
    }

    /// Takes one byte from a driver that does not wait; it is lost if there is no room.
    pub(super) fn put_byte(&self, byte: u8) {
        let mut state = self.state();
        if state.output.len() >= OUTPUT_LIMIT {
            state.lost = state.lost.saturating_add(1);
        } else if state.connected {
            state.output.push(byte);
            let first = state.output.len() == 1;
            drop(state);
            if first {
                self.host.output_ready();
            }
        }
    }

    /// The input that the guest has not taken.
    pub(super) fn input(&self) -> Vec<u8> {
        self.state().input.iter().copied().collect()
    }

    /// Replaces the input that the guest has not taken.
    pub(super) fn set_input(&self, input: Vec<u8>) {
        self.state().input = input.into();
    }

    /// Whether there is input for the guest.
    pub(super) fn has_input(&self) -> bool {
        !self.state().input.is_empty()
    }

    /// Fills `buffers` with input, if there is any.
    pub(super) fn get_input(&self, memory: &GuestMemory, buffers: &Buffers) -> Served {
        let mut state = self.state();
        if state.input.is_empty() {
            return Served::NotYet;
        }
        let (mut done, (front, back)) = (0, state.input.as_slices());
        for part in [front, back] {
            done += buffers.write(memory, done, part);
        }
        state.input.drain(..done);
        // Not before all is gone: a wake-up for each buffer is dear.
        let wanted = state.input.is_empty() && std::mem::take(&mut state.refused);
        drop(state);
        if wanted {
            self.host.changed();
        }
        Served::Used(done as u32)
    }
}
