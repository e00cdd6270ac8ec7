//! Any accesses to configuration space, memory regions and vectors of a bus with two virtio devices: the guest reads what
//! the configuration space holds, and no vector waits that need not.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use devices::bus::BusDevice;
use devices::device::Device;
use devices::pci::config::LEN;
use devices::pci::memory::{Place, Placed, Window};
use devices::pci::msix::{ENABLE, MASK_ALL, Msix};
use devices::pci::testing::{Sent, Shown, capabilities};
use devices::pci::{Function, HostBridge, PAGE, Page, Root};
use devices::virtio::testing::devices::Echo;
use devices::virtio::testing::{lines_logged, memory};
use devices::virtio::transport::pci::{Doorbells, PENDING, REGION, TABLE, Vectors, VirtioFunction};
use devices::virtio::{Interrupt, Notify, Virtio};

use crate::{bytes, each};

const WINDOW: u64 = 0x4000_0000;
/// How many regions the window has room for.
const ROOM: u64 = 8;
const DEVICES: usize = 2;

/// What one input does at most.
const MOST_OPS: usize = 256;

/// One thing that a guest, or a device, does.
#[derive(Arbitrary, Debug)]
enum Op<'a> {
    /// Writes configuration space near its beginning, or anywhere.
    Write {
        device: u8,
        at: Result<u8, u64>,
        #[arbitrary(with = bytes)]
        data: &'a [u8],
    },
    /// Reads it.
    Read { device: u8, at: Result<u8, u64>, len: u8 },
    /// Places a region where there is room, or anywhere, and has it answer or not.
    Place { device: u8, base: Result<u8, u64>, on: bool },
    /// Writes message control.
    Control { device: u8, enable: bool, mask: bool },
    /// Writes an entry of the table: address, data, mask.
    Vector { device: u8, vector: u8, address: u16, data: u32, masked: bool },
    /// An access to the window.
    Access {
        region: u8,
        offset: u16,
        write: bool,
        #[arbitrary(with = bytes)]
        data: &'a [u8],
    },
    /// A device interrupts for a queue.
    Signal { device: u8, queue: u8 },
    /// Saves the bus and the devices, and loads them.
    Reload,
}

struct Nothing;

impl Doorbells for Nothing {
    fn moved(&self, address: Option<u64>) {
        assert!(address.is_none_or(|at| (WINDOW..WINDOW + ROOM * REGION).contains(&at)));
    }
}

impl Notify for Nothing {
    fn kick(&self, index: u16) {
        assert!(index < 2);
    }

    fn driver_ok(&self) {}
}

struct Board {
    root: Root,
    window: Window,
    pages: Vec<Shown>,
    functions: Vec<Arc<Mutex<VirtioFunction>>>,
    devices: Vec<Arc<Mutex<Virtio>>>,
    vectors: Vec<Arc<Vectors>>,
}

impl Board {
    fn new(memory: &devices::GuestMemory) -> Self {
        let pages: Vec<Shown> = (0..=DEVICES).map(|_| Shown::default()).collect();
        let mut all: Vec<Arc<Mutex<dyn Function>>> = vec![Arc::new(Mutex::new(HostBridge::new()))];
        let (mut functions, mut devices, mut vectors) = (Vec::new(), Vec::new(), Vec::new());
        let mut placed: Vec<Placed> = Vec::new();
        for index in 0..DEVICES as u64 {
            let msix = Arc::new(Msix::new(3, Box::new(Sent::default())));
            let interrupt = Arc::new(Vectors::new(msix, 2));
            let device = Box::<Echo>::default();
            let virtio = Virtio::new(device, memory.clone(), interrupt.clone(), Arc::new(Nothing));
            let virtio = Arc::new(Mutex::new(virtio));
            let place = Arc::new(Place::new(WINDOW..WINDOW + ROOM * REGION, REGION));
            let at = (place.clone(), WINDOW + index * REGION);
            let notify = Arc::new(Nothing);
            let function =
                VirtioFunction::new(virtio.clone(), interrupt.clone(), notify, at, Box::new(Nothing));
            let function = Arc::new(Mutex::new(function));
            placed.push((place, function.clone()));
            all.push(function.clone());
            functions.push(function);
            devices.push(virtio);
            vectors.push(interrupt);
        }
        let shown = pages.clone().into_iter().map(|page| Box::new(page) as Box<dyn Page>);
        let root = Root::new(all.into_iter().zip(shown));
        Self { root, window: Window::new(WINDOW, placed.into()), pages, functions, devices, vectors }
    }

    fn write(&mut self, device: u8, at: u64, data: &[u8]) {
        self.root.write(u64::from(device % 4) * 8 * PAGE + at, data);
    }

    fn apply(&mut self, op: Op<'_>) {
        let near = |at: Result<u8, u64>| at.map_or_else(|anywhere| anywhere % PAGE, u64::from);
        let index = |device: u8| usize::from(device) % DEVICES;
        match op {
            Op::Write { device, at, data } => self.write(device, near(at), data),
            Op::Read { device, at, len } => {
                let mut data = [0; 256];
                let at = u64::from(device % 4) * 8 * PAGE + near(at);
                self.root.read(at, &mut data[..len.into()]);
            }
            Op::Place { device, base, on } => {
                let base = base.map_or_else(|it| it, |at| WINDOW + u64::from(at) % (ROOM + 1) * REGION);
                self.write(device, 0x10, &base.to_le_bytes());
                self.write(device, 4, &[if on { 6 } else { 4 }, 0]);
            }
            Op::Control { device, enable, mask } => {
                let (_, at) = capabilities(&*self.functions[index(device)].lock().unwrap())[0];
                let control = if enable { ENABLE } else { 0 } | if mask { MASK_ALL } else { 0 };
                self.write(index(device) as u8 + 1, at as u64 + 2, &control.to_le_bytes());
            }
            Op::Vector { device, vector, address, data, masked } => {
                let mut function = self.functions[index(device)].lock().unwrap();
                let entry = TABLE + 16 * u64::from(vector % 4);
                let address = 0xfee0_0000 ^ u64::from(address) << 12;
                function.write(entry, &address.to_le_bytes());
                function.write(entry + 8, &data.to_le_bytes());
                function.write(entry + 12, &u32::from(masked).to_le_bytes());
            }
            Op::Access { region, offset, write, data } => {
                let at = u64::from(region) % (ROOM + 1) * REGION + u64::from(offset);
                let mut bytes = [0; 80];
                let len = data.len().min(bytes.len());
                if write {
                    self.window.write(at, &data[..len]);
                } else {
                    self.window.read(at, &mut bytes[..len]);
                }
            }
            Op::Signal { device, queue } => {
                let cause = devices::virtio::Cause::Queue(u16::from(queue) % 3);
                self.vectors[index(device)].signal(cause);
            }
            Op::Reload => self.reload(),
        }
    }

    fn reload(&mut self) {
        let saved = self.root.save().unwrap();
        self.root.load(saved.clone()).unwrap();
        assert_eq!(self.root.save().unwrap(), saved);
        for device in &self.devices {
            let mut device = device.lock().unwrap();
            let saved = device.save().unwrap();
            device.load(saved).unwrap();
            device.resume();
        }
    }

    fn check(&mut self) {
        for (index, page) in self.pages.iter().enumerate() {
            let mut bytes = [0; LEN];
            self.root.read(index as u64 * 8 * PAGE, &mut bytes);
            assert_eq!(page.bytes(), bytes, "what function {index} shows");
        }
        for function in &self.functions {
            let mut function = function.lock().unwrap();
            let (_, at) = capabilities(&*function)[0];
            let control = u16::from_le_bytes(function.config().array(at + 2));
            let mut pending = [0; 4];
            function.read(PENDING, &mut pending);
            for vector in 0..3 {
                let mut entry = [0; 4];
                function.read(TABLE + 16 * vector + 12, &mut entry);
                let open = control & (ENABLE | MASK_ALL) == ENABLE && entry[0] == 0;
                assert!(!open || pending[0] & 1 << vector == 0, "vector {vector} waits for nothing");
            }
        }
    }
}

/// One input.
pub fn run(data: &[u8]) {
    lines_logged();
    let mut board = Board::new(&memory());
    for op in each(data, MOST_OPS) {
        board.apply(op);
        board.check();
    }
}
