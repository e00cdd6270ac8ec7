//! The device status against a model of it: every value written in every state (virtio 1.2 §2.1 and §3.1.1).

use virtio_bindings::virtio_mmio::*;

use super::{attack, every};
use crate::virtio::testing::{Driver, MODERN, NEEDS_RESET, Transport, UP, watched};

const FAILED: u32 = 0x80;
/// ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK are set in this order, one upon the other.
const LADDER: [u32; 5] = [0, 0x1, 0x3, 0xb, 0xf];
/// The states that a driver can get a device into.
const STATES: [u32; 10] = [
    0,
    0x1,
    0x3,
    0xb,
    0xf,
    FAILED,
    FAILED | 0x3,
    FAILED | 0xf,
    NEEDS_RESET | 0xf,
    FAILED | NEEDS_RESET | 0xf,
];

/// What becomes of `state` when the driver, whose features are `acceptable` or not, writes `value`.
fn model(state: u32, value: u32, acceptable: bool) -> u32 {
    let step = |status| LADDER.iter().position(|it| *it == status);
    if value == 0 {
        return 0;
    }
    if value & FAILED != 0 {
        return state | FAILED;
    }
    // NEEDS_RESET is the device's to set. One that has failed, or asked for a reset, waits for that.
    let (Some(from), Some(to)) = (step(state), step(value & !NEEDS_RESET)) else { return state };
    let to = if acceptable || from >= 3 { to } else { to.min(2) };
    LADDER[from.max(to)]
}

/// Brings the device into `state`, with features that it accepts or not, as far as there are any.
fn reach(driver: &mut Driver, state: u32, acceptable: bool) {
    driver.set(VIRTIO_MMIO_STATUS, 0);
    let steps = state & 0xf;
    for status in LADDER.into_iter().filter(|it| *it != 0 && *it <= 3 && *it <= steps) {
        driver.set(VIRTIO_MMIO_STATUS, status);
    }
    if steps >= 3 {
        // A driver beyond FEATURES_OK has had its features accepted.
        let features = if acceptable || steps > 3 { MODERN } else { MODERN | 1 << 40 };
        for page in [0, 1] {
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, (features >> (page * 32)) as u32);
        }
    }
    if steps >= 0xb {
        driver.set(VIRTIO_MMIO_STATUS, 0xb);
        driver.set_up(0, 16);
    }
    if steps == 0xf {
        driver.set(VIRTIO_MMIO_STATUS, UP);
    }
    if state & NEEDS_RESET != 0 {
        driver.set_avail(0, 0x8000);
        driver.kick(0);
    }
    if state & FAILED != 0 {
        driver.set(VIRTIO_MMIO_STATUS, FAILED);
    }
    assert_eq!(driver.status(), state);
}

#[test]
fn every_value_in_every_state_does_what_the_model_says() {
    for (device, transport) in every() {
        let mut driver = device.driver(transport);
        for state in STATES {
            for acceptable in [true, false] {
                watched(device.name, || {
                    // The status is a byte over PCI.
                    let wide = [0x100, 0x10f, 0xffff_ff0f, u32::MAX];
                    let wide = wide.iter().filter(|_| transport == Transport::Mmio);
                    for value in (0..0x100).chain(wide.copied()) {
                        reach(&mut driver, state, acceptable);
                        driver.set(VIRTIO_MMIO_STATUS, value);
                        // Features that are taken were written only where the driver bit was set.
                        let acceptable = acceptable && state & 0xf >= 3;
                        let expected = model(state, value, acceptable);
                        let what =
                            format!("{}: {value:#x} in {state:#x}, features {acceptable}", device.name);
                        assert_eq!(driver.status(), expected, "{what}");
                    }
                });
            }
        }
        crate::virtio::testing::lines_logged();
        driver.assert_contract(device.request);
    }
}

#[test]
fn a_device_without_a_queue_is_up_and_does_nothing() {
    attack("no queue", |driver| {
        assert!(driver.negotiate(MODERN));
        driver.set(VIRTIO_MMIO_STATUS, UP);
        assert_eq!(driver.status(), UP);
        driver.prod();
        assert_eq!((driver.interrupts(), driver.used_index(0)), (0, 0));
    });
}

#[test]
fn a_failed_device_does_not_serve() {
    attack("failed", |driver| {
        driver.set(VIRTIO_MMIO_STATUS, FAILED);
        driver.add(0, &[(crate::virtio::testing::BUFFERS, 4, true)]);
        driver.prod();
        assert_eq!(driver.status(), UP | FAILED);
        assert_eq!((driver.interrupts(), driver.used_index(0)), (0, 0));
    });
}

#[test]
fn a_kick_before_the_driver_is_up_is_lost() {
    attack("early", |driver| {
        for state in [0, 0x1, 0x3, 0xb] {
            reach(driver, state, true);
            driver.prod();
            assert_eq!((driver.status(), driver.interrupts()), (state, 0));
        }
    });
}
