//! Every device of the chipset, saved and loaded: the new one answers as the old one would.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::*;
use crate::bus::BusDevice;
use crate::chipset::cmos::Cmos;
use crate::chipset::i8042::I8042;
use crate::chipset::power::Power;
use crate::chipset::pvpanic::PvPanic;
use crate::chipset::serial::{self, Serial};
use crate::chipset::testdev::{
    ConfigPorts, Doorbell, FwCfg, Latch, PciTest, Place, PmTimer, Scratch, Wiring,
};
use crate::irq::Line;
use crate::testing::{Random, Switch};

struct Nowhere;

impl Line for Nowhere {
    fn pulse(&self) {}
}

impl serial::Host for Nowhere {
    fn output_ready(&self) {}
    fn input_wanted(&self) {}
}

impl Doorbell for Nowhere {
    fn connect(&mut self, _place: Place, _offset: u32, _data: Option<u8>) -> bool {
        true
    }
    fn disconnect(&mut self) {}
    fn take(&mut self) -> u32 {
        0
    }
}

/// Both faces of a device.
trait Both: Device + BusDevice {}
impl<T: Device + BusDevice> Both for T {}

/// A new one of each device at a port or in memory, and the length of its range.
fn devices() -> Vec<(Box<dyn Both>, u64)> {
    let switch = Arc::new(Switch::default());
    let now = || UNIX_EPOCH + Duration::from_secs(1_750_000_000);
    let clock: Box<dyn Fn() -> SystemTime + Send> = Box::new(now);
    let elapsed = Box::new(|| Duration::from_secs(7));
    let function =
        Arc::new(Mutex::new(PciTest::new(Wiring { memory: 0xfe00_0000, port: 0xc000 }, Box::new(Nowhere))));
    vec![
        (Box::new(Serial::new(Box::new(Nowhere), Box::new(Nowhere))), serial::LEN),
        (Box::new(Cmos::new(clock)), 2),
        (Box::new(I8042::new(switch.clone())), 5),
        (Box::new(Power(switch.clone())), 3),
        (Box::new(PvPanic(switch)), 1),
        (Box::new(Latch::new("latch")), Latch::LEN),
        (Box::new(Scratch::new("scratch")), 64),
        (Box::new(FwCfg::new(3, 1 << 32)), FwCfg::LEN),
        (Box::new(PmTimer::new(elapsed)), PmTimer::LEN),
        (Box::new(ConfigPorts::new(function)), ConfigPorts::LEN),
    ]
}

/// Does the same random accesses to both devices, and compares what they read.
fn compare(a: &mut dyn Both, b: &mut dyn Both, len: u64, seed: u64) {
    let mut random = Random::new(seed);
    for _ in 0..2000 {
        let (offset, value) = (random.below(len), random.next() as u8);
        if random.below(2) == 0 {
            let mut read = [[0; 2]; 2];
            a.read(offset, &mut read[0]);
            b.read(offset, &mut read[1]);
            assert_eq!(read[0], read[1], "{} at {offset}", a.name());
        } else {
            a.write(offset, &[value]);
            b.write(offset, &[value]);
        }
    }
}

#[test]
fn a_loaded_device_saves_the_same_and_answers_as_the_saved_one_does() {
    for seed in 1..30 {
        let mut random = Random::new(seed);
        for ((mut saved, len), (mut loaded, _)) in devices().into_iter().zip(devices()) {
            for _ in 0..random.below(300) {
                let (offset, value) = (random.below(len), random.next() as u8);
                saved.write(offset, &[value]);
                saved.read(random.below(len), &mut [0]);
            }
            let state = saved.save().unwrap();
            loaded.load(state.clone()).unwrap();
            assert_eq!(loaded.save().unwrap(), state, "{}", saved.name());
            let text = serde_json::to_string(&state).unwrap();
            assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state, "{text}");
            saved.resume();
            loaded.resume();
            compare(saved.as_mut(), loaded.as_mut(), len, seed);
        }
    }
}

#[test]
fn a_device_of_another_name_or_a_state_with_one_more_field_is_refused() {
    let mut states: Vec<State> = devices().iter_mut().map(|(device, _)| device.save().unwrap()).collect();
    for (index, (device, _)) in devices().iter_mut().enumerate() {
        let mut state = states[index].clone().take::<serde_json::Value>().unwrap();
        state["more"] = 0.into();
        assert!(matches!(device.load(State::of(&state)), Err(Error::Form(_))), "{}", device.name());
    }
    states.rotate_left(1);
    let mut devices = devices();
    let others = devices.iter_mut().zip(states);
    let refused = others.filter_map(|((device, _), state)| device.load(state).err()).count();
    // Power and pvpanic, which have no state, have the same.
    assert_eq!(refused, devices.len() - 1);
}

#[test]
fn registers_that_a_device_cannot_have_are_refused() {
    let wrong = [
        ("serial", r#"{"ier":16}"#),
        ("serial", r#"{"fcr":2}"#),
        ("serial", r#"{"mcr":32}"#),
        ("serial", r#"{"modem_changes":16}"#),
        ("serial", r#"{"received":[0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0]}"#),
        ("serial", r#"{"awaited":"never"}"#),
        ("cmos", r#"{"index":128}"#),
        ("cmos", r#"{"registers":""}"#),
        ("cmos", r#"{"registers":"????"}"#),
        ("i8042", r#"{"command":1}"#),
        ("i8042", r#"{"command":256}"#),
        ("latch", r#"{"bytes":"AAAA"}"#),
    ];
    for (name, change) in wrong {
        let mut devices = devices();
        let (device, _) = devices.iter_mut().find(|(device, _)| device.name() == name).unwrap();
        let mut state: serde_json::Value = device.save().unwrap().take().unwrap();
        let change: serde_json::Map<_, _> = serde_json::from_str(change).unwrap();
        let fields = state.as_object_mut().unwrap();
        for (field, value) in change {
            assert!(fields.insert(field, value).is_some(), "{name}");
        }
        device.load(State::of(&state)).unwrap_err();
    }
}
