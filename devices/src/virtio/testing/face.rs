//! The two faces that a device can show a driver. What a test says in registers of MMIO (virtio 1.2 §4.2.2) is said to a
//! PCI function in its own structures (§4.1.4).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_mmio::*;

use super::Kicks;
use crate::GuestMemory;
use crate::bus::BusDevice;
use crate::device::State;
use crate::irq::Line;
use crate::pci::Function;
use crate::pci::config::LEN;
use crate::pci::memory::Place;
use crate::pci::msix::{ENABLE, ENTRY, Msix};
use crate::pci::testing::{Sent, capabilities};
use crate::virtio::transport::mmio::{InterruptLine, Mmio};
use crate::virtio::transport::pci::{
    COMMON, DEVICE, Doorbells, ISR, NOTIFY, NOTIFY_STEP, REGION, TABLE, Vectors, VirtioFunction,
};
use crate::virtio::{Interrupt, Virtio, VirtioDevice};

/// What is between driver and device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Registers, and a line.
    Mmio,
    /// A function, and messages.
    Pci,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Mmio, Self::Pci];
}

/// Where the region of the function is.
pub const REGION_BASE: u64 = 0x4000_0000;

/// A device's registers and interrupts.
pub(super) trait Face: BusDevice {
    /// Reads a register.
    fn get(&mut self, register: u32) -> u32;

    /// Writes a register.
    fn set(&mut self, register: u32, value: u32);

    /// Where the device's own configuration begins.
    fn config_start(&self) -> u64;

    /// How many interrupts there were since the last call.
    fn take_interrupts(&mut self) -> u64;

    /// Has the device, which was reset, interrupt for its configuration.
    fn prepare(&mut self) {}

    /// Has the selected queue interrupt.
    fn assign(&mut self, _index: usize) {}

    /// What is not in the device's own state.
    fn save(&self) -> State {
        State::empty()
    }

    /// Takes that over.
    fn load(&mut self, state: State) {
        state.take_empty().expect("it was saved by this transport");
    }

    /// The function, if it is one.
    fn function(&mut self) -> Option<(&mut VirtioFunction, &Sent)> {
        None
    }
}

/// A device behind `transport`, which kicks `kicks`.
pub(super) fn board(
    transport: Transport,
    device: Box<dyn VirtioDevice>,
    memory: &GuestMemory,
    kicks: &Arc<Kicks>,
) -> (Arc<Mutex<Virtio>>, Box<dyn Face>) {
    let wrap = |device, interrupt: Arc<dyn Interrupt>| {
        Arc::new(Mutex::new(Virtio::new(device, memory.clone(), interrupt, kicks.clone())))
    };
    match transport {
        Transport::Mmio => {
            let edges = Edges::default();
            let line = Arc::new(InterruptLine::new(Box::new(edges.clone())));
            let virtio = wrap(device, line.clone());
            let window = Mmio::new(virtio.clone(), line, kicks.clone());
            (virtio, Box::new(MmioFace { window, edges }))
        }
        Transport::Pci => {
            let queues = device.queue_sizes().len();
            let sent = Sent::default();
            let msix = Arc::new(Msix::new(queues + 1, Box::new(sent.clone())));
            let vectors = Arc::new(Vectors::new(msix, queues));
            let virtio = wrap(device, vectors.clone());
            let place = Arc::new(Place::new(REGION_BASE..REGION_BASE + 16 * REGION, REGION));
            let place = (place, REGION_BASE);
            let function =
                VirtioFunction::new(virtio.clone(), vectors, kicks.clone(), place, Box::new(NoDoorbells));
            (virtio, Box::new(PciFace { function, sent, vectors: queues + 1 }))
        }
    }
}

/// Counts edges.
#[derive(Clone, Default)]
struct Edges(Arc<AtomicU64>);

impl Line for Edges {
    fn pulse(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

struct MmioFace {
    window: Mmio,
    edges: Edges,
}

impl BusDevice for MmioFace {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.window.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.window.write(offset, data);
    }
}

impl Face for MmioFace {
    fn get(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.window.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    fn set(&mut self, register: u32, value: u32) {
        self.window.write(register.into(), &value.to_le_bytes());
    }

    fn config_start(&self) -> u64 {
        VIRTIO_MMIO_CONFIG.into()
    }

    fn take_interrupts(&mut self) -> u64 {
        self.edges.0.swap(0, Ordering::SeqCst)
    }
}

struct NoDoorbells;

impl Doorbells for NoDoorbells {
    fn moved(&self, _address: Option<u64>) {}
}

struct PciFace {
    function: VirtioFunction,
    sent: Sent,
    vectors: usize,
}

/// The field of the common configuration that is this register, and its length.
fn field(register: u32) -> Option<(u64, usize)> {
    Some(match register {
        VIRTIO_MMIO_DEVICE_FEATURES_SEL => (0x00, 4),
        VIRTIO_MMIO_DEVICE_FEATURES => (0x04, 4),
        VIRTIO_MMIO_DRIVER_FEATURES_SEL => (0x08, 4),
        VIRTIO_MMIO_DRIVER_FEATURES => (0x0c, 4),
        VIRTIO_MMIO_STATUS => (0x14, 1),
        VIRTIO_MMIO_CONFIG_GENERATION => (0x15, 1),
        VIRTIO_MMIO_QUEUE_SEL => (0x16, 2),
        VIRTIO_MMIO_QUEUE_NUM | VIRTIO_MMIO_QUEUE_NUM_MAX => (0x18, 2),
        VIRTIO_MMIO_QUEUE_READY => (0x1c, 2),
        VIRTIO_MMIO_QUEUE_DESC_LOW => (0x20, 4),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => (0x24, 4),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => (0x28, 4),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => (0x2c, 4),
        VIRTIO_MMIO_QUEUE_USED_LOW => (0x30, 4),
        VIRTIO_MMIO_QUEUE_USED_HIGH => (0x34, 4),
        _ => return None,
    })
}

impl PciFace {
    fn read_field(&mut self, offset: u64, len: usize) -> u32 {
        let mut data = [0; 4];
        self.function.read(offset, &mut data[..len]);
        u32::from_le_bytes(data)
    }
}

impl BusDevice for PciFace {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.function.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.function.write(offset, data);
    }
}

impl Face for PciFace {
    /// What is only written over MMIO reads as zeros here too.
    fn get(&mut self, register: u32) -> u32 {
        let is_read = [
            VIRTIO_MMIO_DEVICE_FEATURES,
            VIRTIO_MMIO_STATUS,
            VIRTIO_MMIO_CONFIG_GENERATION,
            VIRTIO_MMIO_QUEUE_NUM_MAX,
            VIRTIO_MMIO_QUEUE_READY,
        ];
        match field(register) {
            Some((offset, len)) if is_read.contains(&register) => self.read_field(COMMON + offset, len),
            None if register == VIRTIO_MMIO_INTERRUPT_STATUS => self.read_field(ISR, 1),
            _ => 0,
        }
    }

    /// A value that the field has no room for is written in four bytes: the device takes none of it.
    fn set(&mut self, register: u32, value: u32) {
        let is_written =
            [VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_QUEUE_NUM_MAX];
        match field(register) {
            Some((offset, len)) if !is_written.contains(&register) => {
                let fits = len == 4 || value >> (8 * len) == 0;
                let len = if fits { len } else { 4 };
                self.function.write(COMMON + offset, &value.to_le_bytes()[..len]);
            }
            // Beyond the last there is something else.
            None if register == VIRTIO_MMIO_QUEUE_NOTIFY && value < 0x400 => {
                self.function.write(NOTIFY + NOTIFY_STEP * u64::from(value), &(value as u16).to_le_bytes());
            }
            _ => {}
        }
    }

    fn config_start(&self) -> u64 {
        DEVICE
    }

    fn take_interrupts(&mut self) -> u64 {
        self.sent.take()
    }

    /// Has each vector a message of its own, none of them masked, and MSI-X enabled.
    fn prepare(&mut self) {
        self.function.write_config(4, &6u16.to_le_bytes());
        for vector in 0..self.vectors as u64 {
            let entry = TABLE + ENTRY * vector;
            self.function.write(entry, &0xfee0_0000u64.to_le_bytes());
            self.function.write(entry + 8, &(0x40 + vector).to_le_bytes());
        }
        let (_, msix) = capabilities(&self.function)[0];
        self.function.write_config(msix as u64 + 2, &ENABLE.to_le_bytes());
        self.function.write(COMMON + 0x10, &0u16.to_le_bytes());
    }

    fn assign(&mut self, index: usize) {
        self.function.write(COMMON + 0x1a, &(index as u16 + 1).to_le_bytes());
    }

    fn save(&self) -> State {
        State::of(&self.function.config().bytes().to_vec())
    }

    fn load(&mut self, state: State) {
        let bytes: Vec<u8> = state.take().expect("it was saved by this transport");
        let bytes: [u8; LEN] = bytes.try_into().expect("a configuration space has as many");
        self.function.load_config(&bytes).expect("a function loads what it saved");
    }

    fn function(&mut self) -> Option<(&mut VirtioFunction, &Sent)> {
        Some((&mut self.function, &self.sent))
    }
}
