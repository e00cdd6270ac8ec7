//! A driver that goes on while the device serves: what it has read it does not read again, and it comes to an end.

use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::{Bytes, GuestAddress};

use super::every;
use crate::GuestMemory;
use crate::testing::Random;
use crate::virtio::testing::devices::Later;
use crate::virtio::testing::{
    BUFFERS, Driver, INDIRECT, MODERN, NEXT, UP, WRITE, every_queue_serves, lines_logged, watched,
};
use crate::virtio::{Error, Kind, Queues, Served, VirtioDevice};

/// The queue size of a driver that asks for no other.
const SIZE: u16 = 64;
/// How often the device serves while the other processor writes.
const ROUNDS: usize = 3000;

/// Writes descriptors, table entries and avail indices of queue 0 until `stop`, some of them good.
fn scribble(memory: &GuestMemory, [desc, avail, _]: [u64; 3], seed: u64, stop: &AtomicBool) {
    let mut random = Random::new(seed);
    while !stop.load(Ordering::Relaxed) {
        let slot = random.below(u64::from(SIZE));
        let (at, value): (u64, [u8; 2]) = match random.below(8) {
            0 => (avail + 2, (random.next() as u16).to_le_bytes()),
            1..3 => (avail + 4 + 2 * slot, (random.below(80) as u16).to_le_bytes()),
            3 => (desc + 16 * slot + 12, [random.below(8) as u8, 0]),
            4 => (desc + 16 * slot + 14, (random.below(80) as u16).to_le_bytes()),
            5 => (desc + 16 * slot + 8, (random.next() as u16).to_le_bytes()),
            // The upper half of the address: in memory or nowhere.
            6 => (desc + 16 * slot + 4, (random.below(2) as u16).to_le_bytes()),
            _ => (desc + 16 * slot + 2, (0x20 + random.below(0x12) as u16).to_le_bytes()),
        };
        memory.write_obj(value, GuestAddress(at)).unwrap();
    }
}

#[test]
fn a_processor_that_rewrites_the_rings_meanwhile_does_no_harm() {
    for (device, transport) in every() {
        watched(device.name, || {
            let mut driver = device.driver(transport);
            let (memory, rings, stop) = (driver.memory.clone(), driver.rings(0), AtomicBool::new(false));
            driver.start(0);
            std::thread::scope(|scope| {
                scope.spawn(|| scribble(&memory, rings, 7, &stop));
                for round in 0..ROUNDS {
                    if driver.status() != UP {
                        assert!(lines_logged() <= 4);
                        driver.start(0);
                    }
                    // Chains of one to three, so that there is something to take apart.
                    let parts = [(BUFFERS, 64, false), (BUFFERS + 256, 64, true), (BUFFERS + 512, 9, true)];
                    driver.add(0, &parts[..1 + round % 3]);
                    driver.lock().serve(0);
                    driver.lock().serve_source(0);
                }
                stop.store(true, Ordering::Relaxed);
            });
            // The descriptors named any part of RAM.
            driver.allow(0, 3 << 20);
            driver.assert_contract(device.request);
        });
    }
}

/// Offers a chain, has it held, writes over its descriptors, and has it completed: only the first reading counts.
#[test]
fn a_descriptor_counts_as_it_was_when_it_was_taken() {
    let mut driver = Driver::new(|_| Box::<Later>::default());
    driver.start(0);
    let table = BUFFERS + 0x8_0000;
    driver.write(BUFFERS, b"good");
    driver.table(table, &[(BUFFERS, 4, NEXT, 1), (BUFFERS + 0x100, 4, WRITE, 0)]);
    driver.descriptor(0, 0, (table, 32, INDIRECT, 0));
    driver.offer(0, 0);
    driver.kick(0);
    // Written raw: what these name the device must not touch.
    for at in [table, table + 16, driver.rings(0)[0]] {
        driver.write(at, &(BUFFERS + 0x200).to_le_bytes());
        driver.write(at + 8, &[0xff; 8]);
    }
    driver.serve_sources();
    assert_eq!(driver.used(0), [(0, 4)]);
    assert_eq!(driver.read(BUFFERS + 0x100, 4), b"good");
    driver.assert_contract(every_queue_serves);
}

/// Plays the driver too: for each chain it takes, it makes another one available.
struct Fed(u64);

impl VirtioDevice for Fed {
    fn name(&self) -> &str {
        "fed"
    }

    fn kind(&self) -> Kind {
        Kind { id: 0x1003, module: "none" }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 64]
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        queues.each(index, |memory, _chain| {
            let avail: u16 = memory.read_obj(GuestAddress(self.0 + 2)).unwrap();
            if index == 0 {
                memory.write_obj(avail.wrapping_add(1), GuestAddress(self.0 + 2)).unwrap();
            }
            Served::Used(0)
        })
    }
}

#[test]
fn a_queue_that_is_filled_as_it_is_emptied_leaves_the_others_their_turn() {
    watched("feeding", || {
        let mut driver = Driver::new(|_| Box::new(Fed(0)));
        let avail = driver.rings(0)[1];
        driver = Driver::new(|_| Box::new(Fed(avail)));
        driver.start(0);
        // Every entry of the ring is a descriptor of its own.
        for head in 0..SIZE {
            driver.descriptor(0, head, (BUFFERS, 4, 0, 0));
            driver.write(avail + 4 + 2 * u64::from(head), &head.to_le_bytes());
        }
        driver.set_avail(0, 1);
        for round in 1..=100 {
            assert!(driver.lock().serve(0), "there is always more");
            assert_eq!(driver.used_index(0), SIZE.wrapping_mul(round));
            assert_eq!(driver.lock().take_unserved(), [0]);
            let head = driver.add(1, &[(BUFFERS, 4, false)]);
            driver.lock().serve(1);
            assert_eq!(driver.used(1), [(head, 0)]);
        }
        assert_eq!(driver.status(), UP);
        assert!(driver.negotiate(MODERN), "it can be reset in the middle of it");
        assert!(!driver.lock().serve(0));
    });
}
