//! A virtio device's PCI function: its configuration space, and what is where in its memory region.

use std::sync::{Arc, Mutex, MutexGuard};

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_FS, VIRTIO_ID_GPU, VIRTIO_ID_INPUT, VIRTIO_ID_NET,
};

use super::{
    COMMON, DEVICE, ISR, MOST_QUEUES, NOTIFY, NOTIFY_STEP, PENDING, REGION, ROOM, TABLE, Vectors, common,
};
use crate::device::Error;
use crate::pci::Function;
use crate::pci::config::{self, Config, Identity};
use crate::pci::memory::Place;
use crate::pci::msix::{self, ENABLE, MASK_ALL};
use crate::virtio::transport::lock;
use crate::virtio::{Notify, Virtio};

/// The vendor of virtio devices, and the device id that the virtio device id is added to (§4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// What is no legacy device has at least these (§4.1.2.1).
const REVISION: u8 = 1;
const SUBSYSTEM: u16 = 0x40;

/// The id of a vendor's capabilities.
const VENDOR_CAPABILITY: u8 = 0x09;
/// The types of virtio's capabilities (§4.1.4).
const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;
/// Where in a capability the fields are that the driver writes in that of type 5: BAR, offset and length, then the data.
const CAP_BAR: usize = 4;
const CAP_OFFSET: usize = 8;
const CAP_LENGTH: usize = 12;
const CAP_DATA: usize = 16;
/// The length in bytes of that capability.
const CAP_END: usize = 20;
/// Where in MSI-X's capability message control is.
const CONTROL: usize = 2;

/// Who hears where the driver kicks.
pub trait Doorbells: Send {
    /// The notification addresses begin here from now on, or are nowhere.
    fn moved(&self, address: Option<u64>);
}

/// The function of one virtio device.
pub struct VirtioFunction {
    config: Config,
    place: Arc<Place>,
    virtio: Arc<Mutex<Virtio>>,
    vectors: Arc<Vectors>,
    notify: Arc<dyn Notify>,
    doorbells: Box<dyn Doorbells>,
    queue_count: u64,
    /// Where MSI-X's capability is.
    msix: usize,
    /// Where the capability is by which the region can be reached.
    window: usize,
}

impl VirtioFunction {
    /// Shows `virtio`, which interrupts by `vectors` and has `notify` called, to the guest. Its memory region of [`REGION`]
    /// bytes is at `base` when the guest has it answer there, and `place` and `doorbells` follow it.
    pub fn new(
        virtio: Arc<Mutex<Virtio>>,
        vectors: Arc<Vectors>,
        notify: Arc<dyn Notify>,
        (place, base): (Arc<Place>, u64),
        doorbells: Box<dyn Doorbells>,
    ) -> Self {
        let (id, queue_count) = {
            let virtio = lock(&virtio);
            (virtio.device().kind().id, virtio.queue_count().min(MOST_QUEUES) as u64)
        };
        let mut config = Config::new(identity(id));
        config.add_memory(base, REGION);
        let msix = add_msix(&mut config, vectors.msix().count());
        let window = add_structures(&mut config);
        Self { config, place, virtio, vectors, notify, doorbells, queue_count, msix, window }
    }

    fn virtio(&self) -> MutexGuard<'_, Virtio> {
        lock(&self.virtio)
    }

    /// Message control of MSI-X.
    fn control(&self) -> u16 {
        u16::from_le_bytes(self.config.array(self.msix + CONTROL))
    }

    /// Has the region be where the configuration space says.
    fn place(&self) {
        if let Some(base) = self.place.set(self.config.memory()) {
            self.doorbells.moved(base.map(|base| base + NOTIFY));
        }
    }

    /// What the driver wants to reach by the capability of type 5: an offset in the region, and a length.
    fn target(&self) -> Option<(u64, usize)> {
        let [bar] = self.config.array(self.window + CAP_BAR);
        let offset = u64::from(u32::from_le_bytes(self.config.array(self.window + CAP_OFFSET)));
        let len = u32::from_le_bytes(self.config.array(self.window + CAP_LENGTH));
        let valid =
            bar == 0 && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len.into()) && offset < REGION;
        valid.then_some((offset, len as usize))
    }

    /// The guest reads its configuration space without asking, so what it wants to reach is read when it has said what that
    /// is. The ISR status then stays as it is.
    fn reach(&mut self, written: &std::ops::Range<usize>) {
        let within =
            |from: usize, to: usize| written.start < self.window + to && self.window + from < written.end;
        let data = within(CAP_DATA, CAP_END);
        if !data && !within(CAP_BAR, CAP_DATA) {
            return;
        }
        let Some((offset, len)) = self.target() else { return };
        let mut bytes: [u8; CAP_END - CAP_DATA] = self.config.array(self.window + CAP_DATA);
        if data {
            self.write(offset, &bytes[..len]);
        } else {
            self.look(offset, &mut bytes[..len]);
            self.config.set(self.window + CAP_DATA, &bytes);
        }
    }

    /// Reads from the region, and changes nothing.
    fn look(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match offset {
            COMMON..ISR => {
                let value = common::read(&self.virtio(), &self.vectors, offset - COMMON, data.len());
                let bytes = value.unwrap_or(0).to_le_bytes();
                data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
            }
            ISR => data.iter_mut().take(1).for_each(|byte| *byte = self.vectors.isr()),
            DEVICE..NOTIFY => self.virtio().read_config(offset - DEVICE, data),
            PENDING..TABLE => self.vectors.msix().read_pending(offset - PENDING, data),
            TABLE..REGION => self.vectors.msix().read_table(offset - TABLE, data),
            _ => {}
        }
    }
}

fn identity(id: u32) -> Identity {
    let class = match id {
        VIRTIO_ID_NET => 0x02_00_00,
        VIRTIO_ID_BLOCK | VIRTIO_ID_FS => 0x01_80_00,
        VIRTIO_ID_GPU => 0x03_80_00,
        VIRTIO_ID_CONSOLE => 0x07_80_00,
        VIRTIO_ID_INPUT => 0x09_80_00,
        _ => 0xff_00_00,
    };
    Identity {
        vendor: VENDOR,
        device: FIRST_DEVICE.wrapping_add(id as u16),
        revision: REVISION,
        class,
        subsystem_vendor: VENDOR,
        subsystem: SUBSYSTEM,
    }
}

/// Table and pending bits are in BAR 0.
fn add_msix(config: &mut Config, vectors: usize) -> usize {
    let last = vectors.saturating_sub(1) as u16;
    let mut body = Vec::with_capacity(10);
    body.extend_from_slice(&last.to_le_bytes());
    body.extend_from_slice(&(TABLE as u32).to_le_bytes());
    body.extend_from_slice(&(PENDING as u32).to_le_bytes());
    config.add_capability(msix::CAPABILITY, &body, &(ENABLE | MASK_ALL).to_le_bytes())
}

/// Says where the structures are; returns where the capability is by which they can be reached.
fn add_structures(config: &mut Config) -> usize {
    let room = ROOM as u32;
    add_structure(config, CFG_COMMON, COMMON, common::LEN, None);
    add_structure(config, CFG_NOTIFY, NOTIFY, room, Some(NOTIFY_STEP as u32));
    add_structure(config, CFG_ISR, ISR, 1, None);
    add_structure(config, CFG_DEVICE, DEVICE, room, None);
    add_structure(config, CFG_PCI, 0, 0, Some(0))
}

fn add_structure(config: &mut Config, kind: u8, offset: u64, len: u32, more: Option<u32>) -> usize {
    let cap_len = if more.is_some() { CAP_END } else { CAP_DATA } as u8;
    let mut body = vec![cap_len, kind, 0, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&len.to_le_bytes());
    body.extend(more.into_iter().flat_map(u32::to_le_bytes));
    // Of the one that says where nothing is, the driver writes which BAR, where, how much, and the data.
    let mut writable = [0; CAP_END - 2];
    writable[CAP_BAR - 2] = 0xff;
    writable[CAP_OFFSET - 2..].fill(0xff);
    let writable = if kind == CFG_PCI { &writable[..] } else { &[] };
    config.add_capability(VENDOR_CAPABILITY, &body, writable)
}

impl Function for VirtioFunction {
    fn config(&self) -> &Config {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let control = self.control();
        let written = self.config.write(offset, data);
        if self.control() != control {
            self.vectors.msix().set_control(self.control());
        }
        self.place();
        self.reach(&written);
    }

    fn load_config(&mut self, saved: &[u8; config::LEN]) -> Result<(), Error> {
        self.config.load(saved)?;
        self.vectors.msix().load_control(self.control());
        self.place();
        Ok(())
    }

    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.look(offset, data);
        if offset == ISR && !data.is_empty() {
            data[0] |= self.vectors.take_isr();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            COMMON..ISR if data.len() <= 4 => {
                let value = data.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
                common::write(&mut self.virtio(), &self.vectors, offset - COMMON, data.len(), value);
            }
            DEVICE..NOTIFY => self.virtio().write_config(offset - DEVICE, data),
            NOTIFY..PENDING if (offset - NOTIFY).is_multiple_of(NOTIFY_STEP) => {
                let index = (offset - NOTIFY) / NOTIFY_STEP;
                if index < self.queue_count {
                    self.notify.kick(index as u16);
                }
            }
            TABLE..REGION => self.vectors.msix().write_table(offset - TABLE, data),
            _ => {}
        }
    }
}

const _: () = assert!((msix::MOST as u64) * msix::ENTRY <= REGION - TABLE, "the table fits");
