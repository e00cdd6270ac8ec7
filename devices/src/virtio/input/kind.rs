//! What keyboard and pointer are to a guest (Linux `input-event-codes.h`), as the configuration says (§5.8.2).

use super::MOST_ANSWER;
use super::queue::{ABS, Event, KEY, REL};
use crate::screen::{ABS_MAX, Button, Input};

const ID_NAME: u8 = 0x01;
const ID_SERIAL: u8 = 0x02;
const ID_DEVIDS: u8 = 0x03;
const PROP_BITS: u8 = 0x10;
const EV_BITS: u8 = 0x11;
const ABS_INFO: u8 = 0x12;

/// The types of events that [`EV_BITS`] is asked for.
const EV_KEY: u8 = KEY as u8;
const EV_REL: u8 = REL as u8;
const EV_ABS: u8 = ABS as u8;
const EV_LED: u8 = 0x11;
const EV_REP: u8 = 0x14;

/// The last key that a keyboard has: KEY_MICMUTE.
const LAST_KEY: u16 = 248;
/// BTN_LEFT; right, middle, side and extra follow.
const BUTTONS: u16 = 0x110;
const BUTTON_COUNT: u16 = 5;
const REL_HWHEEL: u16 = 6;
const REL_WHEEL: u16 = 8;
/// The most steps that the wheel turns at once.
const MOST_STEPS: i32 = 100;

/// Keyboard or pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputKind {
    Keyboard,
    Pointer,
}

impl InputKind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Keyboard => "keyboard",
            Self::Pointer => "pointer",
        }
    }

    /// Whether it has a key or a button of this code.
    pub fn has(self, code: u16) -> bool {
        match self {
            Self::Keyboard => (1..=LAST_KEY).contains(&code),
            Self::Pointer => (BUTTONS..BUTTONS + BUTTON_COUNT).contains(&code),
        }
    }

    /// What the configuration answers a selection; nothing to one that it does not know.
    pub fn answer(self, select: u8, subselect: u8) -> Vec<u8> {
        match (select, subselect) {
            (ID_NAME, 0) => format!("kite {}", self.name()).into_bytes(),
            (ID_SERIAL, 0) => self.name().into(),
            // BUS_VIRTUAL, no vendor, the product, version 1.
            (ID_DEVIDS, 0) => [6, 0, 1 + self as u16, 1].iter().flat_map(|it| it.to_le_bytes()).collect(),
            // It is neither a touchpad nor a touch screen.
            (PROP_BITS, 0) => Vec::new(),
            (EV_BITS, kind) => self.bits(kind),
            (ABS_INFO, 0 | 1) if self == Self::Pointer => {
                // From, to, and neither noise, nor a flat middle, nor a resolution.
                [0, u32::from(ABS_MAX), 0, 0, 0].iter().flat_map(|it| it.to_le_bytes()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// A bit for each code of the events of one type that it sends, or takes.
    fn bits(self, kind: u8) -> Vec<u8> {
        match (self, kind) {
            (_, EV_KEY) => bits((0..MOST_ANSWER as u16 * 8).filter(|code| self.has(*code))),
            // Number lock, capital lock, scroll lock.
            (Self::Keyboard, EV_LED) => bits(0..3),
            // The guest repeats keys itself, after a delay and with a period.
            (Self::Keyboard, EV_REP) => bits(0..2),
            (Self::Pointer, EV_REL) => bits([REL_HWHEEL, REL_WHEEL].into_iter()),
            (Self::Pointer, EV_ABS) => bits(0..2),
            _ => Vec::new(),
        }
    }

    /// The events that an input is to it.
    pub fn events(self, input: Input) -> [Option<Event>; 2] {
        let key = |code, down: bool| {
            let known = self.has(code);
            known.then_some(Event { kind: KEY, code, value: down.into() })
        };
        let axis = |code, at: u16| Some(Event { kind: ABS, code, value: at.min(ABS_MAX).into() });
        let turn = |code, steps: i32| {
            let value = steps.clamp(-MOST_STEPS, MOST_STEPS) as u32;
            (steps != 0).then_some(Event { kind: REL, code, value })
        };
        match (self, input) {
            (Self::Keyboard, Input::Key { code, down }) => [key(code, down), None],
            (Self::Pointer, Input::Button { button, down }) => [key(button_code(button), down), None],
            (Self::Pointer, Input::Pointer { x, y }) => [axis(0, x), axis(1, y)],
            (Self::Pointer, Input::Wheel { vertical, horizontal }) => {
                [turn(REL_WHEEL, vertical), turn(REL_HWHEEL, horizontal)]
            }
            _ => [None, None],
        }
    }
}

fn button_code(button: Button) -> u16 {
    BUTTONS
        + match button {
            Button::Left => 0,
            Button::Right => 1,
            Button::Middle => 2,
            Button::Side => 3,
            Button::Extra => 4,
        }
}

/// Bits of these numbers, which rise.
fn bits(numbers: impl Iterator<Item = u16>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for number in numbers {
        bytes.resize(usize::from(number / 8) + 1, 0);
        bytes[usize::from(number / 8)] |= 1 << (number % 8);
    }
    bytes
}
