//! Features that are not offered, not in time, or not enough (virtio 1.2 §2.2 and §3.1.1).

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_mmio::*;

use super::attack;
use crate::virtio::testing::{MODERN, UP};

#[test]
fn what_is_not_offered_is_not_accepted() {
    attack("not offered", |driver| {
        let offered = driver.offered();
        for bit in 0..64 {
            let accepted = driver.negotiate(1 << VIRTIO_F_VERSION_1 | 1 << bit);
            assert_eq!(accepted, offered & 1 << bit != 0, "bit {bit}");
        }
        assert!(!driver.negotiate(u64::MAX));
    });
}

#[test]
fn a_legacy_driver_is_not_accepted() {
    attack("no VERSION_1", |driver| {
        let offered = driver.offered();
        for features in [0, offered & !(1 << VIRTIO_F_VERSION_1)] {
            assert!(!driver.negotiate(features), "{features:#x}");
            driver.set(VIRTIO_MMIO_STATUS, UP);
            assert_eq!(driver.status(), 0x3);
        }
    });
}

#[test]
fn features_end_with_their_acceptance() {
    attack("late", |driver| {
        assert!(driver.negotiate(MODERN));
        for status in [0xb, UP] {
            driver.set(VIRTIO_MMIO_STATUS, status);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, u32::MAX);
            assert_eq!(driver.status(), status);
        }
    });
    attack("early", |driver| {
        for status in [0, 1] {
            driver.set(VIRTIO_MMIO_STATUS, status);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, 1);
        }
        driver.set(VIRTIO_MMIO_STATUS, 0x3);
        driver.set(VIRTIO_MMIO_STATUS, 0xb);
        assert_eq!(driver.status(), 0x3, "what was written before DRIVER does not count");
    });
}

#[test]
fn pages_that_there_are_not_offer_nothing_and_take_nothing() {
    attack("pages", |driver| {
        for page in [2, 3, 0x20, 0x8000_0000, u32::MAX] {
            driver.set(VIRTIO_MMIO_DEVICE_FEATURES_SEL, page);
            assert_eq!(driver.get(VIRTIO_MMIO_DEVICE_FEATURES), 0, "{page:#x}");
            assert!(driver.negotiate(MODERN));
            for status in [0, 1, 3] {
                driver.set(VIRTIO_MMIO_STATUS, status);
            }
            for (page, bits) in [(0, 0), (1, 1), (page, u32::MAX)] {
                driver.set(VIRTIO_MMIO_DRIVER_FEATURES_SEL, page);
                driver.set(VIRTIO_MMIO_DRIVER_FEATURES, bits);
            }
            driver.set(VIRTIO_MMIO_STATUS, 0xb);
            assert_eq!(driver.status(), 0xb, "{page:#x}");
        }
    });
}
