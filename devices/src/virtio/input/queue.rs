//! Events on their way from the host to a driver: as many as there is room for, in whole groups.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::eventfd::{EfdFlags, EventFd};

/// The length of an event in bytes.
pub const EVENT: usize = 8;
/// The most events that wait for a driver: more than a keyboard has keys.
const MOST: usize = 512;

/// EV_SYN, with SYN_REPORT as code 0: the end of a group.
const SYN: u16 = 0;
pub const KEY: u16 = 1;
pub const REL: u16 = 2;
pub const ABS: u16 = 3;

/// An event as the guest gets it (§5.8.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: u16,
    pub code: u16,
    pub value: u32,
}

impl Event {
    const REPORT: Self = Self { kind: SYN, code: 0, value: 0 };

    fn bytes(self) -> [u8; EVENT] {
        let [kind, code, value] = [u64::from(self.kind), self.code.into(), self.value.into()];
        (kind | code << 16 | value << 32).to_le_bytes()
    }
}

/// Events that wait.
pub struct EventQueue {
    state: Mutex<State>,
    written: EventFd,
}

#[derive(Default)]
struct State {
    /// A driver is there.
    open: bool,
    waiting: VecDeque<Event>,
    /// Keys that are down, as the host has it.
    held: BTreeSet<u16>,
    /// Keys that are down, as the guest knows once it has what waits.
    sent: BTreeSet<u16>,
    /// A group was dropped: `sent` may have keys that are not held.
    behind: bool,
}

impl EventQueue {
    pub fn new() -> io::Result<Self> {
        let written = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { state: Mutex::default(), written })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a group, if there is a driver and room.
    pub fn push(&self, group: &[Event]) {
        if group.is_empty() {
            return;
        }
        let mut state = self.lock();
        for event in group.iter().filter(|event| event.kind == KEY) {
            mark(&mut state.held, *event);
        }
        if !state.open {
            return;
        }
        if state.waiting.len() + group.len() < MOST {
            state.add(group);
            self.wake();
        } else {
            state.behind = true;
        }
    }

    fn wake(&self) {
        // It only fails if it was not read 2^64 times.
        let _ = self.written.write(1);
    }

    /// Whether an event waits.
    pub fn has_events(&self) -> bool {
        let mut state = self.lock();
        state.catch_up();
        !state.waiting.is_empty()
    }

    /// The next event.
    pub fn pop(&self) -> Option<[u8; EVENT]> {
        self.lock().waiting.pop_front().map(Event::bytes)
    }

    /// A driver is there.
    pub fn open(&self) {
        self.lock().open = true;
    }

    /// The driver has gone, and with it all that it knew.
    pub fn close(&self) {
        let mut state = self.lock();
        *state = State { held: std::mem::take(&mut state.held), ..State::default() };
    }

    /// The keys that are down as the guest knows, in order.
    pub fn down(&self) -> Vec<u16> {
        self.lock().sent.iter().copied().collect()
    }

    /// Takes over a guest that knows these keys to be down.
    pub fn take_over(&self, down: &[u16]) {
        let mut state = self.lock();
        state.sent = down.iter().copied().collect();
        state.behind = true;
    }

    /// Becomes readable, edge-triggered, when a group was added.
    pub fn written(&self) -> BorrowedFd<'_> {
        self.written.as_fd()
    }

    pub fn clear_written(&self) {
        // It fails if nothing was written.
        let _ = self.written.read();
    }
}

impl State {
    fn add(&mut self, group: &[Event]) {
        for event in group.iter().filter(|event| event.kind == KEY) {
            mark(&mut self.sent, *event);
        }
        self.waiting.extend(group);
        self.waiting.push_back(Event::REPORT);
    }

    /// Releases keys that the guest believes down, once all that waited has gone.
    fn catch_up(&mut self) {
        if !self.waiting.is_empty() || !std::mem::take(&mut self.behind) {
            return;
        }
        let stuck: Vec<_> = self.sent.difference(&self.held).copied().collect();
        let group: Vec<_> = stuck.into_iter().map(|code| Event { kind: KEY, code, value: 0 }).collect();
        if !group.is_empty() {
            self.add(&group);
        }
    }
}

/// Notes whether a key is down.
fn mark(keys: &mut BTreeSet<u16>, event: Event) {
    if event.value == 0 {
        keys.remove(&event.code);
    } else {
        keys.insert(event.code);
    }
}
