//! Keys and the pointer, from the host to the rings.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;
use virtio_bindings::virtio_mmio::VIRTIO_MMIO_CONFIG;

use super::super::testing::{BUFFERS, Driver, heap};
use super::*;
use crate::screen::{ABS_MAX, Button};

type Which = fn(&Inputs) -> InputDevice;
const KEYBOARD: Which = Inputs::keyboard;
const POINTER: Which = Inputs::pointer;
const STATUS: usize = 1;
const DOWN: Input = Input::Key { code: 30, down: true };
const UP: Input = Input::Key { code: 30, down: false };
const REPORT: [u8; 8] = [0; 8];

/// One of the two devices, which is up.
fn driver(inputs: &Inputs, which: Which) -> Driver {
    let mut driver = Driver::new(|_| device(inputs, which));
    driver.start(0);
    driver
}

fn device(inputs: &Inputs, which: Which) -> Box<dyn VirtioDevice> {
    Box::new(which(inputs))
}

/// Gives the device a buffer of 8 bytes, at the place that belongs to its descriptor.
fn offer(driver: &mut Driver) {
    let index = driver.read(driver.rings(EVENTS)[1] + 2, 1)[0] % 64;
    driver.add(EVENTS, &[(BUFFERS + 8 * u64::from(index), 8, true)]);
}

/// The events in the buffers that came back.
fn filled(driver: &mut Driver) -> Vec<[u8; 8]> {
    let used = driver.used(EVENTS);
    assert!(used.iter().all(|(_, len)| *len == 8), "{used:?}");
    let events = used.iter().map(|(head, _)| driver.read(BUFFERS + 8 * u64::from(*head), 8));
    events.map(|event| event.try_into().unwrap()).collect()
}

/// Offers one buffer after the other; returns the events until there is none.
fn events(driver: &mut Driver) -> Vec<[u8; 8]> {
    let mut events = Vec::new();
    loop {
        offer(driver);
        driver.kick(EVENTS);
        driver.serve_sources();
        let more = filled(driver);
        if more.is_empty() {
            return events;
        }
        events.extend(more);
    }
}

fn key(code: u16, down: bool) -> [u8; 8] {
    let [low, high] = code.to_le_bytes();
    [1, 0, low, high, down.into(), 0, 0, 0]
}

fn select(driver: &mut Driver, select: u8, subselect: u8) -> Vec<u8> {
    driver.window().write(VIRTIO_MMIO_CONFIG.into(), &[select]);
    driver.window().write(u64::from(VIRTIO_MMIO_CONFIG) + 1, &[subselect]);
    let config = driver.config(0, 136);
    assert_eq!((config[0], config[1]), (select, subselect));
    let (answer, rest) = config[8..].split_at(config[2].into());
    assert!(rest.iter().all(|byte| *byte == 0));
    answer.to_vec()
}

#[test]
fn a_group_reaches_the_guest_as_events_and_a_report() {
    let inputs = Inputs::new().unwrap();
    let [mut keyboard, mut pointer] = [KEYBOARD, POINTER].map(|which| driver(&inputs, which));
    let left = Input::Button { button: Button::Left, down: true };
    inputs.send(&[DOWN, Input::Pointer { x: 1, y: u16::MAX }, left, UP]);
    inputs.send(&[Input::Wheel { vertical: -1, horizontal: 0 }]);
    assert_eq!(events(&mut keyboard), [key(30, true), key(30, false), REPORT]);
    let wheel = [2, 0, 8, 0, 0xff, 0xff, 0xff, 0xff];
    let position = [[3, 0, 0, 0, 1, 0, 0, 0], [3, 0, 1, 0, 0xff, 0x7f, 0, 0]];
    assert_eq!(events(&mut pointer), [&position[..], &[key(0x110, true), REPORT, wheel, REPORT]].concat());
}

#[test]
fn keys_that_no_keyboard_has_are_not_sent() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    for code in [0, 249, 0x110, u16::MAX] {
        inputs.send(&[Input::Key { code, down: true }]);
    }
    assert_eq!(events(&mut keyboard), <[[u8; 8]; 0]>::default());
}

#[test]
fn every_selection_is_answered_in_the_room_there_is() {
    let inputs = Inputs::new().unwrap();
    let [mut keyboard, mut pointer] = [KEYBOARD, POINTER].map(|which| driver(&inputs, which));
    assert_eq!(select(&mut keyboard, 1, 0), b"kite keyboard");
    assert_eq!(select(&mut keyboard, 2, 0), b"keyboard");
    assert_eq!(select(&mut keyboard, 3, 0), [6, 0, 0, 0, 1, 0, 1, 0]);
    assert_eq!(select(&mut pointer, 3, 0), [6, 0, 0, 0, 2, 0, 1, 0]);
    let keys = select(&mut keyboard, 0x11, 1);
    assert_eq!((keys.len(), keys[0], keys[31]), (32, 0xfe, 1));
    assert_eq!(select(&mut keyboard, 0x11, 0x11), [7]);
    assert_eq!(select(&mut keyboard, 0x11, 0x14), [3]);
    let buttons = select(&mut pointer, 0x11, 1);
    assert_eq!((buttons.len(), buttons[34]), (35, 0x1f));
    assert_eq!(select(&mut pointer, 0x11, 2), [0x40, 1]);
    assert_eq!(select(&mut pointer, 0x11, 3), [3]);
    let range = [[0; 4], u32::from(ABS_MAX).to_le_bytes(), [0; 4], [0; 4], [0; 4]].concat();
    assert_eq!(select(&mut pointer, 0x12, 1), range);
    for [kind, code] in [[0, 0], [1, 1], [0x10, 0], [0x11, 2], [0x11, 3], [0x12, 0], [0x13, 0], [0xff, 0xff]]
    {
        assert_eq!(select(&mut keyboard, kind, code), b"", "{kind:#x} {code:#x}");
    }
    for [kind, code] in [[0x12, 2], [0x11, 0x11], [0x11, 0x14], [0x11, 0xff]] {
        assert_eq!(select(&mut pointer, kind, code), b"", "{kind:#x} {code:#x}");
    }
    for kind in 0..=255 {
        for code in 0..=255 {
            let answer = [InputKind::Keyboard, InputKind::Pointer].map(|it| it.answer(kind, code).len());
            assert!(answer.iter().all(|len| *len <= MOST_ANSWER), "{kind:#x} {code:#x}: {answer:?}");
        }
    }
}

#[test]
fn only_the_selection_is_written_whatever_the_place_and_length() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    for offset in [0, 1, 2, 3, 7, 8, 135, 136, 1 << 20, u64::MAX - 0x200] {
        for len in [0, 1, 2, 8, 64] {
            keyboard.window().write(u64::from(VIRTIO_MMIO_CONFIG) + offset, &vec![1; len]);
        }
    }
    assert_eq!(keyboard.config(0, 8), [1, 1, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn without_a_driver_nothing_waits_and_nobody_is_woken() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = Driver::new(|_| device(&inputs, KEYBOARD));
    inputs.send(&[DOWN, UP]);
    let mut wait = [PollFd::new(inputs.keyboard.written(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut wait, PollTimeout::ZERO), Ok(0));
    keyboard.start(0);
    assert_eq!(events(&mut keyboard), <[[u8; 8]; 0]>::default());
}

#[test]
fn a_flood_without_buffers_is_bounded_and_drops_whole_groups_and_no_key_gets_stuck() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    let shift = |down| Input::Key { code: 42, down };
    let ((), peak) = heap::peak(|| {
        inputs.send(&[shift(true)]);
        for _ in 0..100_000 {
            inputs.send(&[DOWN, UP, DOWN]);
        }
        // One more has room, and these do not.
        inputs.send(&[DOWN]);
        inputs.send(&[shift(false)]);
        inputs.send(&[UP]);
        keyboard.serve_sources();
    });
    assert!(peak < 64 << 10, "{peak} bytes");
    let events = events(&mut keyboard);
    assert_eq!(events[..2], [key(42, true), REPORT]);
    let (groups, rest) = events[2..].split_at(127 * 4);
    assert!(groups.chunks(4).all(|it| *it == [key(30, true), key(30, false), key(30, true), REPORT]));
    assert_eq!(rest, [key(30, true), REPORT, key(30, false), key(42, false), REPORT]);
}

#[test]
fn buffers_that_are_short_or_only_read_come_back_empty_and_no_event_is_lost() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    inputs.send(&[DOWN]);
    let parts = [(BUFFERS, 7, true), (BUFFERS, 8, false), (BUFFERS + 0x100, 9, true)];
    let heads = parts.map(|part| keyboard.add(EVENTS, &[part]));
    keyboard.kick(EVENTS);
    assert_eq!(keyboard.used(EVENTS), [(heads[0], 0), (heads[1], 0), (heads[2], 8)]);
    assert_eq!(keyboard.read(BUFFERS + 0x100, 8), key(30, true));
    keyboard.assert_intact();
    assert_eq!(events(&mut keyboard), [REPORT]);
}

#[test]
fn lights_are_taken_and_looked_at_by_nobody() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    let heads: Vec<_> =
        [0, 1, 8, 4096].iter().map(|len| keyboard.add(STATUS, &[(BUFFERS, *len, false)])).collect();
    keyboard.kick(STATUS);
    assert_eq!(keyboard.used(STATUS), heads.iter().map(|head| (*head, 0)).collect::<Vec<_>>());
}

#[test]
fn a_service_hands_over_as_many_events_as_there_are_buffers() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    (0..3).for_each(|_| offer(&mut keyboard));
    keyboard.kick(EVENTS);
    inputs.send(&[DOWN, UP]);
    inputs.send(&[DOWN, UP]);
    keyboard.serve_sources();
    assert_eq!(filled(&mut keyboard), [key(30, true), key(30, false), REPORT]);
    assert_eq!(events(&mut keyboard), [key(30, true), key(30, false), REPORT]);
}

#[test]
fn keys_that_were_down_when_it_was_saved_are_released_when_it_is_loaded() {
    let inputs = Inputs::new().unwrap();
    let mut keyboard = driver(&inputs, KEYBOARD);
    select(&mut keyboard, 1, 0);
    inputs.send(&[DOWN]);
    assert_eq!(events(&mut keyboard).len(), 2);
    let others = Inputs::new().unwrap();
    keyboard.reload(|_| device(&others, KEYBOARD)).unwrap();
    assert_eq!(keyboard.config(8, 4), b"kite");
    assert_eq!(events(&mut keyboard), [key(30, false), REPORT]);
}

#[test]
fn states_that_no_keyboard_has_are_refused() {
    for down in [json!([0]), json!([249]), json!([2, 1]), json!([1, 1])] {
        let inputs = Inputs::new().unwrap();
        let state = json!({"select": 0, "subselect": 0, "down": down});
        assert!(device(&inputs, KEYBOARD).load(serde_json::from_value(state).unwrap()).is_err(), "{down}");
    }
}
