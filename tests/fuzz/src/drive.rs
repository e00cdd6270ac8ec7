//! Drives any virtio device with bytes: what a driver does, well or badly, and what the host sends meanwhile. Then the
//! device is held to its contract.

use arbitrary::Arbitrary;
use devices::GuestMemory;
use devices::device::Device;
use devices::virtio::VirtioDevice;
use devices::virtio::testing::{
    BUFFERS, Driver, INDIRECT, MODERN, NEXT, RINGS, RINGS_STEP, Raw, Transport, WRITE, lines_logged, memory,
};

use crate::{bytes, each, list};

/// What one input does at most.
const MOST_OPS: usize = 256;
/// Lines that a device may log between two resets.
const MOST_LINES: u32 = 4;

/// The most blocks of 512 bytes in one part of a chain.
const MOST_BLOCKS: u8 = 8;

/// Where a driver puts what the device reads, where it has room for what the device writes, and its indirect tables.
const READABLE: Area = Area { start: BUFFERS, len: 0x4_0000 };
const WRITABLE: Area = Area { start: BUFFERS + 0x4_0000, len: 0x8_0000 };
const TABLES: Area = Area { start: BUFFERS + 0xe_0000, len: 0x1_0000 };

/// One thing that a driver, or the host, does.
#[derive(Arbitrary, Debug)]
pub enum Op<'a> {
    /// Resets the device and brings it up with those of these features that it offers, and this size of queues.
    Start {
        /// The features.
        features: u64,
        /// The size's logarithm.
        size: u8,
    },
    /// Makes a well-formed chain available.
    Chain {
        /// On which queue.
        queue: u8,
        /// Whether its parts are in an indirect table.
        indirect: bool,
        /// What it is made of.
        #[arbitrary(with = list)]
        parts: Vec<Part<'a>>,
    },
    /// Kicks a queue and has the device serve.
    Kick(u8),
    /// Has the device look at a source.
    Source(u8),
    /// The host sends bytes to where the device listens.
    Host(#[arbitrary(with = bytes)] &'a [u8]),
    /// Waits for everything in flight, and saves and loads the device.
    Drain,
    /// Asks for an interrupt at the next used entry.
    Want(u8),
    /// Writes a register.
    Set {
        /// Which, counted in registers.
        register: u8,
        /// The value.
        value: u32,
    },
    /// Reads a register.
    Get(u8),
    /// An access of any kind.
    Access {
        /// Where in the window, and behind it.
        offset: u16,
        /// Whether it is a write.
        write: bool,
        /// The bytes written, or as many as are read.
        #[arbitrary(with = bytes)]
        data: &'a [u8],
    },
    /// Writes a descriptor.
    Descriptor {
        /// Of which queue.
        queue: u8,
        /// Which.
        at: u8,
        /// Its address, as [`address`] reads it, its length and flags, and the next one.
        raw: (u64, u32, u8, u8),
    },
    /// Makes a head available, whatever it is.
    Offer(u8, u16),
    /// Writes an avail index.
    Avail(u8, u16),
}

/// One part of a chain.
#[derive(Arbitrary, Debug)]
pub enum Part<'a> {
    /// For the device to read.
    Bytes(#[arbitrary(with = bytes)] &'a [u8]),
    /// Small numbers for the device to read, each in two bytes or, if so said, in four: what headers are made of.
    Numbers(bool, #[arbitrary(with = bytes)] &'a [u8]),
    /// So many times 512 bytes, of which there are [`MOST_BLOCKS`] at most, and whether the device writes.
    Blocks(u8, bool),
    /// So many bytes for the device to write.
    Room(u16),
    /// Anywhere: the address as [`address`] reads it, the length, and whether the device writes.
    Anywhere(u64, u32, bool),
}

/// A part of RAM that is used round and round.
struct Area {
    start: u64,
    len: u64,
}

impl Area {
    /// So many bytes behind `used`, which then are used too.
    fn take(&self, used: &mut u64, len: u64) -> u64 {
        let len = len.next_multiple_of(16).min(self.len);
        if *used + len > self.len {
            *used = 0;
        }
        let at = self.start + *used;
        *used += len;
        at
    }
}

/// Makes addresses of numbers so that each kind comes up: in RAM, at an edge, anywhere.
fn address(number: u64) -> u64 {
    let rest = number >> 2;
    match number % 4 {
        0 => BUFFERS + rest % (1 << 20),
        1 => rest % (1 << 20),
        2 => [0, 0xf_ffff, 0x10_0000, 0x1f_ffff, 0x2f_fff0, 0x30_0000, u64::MAX][rest as usize % 7],
        _ => rest,
    }
}

/// Drives the device that `make` makes with `data`, over the transport that its last byte chooses. `host` sends bytes to where the device listens; `request` asks the
/// device for something that it has to serve after all this, as
/// [`every_queue_serves`](devices::virtio::testing::every_queue_serves) does.
pub fn drive(
    data: &[u8],
    make: impl FnOnce(&GuestMemory) -> Box<dyn VirtioDevice>,
    mut host: impl FnMut(&[u8]),
    request: impl FnOnce(&mut Driver),
) {
    let transport = Transport::ALL[usize::from(data.last().is_some_and(|last| last % 2 != 0))];
    let mut drive = Drive { driver: Driver::over(transport, memory(), make), used: [0; 3] };
    drive.driver.start(0);
    let mut lines = 0;
    for op in each(data, MOST_OPS) {
        let reset = matches!(op, Op::Start { .. });
        match op {
            Op::Host(bytes) => host(bytes),
            op => drive.apply(op),
        }
        let more = lines_logged();
        lines = match drive.driver.status() {
            0 => 0,
            _ if reset => more,
            _ => lines + more,
        };
        assert!(lines <= MOST_LINES, "it logged {lines} lines");
    }
    drive.driver.size = 64;
    drive.driver.assert_contract(request);
}

/// Saves the device, and loads it into itself, if it can be saved. Once that is done it makes no difference any more.
pub fn reload(driver: &mut Driver) {
    let mut virtio = driver.lock();
    // The guest may have what cannot be saved.
    let Ok(saved) = virtio.save() else { return };
    virtio.load(saved).unwrap();
    let again = virtio.save().unwrap();
    virtio.load(again.clone()).unwrap();
    assert_eq!(virtio.save().unwrap(), again);
    virtio.resume();
    drop(virtio);
    driver.serve();
}

struct Drive {
    driver: Driver,
    /// How much of each area is used.
    used: [u64; 3],
}

impl Drive {
    fn apply(&mut self, op: Op<'_>) {
        let count = self.driver.lock().queue_count();
        let at = |queue: u8| usize::from(queue) % count;
        match op {
            Op::Start { features, size } => self.start(features, size),
            Op::Chain { queue, indirect, parts } => self.chain(at(queue), indirect, &parts),
            Op::Kick(queue) => self.driver.kick(queue.into()),
            Op::Source(source) => self.source(source.into()),
            Op::Host(_) => {}
            Op::Drain => reload(&mut self.driver),
            Op::Want(queue) => self.driver.want_interrupts(at(queue)),
            Op::Set { register, value } => {
                self.access(u64::from(register) * 4, true, &value.to_le_bytes());
            }
            Op::Get(register) => _ = self.driver.get(u32::from(register) * 4),
            Op::Access { offset, write, data } => self.access(offset.into(), write, data),
            Op::Descriptor { queue, at: index, raw } => self.descriptor(at(queue), index, raw),
            Op::Offer(queue, head) => self.driver.offer(at(queue), head),
            Op::Avail(queue, index) => self.driver.set_avail(at(queue), index),
        }
    }

    fn start(&mut self, features: u64, size: u8) {
        self.driver.size = 1 << (size % 9);
        let offered = self.driver.offered();
        self.driver.start(features & offered & !MODERN);
    }

    fn source(&mut self, source: usize) {
        let count = self.driver.lock().device().sources().len();
        if source < count {
            self.driver.serve_source(source);
        }
    }

    fn access(&mut self, offset: u64, write: bool, data: &[u8]) {
        // Rings that the driver puts anywhere: what descriptors there name is anybody's guess.
        if write && self.driver.status() & 0xf == 0xb {
            self.driver.allow(0, 3 << 20);
        }
        let mut bytes = [0; 64];
        let len = data.len().min(bytes.len());
        if write {
            self.driver.window().write(offset, &data[..len]);
        } else {
            self.driver.window().read(offset, &mut bytes[..len]);
        }
        self.driver.serve();
    }

    fn chain(&mut self, queue: usize, indirect: bool, parts: &[Part<'_>]) {
        let mut buffers: Vec<_> = parts.iter().map(|part| self.part(part)).collect();
        // What the device writes comes last (virtio 1.2 §2.7.4.2).
        buffers.sort_by_key(|(_, _, writable)| *writable);
        if !indirect {
            self.driver.add(queue, &buffers);
            return;
        }
        let last = buffers.len();
        let raw = (1..).zip(&buffers).map(|(next, (address, len, writable))| -> Raw {
            let more = if usize::from(next) < last { NEXT } else { 0 };
            (*address, *len, more | if *writable { WRITE } else { 0 }, next)
        });
        let raw: Vec<Raw> = raw.collect();
        let table = TABLES.take(&mut self.used[2], 16 * raw.len() as u64);
        self.driver.table(table, &raw);
        let head = self.driver.add(queue, &[]);
        self.driver.descriptor(queue, head, (table, 16 * raw.len() as u32, INDIRECT, 0));
    }

    fn part(&mut self, part: &Part<'_>) -> (u64, u32, bool) {
        match part {
            Part::Bytes(bytes) => self.readable(bytes),
            Part::Numbers(wide, numbers) => {
                let width = if *wide { 4 } else { 2 };
                let bytes = numbers
                    .iter()
                    .flat_map(|number| u32::from(*number).to_le_bytes().into_iter().take(width));
                self.readable(&bytes.collect::<Vec<u8>>())
            }
            Part::Blocks(count, true) => self.writable(512 * u32::from(count % (MOST_BLOCKS + 1))),
            Part::Blocks(count, false) => {
                self.readable(&vec![*count; 512 * usize::from(count % (MOST_BLOCKS + 1))])
            }
            Part::Room(len) => self.writable((*len).into()),
            Part::Anywhere(number, len, writable) => {
                let address = address(*number);
                self.note(address, *len, *writable);
                (address, *len, *writable)
            }
        }
    }

    fn readable(&mut self, bytes: &[u8]) -> (u64, u32, bool) {
        let address = READABLE.take(&mut self.used[0], bytes.len() as u64);
        self.driver.write(address, bytes);
        (address, bytes.len() as u32, false)
    }

    fn writable(&mut self, len: u32) -> (u64, u32, bool) {
        (WRITABLE.take(&mut self.used[1], len.into()), len, true)
    }

    fn descriptor(&mut self, queue: usize, at: u8, (number, len, flags, next): (u64, u32, u8, u8)) {
        let (address, flags) = (address(number), u16::from(flags));
        if flags & INDIRECT != 0 {
            // What that memory says as a table is anybody's guess.
            self.driver.allow(0, 3 << 20);
        }
        self.note(address, len, flags & WRITE != 0);
        self.driver.descriptor(queue, at.into(), (address, len, flags, next.into()));
    }

    /// A device that writes over descriptors may write anywhere next.
    fn note(&self, address: u64, len: u32, writable: bool) {
        let end = address.saturating_add(len.into());
        let meets = |start: u64, len: u64| address < start + len && start < end;
        let rings = meets(RINGS, RINGS_STEP * self.driver.lock().queue_count() as u64);
        if writable && (rings || meets(TABLES.start, TABLES.len)) {
            self.driver.allow(0, 3 << 20);
        }
    }
}
