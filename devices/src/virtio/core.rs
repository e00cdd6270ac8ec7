//! The state of a virtio device that every transport shares (virtio 1.2 §2 and §3).

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};

use super::queue::{Ring, RingState};
use super::{Cause, Error, Interrupt, Notify, Queues, VirtioDevice};
use crate::GuestMemory;
use crate::device::{self, Device, State, check};

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// The status bits that a driver sets, in their order.
const STEPS: [u32; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// A device and the state that every transport shares.
///
/// One lock guards it, held while a queue is served: who holds it, and has called [`Self::drain`], knows that the
/// device is still.
pub struct Virtio {
    /// The device's name: the target of what is logged, by which a device that its guest makes complain is limited.
    name: String,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<dyn Interrupt>,
    notify: Arc<dyn Notify>,
    rings: Vec<Ring>,
    status: u32,
    driver_features: u64,
    /// Counts changes of the configuration space.
    generation: u32,
    selected: Selected,
}

/// What the driver's next accesses are about.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Selected {
    /// Which 32 of the features that are offered.
    device_features: u32,
    /// Which 32 of the features that are accepted.
    driver_features: u32,
    queue: u32,
}

/// A saved device.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// The device id.
    id: u32,
    status: u32,
    driver_features: u64,
    generation: u32,
    selected: Selected,
    queues: Vec<RingState>,
    interrupt: State,
    device: State,
}

impl Virtio {
    /// Wraps a device that is new.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        interrupt: Arc<dyn Interrupt>,
        notify: Arc<dyn Notify>,
    ) -> Self {
        let rings = device.queue_sizes().iter().map(|max| Ring::new(*max)).collect();
        let name = device.name().to_owned();
        let (status, driver_features, generation) = (0, 0, 0);
        let selected = Selected::default();
        Self { name, device, memory, interrupt, notify, rings, status, driver_features, generation, selected }
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

    /// Queue `index`.
    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.rings.get(index).map(|ring| &ring.queue)
    }

    /// The driver selects a queue, which need not exist.
    pub fn select_queue(&mut self, index: u32) {
        self.selected.queue = index;
    }

    /// The index of the selected queue, which need not exist.
    pub fn selected_index(&self) -> u32 {
        self.selected.queue
    }

    /// The selected queue, if it exists.
    pub fn selected_queue(&self) -> Option<&Queue> {
        self.queue(self.selected.queue as usize)
    }

    /// Sets up the selected queue, which the driver may do only between FEATURES_OK and DRIVER_OK (§3.1.1).
    pub fn configure(&mut self, set: impl FnOnce(&mut Queue)) {
        let stage = self.status & (FEATURES_OK | DRIVER_OK | FAILED | NEEDS_RESET);
        if stage == FEATURES_OK
            && let Some(ring) = self.rings.get_mut(self.selected.queue as usize)
        {
            set(&mut ring.queue);
        }
    }

    /// The driver selects which 32 of the offered features it reads; there are some of page 0 and 1.
    pub fn select_device_features(&mut self, page: u32) {
        self.selected.device_features = page;
    }

    /// Which 32 of the offered features are selected.
    pub fn selected_device_features(&self) -> u32 {
        self.selected.device_features
    }

    /// The selected features that are offered.
    pub fn device_features(&self) -> u32 {
        self.features().checked_shr(self.selected.device_features.saturating_mul(32)).unwrap_or(0) as u32
    }

    /// The driver selects which 32 features it accepts next.
    pub fn select_driver_features(&mut self, page: u32) {
        self.selected.driver_features = page;
    }

    /// Which 32 of the accepted features are selected.
    pub fn selected_driver_features(&self) -> u32 {
        self.selected.driver_features
    }

    /// The selected features that the driver has accepted.
    pub fn driver_features(&self) -> u32 {
        self.driver_features.checked_shr(self.selected.driver_features.saturating_mul(32)).unwrap_or(0) as u32
    }

    /// The driver accepts features of the selected page. What is not offered is not taken, and then FEATURES_OK is not
    /// either.
    pub fn accept_features(&mut self, bits: u32) {
        let page = self.selected.driver_features;
        if self.status & (DRIVER | FEATURES_OK) == DRIVER && page < 2 {
            let shift = page * 32;
            let others = self.driver_features & !(u64::from(u32::MAX) << shift);
            self.driver_features = others | u64::from(bits) << shift;
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
    /// anything else changes nothing.
    pub fn set_status(&mut self, status: u32) {
        if status == 0 {
            return self.reset();
        }
        if status & FAILED != 0 {
            self.status |= FAILED;
            return;
        }
        let wanted = status & !NEEDS_RESET;
        let current = self.status & !NEEDS_RESET;
        let grows = wanted & current == current && is_in_order(wanted);
        if !grows || self.status & (FAILED | NEEDS_RESET) != 0 {
            return;
        }
        let new = wanted & !self.status;
        self.status |= new & (ACKNOWLEDGE | DRIVER);
        if new & FEATURES_OK != 0 {
            if !self.can_accept(self.driver_features) {
                return; // FEATURES_OK stays clear: that is how the driver learns of it.
            }
            self.set_event_idx();
            self.status |= FEATURES_OK;
        }
        if new & DRIVER_OK != 0 {
            self.status |= DRIVER_OK;
            if self.queues_are_usable() {
                self.device.negotiated(self.driver_features);
                self.notify.driver_ok();
            } else {
                self.fail();
            }
        }
    }

    /// Whether a driver may accept `features`: none that are not offered, and not the legacy interface.
    fn can_accept(&self, features: u64) -> bool {
        features & !self.features() == 0 && features & VERSION_1 != 0
    }

    fn set_event_idx(&mut self) {
        let event_idx = self.driver_features & EVENT_IDX != 0;
        self.rings.iter_mut().for_each(|ring| ring.queue.set_event_idx(event_idx));
    }

    fn queues_are_usable(&self) -> bool {
        self.rings.iter().all(|ring| !ring.queue.ready() || self.is_usable(&ring.queue))
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
    /// service takes: it has to be called again then, after whatever else waits.
    pub fn serve(&mut self, index: usize) -> bool {
        self.with_queues(
            |device, queues| {
                if queues.is_ready(index) { device.serve(index, queues) } else { Ok(()) }
            },
        )
    }

    /// Serves source `index` of the device. Answers as [`Self::serve`].
    pub fn serve_source(&mut self, index: usize) -> bool {
        self.with_queues(|device, queues| device.serve_source(index, queues))
    }

    /// Waits until nothing is in flight: the device is still for as long as the lock is held.
    pub fn drain(&mut self) {
        self.with_queues(|device, queues| device.drain(queues));
    }

    /// How many chains the last service took from the queues.
    pub fn taken(&self) -> u32 {
        self.rings.iter().map(Ring::taken).sum()
    }

    /// The queues that have more to serve, as [`Self::serve`] answered.
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
        let mut queues = Queues::new(&self.name, &self.memory, &mut self.rings, self.interrupt.as_ref());
        let served = serve(self.device.as_mut(), &mut queues);
        if queues.config_changed {
            self.generation = self.generation.wrapping_add(1);
            self.interrupt.signal(Cause::Config);
        }
        for (index, ring) in (0..).zip(&mut self.rings) {
            ring.signal(&self.memory, self.interrupt.as_ref(), index);
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

/// Whether the bits of `status` are the first of [`STEPS`].
fn is_in_order(status: u32) -> bool {
    (0..=STEPS.len()).any(|count| STEPS[..count].iter().sum::<u32>() == status)
}

impl Device for Virtio {
    fn name(&self) -> &str {
        &self.name
    }

    /// A device that needs a reset is reset first, as its driver has to do: what is in flight ends.
    fn save(&mut self) -> Result<State, device::Error> {
        self.drain();
        if self.status & (FAILED | NEEDS_RESET) != 0 {
            self.device.reset();
        }
        Ok(State::of(&Saved {
            id: self.device.kind().id,
            status: self.status,
            driver_features: self.driver_features,
            generation: self.generation,
            selected: self.selected,
            queues: self.rings.iter().map(Ring::save).collect(),
            interrupt: self.interrupt.save(),
            device: self.device.save()?,
        }))
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        self.reset();
        let loaded = state.take().and_then(|saved| self.restore(saved));
        loaded.inspect_err(|_| self.reset())
    }

    fn resume(&mut self) {
        if self.is_running() {
            self.notify.driver_ok();
        }
        self.interrupt.resume();
    }
}

impl Virtio {
    fn restore(&mut self, saved: Saved) -> Result<(), device::Error> {
        check(saved.id == self.device.kind().id, "device id")?;
        let status = saved.status & !(FAILED | NEEDS_RESET);
        check(is_in_order(status), "status")?;
        let features = saved.driver_features;
        check(status & FEATURES_OK == 0 || self.can_accept(features), "features")?;
        check(status & DRIVER != 0 || features == 0, "features")?;
        check(saved.queues.len() == self.rings.len(), "number of queues")?;
        for (ring, state) in self.rings.iter_mut().zip(saved.queues) {
            check(!state.ready || status & FEATURES_OK != 0, "queue")?;
            ring.load(&state)?;
        }
        (self.status, self.driver_features) = (saved.status, features);
        (self.generation, self.selected) = (saved.generation, saved.selected);
        if status & FEATURES_OK != 0 {
            self.set_event_idx();
        }
        self.interrupt.load(saved.interrupt)?;
        if self.is_running() {
            check(self.queues_are_usable(), "queue")?;
            self.device.negotiated(features);
        }
        self.device.load(saved.device)
    }
}

impl Drop for Virtio {
    fn drop(&mut self) {
        // What is in flight ends before the memory goes.
        self.device.reset();
    }
}
