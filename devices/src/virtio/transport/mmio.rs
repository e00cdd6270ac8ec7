//! Virtio over MMIO (virtio 1.2 §4.2): the registers and the one interrupt line. There is no legacy interface.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_mmio::*;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

use super::{Cause, Interrupt, Notify, half, lock, set_size};
use crate::bus::BusDevice;
use crate::device::{Error, State, check};
use crate::irq::Line;
use crate::virtio::Virtio;

/// The size of a device's register window in bytes.
pub const WINDOW: u64 = 0x1000;
/// Where in the window the driver writes a queue's number to kick it.
pub const NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where the configuration space begins.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;
/// The version of the register layout: not the legacy one.
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"KITE");

/// Where in the window the driver acknowledges an interrupt. Such a write may come late, but before the driver's next
/// access of another kind.
pub const ACKNOWLEDGE: u64 = VIRTIO_MMIO_INTERRUPT_ACK as u64;

/// The interrupt line, with the causes that the driver reads back. It has no lock: the driver reads it at every
/// interrupt, and must not wait for a device that is serving.
///
/// An acknowledgement takes back only what the driver has read, and nothing that came after: so it may come late. At
/// worst the driver looks once more at queues where nothing is new.
pub struct InterruptLine {
    /// The causes (§4.2.2, `InterruptStatus`), and from bit 32 on those of them that the driver has not read.
    causes: AtomicU64,
    line: Box<dyn Line + Sync>,
}

impl InterruptLine {
    /// Sends its edges over `line`.
    pub fn new(line: Box<dyn Line + Sync>) -> Self {
        Self { causes: AtomicU64::new(0), line }
    }

    fn read(&self) -> u32 {
        self.causes.fetch_and(u32::MAX.into(), Ordering::SeqCst) as u32
    }

    fn acknowledge(&self, value: u32) {
        let acknowledged = |causes: u64| Some(causes & !(u64::from(value) & !(causes >> 32)));
        let _always_ok = self.causes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, acknowledged);
    }
}

/// The saved causes.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// `InterruptStatus`.
    causes: u32,
    /// Those of them that the driver has not read.
    unread: u32,
}

impl Interrupt for InterruptLine {
    fn signal(&self, cause: Cause) {
        let bit = match cause {
            Cause::Queue(_) => VIRTIO_MMIO_INT_VRING,
            Cause::Config => VIRTIO_MMIO_INT_CONFIG,
        };
        let bit = u64::from(bit);
        self.causes.fetch_or(bit << 32 | bit, Ordering::SeqCst);
        self.line.pulse();
    }

    fn clear(&self) {
        self.causes.store(0, Ordering::SeqCst);
    }

    fn save(&self) -> State {
        let causes = self.causes.load(Ordering::SeqCst);
        State::of(&Saved { causes: causes as u32, unread: (causes >> 32) as u32 })
    }

    fn load(&self, state: State) -> Result<(), Error> {
        let Saved { causes, unread } = state.take()?;
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        check(causes & !known == 0 && unread & !causes == 0, "interrupt status")?;
        self.causes.store(u64::from(unread) << 32 | u64::from(causes), Ordering::SeqCst);
        Ok(())
    }

    fn resume(&self) {
        if self.causes.load(Ordering::SeqCst) != 0 {
            self.line.pulse();
        }
    }
}

/// The register window of one device. What the driver writes there is in the device: the window has no state.
pub struct Mmio {
    virtio: Arc<Mutex<Virtio>>,
    line: Arc<InterruptLine>,
    notify: Arc<dyn Notify>,
    queue_count: u32,
}

impl Mmio {
    /// Shows `virtio`, which interrupts over `line` and has `notify` called, to the guest.
    pub fn new(virtio: Arc<Mutex<Virtio>>, line: Arc<InterruptLine>, notify: Arc<dyn Notify>) -> Self {
        let queue_count = lock(&virtio).queue_count() as u32;
        Self { virtio, line, notify, queue_count }
    }

    fn virtio(&self) -> MutexGuard<'_, Virtio> {
        lock(&self.virtio)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => u32::from_le_bytes(*b"virt"),
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.virtio().device().kind().id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => self.virtio().device_features(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.virtio().selected_queue().map_or(0, |queue| queue.max_size().into())
            }
            VIRTIO_MMIO_QUEUE_READY => self.virtio().selected_queue().is_some_and(QueueT::ready).into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.line.read(),
            VIRTIO_MMIO_STATUS => self.virtio().status(),
            // No shared memory: every region has the length -1 (§4.2.2).
            VIRTIO_MMIO_SHM_LEN_LOW
            | VIRTIO_MMIO_SHM_LEN_HIGH
            | VIRTIO_MMIO_SHM_BASE_LOW
            | VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.virtio().generation(),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.virtio().select_device_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.virtio().select_driver_features(value),
            VIRTIO_MMIO_DRIVER_FEATURES => self.virtio().accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => self.virtio().select_queue(value),
            VIRTIO_MMIO_QUEUE_NUM => self.configure(|queue| set_size(queue, value)),
            VIRTIO_MMIO_QUEUE_READY => self.configure(|queue| queue.set_ready(value == 1)),
            VIRTIO_MMIO_QUEUE_NOTIFY if value < self.queue_count => self.notify.kick(value as u16),
            VIRTIO_MMIO_INTERRUPT_ACK => self.line.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.virtio().set_status(value),
            VIRTIO_MMIO_QUEUE_DESC_LOW | VIRTIO_MMIO_QUEUE_DESC_HIGH => self.configure(|queue| {
                let _refused =
                    queue.try_set_desc_table_address(GuestAddress(half(queue.desc_table(), register, value)));
            }),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW | VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.configure(|queue| {
                let _refused =
                    queue.try_set_avail_ring_address(GuestAddress(half(queue.avail_ring(), register, value)));
            }),
            VIRTIO_MMIO_QUEUE_USED_LOW | VIRTIO_MMIO_QUEUE_USED_HIGH => self.configure(|queue| {
                let _refused =
                    queue.try_set_used_ring_address(GuestAddress(half(queue.used_ring(), register, value)));
            }),
            _ => {}
        }
    }

    fn configure(&self, set: impl FnOnce(&mut Queue)) {
        self.virtio().configure(set);
    }
}

impl BusDevice for Mmio {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.virtio().read_config(at, data);
        } else if let Ok(data) = <&mut [u8; 4]>::try_from(&mut *data) {
            *data = self.read_register(offset as u32).to_le_bytes();
        } else {
            // Registers are 32 bits wide (§4.2.2.2).
            data.fill(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(at) = offset.checked_sub(CONFIG) {
            self.virtio().write_config(at, data);
        } else if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset as u32, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nowhere;

    impl Line for Nowhere {
        fn pulse(&self) {}
    }

    #[test]
    fn a_late_acknowledgement_takes_back_only_what_was_read() {
        let line = InterruptLine::new(Box::new(Nowhere));
        line.signal(Cause::Queue(0));
        assert_eq!(line.read(), 1);
        line.signal(Cause::Config);
        line.signal(Cause::Queue(0));
        line.acknowledge(3);
        assert_eq!(line.read(), 3);
        line.acknowledge(1);
        assert_eq!(line.read(), 2);
        line.acknowledge(u32::MAX);
        assert_eq!(line.read(), 0);
    }
}
