//! A hostile driver against the core: every case through each real transport, with every device behind it, and the
//! contract checked after each ([`Driver::assert_contract`]).

mod chains;
mod devices;
mod features;
mod pci;
mod queues;
mod race;
mod registers;
mod reset;
mod rings;
mod state;
mod status;

use virtio_bindings::virtio_mmio::*;

use super::testing::{Driver, MODERN, NEEDS_RESET, Transport, UP, heap, watched};
use devices::{DEVICES, Device};

/// What the device may allocate in one case: the harness's own lists are in it.
const MOST_HEAP: usize = 1 << 20;

/// The registers that describe a queue, of which only the last can be read.
const QUEUE_REGISTERS: [u32; 8] = [
    VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_READY,
];

/// Each device over each transport.
fn every() -> impl Iterator<Item = (Device, Transport)> {
    Transport::ALL.into_iter().flat_map(|transport| DEVICES.into_iter().map(move |it| (it, transport)))
}

/// Runs `attack` against each device over each transport, which is up, and holds it to its contract.
fn attack(name: &str, attack: impl Fn(&mut Driver)) {
    attack_each(name, |_, driver| attack(driver));
}

/// As [`attack`], which is given the device too.
fn attack_each(name: &str, attack: impl Fn(&Device, &mut Driver)) {
    Transport::ALL.into_iter().for_each(|transport| attack_over(transport, name, &attack));
}

/// As [`attack_each`], over one transport.
fn attack_over(transport: Transport, name: &str, attack: impl Fn(&Device, &mut Driver)) {
    for device in DEVICES {
        let name = format!("{name} of {} over {transport:?}", device.name);
        watched(&name, || {
            let mut driver = device.driver(transport);
            driver.start(0);
            let ((), peak) = heap::peak(|| attack(&device, &mut driver));
            assert!(peak <= MOST_HEAP, "{name}: {peak} bytes");
            driver.assert_contract(device.request);
        });
    }
}

/// The device has told the driver, once, that it needs a reset.
fn assert_needs_reset(driver: &mut Driver, what: &str) {
    assert_eq!(driver.status(), UP | NEEDS_RESET, "{what}");
    let causes = driver.get(VIRTIO_MMIO_INTERRUPT_STATUS);
    assert_eq!(causes & VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_CONFIG, "{what}");
}

/// Sets queue 0 up as `change` says, on top of what a driver does, and brings the device up.
fn start_with(driver: &mut Driver, change: impl FnOnce(&mut Driver)) {
    assert!(driver.negotiate(MODERN));
    driver.set_up(0, 64);
    change(driver);
    driver.set(VIRTIO_MMIO_STATUS, UP);
    driver.serve();
}
