//! What only a PCI function has: its structures, its vectors, and the window in its configuration space (virtio 1.2 §4.1).

use super::{attack_over, every};
use crate::pci::Function;
use crate::pci::config::LEN;
use crate::pci::msix::{ENABLE, MASK_ALL};
use crate::pci::testing::capabilities;
use crate::virtio::VirtioDevice;
use crate::virtio::testing::devices::Echo;
use crate::virtio::testing::{BUFFERS, Driver, Transport, UP, memory, queue_serves};
use crate::virtio::transport::pci::{COMMON, DEVICE, ISR, NOTIFY, PENDING, REGION, TABLE};

fn echo() -> Driver {
    let mut driver = Driver::over(Transport::Pci, memory(), |_| Box::<Echo>::default());
    driver.start(0);
    driver
}

/// Where the capability with this id, and type if it is virtio's, is.
fn capability(driver: &mut Driver, id: u8, kind: Option<u8>) -> usize {
    let (function, _) = driver.function();
    let all = capabilities(function);
    let is = |(known, at): &&(u8, usize)| {
        *known == id && kind.is_none_or(|kind| function.config().bytes()[at + 3] == kind)
    };
    all.iter().find(is).expect("the function has it").1
}

fn read<const LEN: usize>(driver: &mut Driver, offset: u64) -> [u8; LEN] {
    let mut data = [0xee; LEN];
    driver.window().read(offset, &mut data);
    data
}

fn set_control(driver: &mut Driver, control: u16) {
    let at = capability(driver, 0x11, None);
    driver.function().0.write_config(at as u64 + 2, &control.to_le_bytes());
}

fn mask(driver: &mut Driver, vector: u64, masked: bool) {
    driver.window().write(TABLE + 16 * vector + 12, &u32::from(masked).to_le_bytes());
}

/// Has the device use one buffer of queue 0, of which the driver wants to hear.
fn request(driver: &mut Driver) {
    driver.want_interrupts(0);
    driver.add(0, &[(BUFFERS, 4, true)]);
    driver.kick(0);
    driver.serve_sources();
}

#[test]
fn the_capabilities_say_where_the_structures_are() {
    let mut driver = echo();
    for (kind, offset, len) in [(1, COMMON, 0x38), (2, NOTIFY, 0x1000), (3, ISR, 1), (4, DEVICE, 0x1000)] {
        let at = capability(&mut driver, 9, Some(kind));
        let config = driver.function().0.config();
        assert_eq!(config.array(at + 4), [0u8; 4], "BAR 0");
        assert_eq!(config.array(at + 8), (offset as u32).to_le_bytes());
        assert_eq!(config.array(at + 12), u32::to_le_bytes(len));
    }
    let at = capability(&mut driver, 9, Some(2));
    assert_eq!(driver.function().0.config().array(at + 16), 4u32.to_le_bytes());
    let at = capability(&mut driver, 0x11, None);
    let vectors = driver.lock().queue_count() as u16 + 1;
    let config = driver.function().0.config();
    assert_eq!(u16::from_le_bytes(config.array(at + 2)), ENABLE | (vectors - 1));
    assert_eq!(config.array(at + 4), (TABLE as u32).to_le_bytes());
    assert_eq!(config.array(at + 8), (PENDING as u32).to_le_bytes());
}

#[test]
fn a_function_is_a_virtio_device_of_its_kind() {
    for (device, _) in every().filter(|(_, transport)| *transport == Transport::Pci) {
        let mut driver = device.driver(Transport::Pci);
        let id = driver.lock().device().kind().id as u16;
        let config = driver.function().0.config();
        assert_eq!(config.register(0), u32::from(0x1040 + id) << 16 | 0x1af4, "{}", device.name);
        assert_eq!(config.bytes()[0x3d], 0, "no INTx");
    }
}

#[test]
fn fields_are_read_and_written_whole() {
    attack_over(Transport::Pci, "width", |_, driver| {
        for offset in 0..0x60 {
            let whole = match offset {
                0x14 | 0x15 => 1,
                0x10 | 0x12 | 0x16..=0x1e if offset % 2 == 0 => 2,
                0..0x10 | 0x20..0x38 if offset % 4 == 0 => 4,
                _ => 0,
            };
            for len in (0..=8).filter(|len| *len != whole) {
                let mut data = [0xee; 8];
                driver.window().write(COMMON + offset, &[0; 8][..len]);
                driver.window().read(COMMON + offset, &mut data[..len]);
                assert!(data[..len].iter().all(|byte| *byte == 0), "{len} bytes at {offset:#x}");
            }
        }
        assert_eq!(driver.status(), UP);
    });
}

#[test]
fn a_kick_is_of_any_width_at_the_queue_s_own_address() {
    attack_over(Transport::Pci, "notify", |_, driver| {
        for len in [1, 2, 4, 8] {
            driver.add(0, &[(BUFFERS, 4, true)]);
            for offset in [1, 2, 3, 0x400, 0xffc, 0xfff] {
                driver.window().write(NOTIFY + offset, &[0xff; 8][..len]);
            }
            driver.serve();
            assert_eq!(driver.used_index(0), 0, "not at this address");
            driver.window().write(NOTIFY, &[0xff; 8][..len]);
            driver.serve();
            driver.serve_sources();
            assert_eq!(driver.used(0).len(), 1, "{len}");
            driver.start(0);
        }
    });
}

#[test]
fn a_vector_that_is_not_there_reads_back_as_none() {
    attack_over(Transport::Pci, "vectors", |_, driver| {
        let count = driver.lock().queue_count() as u16 + 1;
        for vector in [count, count + 1, 0x7ff, 0xfffe, 0xffff] {
            for field in [0x10, 0x1a] {
                driver.window().write(COMMON + 0x16, &[0, 0]);
                driver.window().write(COMMON + field, &vector.to_le_bytes());
                assert_eq!(read(driver, COMMON + field), [0xff; 2], "{vector:#x}");
            }
        }
        request(driver);
        assert_eq!(driver.interrupts(), 0);
        driver.window().write(COMMON + 0x16, &[0xff, 0xff]);
        driver.window().write(COMMON + 0x1a, &[0, 0]);
        assert_eq!(read(driver, COMMON + 0x1a), [0xff; 2], "a queue that is not there has none");
    });
}

#[test]
fn a_masked_vector_waits_and_is_sent_once_when_it_is_unmasked() {
    for all in [true, false] {
        attack_over(Transport::Pci, "masked", |_, driver| {
            driver.interrupts();
            if all {
                set_control(driver, ENABLE | MASK_ALL)
            } else {
                mask(driver, 1, true)
            }
            for _ in 0..3 {
                request(driver);
            }
            if driver.used(0).is_empty() {
                return;
            }
            assert_eq!(driver.interrupts(), 0);
            assert_eq!(read(driver, PENDING), [2, 0, 0, 0]);
            if all {
                set_control(driver, ENABLE)
            } else {
                mask(driver, 1, false)
            }
            assert_eq!((driver.interrupts(), read(driver, PENDING)), (1, [0; 4]));
            let routed = driver.function().1.counts().routed;
            for _ in 0..1000 {
                set_control(driver, 0);
                set_control(driver, ENABLE);
                mask(driver, 1, true);
                mask(driver, 1, false);
            }
            let counts = driver.function().1.counts();
            assert_eq!(counts.routed, routed, "no message has changed");
            assert_eq!(driver.interrupts(), 0);
        });
    }
}

#[test]
fn a_message_that_no_processor_takes_is_not_sent() {
    attack_over(Transport::Pci, "messages", |_, driver| {
        for address in [0, 0x1000, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, 1 << 46, u64::MAX] {
            driver.window().write(TABLE + 16, &address.to_le_bytes());
            driver.window().write(TABLE + 24, &u32::MAX.to_le_bytes());
            driver.interrupts();
            request(driver);
            assert_eq!(driver.interrupts(), 0, "{address:#x}");
            assert_eq!(driver.function().1.counts().routes[1], None, "{address:#x}");
        }
    });
}

#[test]
fn the_table_ends_where_it_does() {
    attack_over(Transport::Pci, "table", |_, driver| {
        let count = driver.lock().queue_count() as u64 + 1;
        let before = driver.function().1.counts().routed;
        for at in [16 * count, 16 * count + 8, 0x7ff8, REGION - TABLE] {
            driver.window().write(TABLE + at, &[0; 8]);
            assert_eq!(read(driver, TABLE + at), [0; 8], "{at:#x}");
        }
        // Whole registers only.
        for (at, len) in [(1, 4), (4, 8), (0, 1), (0, 2), (12, 1), (8, 3), (2, 2)] {
            driver.window().write(TABLE + at, &[0xff; 8][..len]);
        }
        assert_eq!(read(driver, TABLE), 0xfee0_0000u64.to_le_bytes());
        assert_eq!(read(driver, TABLE + 8), 0x40u64.to_le_bytes());
        driver.window().write(PENDING, &[0xff; 8]);
        assert_eq!(read(driver, PENDING), [0; 8]);
        assert_eq!(driver.function().1.counts().routed, before);
    });
}

#[test]
fn a_reset_forgets_vectors_and_what_waits() {
    attack_over(Transport::Pci, "reset", |_, driver| {
        set_control(driver, ENABLE | MASK_ALL);
        request(driver);
        driver.window().write(COMMON + 0x14, &[0]);
        set_control(driver, ENABLE);
        assert_eq!((driver.interrupts(), read(driver, PENDING)), (0, [0; 4]));
        assert_eq!((read(driver, COMMON + 0x10), read(driver, ISR)), ([0xff; 2], [0]));
    });
}

#[test]
fn the_isr_status_is_cleared_by_reading() {
    let mut driver = echo();
    request(&mut driver);
    assert_eq!(read(&mut driver, ISR), [1]);
    assert_eq!(read(&mut driver, ISR), [0]);
}

/// Writes the capability of type 5: BAR, offset and length.
fn aim(driver: &mut Driver, at: usize, bar: u8, offset: u32, len: u32) {
    let (function, _) = driver.function();
    function.write_config(at as u64 + 4, &[bar]);
    function.write_config(at as u64 + 12, &len.to_le_bytes());
    function.write_config(at as u64 + 8, &offset.to_le_bytes());
}

#[test]
fn the_region_can_be_reached_through_the_configuration_space() {
    let mut driver = echo();
    let at = capability(&mut driver, 9, Some(5));
    aim(&mut driver, at, 0, COMMON as u32 + 0x14, 1);
    assert_eq!(driver.function().0.config().array(at + 16), [0xf, 0, 0, 0]);
    aim(&mut driver, at, 0, COMMON as u32 + 0x16, 2);
    driver.function().0.write_config(at as u64 + 16, &[1, 0, 0xff, 0xff]);
    assert_eq!(read(&mut driver, COMMON + 0x16), [1, 0]);
    driver.add(0, &[(BUFFERS, 4, true)]);
    aim(&mut driver, at, 0, NOTIFY as u32, 2);
    driver.function().0.write_config(at as u64 + 16, &[0, 0]);
    driver.serve();
    assert_eq!(driver.used(0).len(), 1);
    aim(&mut driver, at, 0, ISR as u32, 1);
    assert_eq!(driver.function().0.config().array(at + 16), [1u8]);
    assert_eq!(read(&mut driver, ISR), [1], "it has not been read there");
}

#[test]
fn nothing_is_reached_that_is_not_there() {
    attack_over(Transport::Pci, "window", |_, driver| {
        let at = capability(driver, 9, Some(5));
        for (bar, offset, len) in [
            (0, 0x14, 0),
            (0, 0x14, 3),
            (0, 0x10, 8),
            (0, 0x14, u32::MAX),
            (1, 0x14, 1),
            (6, 0x14, 1),
            (0xff, 0x14, 1),
            (0, 0x15, 2),
            (0, REGION as u32, 1),
            (0, u32::MAX, 1),
        ] {
            aim(driver, at, bar, offset, len);
            driver.function().0.write_config(at as u64 + 16, &[0; 4]);
            assert_eq!(driver.status(), UP, "{bar}, {offset:#x}, {len:#x}");
        }
    });
}

#[test]
fn any_configuration_space_does_no_harm() {
    attack_over(Transport::Pci, "configuration", |device, driver| {
        let (function, _) = driver.function();
        let before = *function.config().bytes();
        for offset in 0..LEN as u64 + 8 {
            for len in 0..=8 {
                for byte in [0xff, 0, 0x55] {
                    function.write_config(offset, &[byte; 8][..len]);
                }
            }
        }
        function.write_config(u64::MAX, &[0; 8]);
        function.load_config(&before).expect("what cannot be written is as it was");
        // The window may have reached the status.
        driver.start(0);
        (device.request)(driver);
    });
}

#[test]
fn a_device_with_its_vectors_off_serves_all_the_same() {
    let mut driver = echo();
    set_control(&mut driver, 0);
    request(&mut driver);
    assert_eq!((driver.used(0).len(), driver.interrupts()), (1, 0));
    set_control(&mut driver, ENABLE);
    assert_eq!(driver.interrupts(), 1, "nothing is lost");
    queue_serves(&mut driver, 0);
    assert_eq!(driver.lock().device().name(), Echo::default().name());
}
