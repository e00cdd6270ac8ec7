//! Keyboard and pointer (virtio 1.2 §5.8): events of the host's, for the guest's input layer.
//!
//! What happens at once reaches the guest as one group, closed by a report, or not at all: a group that finds no room is
//! dropped as a whole. Keys that the guest believes down because of that are released when there is room again.

mod kind;
mod queue;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_INPUT;

use super::{Error, Kind, Queues, Served, Source, Thread, VirtioDevice};
use crate::device::{self, State, check};
use crate::screen::{Input, InputSink};
use kind::InputKind;
use queue::{EVENT, EventQueue};

/// What all input devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_INPUT, module: "virtio_input" };
const EVENTS: usize = 0;
/// The longest answer of the configuration in bytes, and the whole of it (§5.8.4).
const MOST_ANSWER: usize = 128;
const CONFIG: usize = 8 + MOST_ANSWER;

/// The host's ends of a keyboard and a pointer. They outlive the machines that have the devices.
pub struct Inputs {
    keyboard: Arc<EventQueue>,
    pointer: Arc<EventQueue>,
}

impl Inputs {
    /// A keyboard and a pointer that no guest has yet.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { keyboard: Arc::new(EventQueue::new()?), pointer: Arc::new(EventQueue::new()?) })
    }

    /// A keyboard for a machine.
    pub fn keyboard(&self) -> InputDevice {
        InputDevice::new(InputKind::Keyboard, self.keyboard.clone())
    }

    /// A pointer for a machine.
    pub fn pointer(&self) -> InputDevice {
        InputDevice::new(InputKind::Pointer, self.pointer.clone())
    }
}

impl InputSink for Inputs {
    fn send(&self, group: &[Input]) {
        for (queue, kind) in [(&self.keyboard, InputKind::Keyboard), (&self.pointer, InputKind::Pointer)] {
            let events: Vec<_> = group.iter().flat_map(|input| kind.events(*input)).flatten().collect();
            queue.push(&events);
        }
    }
}

/// A keyboard or a pointer.
pub struct InputDevice {
    kind: InputKind,
    queue: Arc<EventQueue>,
    config: [u8; CONFIG],
}

/// The guest-visible state: what of the configuration is selected, and which keys the guest knows to be down.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    select: u8,
    subselect: u8,
    down: Vec<u16>,
}

impl InputDevice {
    fn new(kind: InputKind, queue: Arc<EventQueue>) -> Self {
        Self { kind, queue, config: [0; CONFIG] }
    }

    /// Shows what is selected.
    fn answer(&mut self) {
        let [select, subselect, ..] = self.config;
        let answer = self.kind.answer(select, subselect);
        self.config[2..].fill(0);
        // An answer is at most as long as there is room: a test asks for all of them.
        self.config[2] = answer.len() as u8;
        self.config[8..].iter_mut().zip(answer).for_each(|(to, from)| *to = from);
    }

    /// Hands events to the driver, as many as it has buffers for.
    fn deliver(&self, queues: &mut Queues<'_>) -> Result<(), Error> {
        while self.queue.has_events() {
            let Some(chain) = queues.take(EVENTS)? else { break };
            let mut written = 0;
            // A buffer that is too short takes nothing.
            if chain.writable.len() >= EVENT
                && let Some(event) = self.queue.pop()
            {
                written = chain.writable.write(queues.memory(), 0, &event);
            }
            queues.complete(EVENTS, chain.head, written as u32)?;
        }
        Ok(())
    }
}

impl VirtioDevice for InputDevice {
    fn name(&self) -> &str {
        self.kind.name()
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn thread(&self) -> Thread {
        Thread::Shared
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        // Only the selection is the driver's.
        self.config[..2].iter_mut().skip(offset).zip(data).for_each(|(to, from)| *to = *from);
        self.answer();
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.queue.written())]
    }

    fn negotiated(&mut self, _features: u64) {
        self.queue.open();
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        match index {
            EVENTS => self.deliver(queues),
            // The lights of a keyboard, which no viewer shows.
            _ => queues.each(index, |_, _| Served::Used(0)),
        }
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.queue.clear_written();
        self.deliver(queues)
    }

    fn reset(&mut self) {
        self.queue.close();
        self.config.fill(0);
    }

    fn save(&self) -> Result<State, device::Error> {
        let [select, subselect, ..] = self.config;
        Ok(State::of(&Saved { select, subselect, down: self.queue.down() }))
    }

    /// Keys that were down are released: the viewer that held them is not there any more.
    fn load(&mut self, state: State) -> Result<(), device::Error> {
        let Saved { select, subselect, down } = state.take()?;
        check(down.iter().all(|code| self.kind.has(*code)), "key")?;
        check(down.is_sorted_by(|a, b| a < b), "order of keys")?;
        self.config[..2].copy_from_slice(&[select, subselect]);
        self.answer();
        self.queue.take_over(&down);
        Ok(())
    }
}
