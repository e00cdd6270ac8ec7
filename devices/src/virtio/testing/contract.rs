//! What a device owes its host whatever the driver does: it touches nothing but what it was given, does no more than a
//! queue holds at a time, is silent once it needs a reset, logs little, and works again after the reset.

use virtio_bindings::virtio_mmio::VIRTIO_MMIO_QUEUE_NOTIFY;
use virtio_queue::QueueT;

use super::{BUFFERS, Driver, NEEDS_RESET, Raw, UP, WRITE, lines_logged};
use crate::virtio::Virtio;

/// VRING_DESC_F_INDIRECT.
pub const INDIRECT: u16 = 4;

/// Lines that a device may log between two resets.
const MOST_LINES: u32 = 4;

impl Driver {
    /// Writes descriptors to `address`, in a queue's own table or an indirect one; what they name the device may write.
    pub fn table(&self, address: u64, descriptors: &[Raw]) {
        for (at, (buffer, len, flags, next)) in (address..).step_by(16).zip(descriptors) {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&buffer.to_le_bytes());
            bytes[8..12].copy_from_slice(&len.to_le_bytes());
            bytes[12..14].copy_from_slice(&flags.to_le_bytes());
            bytes[14..].copy_from_slice(&next.to_le_bytes());
            self.write(at, &bytes);
            if flags & (WRITE | INDIRECT) == WRITE {
                self.allow(*buffer, (*len).into());
            }
        }
    }

    /// From here on the device may write these bytes.
    pub fn allow(&self, address: u64, len: u64) {
        self.account.borrow_mut().allow(address, len);
    }

    /// Panics if a byte of RAM changed that neither this driver wrote nor the device was given since its last reset.
    pub fn assert_intact(&self) {
        let stray = self.account.borrow_mut().take_stray(&self.memory);
        assert_eq!(stray, None, "the device wrote where it was given nothing");
    }

    /// How far the device has come in each queue: in its avail ring, and in its used ring.
    fn progress(virtio: &Virtio) -> Vec<[u16; 2]> {
        let queues = (0..virtio.queue_count()).filter_map(|index| virtio.queue(index));
        queues.map(|queue| [queue.next_avail(), queue.next_used()]).collect()
    }

    /// Has the device serve once. Panics if it takes or completes more chains than a queue has entries.
    pub(super) fn serve_once(virtio: &mut Virtio, serve: impl FnOnce(&mut Virtio)) {
        let before = Self::progress(virtio);
        serve(virtio);
        let after = Self::progress(virtio);
        for (index, (before, after)) in before.iter().zip(&after).enumerate() {
            let size = virtio.queue(index).map_or(0, QueueT::size);
            let done = [0, 1].map(|ring| after[ring].wrapping_sub(before[ring]));
            assert!(done <= [size; 2], "{done:?} chains in one service of queue {index}, which has {size}");
        }
    }

    /// Has the device look at every source.
    pub fn serve_sources(&mut self) {
        (0..self.sources).for_each(|source| self.serve_source(source));
    }

    /// Kicks every queue and has the device look at every source.
    pub fn prod(&mut self) {
        for index in 0..self.avail.len() {
            self.set(VIRTIO_MMIO_QUEUE_NOTIFY, index as u32);
        }
        self.serve();
        self.serve_sources();
    }

    /// Holds the device to its contract after an attack, with `request` as what it must serve after a reset.
    pub fn assert_contract(&mut self, request: impl FnOnce(&mut Self)) {
        if self.status() & NEEDS_RESET != 0 {
            self.interrupts();
            let before = Self::progress(&self.lock());
            self.prod();
            assert_eq!(Self::progress(&self.lock()), before, "it is not still, and needs a reset");
            assert_eq!(self.interrupts(), 0, "it interrupts, and needs a reset");
        }
        self.assert_intact();
        self.start(0);
        request(self);
        assert_eq!(self.status(), UP, "it does not work after a reset");
        self.assert_intact();
        let lines = lines_logged();
        assert!(lines <= MOST_LINES, "it logged {lines} lines");
    }
}

/// Asks every queue for what most devices give: something to read, room to write. Panics if it does not come back.
pub fn every_queue_serves(driver: &mut Driver) {
    (0..driver.avail.len()).for_each(|index| queue_serves(driver, index));
}

/// Asks queue `index`, as [`every_queue_serves`] does.
pub fn queue_serves(driver: &mut Driver, index: usize) {
    driver.write(BUFFERS, b"sixteen letters.");
    driver.want_interrupts(index);
    let head = driver.add(index, &[(BUFFERS, 16, false), (BUFFERS + 0x1000, 32, true)]);
    driver.interrupts();
    driver.kick(index);
    driver.serve_sources();
    let used = driver.used(index);
    assert!(matches!(used[..], [(it, len)] if it == head && len <= 32), "queue {index}: {used:?}");
    assert_eq!(driver.interrupts(), 1, "queue {index}");
}
