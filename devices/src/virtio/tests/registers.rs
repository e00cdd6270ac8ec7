//! Accesses that no driver makes: of any width, anywhere in the window, against its direction (virtio 1.2 §4.2.2).

use virtio_bindings::virtio_mmio::*;

use super::{QUEUE_REGISTERS, attack, attack_over, every};
use crate::testing::{Random, storm};
use crate::virtio::testing::devices::Echo;
use crate::virtio::testing::{Driver, Transport, UP, lines_logged, watched};

const READ_ONLY: [u32; 13] = [
    VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_VERSION,
    VIRTIO_MMIO_DEVICE_ID,
    VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_QUEUE_NUM_MAX,
    VIRTIO_MMIO_INTERRUPT_STATUS,
    VIRTIO_MMIO_SHM_LEN_LOW,
    VIRTIO_MMIO_SHM_LEN_HIGH,
    VIRTIO_MMIO_SHM_BASE_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_CONFIG_GENERATION,
    VIRTIO_MMIO_CONFIG - 8,
];

/// Beside those of queues.
const WRITE_ONLY: [u32; 6] = [
    VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL,
    VIRTIO_MMIO_QUEUE_SEL,
    VIRTIO_MMIO_QUEUE_NOTIFY,
    VIRTIO_MMIO_INTERRUPT_ACK,
];

#[test]
fn registers_keep_to_their_direction() {
    attack_over(Transport::Mmio, "direction", |_, driver| {
        for register in READ_ONLY {
            let before = driver.get(register);
            driver.set(register, !before);
            assert_eq!(driver.get(register), before, "{register:#x}");
        }
        for register in WRITE_ONLY.iter().chain(&QUEUE_REGISTERS[..7]) {
            assert_eq!(driver.get(*register), 0, "{register:#x}");
        }
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn registers_are_four_bytes_wide_and_aligned() {
    attack_over(Transport::Mmio, "width", |_, driver| {
        let mut wide = [0xee; 8];
        for width in [0, 1, 2, 3, 5, 8] {
            driver.window().write(VIRTIO_MMIO_STATUS.into(), &[0; 8][..width]);
            driver.window().read(VIRTIO_MMIO_MAGIC_VALUE.into(), &mut wide[..width]);
            assert!(wide[..width].iter().all(|byte| *byte == 0), "{width}");
        }
        for offset in [1, 2, 3] {
            driver.set(VIRTIO_MMIO_STATUS + offset, 0);
            driver.set(VIRTIO_MMIO_STATUS - offset, 0);
            assert_eq!(driver.get(VIRTIO_MMIO_MAGIC_VALUE + offset), 0);
        }
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn the_configuration_space_ends_where_it_does() {
    attack("config", |driver| {
        let len = driver.lock().device().config().len() as u64;
        let start = driver.config_start();
        for at in [0, len.saturating_sub(1), len, len + 1, 0xeff, 0xfff, 1 << 32, u64::MAX - start - 1] {
            let mut data = [0xee; 8];
            driver.window().write(start + at, &[0x55; 8]);
            driver.window().read(start + at, &mut data);
            let config = driver.lock().device().config().to_vec();
            let beyond = std::iter::repeat(0);
            let expected: Vec<u8> =
                config.into_iter().chain(beyond).skip(at.min(len) as usize).take(8).collect();
            assert_eq!(data[..], expected, "{at:#x}");
        }
        driver.window().write(u64::MAX, &[0; 8]);
        driver.window().read(u64::MAX, &mut [0; 8]);
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn the_driver_writes_what_the_device_leaves_it_of_the_configuration_space() {
    let mut driver = Driver::new(|_| Box::<Echo>::default());
    driver.start(0);
    driver.window().write(u64::from(VIRTIO_MMIO_CONFIG) + 9, &[0x55; 8]);
    assert_eq!(driver.config(8, 8), [0, 0x55, 0x55, 0x55, 0, 0, 0, 0]);
}

#[test]
fn any_access_anywhere_does_no_harm() {
    for (device, transport) in every() {
        let mut driver = device.driver(transport);
        driver.start(0);
        watched(device.name, || {
            // With the rings where RAM begins: what the storm sets up is no queue, or one in the driver's own RAM.
            driver.allow(0, 3 << 20);
            storm(driver.window(), 0x110, 5, |_| {});
        });
        driver.prod();
        lines_logged();
        driver.assert_contract(device.request);
    }
}

/// Registers in any order, most of the values such as have a meaning.
#[test]
fn registers_in_any_order_do_no_harm() {
    for (device, transport) in every() {
        let mut driver = device.driver(transport);
        let mut random = Random::new(11);
        for _ in 0..100 {
            watched(device.name, || {
                driver.start(0);
                driver.allow(0, 3 << 20);
                for _ in 0..300 {
                    let register = random.below(0x44) as u32 * 4;
                    let value = match random.below(6) {
                        0 => random.next() as u32,
                        1 => 1 << random.below(32),
                        2 => 0x1000 * random.below(0x300) as u32,
                        3 => [0, 1, 3, 0xb, 0xf][random.below(5) as usize],
                        _ => random.below(4) as u32,
                    };
                    driver.set(register, value);
                    driver.get(register);
                    driver.serve();
                }
                lines_logged();
                driver.assert_contract(device.request);
            });
        }
    }
}
