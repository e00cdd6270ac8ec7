//! Resets at any time: nothing is touched and nobody interrupted afterwards (virtio 1.2 §2.4).

use virtio_bindings::virtio_mmio::*;

use super::{attack, every};
use crate::virtio::testing::{BUFFERS, alone, files_and_threads, heap};

#[test]
fn a_reset_ends_what_is_in_flight() {
    attack("in flight", |driver| {
        for count in [1, 7, 64] {
            driver.start(0);
            driver.want_interrupts(0);
            (0..count).for_each(|_| _ = driver.add(0, &[(BUFFERS, 64, true)]));
            driver.kick(0);
            driver.set(VIRTIO_MMIO_STATUS, 0);
            driver.interrupts();
            let (ram, ring) = (driver.read(BUFFERS, 64), driver.used_index(0));
            driver.prod();
            driver.lock().drain();
            assert_eq!(driver.read(BUFFERS, 64), ram);
            assert_eq!((driver.used_index(0), driver.interrupts()), (ring, 0));
            assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        }
    });
}

#[test]
fn a_reset_forgets_the_queues() {
    attack("forgets", |driver| {
        driver.set(VIRTIO_MMIO_STATUS, 0);
        let count = driver.lock().queue_count() as u32;
        for index in 0..count {
            driver.set(VIRTIO_MMIO_QUEUE_SEL, index);
            assert_eq!(driver.get(VIRTIO_MMIO_QUEUE_READY), 0);
        }
        // The rings are still in RAM, with a request in them.
        driver.add(0, &[(BUFFERS, 4, true)]);
        for status in [1, 3] {
            driver.set(VIRTIO_MMIO_STATUS, status);
            driver.prod();
        }
        assert_eq!((driver.used_index(0), driver.interrupts()), (0, 0));
    });
}

#[test]
fn settling_completes_what_is_in_flight() {
    attack("settle", |driver| {
        let heads: Vec<u16> = (0..10).map(|_| driver.add(0, &[(BUFFERS, 4, true)])).collect();
        driver.kick(0);
        driver.lock().drain();
        let mut used: Vec<u16> = driver.used(0).iter().map(|(head, _)| *head).collect();
        used.sort_unstable();
        assert_eq!(used, heads);
    });
}

#[test]
fn a_thousand_resets_leave_no_file_thread_or_memory_behind() {
    alone("virtio::tests::reset::a_thousand_resets_leave_no_file_thread_or_memory_behind", || {
        for (device, transport) in every() {
            let mut driver = device.driver(transport);
            let mut cycle = |count: usize| {
                driver.start(0);
                (0..count % 5).for_each(|_| _ = driver.add(0, &[(BUFFERS, 64, true)]));
                driver.kick(0);
                driver.set(VIRTIO_MMIO_STATUS, 0);
            };
            (0..10).for_each(&mut cycle);
            let before = (files_and_threads(), heap::live());
            (0..1000).for_each(&mut cycle);
            assert_eq!((files_and_threads(), heap::live()), before, "{}", device.name);
            driver.assert_contract(device.request);
        }
    });
}
