//! A hostile driver against the core: every case through the real transport, with every small device behind it, and the
//! contract checked after each ([`Driver::assert_contract`]).

mod chains;
mod features;
mod queues;
mod race;
mod registers;
mod reset;
mod rings;
mod status;

use virtio_bindings::virtio_mmio::*;

use super::VirtioDevice;
use super::rng::Rng;
use super::testing::devices::{Echo, Later};
use super::testing::{Driver, MODERN, NEEDS_RESET, UP, every_queue_serves, heap, watched};

/// What the device may allocate in one case: the harness's own lists are in it.
const MOST_HEAP: usize = 1 << 20;

type Make = fn() -> Box<dyn VirtioDevice>;

/// One that answers at once, one that does so on several queues, one that answers later.
const DEVICES: [(&str, Make); 3] =
    [("rng", || Box::new(Rng)), ("echo", || Box::<Echo>::default()), ("later", || Box::<Later>::default())];

/// Runs `attack` against each device, which is up, and holds it to its contract.
fn attack(name: &str, attack: impl Fn(&mut Driver)) {
    for (device, make) in DEVICES {
        watched(&format!("{name} of {device}"), || {
            let mut driver = Driver::new(|_| make());
            driver.start(0);
            let ((), peak) = heap::peak(|| attack(&mut driver));
            assert!(peak <= MOST_HEAP, "{name} of {device}: {peak} bytes");
            driver.assert_contract(every_queue_serves);
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
