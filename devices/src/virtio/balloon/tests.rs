//! What goes back to the host, and that nothing else does.

use std::sync::Arc;

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_STATUS,
};

use super::super::testing::{BUFFERS, CANARY, Driver, RAM, UP};
use super::*;

/// Where the guest writes its lists.
const LIST: u64 = BUFFERS + 0xf_0000;
const PAGE_SIZE: u64 = PAGE as u64;

fn driver() -> (Driver, Arc<Target>) {
    let target = Arc::new(Target::new().unwrap());
    let mut driver = Driver::new(|_| Box::new(Balloon::new(target.clone())));
    driver.start(DEFLATE_ON_OOM | REPORTING);
    (driver, target)
}

fn inflate(driver: &mut Driver, pages: &[u32]) {
    let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
    driver.write(LIST, &bytes);
    let head = driver.add(INFLATE, &[(LIST, bytes.len() as u32, false)]);
    driver.kick(INFLATE);
    assert_eq!(driver.used(INFLATE), [(head, 0)]);
}

/// Whether `len` bytes from `address` on are all `value`.
fn all(driver: &Driver, address: u64, len: u64, value: u8) -> bool {
    driver.read(address, len as usize).iter().all(|byte| *byte == value)
}

#[test]
fn reported_pages_are_dropped_and_nothing_beside_them() {
    for queue in [2, 3, 4] {
        let (mut driver, target) = driver();
        let head = driver
            .add(queue, &[(BUFFERS + PAGE_SIZE, 0x2000, true), (BUFFERS + 0x1_0000, PAGE_SIZE as u32, true)]);
        driver.kick(queue);
        assert_eq!(driver.used(queue), [(head, 0)]);
        assert!(all(&driver, BUFFERS, PAGE_SIZE, CANARY));
        assert!(all(&driver, BUFFERS + PAGE_SIZE, 0x2000, 0));
        assert!(all(&driver, BUFFERS + 0x3000, 0xd000, CANARY));
        assert!(all(&driver, BUFFERS + 0x1_0000, PAGE_SIZE, 0));
        assert!(all(&driver, BUFFERS + 0x1_1000, 0xe_f000, CANARY));
        assert_eq!(target.given_back(), 0x3000);
    }
}

#[test]
fn only_whole_pages_within_a_report_are_dropped() {
    let (mut driver, target) = driver();
    for (at, len) in [(1, 0x1fff), (1, 0x2fff), (0, 0xfff), (0xfff, 2), (8, 0x1000)] {
        driver.add(2, &[(BUFFERS + 0x1_0000 + at, len, true)]);
    }
    driver.kick(2);
    assert_eq!(driver.used(2).len(), 5);
    assert_eq!(target.given_back(), 0x3000);
    assert!(all(&driver, BUFFERS + 0x1_0000, PAGE_SIZE, CANARY));
    assert!(all(&driver, BUFFERS + 0x1_1000, 0x2000, 0));
    assert!(all(&driver, BUFFERS + 0x1_3000, 0xd000, CANARY));
}

#[test]
fn a_report_of_buffers_that_the_device_may_only_read_drops_nothing() {
    let (mut driver, target) = driver();
    driver.add(2, &[(BUFFERS, 0x4000, false)]);
    driver.kick(2);
    assert_eq!((driver.used(2).len(), target.given_back()), (1, 0));
    assert!(all(&driver, BUFFERS, 0x4000, CANARY));
}

#[test]
fn a_report_of_all_memory_many_times_over_is_carried_out() {
    let (mut driver, _) = driver();
    let region = (RAM[1].0, RAM[1].1 as u32, true);
    for _ in 0..4 {
        driver.add(2, &[region; 16]);
    }
    driver.kick(2);
    assert_eq!(driver.used(2).len(), 4);
    assert!(all(&driver, RAM[1].0, RAM[1].1 as u64, 0));
    // Nothing below, where the rings are and the canary behind them.
    assert!(all(&driver, 0x8_0000, 0x8_0000, CANARY));
}

#[test]
fn inflated_pages_are_dropped_in_any_order() {
    let (mut driver, target) = driver();
    let first = (BUFFERS / PAGE_SIZE) as u32;
    inflate(&mut driver, &[first + 3, first + 2, first + 9, first + 2]);
    assert_eq!(target.given_back(), 3 * PAGE_SIZE);
    for page in 0..12 {
        let dropped = [2, 3, 9].contains(&page);
        let value = if dropped { 0 } else { CANARY };
        assert!(all(&driver, BUFFERS + page * PAGE_SIZE, PAGE_SIZE, value), "page {page}");
    }
}

#[test]
fn page_numbers_outside_ram_are_ignored() {
    let (mut driver, target) = driver();
    // In the hole, just above either region, at the end of what 32 bits can name.
    inflate(&mut driver, &[0x100, 0x1ff, 0x300, 0x301, 0x8000_0000, u32::MAX, 0x2ff]);
    assert_eq!(target.given_back(), PAGE_SIZE);
    assert!(all(&driver, 0x2f_f000, PAGE_SIZE, 0));
    assert!(all(&driver, 0x8_0000, 0x8_0000, CANARY));
}

#[test]
fn a_request_of_any_length_costs_a_bounded_number_of_pages() {
    let (mut driver, target) = driver();
    // As many pages as are taken, none of them RAM; one more, which is; and the canary for the rest of a megabyte.
    let list = vec![0xff; 4 * MOST_PAGES];
    driver.write(LIST, &list);
    driver.write(LIST + list.len() as u64, &((BUFFERS / PAGE_SIZE) as u32).to_le_bytes());
    driver.add(INFLATE, &[(LIST, list.len() as u32 + 4, false), (BUFFERS, 0xf_0000, false)]);
    // Empty, cut off in the middle of a number, and not for reading at all.
    driver.add(INFLATE, &[(LIST, 0, false)]);
    driver.add(INFLATE, &[(LIST, 3, false)]);
    driver.add(INFLATE, &[(LIST, 64, true)]);
    driver.kick(INFLATE);
    assert_eq!(driver.used(INFLATE).len(), 4);
    assert_eq!(target.given_back(), 0);
    assert_eq!(driver.status(), UP);
}

#[test]
fn deflating_changes_no_memory() {
    let (mut driver, _) = driver();
    driver.write(LIST, &0x200u32.to_le_bytes());
    let head = driver.add(DEFLATE, &[(LIST, 4, false)]);
    driver.kick(DEFLATE);
    assert_eq!(driver.used(DEFLATE), [(head, 0)]);
    assert!(all(&driver, BUFFERS, PAGE_SIZE, CANARY));
}

#[test]
fn the_driver_learns_of_a_new_target_once() {
    let (mut driver, target) = driver();
    let generation = driver.get(VIRTIO_MMIO_CONFIG_GENERATION);
    driver.interrupts();
    target.set(0x1234);
    driver.serve_source(0);
    driver.serve_source(0);
    assert_eq!(driver.interrupts(), 1);
    assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_CONFIG);
    assert_ne!(driver.get(VIRTIO_MMIO_CONFIG_GENERATION), generation);
    assert_eq!(driver.config(0, 8), [0x34, 0x12, 0, 0, 0, 0, 0, 0]);
    // A driver that comes later finds it there.
    driver.start(REPORTING);
    assert_eq!(driver.config(0, 4), [0x34, 0x12, 0, 0]);
}

#[test]
fn only_actual_is_written_and_only_whole() {
    let (mut driver, target) = driver();
    target.set(7);
    driver.serve_source(0);
    let config = u64::from(VIRTIO_MMIO_CONFIG);
    driver.window().write(config + 4, &[1, 2, 3, 4]);
    for (offset, len) in [(0, 4), (0, 8), (3, 4), (5, 4), (4, 8), (4, 3), (8, 4), (u64::MAX - 0x200, 4)] {
        driver.window().write(config + offset, &[0xee; 8][..len]);
    }
    assert_eq!(driver.config(0, 8), [7, 0, 0, 0, 1, 2, 3, 4]);
    driver.start(0);
    assert_eq!(driver.config(0, 8), [7, 0, 0, 0, 0, 0, 0, 0]);
}
