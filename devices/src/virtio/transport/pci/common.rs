//! The common configuration (virtio 1.2 §4.1.4.3): each field is read and written whole, the queue's addresses in halves.

use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::Vectors;
use crate::virtio::transport::{half, set_size};
use crate::virtio::{Cause, Virtio};

/// The length in bytes.
pub const LEN: u32 = 0x38;

pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
pub const DEVICE_FEATURE: u64 = 0x04;
pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
pub const DRIVER_FEATURE: u64 = 0x0c;
pub const CONFIG_VECTOR: u64 = 0x10;
pub const NUM_QUEUES: u64 = 0x12;
pub const STATUS: u64 = 0x14;
pub const GENERATION: u64 = 0x15;
pub const QUEUE_SELECT: u64 = 0x16;
pub const QUEUE_SIZE: u64 = 0x18;
pub const QUEUE_VECTOR: u64 = 0x1a;
pub const QUEUE_ENABLE: u64 = 0x1c;
pub const QUEUE_NOTIFY_OFF: u64 = 0x1e;
pub const QUEUE_DESC: u64 = 0x20;
pub const QUEUE_DRIVER: u64 = 0x28;
pub const QUEUE_DEVICE: u64 = 0x30;

/// The vector that the selected queue has is that of this cause; of no queue if it is none.
fn cause(virtio: &Virtio) -> Cause {
    Cause::Queue(u16::try_from(virtio.selected_index()).unwrap_or(u16::MAX))
}

/// Reads `len` bytes at `offset`, which are a field or half an address; nothing is read from anything else.
pub fn read(virtio: &Virtio, vectors: &Vectors, offset: u64, len: usize) -> Option<u32> {
    let queue = || virtio.selected_queue();
    let part =
        |address: fn(&Queue) -> u64| queue().map_or(0, |queue| (address(queue) >> (offset % 8 * 8)) as u32);
    Some(match (offset, len) {
        (DEVICE_FEATURE_SELECT, 4) => virtio.selected_device_features(),
        (DEVICE_FEATURE, 4) => virtio.device_features(),
        (DRIVER_FEATURE_SELECT, 4) => virtio.selected_driver_features(),
        (DRIVER_FEATURE, 4) => virtio.driver_features(),
        (CONFIG_VECTOR, 2) => vectors.vector(Cause::Config).into(),
        (NUM_QUEUES, 2) => virtio.queue_count() as u32,
        (STATUS, 1) => virtio.status(),
        (GENERATION, 1) => virtio.generation(),
        (QUEUE_SELECT, 2) => virtio.selected_index(),
        (QUEUE_SIZE, 2) => queue().map_or(0, |queue| queue.size().into()),
        (QUEUE_VECTOR, 2) => vectors.vector(cause(virtio)).into(),
        (QUEUE_ENABLE, 2) => queue().is_some_and(QueueT::ready).into(),
        (QUEUE_NOTIFY_OFF, 2) => queue().map_or(0, |_| virtio.selected_index()),
        (QUEUE_DESC | 0x24, 4) => part(QueueT::desc_table),
        (QUEUE_DRIVER | 0x2c, 4) => part(QueueT::avail_ring),
        (QUEUE_DEVICE | 0x34, 4) => part(QueueT::used_ring),
        _ => return None,
    })
}

/// Writes `value`, of `len` bytes, to the field or half an address at `offset`; anything else changes nothing.
pub fn write(virtio: &mut Virtio, vectors: &Vectors, offset: u64, len: usize, value: u32) {
    let part = |address| half(address, offset as u32, value);
    match (offset, len) {
        (DEVICE_FEATURE_SELECT, 4) => virtio.select_device_features(value),
        (DRIVER_FEATURE_SELECT, 4) => virtio.select_driver_features(value),
        (DRIVER_FEATURE, 4) => virtio.accept_features(value),
        (CONFIG_VECTOR, 2) => vectors.assign(Cause::Config, value as u16),
        (STATUS, 1) => virtio.set_status(value),
        (QUEUE_SELECT, 2) => virtio.select_queue(value),
        (QUEUE_SIZE, 2) => virtio.configure(|queue| set_size(queue, value)),
        (QUEUE_VECTOR, 2) => vectors.assign(cause(virtio), value as u16),
        // A driver does not write 0 (§4.1.4.3.2).
        (QUEUE_ENABLE, 2) if value == 1 => virtio.configure(|queue| queue.set_ready(true)),
        (QUEUE_DESC | 0x24, 4) => virtio.configure(|queue| {
            let _refused = queue.try_set_desc_table_address(GuestAddress(part(queue.desc_table())));
        }),
        (QUEUE_DRIVER | 0x2c, 4) => virtio.configure(|queue| {
            let _refused = queue.try_set_avail_ring_address(GuestAddress(part(queue.avail_ring())));
        }),
        (QUEUE_DEVICE | 0x34, 4) => virtio.configure(|queue| {
            let _refused = queue.try_set_used_ring_address(GuestAddress(part(queue.used_ring())));
        }),
        _ => {}
    }
}
