//! Devices that are saved and loaded: the new one is as the old one was, whatever the driver was about, and a file that
//! says something else does no harm.

use serde_json::{Value, json};
use virtio_bindings::virtio_mmio::*;

use super::{DEVICES, Device, attack_each, every, watched};
use crate::device::{Device as _, Error, State};
use crate::virtio::testing::{BUFFERS, Driver, MODERN, NEEDS_RESET, Transport, UP, lines_logged};

/// Reloads the driver's device, which can be saved.
fn reload(device: &Device, driver: &mut Driver) -> Value {
    driver.reload(device.make).unwrap().take().unwrap()
}

#[test]
fn a_device_is_the_same_after_it_was_saved_and_loaded_at_any_stage_of_its_driver() {
    for (device, transport) in every() {
        let mut driver = device.driver(transport);
        for status in [0, 1, 3, 0xb] {
            driver.set(VIRTIO_MMIO_STATUS, status);
            for selector in
                [VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_QUEUE_SEL]
            {
                driver.set(selector, status & 1);
            }
            // VERSION_1 is in the upper half.
            driver.set(VIRTIO_MMIO_DRIVER_FEATURES, status & 1);
            driver.set(VIRTIO_MMIO_QUEUE_NUM, 16);
            let before = registers(&mut driver);
            reload(&device, &mut driver);
            assert_eq!(registers(&mut driver), before, "{} with status {status}", device.name);
            assert_eq!(driver.status(), status, "{}", device.name);
        }
    }
}

fn registers(driver: &mut Driver) -> Vec<u32> {
    (0..0x140).step_by(4).map(|register| driver.get(register)).collect()
}

#[test]
fn a_loaded_device_goes_on_where_the_saved_one_was() {
    attack_each("reloaded", |device, driver| {
        for _ in 0..3 {
            (device.request)(driver);
            reload(device, driver);
            assert_eq!(driver.status(), UP);
        }
        (device.request)(driver);
    });
}

#[test]
fn requests_in_flight_are_completed_before_a_device_is_saved() {
    attack_each("in flight", |device, driver| {
        driver.want_interrupts(0);
        let heads: Vec<u16> = (0..10).map(|_| driver.add(0, &[(BUFFERS, 4, true)])).collect();
        driver.kick(0);
        reload(device, driver);
        let mut used: Vec<u16> = driver.used(0).iter().map(|(head, _)| *head).collect();
        used.sort_unstable();
        assert_eq!(used, heads);
        assert_ne!(driver.interrupts(), 0, "the interrupt may be lost, and is sent again");
        assert_eq!(driver.get(VIRTIO_MMIO_INTERRUPT_STATUS), 1);
        driver.set(VIRTIO_MMIO_INTERRUPT_ACK, 1);
        reload(device, driver);
        assert_eq!(driver.interrupts(), 0, "this one is acknowledged");
    });
}

#[test]
fn requests_that_the_saved_device_was_not_told_of_are_served_by_the_loaded_one() {
    attack_each("waiting", |device, driver| {
        let heads: Vec<u16> = (0..10).map(|_| driver.add(0, &[(BUFFERS, 4, true)])).collect();
        reload(device, driver);
        driver.lock().drain();
        let mut used: Vec<u16> = driver.used(0).iter().map(|(head, _)| *head).collect();
        used.sort_unstable();
        assert_eq!(used, heads);
    });
}

#[test]
fn a_device_that_needs_a_reset_still_does_when_it_is_loaded() {
    attack_each("broken", |device, driver| {
        // As many again as there is room for: an index that cannot be.
        driver.set_avail(0, 200);
        driver.kick(0);
        assert_eq!(driver.status(), UP | NEEDS_RESET);
        reload(device, driver);
        assert_eq!(driver.status(), UP | NEEDS_RESET);
    });
}

/// All values that `value` becomes when one part of it is replaced, removed or added.
fn mutations(value: &Value) -> Vec<Value> {
    let replaced = [json!(null), json!(-1), json!(0), json!(1), json!(0xffff), json!(u64::MAX), json!(1.5)];
    let mut all: Vec<Value> =
        replaced.into_iter().chain([json!("x"), json!(true), json!([]), json!({})]).collect();
    if let Some(number) = value.as_u64() {
        all.extend((0..64).map(|bit| json!(number ^ 1 << bit)));
    }
    if let Some(fields) = value.as_object() {
        for (name, field) in fields {
            let with = |field: Option<Value>| {
                let mut fields = fields.clone();
                fields.remove(name);
                fields.extend(field.map(|field| (name.clone(), field)));
                Value::Object(fields)
            };
            all.push(with(None));
            all.extend(mutations(field).into_iter().map(|field| with(Some(field))));
        }
        let mut more = fields.clone();
        more.insert("more".to_owned(), json!(0));
        all.push(Value::Object(more));
    }
    if let Some(items) = value.as_array() {
        for (at, item) in items.iter().enumerate().take(2) {
            all.extend(mutations(item).into_iter().map(|item| {
                let mut items = items.clone();
                items[at] = item;
                Value::Array(items)
            }));
        }
        all.push(items.iter().chain(items).cloned().collect());
    }
    all
}

#[test]
fn whatever_a_file_says_is_refused_or_a_state_that_the_device_can_have() {
    for (device, transport) in every() {
        let name = format!("loading anything into {} over {transport:?}", device.name);
        watched(&name, || {
            let mut driver = device.driver(transport);
            driver.start(0);
            (device.request)(&mut driver);
            let saved: Value = driver.lock().save().unwrap().take().unwrap();
            let (mut refused, mut taken) = (0, 0);
            for hostile in mutations(&saved) {
                // Where it says that the rings are, the device may write.
                driver.allow(0, 3 << 20);
                let state = State::of(&hostile);
                let loaded = driver.lock().load(state);
                match loaded {
                    Err(Error::Unsaveable(what)) => panic!("{what}"),
                    Err(_) => {
                        refused += 1;
                        assert_eq!(driver.status(), 0, "it is as new: {hostile}");
                    }
                    Ok(()) => {
                        taken += 1;
                        driver.lock().resume();
                        driver.serve();
                        driver.prod();
                    }
                }
                let lines = lines_logged();
                assert!(lines <= 4, "it logged {lines} lines: {hostile}");
            }
            assert!(refused > 100 && taken > 100, "{name}: {refused} refused, {taken} taken");
            driver.assert_contract(device.request);
        });
    }
}

#[test]
fn a_device_is_loaded_from_one_of_its_own_kind_only() {
    for (index, device) in DEVICES.iter().enumerate() {
        let mut driver = device.driver(Transport::Pci);
        driver.start(0);
        let saved = driver.lock().save().unwrap();
        for (other, _) in DEVICES.iter().enumerate().filter(|(other, _)| *other != index) {
            let driver = DEVICES[other].driver(Transport::Pci);
            let refused = driver.lock().load(saved.clone());
            assert!(matches!(refused, Err(Error::Invalid("device id"))), "{}", DEVICES[other].name);
        }
        assert!(driver.negotiate(MODERN));
    }
}
