//! Queues that are not there, or are set up as no driver would (virtio 1.2 §4.2.2 and §4.2.3.2).

use virtio_bindings::virtio_mmio::*;
use virtio_queue::QueueT;

use super::{QUEUE_REGISTERS, assert_needs_reset, attack, every, start_with};
use crate::virtio::testing::{BUFFERS, Driver, MODERN, UP, lines_logged, watched};

#[test]
fn a_queue_that_is_not_there_reads_as_nothing() {
    attack("QueueSel", |driver| {
        let count = driver.lock().queue_count() as u32;
        for stage in [0xb, UP] {
            assert!(driver.negotiate(MODERN));
            driver.set(VIRTIO_MMIO_STATUS, stage);
            for index in [count, count + 1, 0xffff, 0x1_0000, 0x8000_0000, u32::MAX] {
                driver.set(VIRTIO_MMIO_QUEUE_SEL, index);
                for register in QUEUE_REGISTERS {
                    driver.set(register, 1);
                    assert_eq!(driver.get(register), 0, "queue {index:#x}, register {register:#x}");
                }
                assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
                driver.kick(index as usize);
            }
            assert_eq!(driver.status(), stage);
        }
    });
}

#[test]
fn a_size_that_is_none_is_not_taken() {
    attack("QueueNum", |driver| {
        let max = driver.lock().queue(0).map_or(0, |queue| queue.max_size().into());
        for size in [0, 3, 17, max + 1, max * 2, 0xffff, 0x1_0000, 0x1_0010, 0x8000_0000, u32::MAX] {
            start_with(driver, |driver| driver.set(VIRTIO_MMIO_QUEUE_NUM, size));
            assert_eq!(driver.status(), UP);
            // It has 64 entries as before: so many fit.
            (0..64).for_each(|_| _ = driver.add(0, &[(BUFFERS, 1, true)]));
            driver.kick(0);
            driver.serve_sources();
            assert_eq!(driver.used(0).len(), 64, "{size:#x}");
        }
    });
}

#[test]
fn a_queue_of_one_entry_works() {
    for (device, transport) in every() {
        watched(device.name, || {
            let mut driver = device.driver(transport);
            driver.size = 1;
            driver.start(0);
            for _ in 0..5 {
                let head = driver.add(0, &[(BUFFERS, 1, true)]);
                driver.kick(0);
                driver.serve_sources();
                assert_eq!(driver.used(0).len(), 1, "{}", device.name);
                assert_eq!(head, 0);
            }
        });
    }
}

#[test]
fn a_queue_that_is_up_stays_as_it_is() {
    attack("rewritten", |driver| {
        for value in [0, 1, 2, 0x10, 0x1000, BUFFERS as u32, u32::MAX] {
            driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
            for register in QUEUE_REGISTERS {
                driver.set(register, value);
            }
            let head = driver.add(0, &[(BUFFERS, 1, true)]);
            driver.kick(0);
            driver.serve_sources();
            assert_eq!(driver.used(0).first().map(|it| it.0), Some(head), "{value:#x}");
            driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 1);
        }
    });
}

/// Where no part of a queue can be.
const NOWHERE: [u64; 8] = [0, 0xf_fff0, 0x10_0000, 0x1f_fff0, 0x30_0000, 0xd000_0000, 1 << 63, u64::MAX - 15];

const PARTS: [(u32, &str); 3] = [
    (VIRTIO_MMIO_QUEUE_DESC_LOW, "descriptors"),
    (VIRTIO_MMIO_QUEUE_AVAIL_LOW, "avail ring"),
    (VIRTIO_MMIO_QUEUE_USED_LOW, "used ring"),
];

fn set_address(driver: &mut Driver, register: u32, address: u64) {
    driver.set(register, address as u32);
    driver.set(register + 4, (address >> 32) as u32);
}

#[test]
fn a_ring_that_is_not_in_ram_needs_a_reset() {
    for (part, name) in PARTS {
        for address in NOWHERE {
            attack(name, |driver| {
                start_with(driver, |driver| set_address(driver, part, address));
                assert_needs_reset(driver, &format!("{name} at {address:#x}"));
            });
        }
    }
}

#[test]
fn a_ring_at_an_odd_address_is_not_taken() {
    attack("alignment", |driver| {
        for (part, name) in PARTS {
            start_with(driver, |driver| {
                set_address(driver, part, 0);
                set_address(driver, part, BUFFERS + 1);
            });
            assert_needs_reset(driver, name);
        }
        lines_logged();
    });
}

#[test]
fn a_queue_that_is_ready_before_it_has_rings_needs_a_reset() {
    attack("no rings", |driver| {
        assert!(driver.negotiate(MODERN));
        driver.set(VIRTIO_MMIO_QUEUE_SEL, 0);
        driver.set(VIRTIO_MMIO_QUEUE_READY, 1);
        driver.set(VIRTIO_MMIO_STATUS, UP);
        assert_needs_reset(driver, "no rings");
    });
}

#[test]
fn rings_that_overlap_do_no_harm() {
    for places in [[0; 3], [0, 0, 0x1000], [0, 0x1000, 0x1000], [0, 0x1000, 0x1004], [0, 4, 8]] {
        attack("overlap", |driver| {
            start_with(driver, |driver| {
                for ((part, _), place) in PARTS.iter().zip(places) {
                    set_address(driver, *part, BUFFERS + place);
                }
                driver.allow(BUFFERS, 0x2000);
            });
            for _ in 0..10 {
                driver.prod();
            }
        });
    }
}

#[test]
fn rings_at_the_ends_of_ram_work() {
    for (device, transport) in every() {
        watched(device.name, || {
            let mut driver = device.driver(transport);
            // 16 entries: 256 bytes of descriptors, 38 of avail ring, 134 of used ring.
            let [desc, avail, used] = [0xf_ff00, 0x20_0000, 0x2f_ff78];
            start_with(&mut driver, |driver| {
                driver.set(VIRTIO_MMIO_QUEUE_NUM, 16);
                for ((part, _), address) in PARTS.iter().zip([desc, avail, used]) {
                    set_address(driver, *part, address);
                }
                driver.allow(used, 134);
                driver.write(avail, &[0; 38]);
                driver.write(used, &[0; 134]);
            });
            assert_eq!(driver.status(), UP, "{}", device.name);
            driver.table(desc + 15 * 16, &[(BUFFERS + 0x1000, 8, 2, 0)]);
            for entry in 0..16 {
                driver.write(avail + 4 + 2 * entry, &15u16.to_le_bytes());
                driver.write(avail + 2, &(entry as u16 + 1).to_le_bytes());
                driver.kick(0);
                driver.serve_sources();
                assert_eq!(driver.read(used + 2, 2), (entry as u16 + 1).to_le_bytes(), "{}", device.name);
            }
            driver.assert_contract(device.request);
        });
    }
}

#[test]
fn writing_addresses_for_ever_logs_nothing() {
    attack("flood", |driver| {
        assert!(driver.negotiate(MODERN));
        // A host without io_uring was told of.
        lines_logged();
        for value in 0..1000 {
            for register in QUEUE_REGISTERS {
                driver.set(register, value * 2 + 1);
            }
        }
        assert_eq!(lines_logged(), 0);
    });
}
