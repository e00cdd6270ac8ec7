//! A driver in the hands of a test: it pokes raw registers and writes raw rings, well-formed or not, at a real transport
//! with a real device behind it.
//!
//! Guest RAM is 0 to 1 MiB and 2 to 3 MiB, with pages around each that end the process when they are touched. What a
//! device owes its host is in [`Driver::assert_contract`].

mod contract;
pub mod devices;
mod face;
#[cfg(test)]
pub mod heap;
mod ram;
mod watch;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::transport::pci::VirtioFunction;
use super::{Notify, Virtio, VirtioDevice};
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::device::{Device, Error, State};
use crate::pci::testing::Sent;
use face::Face;

pub use contract::{INDIRECT, every_queue_serves, queue_serves};
pub use face::{REGION_BASE, Transport};
pub use ram::{CANARY, RAM, memory};
pub use watch::{alone, files_and_threads, lines_logged, watched};

/// Where the rings of queue `n` are: from here, [`RINGS_STEP`] a queue.
pub const RINGS: u64 = 0x1000;
/// See [`RINGS`].
pub const RINGS_STEP: u64 = 0x4000;
/// From here on RAM is free for buffers.
pub const BUFFERS: u64 = 2 << 20;

/// VIRTIO_F_VERSION_1 and VIRTIO_F_RING_EVENT_IDX, which every device here offers.
pub const MODERN: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX;
/// The descriptor names a next one.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device writes.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The status of a device whose driver is up.
pub const UP: u32 = 0xf;
/// DEVICE_NEEDS_RESET.
pub const NEEDS_RESET: u32 = 0x40;

/// Remembers kicks until they are served.
#[derive(Default)]
struct Kicks(Mutex<Kicked>);

#[derive(Default)]
struct Kicked {
    queues: Vec<u16>,
    driver_ok: bool,
}

impl Kicks {
    fn lock(&self) -> MutexGuard<'_, Kicked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Notify for Kicks {
    fn kick(&self, index: u16) {
        let mut kicked = self.lock();
        if !kicked.queues.contains(&index) {
            kicked.queues.push(index);
        }
    }

    fn driver_ok(&self) {
        self.lock().driver_ok = true;
    }
}

/// A device, its transport, and what the host sees of both.
struct Board {
    virtio: Arc<Mutex<Virtio>>,
    face: Box<dyn Face>,
    kicks: Arc<Kicks>,
    sources: usize,
}

impl Board {
    fn new(
        transport: Transport,
        memory: &GuestMemory,
        make: impl FnOnce(&GuestMemory) -> Box<dyn VirtioDevice>,
    ) -> Self {
        let device = make(memory);
        let sources = device.sources().len();
        let kicks = Arc::<Kicks>::default();
        let (virtio, face) = face::board(transport, device, memory, &kicks);
        Self { virtio, face, kicks, sources }
    }
}

/// What a driver can do: RAM, registers, rings.
pub struct Driver {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// The device behind its lock, as the thread that serves it has it.
    pub virtio: Arc<Mutex<Virtio>>,
    /// What RAM should hold.
    account: RefCell<ram::Account>,
    transport: Transport,
    face: Box<dyn Face>,
    kicks: Arc<Kicks>,
    sources: usize,
    /// The size that [`Self::set_up`] gives queues, at most.
    pub size: u16,
    /// The size of each queue, as [`Self::set_up`] gave it.
    sizes: Vec<u16>,
    /// What [`Self::add`] has made available on each queue.
    avail: Vec<u16>,
    /// The next free descriptor of each queue.
    next: Vec<u16>,
    /// How many used entries of each queue [`Self::used`] has returned.
    seen: Vec<u16>,
}

/// A descriptor: address, length, flags, next.
pub type Raw = (u64, u32, u16, u16);

impl Driver {
    /// A driver of the device that `make` makes for its memory, over MMIO.
    pub fn new(make: impl FnOnce(&GuestMemory) -> Box<dyn VirtioDevice>) -> Self {
        Self::over(Transport::Mmio, memory(), make)
    }

    /// A driver over `transport` in `memory`, which is as [`memory`] makes it.
    pub fn over(
        transport: Transport,
        memory: GuestMemory,
        make: impl FnOnce(&GuestMemory) -> Box<dyn VirtioDevice>,
    ) -> Self {
        watch::count_lines();
        lines_logged();
        let Board { virtio, face, kicks, sources } = Board::new(transport, &memory, make);
        let (count, id) = {
            let virtio = virtio.lock().unwrap_or_else(PoisonError::into_inner);
            (virtio.queue_count(), virtio.device().kind().id)
        };
        let zeros = vec![0; count];
        let mut account = ram::Account::new();
        account.fades = id == VIRTIO_ID_BALLOON;
        Self {
            memory,
            virtio,
            account: account.into(),
            transport,
            face,
            kicks,
            sources,
            size: 64,
            sizes: vec![64; count],
            avail: zeros.clone(),
            next: zeros.clone(),
            seen: zeros,
        }
    }

    /// Saves the device, loads it into the one that `make` makes, checks that this saves the same, and goes on with it.
    ///
    /// # Errors
    /// The device cannot be saved.
    pub fn reload(
        &mut self,
        make: impl FnOnce(&GuestMemory) -> Box<dyn VirtioDevice>,
    ) -> Result<State, Error> {
        let saved = self.lock().save()?;
        let face = self.face.save();
        let board = Board::new(self.transport, &self.memory, make);
        (self.virtio, self.face, self.kicks, self.sources) =
            (board.virtio, board.face, board.kicks, board.sources);
        self.face.load(face);
        self.lock().load(saved.clone()).expect("a device loads what it saved");
        assert_eq!(self.interrupts(), 0, "a device that is loaded waits for its resumption");
        assert_eq!(self.lock().save().expect("it has just been loaded"), saved);
        self.lock().resume();
        self.serve();
        Ok(saved)
    }

    /// The device's lock.
    pub fn lock(&self) -> MutexGuard<'_, Virtio> {
        self.virtio.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads a register, which goes by its name over MMIO whatever the transport.
    pub fn get(&mut self, register: u32) -> u32 {
        self.face.get(register)
    }

    /// Writes a register. A kick waits for [`Self::serve`].
    pub fn set(&mut self, register: u32, value: u32) {
        self.face.set(register, value);
    }

    /// The register window, for accesses of any kind.
    pub fn window(&mut self) -> &mut dyn BusDevice {
        self.face.as_mut()
    }

    /// Where in the window the device's own configuration begins.
    pub fn config_start(&self) -> u64 {
        self.face.config_start()
    }

    /// What is between driver and device.
    pub fn transport(&self) -> Transport {
        self.transport
    }

    /// The PCI function, and what it has sent.
    pub fn function(&mut self) -> (&mut VirtioFunction, &Sent) {
        self.face.function().expect("a test asks for it over PCI")
    }

    /// Reads `len` bytes of the configuration space from `offset` on.
    pub fn config(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        let start = self.config_start();
        self.window().read(start + offset, &mut data);
        data
    }

    /// How many interrupts there were since the last call.
    pub fn interrupts(&mut self) -> u64 {
        self.face.take_interrupts()
    }

    /// What is offered (register DeviceFeatures).
    pub fn offered(&mut self) -> u64 {
        let [low, high] = [0, 1].map(|page| {
            self.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
            u64::from(self.get(VIRTIO_MMIO_DEVICE_FEATURES))
        });
        high << 32 | low
    }

    /// Resets the device and negotiates `features`, up to FEATURES_OK; answers whether they are accepted.
    pub fn negotiate(&mut self, features: u64) -> bool {
        self.set(VIRTIO_MMIO_STATUS, 0);
        self.account.borrow_mut().settle(&self.memory);
        self.face.prepare();
        self.set(VIRTIO_MMIO_STATUS, 1);
        self.set(VIRTIO_MMIO_STATUS, 3);
        for page in [0, 1] {
            self.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            self.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (page * 32)) as u32);
        }
        self.set(VIRTIO_MMIO_STATUS, 0xb);
        self.get(VIRTIO_MMIO_STATUS) == 0xb
    }

    /// Sets up queue `index` with `size` entries at its place of [`RINGS`], all of them zeros.
    pub fn set_up(&mut self, index: usize, size: u16) {
        let [desc, avail, used] = self.rings(index);
        self.write(desc, &[0; RINGS_STEP as usize]);
        self.allow(used, 6 + 8 * u64::from(size));
        self.set(VIRTIO_MMIO_QUEUE_SEL, index as u32);
        self.set(VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (register, address) in [
            (VIRTIO_MMIO_QUEUE_DESC_LOW, desc),
            (VIRTIO_MMIO_QUEUE_AVAIL_LOW, avail),
            (VIRTIO_MMIO_QUEUE_USED_LOW, used),
        ] {
            self.set(register, address as u32);
            self.set(register + 4, (address >> 32) as u32);
        }
        self.face.assign(index);
        self.set(VIRTIO_MMIO_QUEUE_READY, 1);
        (self.avail[index], self.next[index], self.seen[index]) = (0, 0, 0);
        self.sizes[index] = size;
    }

    /// Where queue `index` has its descriptors, its avail ring and its used ring. There is room for 256 entries.
    pub fn rings(&self, index: usize) -> [u64; 3] {
        let start = RINGS + index as u64 * RINGS_STEP;
        [start, start + 0x1000, start + 0x2000]
    }

    /// Brings the device up with `features` beside [`MODERN`], each queue with [`Self::size`] entries or its maximum.
    pub fn start(&mut self, features: u64) {
        assert!(self.negotiate(features | MODERN), "features {features:#x} refused");
        for index in 0..self.avail.len() {
            self.set(VIRTIO_MMIO_QUEUE_SEL, index as u32);
            let max = self.get(VIRTIO_MMIO_QUEUE_NUM_MAX) as u16;
            self.set_up(index, self.size.min(max));
        }
        self.set(VIRTIO_MMIO_STATUS, UP);
        assert_eq!(self.get(VIRTIO_MMIO_STATUS), UP, "the device is not up");
        self.serve();
    }

    /// Writes descriptor `at` of queue `index`.
    pub fn descriptor(&self, index: usize, at: u16, raw: Raw) {
        self.table(self.rings(index)[0] + 16 * u64::from(at), &[raw]);
    }

    /// Makes a chain of `parts` (address, length, whether the device writes), with free descriptors, available. Returns
    /// its head. The ring wraps as the driver comes round; what is still in flight is not looked at.
    pub fn add(&mut self, index: usize, parts: &[(u64, u32, bool)]) -> u16 {
        let size = self.sizes[index];
        let head = self.next[index];
        for (count, (address, len, writable)) in (1..).zip(parts) {
            let at = self.next[index];
            let next = (at + 1) % size;
            let more = if count < parts.len() { NEXT } else { 0 };
            self.descriptor(index, at, (*address, *len, more | if *writable { WRITE } else { 0 }, next));
            self.next[index] = next;
        }
        self.offer(index, head);
        head
    }

    /// Puts `head` into the avail ring of queue `index`, whatever it is.
    pub fn offer(&mut self, index: usize, head: u16) {
        let avail = self.rings(index)[1];
        let slot = self.avail[index] % self.sizes[index];
        self.write(avail + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.avail[index] = self.avail[index].wrapping_add(1);
        self.write(avail + 2, &self.avail[index].to_le_bytes());
    }

    /// Writes an index of queue `index`'s avail ring that nobody expects.
    pub fn set_avail(&mut self, index: usize, avail: u16) {
        self.avail[index] = avail;
        let ring = self.rings(index)[1];
        self.write(ring + 2, &avail.to_le_bytes());
    }

    /// Asks for an interrupt at every used entry from here on.
    pub fn want_interrupts(&mut self, index: usize) {
        let ring = self.rings(index)[1];
        let seen = self.seen[index];
        self.write(ring + 4 + 2 * u64::from(self.sizes[index]), &seen.to_le_bytes());
    }

    /// Kicks queue `index` and has the device serve.
    pub fn kick(&mut self, index: usize) {
        self.set(VIRTIO_MMIO_QUEUE_NOTIFY, index as u32);
        self.serve();
    }

    /// What the device's thread does: serves what was kicked and, after activation, everything. Returns how many
    /// services that took.
    pub fn serve(&mut self) -> usize {
        let kicked = std::mem::take(&mut *self.kicks.lock());
        let mut virtio = self.virtio.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queues: VecDeque<usize> = kicked.queues.into_iter().map(usize::from).collect();
        let mut services = 0;
        if kicked.driver_ok {
            queues = (0..virtio.queue_count()).collect();
            for source in 0..self.sources {
                Self::serve_once(&mut virtio, |virtio| _ = virtio.serve_source(source));
                services += 1;
            }
        }
        while let Some(index) = queues.pop_front() {
            Self::serve_once(&mut virtio, |virtio| _ = virtio.serve(index));
            services += 1;
            if services < 10_000 {
                queues.extend(virtio.take_unserved());
            }
        }
        services
    }

    /// Has the device look at source `index`.
    pub fn serve_source(&mut self, index: usize) {
        Self::serve_once(&mut self.lock(), |virtio| _ = virtio.serve_source(index));
        let unserved = self.lock().take_unserved();
        self.kicks.lock().queues.extend(unserved.iter().map(|index| *index as u16));
        self.serve();
    }

    /// The used entries of queue `index` since the last call: head and length.
    pub fn used(&mut self, index: usize) -> Vec<(u16, u32)> {
        let ring = self.rings(index)[2];
        let idx = self.used_index(index);
        let mut entries = Vec::new();
        while self.seen[index] != idx && entries.len() < 1 << 16 {
            let at = ring + 4 + 8 * u64::from(self.seen[index] % self.sizes[index]);
            let [head, len]: [u32; 2] = self.memory.read_obj(GuestAddress(at)).expect("rings are in RAM");
            entries.push((head as u16, len));
            self.seen[index] = self.seen[index].wrapping_add(1);
        }
        entries
    }

    /// The index of queue `index`'s used ring.
    pub fn used_index(&self, index: usize) -> u16 {
        self.memory.read_obj(GuestAddress(self.rings(index)[2] + 2)).expect("rings are in RAM")
    }

    /// The device status.
    pub fn status(&mut self) -> u32 {
        self.get(VIRTIO_MMIO_STATUS)
    }

    /// Writes guest memory.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.account.borrow_mut().wrote(address, bytes);
        self.memory.write_slice(bytes, GuestAddress(address)).expect("a test writes RAM");
    }

    /// Reads guest memory.
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("a test reads RAM");
        bytes
    }
}
