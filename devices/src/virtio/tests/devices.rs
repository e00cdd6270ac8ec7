//! The devices that the suite attacks: such as only tests have, and every real one. Each has a host that does its part at
//! once, so that what queue 0 is given comes back at once, or as soon as the device's sources are served.

use std::fs::File;
use std::io;
use std::sync::{Arc, OnceLock, Weak};

use crate::GuestMemory;
use crate::device::{self, State};
use crate::screen::{Input, InputSink, Screen, Size};
use crate::virtio::balloon::{Balloon, Target};
use crate::virtio::block::Block;
use crate::virtio::block::disk::Disk;
use crate::virtio::block::engine;
use crate::virtio::console::{Console, Host, INPUT_LIMIT, Port};
use crate::virtio::fs::{Fs, Share};
use crate::virtio::gpu::Gpu;
use crate::virtio::input::{InputDevice, Inputs};
use crate::virtio::net::{Backend, HEADER, Net, Room};
use crate::virtio::rng::Rng;
use crate::virtio::testing::devices::{Echo, Later};
use crate::virtio::testing::{Driver, Transport, every_queue_serves, memory, queue_serves};
use crate::virtio::{Chain, Error, Kind, Queues, Source, VirtioDevice};

/// A device under attack.
pub struct Device {
    pub name: &'static str,
    pub make: fn(&GuestMemory) -> Box<dyn VirtioDevice>,
    /// What it has to serve after a reset.
    pub request: fn(&mut Driver),
    /// How much of a short chain on queue 0, its first bytes no request that the device knows, it fills: so many bytes
    /// of what there is room for.
    pub fills: fn(u32) -> u32,
}

impl Device {
    /// A driver of a new one, which is not up.
    pub fn driver(&self, transport: Transport) -> Driver {
        Driver::over(transport, memory(), self.make)
    }
}

pub const DEVICES: [Device; 10] = [
    Device { name: "rng", make: |_| Box::new(Rng), request: every_queue_serves, fills: |room| room },
    Device {
        name: "echo",
        make: |_| Box::<Echo>::default(),
        request: every_queue_serves,
        fills: |room| room,
    },
    Device {
        name: "later",
        make: |_| Box::<Later>::default(),
        request: every_queue_serves,
        fills: |room| room,
    },
    Device { name: "balloon", make: balloon, request: every_queue_serves, fills: |_| 0 },
    // What it does not know ends with a status of a byte.
    Device { name: "block", make: block, request: every_queue_serves, fills: |_| 1 },
    // Without several ports there are no control queues.
    Device { name: "console", make: console, request: |driver| serve(driver, 2), fills: |room| room },
    // What is too short to be a request is told so by a header of 16 bytes.
    Device {
        name: "fs",
        make: fs,
        request: every_queue_serves,
        fills: |room| if room < 16 { 0 } else { 16 },
    },
    // What is too short to be a command is refused by a header of 24 bytes.
    Device { name: "gpu", make: gpu, request: every_queue_serves, fills: |room| room.min(24) },
    Device {
        name: "input",
        make: input,
        request: every_queue_serves,
        fills: |room| if room < 8 { 0 } else { 8 },
    },
    // No packet's header fits.
    Device { name: "net", make: net, request: every_queue_serves, fills: |_| 0 },
];

fn serve(driver: &mut Driver, queues: usize) {
    (0..queues).for_each(|index| queue_serves(driver, index));
}

fn balloon(_memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    let target = Arc::new(Target::new().expect("the host has files"));
    target.set(1000);
    Box::new(Balloon::new(target))
}

/// A disk of 64 sectors, with io_uring if the host has it.
fn block(memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    const LEN: u64 = 64 * 512;
    let image = tempfile::tempfile().expect("the host has files");
    image.set_len(LEN).expect("the host has room");
    let disk = Arc::new(Disk::new(image, LEN));
    let spawn = Box::new(|work| std::thread::Builder::new().spawn(work).map(drop));
    let engine = engine::start(&disk, memory, 256, spawn).expect("the host has files");
    Box::new(Block::new("disk0", disk, engine, Arc::default(), 2))
}

/// An empty folder, which is gone and may be written to.
fn fs(memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    let folder = tempfile::tempdir().expect("the host has room");
    let root = File::open(folder.path()).expect("the host has files");
    let mut share = Share::new("suite", root.into(), true);
    share.limits.descriptors = 64;
    let spawn = Box::new(|work| std::thread::Builder::new().spawn(work).map(drop));
    Box::new(
        Fs::new("fs0", Arc::new(share), memory.clone(), Arc::default(), spawn).expect("the host has files"),
    )
}

/// Has more input whenever its port takes some.
struct Typist(Arc<OnceLock<Weak<Port>>>);

impl Host for Typist {
    fn output_ready(&self) {}

    fn changed(&self) {
        if let Some(port) = self.0.get().and_then(Weak::upgrade) {
            // One more than there is room for: it is told when there is again.
            port.receive(&[b'k'; INPUT_LIMIT + 1]);
        }
    }
}

fn console(_memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    let place = Arc::default();
    let port = Arc::new(Port::new("", Box::new(Typist(Arc::clone(&place)))).expect("the host has files"));
    place.set(Arc::downgrade(&port)).expect("it is set once");
    Box::new(Console::new(Some(port), Vec::new()))
}

fn gpu(_memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    let size = Size::new(1024, 768).expect("a screen can have it");
    Box::new(Gpu::new(Arc::new(Screen::new(size).expect("the host has files"))))
}

/// A pointer whose wheel turns whenever it is served.
struct Turning(InputDevice, Inputs);

impl VirtioDevice for Turning {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn kind(&self) -> Kind {
        self.0.kind()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.0.queue_sizes()
    }

    fn config(&self) -> &[u8] {
        self.0.config()
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.write_config(offset, data);
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.0.sources()
    }

    fn negotiated(&mut self, features: u64) {
        self.0.negotiated(features);
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if index == 0 {
            // Two events each: enough for every buffer that the queue can hold.
            self.1.send(&[Input::Wheel { vertical: 1, horizontal: 1 }; 32]);
        }
        self.0.serve(index, queues)
    }

    fn serve_source(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.0.serve_source(index, queues)
    }

    fn reset(&mut self) {
        self.0.reset();
    }

    fn save(&self) -> Result<State, device::Error> {
        self.0.save()
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        self.0.load(state)
    }
}

fn input(_memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    let inputs = Inputs::new().expect("the host has files");
    Box::new(Turning(inputs.pointer(), inputs))
}

/// Has a packet whenever it is asked for one, and takes all that are sent.
struct Flood;

impl Backend for Flood {
    fn features(&self) -> u64 {
        0
    }

    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    fn receive(&mut self, _pair: usize, room: Room<'_>) -> io::Result<usize> {
        let packet = [0x77; HEADER + 14];
        let placed = room.chains[0].writable.write(room.memory, 0, &packet);
        room.beyond[..packet.len() - placed].copy_from_slice(&packet[placed..]);
        Ok(packet.len())
    }

    fn send(&mut self, _pair: usize, _memory: &GuestMemory, chains: &[Chain]) -> io::Result<usize> {
        Ok(chains.len())
    }
}

fn net(_memory: &GuestMemory) -> Box<dyn VirtioDevice> {
    Box::new(Net::new("net0", Box::new(Flood), [2, 0, 0, 0, 0, 1]))
}
