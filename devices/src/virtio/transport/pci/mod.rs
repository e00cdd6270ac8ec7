//! Virtio over PCI (virtio 1.2 §4.1): a function with one memory region, in which the structures have a page each. There
//! is no legacy interface, and no INTx: interrupts are messages of MSI-X.

mod common;
mod function;
mod vectors;

pub use function::{Doorbells, VirtioFunction};
pub use vectors::Vectors;

/// The length in bytes of a function's memory region.
pub const REGION: u64 = 0x1_0000;
/// Where in the region the common configuration is.
pub const COMMON: u64 = 0;
/// Where in the region the ISR status is.
pub const ISR: u64 = 0x1000;
/// Where in the region the device's own configuration is.
pub const DEVICE: u64 = 0x2000;
/// Where in the region the driver writes to kick queue 0; the next one's is [`NOTIFY_STEP`] bytes further.
pub const NOTIFY: u64 = 0x3000;
/// See [`NOTIFY`].
pub const NOTIFY_STEP: u64 = 4;
/// Where in the region MSI-X's pending bits are.
pub const PENDING: u64 = 0x4000;
/// Where in the region MSI-X's table is, up to the end.
pub const TABLE: u64 = 0x8000;
/// The parts of the region in which nothing happens until the driver writes another part, or reads: features, queues and
/// vectors, but not the status. A start and a length each.
pub const LATE: [(u64, u32); 2] = [(COMMON, 0x14), (COMMON + 0x16, 0x22)];
/// As [`LATE`], of each entry of MSI-X's table: the message, but not its mask.
pub const LATE_OF_ENTRY: u32 = 12;
/// Each structure but the table has this much room.
const ROOM: u64 = 0x1000;
/// The most queues that such a device can have.
pub const MOST_QUEUES: usize = (ROOM / NOTIFY_STEP) as usize;
