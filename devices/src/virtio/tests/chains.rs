//! Chains of descriptors that are looped, missing, out of memory or too long (virtio 1.2 §2.7.5).

use super::{assert_needs_reset, attack, attack_each};
use crate::virtio::testing::{BUFFERS, Driver, INDIRECT, NEXT, Raw, UP, WRITE};

/// Where indirect tables are.
const TABLE: u64 = BUFFERS + 0x8_0000;
/// The queue size of a driver that asks for no other.
const SIZE: u16 = 64;

/// Offers a chain of these descriptors, from 0 on, to each device, which has to refuse it.
fn refused(name: &str, descriptors: &[Raw]) {
    attack(name, |driver| {
        driver.table(driver.rings(0)[0], descriptors);
        driver.offer(0, 0);
        driver.kick(0);
        assert_needs_reset(driver, name);
        assert_eq!(driver.used(0), [], "{name}");
    });
}

/// As [`refused`], in an indirect table.
fn refused_indirect(name: &str, descriptors: &[Raw]) {
    attack(name, |driver| {
        driver.table(TABLE, descriptors);
        driver.descriptor(0, 0, (TABLE, 16 * descriptors.len() as u32, INDIRECT, 0));
        driver.offer(0, 0);
        driver.kick(0);
        assert_needs_reset(driver, name);
        assert_eq!(driver.used(0), [], "{name}");
    });
}

/// `count` descriptors of `len` bytes, each naming the next; the device writes the last.
fn line(count: u16, len: u32) -> Vec<Raw> {
    (1..=count).map(|next| (BUFFERS, len, if next < count { NEXT } else { WRITE }, next)).collect()
}

#[test]
fn a_chain_without_an_end_needs_a_reset() {
    let endless = |next: &[u16]| -> Vec<Raw> { next.iter().map(|it| (BUFFERS, 1, NEXT, *it)).collect() };
    for (name, next) in [
        ("self loop", &[0][..]),
        ("loop of two", &[1, 0]),
        ("loop behind the head", &[1, 2, 1]),
        ("next is the queue's size", &[SIZE]),
        ("next is the last number", &[1, u16::MAX]),
    ] {
        refused(name, &endless(next));
        refused_indirect(name, &endless(next));
    }
    let mut whole_queue = line(SIZE, 1);
    whole_queue[usize::from(SIZE) - 1] = (BUFFERS, 1, NEXT, 0);
    refused("a loop as long as the queue", &whole_queue);
}

#[test]
fn a_chain_may_be_as_long_as_the_queue_and_no_longer() {
    attack("as long as the queue", |driver| {
        driver.table(driver.rings(0)[0], &line(SIZE, 1));
        driver.offer(0, 0);
        driver.kick(0);
        assert_eq!(driver.status(), UP);
    });
    refused_indirect("one more than the queue", &line(SIZE + 1, 1));
    refused_indirect("as long as a table can be", &line(4096, 1));
}

/// Pieces of memory that are not all RAM, at 0 to 1 MiB and 2 to 3 MiB.
const NOT_RAM: [(u64, u32); 12] = [
    (0xf_ffff, 2),
    (0x10_0000, 1),
    (0x1f_ffff, 1),
    (0x1f_ffff, 2),
    (0x2f_ffff, 2),
    (0x30_0000, 1),
    (0, 0x10_0001),
    (0, u32::MAX),
    (0xd000_0000, 4),
    (u64::MAX, 1),
    (u64::MAX, 2),
    (u64::MAX - 15, 0x20),
];

#[test]
fn a_buffer_that_is_not_all_ram_needs_a_reset() {
    for (address, len) in NOT_RAM {
        for flags in [0, WRITE] {
            let name = format!("{len:#x} bytes at {address:#x}, flags {flags}");
            refused(&name, &[(address, len, flags, 0)]);
            refused(&name, &[(BUFFERS, 1, NEXT | flags, 1), (address, len, flags, 0)]);
            refused_indirect(&name, &[(address, len, flags, 0)]);
        }
    }
}

#[test]
fn the_first_and_the_last_byte_of_ram_are_buffers() {
    attack_each("edges of RAM", |device, driver| {
        for address in [0, 0xf_ffff, 0x20_0000, 0x2f_ffff] {
            let head = driver.add(0, &[(BUFFERS + 8, 1, false), (address, 1, true)]);
            driver.kick(0);
            driver.serve_sources();
            assert_eq!(driver.used(0), [(head, (device.fills)(1))], "{address:#x}");
        }
    });
}

#[test]
fn lengths_that_add_up_to_more_than_a_number_cost_no_memory() {
    let most = (0, 0x10_0000, NEXT, 1);
    let huge: Vec<Raw> = (1..=SIZE).map(|next| (0, u32::MAX, NEXT, next)).collect();
    refused("lengths of 4 GiB", &huge);
    refused("4 GiB behind RAM", &[most, (0, u32::MAX, 0, 0)]);
    // All of it is RAM, again and again: the sum runs over where a table is long enough.
    attack("a megabyte 64 times", |driver| {
        driver.table(driver.rings(0)[0], &line(SIZE, 0x10_0000));
        driver.offer(0, 0);
        driver.kick(0);
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn a_readable_buffer_behind_a_writable_one_needs_a_reset() {
    let mixed = [(BUFFERS, 4, WRITE | NEXT, 1), (BUFFERS + 16, 4, 0, 0)];
    refused("mixed", &mixed);
    refused_indirect("mixed", &mixed);
}

#[test]
fn an_indirect_table_that_is_no_table_needs_a_reset() {
    let good: Raw = (BUFFERS, 16, WRITE, 0);
    for (name, address, len) in [
        ("no bytes", TABLE, 0),
        ("half a descriptor", TABLE, 8),
        ("one and a bit", TABLE, 17),
        ("more than a chain can name", TABLE, 0x10_0000),
        ("4 GiB", TABLE, 0xffff_fff0),
        ("in the hole", 0x10_0000, 16),
        ("half in the hole", 0xf_fff8, 16),
        ("behind RAM", 0x30_0000, 16),
        ("around the end", u64::MAX - 7, 16),
    ] {
        attack(name, |driver| {
            driver.table(TABLE, &[good]);
            driver.descriptor(0, 0, (address, len, INDIRECT, 0));
            driver.offer(0, 0);
            driver.kick(0);
            // A table of 65,536 is refused for its size though its first entry is good.
            assert_needs_reset(driver, name);
        });
    }
    refused_indirect("nested", &[(TABLE + 0x1000, 16, INDIRECT, 0)]);
    refused_indirect("nested in itself", &[(TABLE, 16, INDIRECT, 0)]);
    refused_indirect("nested behind a good one", &[(BUFFERS, 1, NEXT, 1), (TABLE, 16, INDIRECT, 0)]);
}

/// Adds a request in an indirect table whose own descriptor has `flags`; answers how much of each chain that came back
/// is filled.
fn indirect(driver: &mut Driver, table: u64, flags: u16) -> Vec<u32> {
    driver.table(table, &[(BUFFERS, 8, NEXT, 1), (BUFFERS + 0x100, 8, WRITE, 0)]);
    driver.descriptor(0, 0, (table, 32, INDIRECT | flags, 5));
    driver.offer(0, 0);
    driver.kick(0);
    driver.serve_sources();
    driver.used(0).iter().map(|(_, len)| *len).collect()
}

#[test]
fn an_indirect_table_is_read_where_it_is() {
    // Across pages, and at the last bytes of RAM.
    for table in [TABLE, TABLE + 0xff0, 0xf_ffe0, 0x2f_ffe0] {
        attack_each("indirect", |device, driver| {
            assert_eq!(indirect(driver, table, 0), [(device.fills)(8)], "{table:#x}");
        });
    }
    // A driver must not set NEXT or WRITE on it; a device has nothing to do with either.
    for flags in [NEXT, WRITE] {
        attack_each("indirect and more", |device, driver| {
            assert_eq!(indirect(driver, TABLE, flags), [(device.fills)(8)], "{flags}");
        });
    }
}

#[test]
fn an_indirect_table_that_was_not_negotiated_does_no_harm() {
    attack("not negotiated", |driver| {
        // `start` has not asked for VIRTIO_F_INDIRECT_DESC.
        indirect(driver, TABLE, 0);
    });
}
