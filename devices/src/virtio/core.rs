//! The state of a virtio device that every transport shares (virtio 1.2 §2 and §3).

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use super::queue::Ring;
use super::{Cause, Error, Interrupt, Queues, VirtioDevice};
use crate::GuestMemory;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A device and the state that every transport shares.
///
/// One lock guards it, held while a queue is served: whoever holds it, and has called [`Self::settle`], knows that the
/// device is still.
pub struct Virtio {
    /// What the log calls the device.
    name: String,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    rings: Vec<Ring>,
    status: u32,
    driver_features: u64,
    /// Counts changes of the configuration space.
    generation: u32,
}

impl Virtio {
    /// Wraps a device that is new, and has no name.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Arc<dyn Interrupt>) -> Self {
        let rings = device.queue_sizes().iter().map(|max| Ring::new(*max)).collect();
        let name = format!("virtio device {}", device.id());
        Self { name, device, memory, interrupt, rings, status: 0, driver_features: 0, generation: 0 }
    }

    /// The same by a name that no other device has: it is the target of what is logged, by which a device that its guest
    /// makes complain can be limited.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// The device.
    pub fn device(&self) -> &dyn VirtioDevice {
        self.device.as_ref()
    }

    /// What is offered to the driver (§2.2).
    pub fn features(&self) -> u64 {
        self.device.features() | VERSION_1 | EVENT_IDX | INDIRECT_DESC
    }

    /// The device status (§2.1).
    pub fn status(&self) -> u32 {
        self.status
    }

    /// Changes whenever the configuration space does (§2.5).
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// How many queues there are.
    pub fn queue_count(&self) -> usize {
        self.rings.len()
    }

    /// Queue `index`, a number from the guest.
    pub fn queue(&self, index: u32) -> Option<&Queue> {
        self.rings.get(index as usize).map(|ring| &ring.queue)
    }

    /// Sets up queue `index`, which the driver may do only between FEATURES_OK and DRIVER_OK (§3.1.1).
    pub fn configure(&mut self, index: u32, set: impl FnOnce(&mut Queue)) {
        let stage = self.status & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET);
        if stage == FEATURES_OK
            && let Some(ring) = self.rings.get_mut(index as usize)
        {
            set(&mut ring.queue);
        }
    }

    /// The driver chooses features, 32 at a time: `page` 0 or 1. What is not offered is not taken, and then FEATURES_OK
    /// is not either.
    pub fn accept_features(&mut self, page: u32, bits: u32) {
        if self.status & (DRIVER | FEATURES_OK) == DRIVER && page < 2 {
            let shift = page * 32;
            let kept = self.driver_features & !(u64::from(u32::MAX) << shift);
            self.driver_features = kept | u64::from(bits) << shift;
        }
    }

    /// The driver reads the configuration space; beyond its end are zeros.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        let config = self.device.config().iter().skip(offset);
        data.iter_mut().zip(config).for_each(|(to, from)| *to = *from);
    }

    /// The driver writes the configuration space.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if self.status & (DRIVER | FAILED) == DRIVER {
            self.device.write_config(offset, data);
        }
    }

    /// The driver writes the device status (§2.1, §3.1.1). Bits are set in their order and never cleared but by a reset;
    /// anything else changes nothing. Answers whether the driver is up by this.
    pub fn set_status(&mut self, status: u32) -> bool {
        const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        if status == 0 {
            self.reset();
            return false;
        }
        if status & FAILED != 0 {
            self.status |= FAILED;
            return false;
        }
        let wanted = status & !NEEDS_RESET;
        let in_order = [1, 2, 3, 4].iter().any(|count| STEPS[..*count].iter().sum::<u32>() == wanted);
        let kept = self.status & !NEEDS_RESET;
        if !in_order || wanted & kept != kept || self.status & (FAILED | NEEDS_RESET) != 0 {
            return false;
        }
        let new = wanted & !self.status;
        self.status |= new & (ACKNOWLEDGE | DRIVER);
        if new & FEATURES_OK != 0 {
            let refused = self.driver_features & !self.features();
            if refused != 0 || self.driver_features & VERSION_1 == 0 {
                return false; // FEATURES_OK stays clear: that is how the driver learns of it.
            }
            let event_idx = self.driver_features & EVENT_IDX != 0;
            self.rings.iter_mut().for_each(|ring| ring.queue.set_event_idx(event_idx));
            self.status |= FEATURES_OK;
        }
        if new & DRIVER_OK == 0 {
            return false;
        }
        self.status |= DRIVER_OK;
        if self.rings.iter().any(|ring| ring.queue.ready() && !self.is_usable(&ring.queue)) {
            self.fail();
            return false;
        }
        self.device.activate(self.driver_features);
        true
    }

    /// Whether all three parts of the queue are in memory. Address 0 is how a part says that it was not set.
    fn is_usable(&self, queue: &Queue) -> bool {
        let set =
            [queue.desc_table(), queue.avail_ring(), queue.used_ring()].iter().all(|address| *address != 0);
        set && queue.is_valid(&self.memory)
    }

    fn reset(&mut self) {
        self.device.reset();
        self.rings.iter_mut().for_each(Ring::reset);
        self.status = 0;
        self.driver_features = 0;
        self.interrupt.clear();
    }

    /// The guest broke the rules beyond repair: nothing is served until it resets the device (§2.1.2).
    fn fail(&mut self) {
        self.status |= NEEDS_RESET;
        if self.status & DRIVER_OK != 0 {
            self.interrupt.signal(Cause::Config);
        }
    }

    fn is_running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET | FAILED) == DRIVER_OK
    }

    /// Serves queue `index`, which the driver kicked. Answers whether there is more to serve in some queue than one
    /// service takes: it is to be called again then, after whatever else waits.
    pub fn serve(&mut self, index: usize) -> bool {
        self.with_queues(|device, queues| match queues.is_ready(index) {
            true => device.serve(index, queues),
            false => Ok(()),
        })
    }

    /// Serves source `index` of the device. Answers as [`Self::serve`].
    pub fn serve_source(&mut self, index: usize) -> bool {
        self.with_queues(|device, queues| device.serve_source(index, queues))
    }

    /// Waits until nothing is in flight: the device is still for as long as the lock is held.
    pub fn settle(&mut self) {
        self.with_queues(|device, queues| device.settle(queues));
    }

    /// The queues that have more to serve, as [`Self::serve`] told.
    pub fn take_unserved(&mut self) -> Vec<usize> {
        let rings = self.rings.iter_mut().enumerate();
        rings.filter_map(|(index, ring)| std::mem::take(&mut ring.again).then_some(index)).collect()
    }

    fn with_queues(
        &mut self,
        serve: impl FnOnce(&mut dyn VirtioDevice, &mut Queues<'_>) -> Result<(), Error>,
    ) -> bool {
        if !self.is_running() {
            return false;
        }
        let mut queues = Queues::new(&self.memory, &mut self.rings, self.interrupt.as_ref());
        queues.name = &self.name;
        let served = serve(self.device.as_mut(), &mut queues);
        if queues.config_changed {
            self.generation = self.generation.wrapping_add(1);
            self.interrupt.signal(Cause::Config);
        }
        for (index, ring) in (0..).zip(&mut self.rings) {
            ring.tell(&self.memory, self.interrupt.as_ref(), index);
        }
        if let Err(error) = served {
            // Once until the driver resets the device.
            log::warn!(target: &self.name, "{}: {error}; it waits for a reset", self.name);
            self.fail();
            return false;
        }
        self.rings.iter().any(|ring| ring.again)
    }
}

impl Drop for Virtio {
    fn drop(&mut self) {
        // What is in flight ends before the memory goes.
        self.device.reset();
    }
}
