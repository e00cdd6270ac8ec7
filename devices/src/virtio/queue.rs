//! Virtqueues in the hands of a device (virtio 1.2 §2.7, the split ring).

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Address, Bytes, GuestAddress};

use super::buffers::Buffers;
use super::{Cause, Interrupt};
use crate::GuestMemory;
use crate::device::{self, check};

/// What the driver did wrong. The device then needs a reset.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The ring cannot be used.
    #[error("the ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    /// A chain of descriptors cannot be used.
    #[error("chain {head}: {what}")]
    Chain {
        /// The index of its first descriptor.
        head: u16,
        /// What is wrong.
        what: &'static str,
    },
    /// The device cannot go on for a reason of its own.
    #[error("{0}")]
    Device(&'static str),
}

/// A chain of descriptors, each read once: what the device may read, and what it may write.
#[derive(Debug, Default)]
pub struct Chain {
    /// The index of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What the driver has written for the device.
    pub readable: Buffers,
    /// What the device is to fill.
    pub writable: Buffers,
}

/// What a device did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is done: so many bytes were written into it.
    Used(u32),
    /// Nothing can be done now: it goes back, and nothing more is taken.
    NotYet,
    /// It is in flight: the device completes it later.
    Later,
}

/// A queue, and what is known of it beyond the ring.
pub(super) struct Ring {
    pub queue: Queue,
    /// Heads that the device holds, a bit each.
    in_flight: Vec<u64>,
    /// Chains that may yet be taken in this service.
    budget: u16,
    /// Buffers were used since the driver was last interrupted.
    used: bool,
    /// There is more to serve than one service takes.
    pub again: bool,
    /// The used index at which the driver was last interrupted, or did not want to be.
    signalled: Wrapping<u16>,
}

/// A queue's saved state, between two services.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RingState {
    size: u16,
    pub ready: bool,
    descriptors: u64,
    avail: u64,
    used: u64,
    next_avail: u16,
    next_used: u16,
}

impl Ring {
    /// A queue of at most `max` entries, a power of two up to 32,768.
    pub fn new(max: u16) -> Self {
        let queue = Queue::new(max).expect("a device's queue sizes are powers of two");
        Self {
            queue,
            in_flight: vec![0; usize::from(max).div_ceil(64)],
            budget: 0,
            used: false,
            again: false,
            signalled: Wrapping(0),
        }
    }

    pub fn reset(&mut self) {
        self.queue.reset();
        self.in_flight.fill(0);
        (self.used, self.again, self.signalled) = (false, false, Wrapping(0));
    }

    pub fn save(&self) -> RingState {
        let queue = &self.queue;
        RingState {
            size: queue.size(),
            ready: queue.ready(),
            descriptors: queue.desc_table(),
            avail: queue.avail_ring(),
            used: queue.used_ring(),
            next_avail: queue.next_avail(),
            next_used: queue.next_used(),
        }
    }

    /// Takes over a state that is not checked. Whether the addresses are memory is for the caller to check.
    pub fn load(&mut self, state: &RingState) -> Result<(), device::Error> {
        let queue = &mut self.queue;
        check(queue.try_set_size(state.size).is_ok(), "queue size")?;
        let descriptors = queue.try_set_desc_table_address(GuestAddress(state.descriptors));
        let avail = queue.try_set_avail_ring_address(GuestAddress(state.avail));
        let used = queue.try_set_used_ring_address(GuestAddress(state.used));
        check(descriptors.and(avail).and(used).is_ok(), "queue address")?;
        queue.set_ready(state.ready);
        queue.set_next_avail(state.next_avail);
        queue.set_next_used(state.next_used);
        self.signalled = Wrapping(state.next_used);
        Ok(())
    }

    /// How many chains the last service took.
    pub fn taken(&self) -> u32 {
        self.queue.size().saturating_sub(self.budget).into()
    }

    /// Marks `head` as held; false if it is already.
    fn hold(&mut self, head: u16) -> bool {
        let Some(word) = self.in_flight.get_mut(usize::from(head / 64)) else { return false };
        let bit = 1 << (head % 64);
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    fn release(&mut self, head: u16) {
        if let Some(word) = self.in_flight.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
    }

    /// Gives `chains` back, all with one step of the used ring's index.
    fn complete(&mut self, memory: &GuestMemory, chains: &[(u16, u32)]) -> Result<(), Error> {
        let ring = GuestAddress(self.queue.used_ring());
        let at = |offset| ring.checked_add(offset).ok_or(virtio_queue::Error::AddressOverflow);
        let mut next = Wrapping(self.queue.next_used());
        for (head, written) in chains {
            self.release(*head);
            let entry = at(4 + 8 * u64::from(next.0 % self.queue.size()))?;
            let bytes = [u32::from(*head).to_le(), written.to_le()];
            memory.write_obj(bytes, entry).map_err(virtio_queue::Error::GuestMemory)?;
            next += 1;
        }
        memory.store(next.0.to_le(), at(2)?, Ordering::Release).map_err(virtio_queue::Error::GuestMemory)?;
        self.queue.set_next_used(next.0);
        self.used = true;
        Ok(())
    }

    /// Interrupts the driver for what was used since it was last interrupted, if it wants that.
    pub fn signal(&mut self, memory: &GuestMemory, interrupt: &dyn Interrupt, index: u16) {
        if std::mem::take(&mut self.used) && self.needs_interrupt(memory) {
            interrupt.signal(Cause::Queue(index));
        }
    }

    /// Whether the driver wants an interrupt for what was used since the last one (§2.7.10).
    fn needs_interrupt(&mut self, memory: &GuestMemory) -> bool {
        let used = Wrapping(self.queue.next_used());
        let signalled = std::mem::replace(&mut self.signalled, used);
        // The driver sees what was used before its wish is read, or else it may sleep and never be woken.
        fence(Ordering::SeqCst);
        let event_idx = self.queue.event_idx_enabled();
        let offset = if event_idx { 4 + 2 * u64::from(self.queue.size()) } else { 0 };
        let Some(wish) = GuestAddress(self.queue.avail_ring()).checked_add(offset) else { return true };
        match memory.load::<u16>(wish, Ordering::Relaxed).map(u16::from_le) {
            Ok(event) if event_idx => used - Wrapping(event) - Wrapping(1) < used - signalled,
            Ok(flags) => u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0,
            Err(_) => true,
        }
    }

    fn take(&mut self, memory: &GuestMemory) -> Result<Option<Chain>, Error> {
        loop {
            // Not `pop_descriptor_chain`: it hides the error of an index run too far ahead, which
            // `enable_notification` then reports as more work, for ever.
            if let Some(chain) = self.queue.iter(memory)?.next() {
                if self.budget == 0 {
                    self.queue.go_to_previous_position();
                    self.again = true;
                    return Ok(None);
                }
                self.budget -= 1;
                let head = chain.head_index();
                if !self.hold(head) {
                    return Err(Error::Chain { head, what: "it is in flight already" });
                }
                return read_chain(memory, chain, self.queue.size()).map(Some);
            }
            if !self.queue.enable_notification(memory)? {
                return Ok(None);
            }
            self.queue.disable_notification(memory)?;
        }
    }
}

/// Reads each descriptor of a chain once. What the iterator ends early, it ends silently: a chain whose last descriptor
/// names a next one is broken.
fn read_chain(memory: &GuestMemory, chain: DescriptorChain<&GuestMemory>, most: u16) -> Result<Chain, Error> {
    let head = chain.head_index();
    let broken = |what| Error::Chain { head, what };
    let mut it = Chain { head, ..Chain::default() };
    let mut whole = false;
    for (count, descriptor) in chain.enumerate() {
        if count >= usize::from(most) {
            return Err(broken("it is longer than the queue"));
        }
        add(memory, &mut it, &descriptor).map_err(broken)?;
        whole = !descriptor.has_next();
    }
    if whole { Ok(it) } else { Err(broken("a descriptor is missing, looped or not in memory")) }
}

fn add(memory: &GuestMemory, chain: &mut Chain, descriptor: &Descriptor) -> Result<(), &'static str> {
    let buffers = if descriptor.is_write_only() {
        &mut chain.writable
    } else if chain.writable.is_empty() {
        &mut chain.readable
    } else {
        return Err("a readable descriptor follows a writable one");
    };
    let address = GuestAddress(descriptor.addr().0);
    let is_ram = buffers.push(memory, address, descriptor.len() as usize);
    if is_ram { Ok(()) } else { Err("a buffer is not in memory") }
}

/// A device's queues for the time of one service. A service takes at most as many chains from a queue as that has
/// entries: whatever the driver adds meanwhile waits for the next one.
pub struct Queues<'a> {
    memory: &'a GuestMemory,
    rings: &'a mut [Ring],
    interrupt: &'a dyn Interrupt,
    name: &'a str,
    /// The device's configuration has changed, and the driver is to know.
    pub(super) config_changed: bool,
}

impl<'a> Queues<'a> {
    pub(super) fn new(
        name: &'a str,
        memory: &'a GuestMemory,
        rings: &'a mut [Ring],
        interrupt: &'a dyn Interrupt,
    ) -> Self {
        for ring in rings.iter_mut() {
            ring.budget = ring.queue.size();
        }
        Self { name, memory, rings, interrupt, config_changed: false }
    }

    /// The device's name: the log's target, by which what a guest can make it say is limited.
    pub fn name(&self) -> &'a str {
        self.name
    }

    /// The guest's memory.
    pub fn memory(&self) -> &'a GuestMemory {
        self.memory
    }

    /// How many queues there are.
    pub fn count(&self) -> usize {
        self.rings.len()
    }

    /// How many entries queue `index` has.
    pub fn size(&self, index: usize) -> u16 {
        self.rings.get(index).map_or(0, |ring| ring.queue.size())
    }

    /// Whether the driver has set up queue `index`.
    pub fn is_ready(&self, index: usize) -> bool {
        self.rings.get(index).is_some_and(|ring| ring.queue.ready())
    }

    /// Takes the next chain from queue `index`, which the device then holds; none from a queue that is empty, not set up
    /// or not there. Once it has found the queue empty, the driver kicks when it adds to it.
    ///
    /// # Errors
    /// The driver broke a rule of the ring or of the chain.
    pub fn take(&mut self, index: usize) -> Result<Option<Chain>, Error> {
        match self.rings.get_mut(index) {
            Some(ring) if ring.queue.ready() => ring.take(self.memory),
            _ => Ok(None),
        }
    }

    /// Puts back the chain that was taken last from queue `index`.
    pub fn put_back(&mut self, index: usize, chain: &Chain) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.release(chain.head);
            ring.queue.go_to_previous_position();
        }
    }

    /// Gives chain `head` of queue `index` back to the driver, `written` bytes of it filled.
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn complete(&mut self, index: usize, head: u16, written: u32) -> Result<(), Error> {
        self.complete_all(index, &[(head, written)])
    }

    /// Gives chains of queue `index` back to the driver, heads with the bytes written. It sees all of them or none, as a
    /// packet in more than one chain needs (§5.1.6.4.1).
    ///
    /// # Errors
    /// The used ring is not in memory.
    pub fn complete_all(&mut self, index: usize, chains: &[(u16, u32)]) -> Result<(), Error> {
        match self.rings.get_mut(index) {
            Some(ring) if ring.queue.ready() && !chains.is_empty() => ring.complete(self.memory, chains),
            _ => Ok(()),
        }
    }

    /// Interrupts the driver for what was used in queue `index` so far, if it wants that: the end of the service does so
    /// in any case, and a driver that waits need not wait for the rest.
    pub fn signal(&mut self, index: usize) {
        if let (Some(ring), Ok(queue)) = (self.rings.get_mut(index), u16::try_from(index)) {
            ring.signal(self.memory, self.interrupt, queue);
        }
    }

    /// Says that queue `index` has more to do than this service did, which its ring doesn't show: it is served again,
    /// after whatever else waits.
    pub fn serve_again(&mut self, index: usize) {
        if let Some(ring) = self.rings.get_mut(index) {
            ring.again = true;
        }
    }

    /// Hands each chain of queue `index` to `serve`.
    ///
    /// # Errors
    /// The driver broke a rule of the ring or of a chain.
    pub fn each(
        &mut self,
        index: usize,
        mut serve: impl FnMut(&GuestMemory, Chain) -> Served,
    ) -> Result<(), Error> {
        while let Some(chain) = self.take(index)? {
            let head = chain.head;
            match serve(self.memory, chain) {
                Served::Used(written) => self.complete(index, head, written)?,
                Served::NotYet => {
                    self.put_back(index, &Chain { head, ..Chain::default() });
                    return Ok(());
                }
                Served::Later => {}
            }
        }
        Ok(())
    }

    /// Says that the device's configuration space has changed.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
}
