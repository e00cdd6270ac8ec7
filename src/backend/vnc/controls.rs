//! A viewer's keyboard and pointer: what of them is down, and what the guest gets of it.

use std::sync::Arc;

use devices::screen::{Button, Input, InputSink, Size};

use super::keys::{self, CAPS_LOCK, Key, SHIFT};

/// The right shift key.
const RIGHT_SHIFT: u16 = 54;
/// Codes of keys are less.
const CODES: usize = 256;
/// The bits of the pointer's mask that are buttons (RFC 6143 §7.5.5, and the eighth as common).
const BUTTONS: [(u8, Button); 4] =
    [(0, Button::Left), (1, Button::Middle), (2, Button::Right), (7, Button::Side)];
/// Those that are steps of the wheel: up, down, left and right.
const WHEEL: [(u8, i32, i32); 4] = [(3, 1, 0), (4, -1, 0), (5, 0, -1), (6, 0, 1)];

/// What one viewer holds down. What it does not let go is let go when it ends.
pub struct Controls {
    sink: Arc<dyn InputSink>,
    down: [bool; CODES],
    caps_lock: bool,
    buttons: u8,
}

impl Controls {
    /// Nothing is down yet.
    pub fn new(sink: Arc<dyn InputSink>) -> Self {
        Self { sink, down: [false; CODES], caps_lock: false, buttons: 0 }
    }

    /// A key by its keysym.
    pub fn keysym(&mut self, keysym: u32, down: bool) {
        let Some(Key { code, shift, is_letter }) = keys::of_keysym(keysym) else { return };
        let held = [SHIFT, RIGHT_SHIFT].into_iter().filter(|it| self.down[usize::from(*it)]);
        let held: Vec<_> = held.collect();
        let is_shifted = held.is_empty() == (is_letter && self.caps_lock);
        match shift.filter(|shift| down && *shift != is_shifted) {
            None => self.key(code, down),
            // The viewer's keyboard has the character elsewhere: shift is as this one needs it, for a moment.
            Some(_) if held.is_empty() => {
                self.key(SHIFT, true);
                self.key(code, true);
                self.key(SHIFT, false);
            }
            Some(_) => {
                held.iter().for_each(|it| self.key(*it, false));
                self.key(code, true);
                held.iter().for_each(|it| self.key(*it, true));
            }
        }
    }

    /// A key by its code on a PC's keyboard, or by its keysym if it has none.
    pub fn scan_code(&mut self, scan_code: u32, keysym: u32, down: bool) {
        match keys::of_scan_code(scan_code) {
            Some(code) => self.key(code, down),
            None => self.keysym(keysym, down),
        }
    }

    fn key(&mut self, code: u16, down: bool) {
        // The guest repeats a key itself.
        if std::mem::replace(&mut self.down[usize::from(code)], down) != down {
            self.caps_lock ^= down && code == CAPS_LOCK;
            self.sink.send(&[Input::Key { code, down }]);
        }
    }

    /// The pointer is at a place of a screen of `size`, with these buttons down.
    pub fn pointer(&mut self, x: u16, y: u16, mask: u8, size: Size) {
        let mut group = vec![size.position(x.into(), y.into())];
        self.press(mask, &mut group);
        self.sink.send(&group);
    }

    fn press(&mut self, mask: u8, group: &mut Vec<Input>) {
        let changed = std::mem::replace(&mut self.buttons, mask) ^ mask;
        let has = |mask: u8, bit: &u8| mask >> bit & 1 != 0;
        let buttons = BUTTONS.iter().filter(|(bit, _)| has(changed, bit));
        group.extend(buttons.map(|(bit, button)| Input::Button { button: *button, down: has(mask, bit) }));
        let steps = WHEEL.iter().filter(|(bit, ..)| has(changed & mask, bit));
        group.extend(steps.map(|&(_, vertical, horizontal)| Input::Wheel { vertical, horizontal }));
    }
}

impl Drop for Controls {
    fn drop(&mut self) {
        (0..CODES as u16).for_each(|code| self.key(code, false));
        let mut group = Vec::new();
        self.press(0, &mut group);
        if !group.is_empty() {
            self.sink.send(&group);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Log;
    use super::*;

    impl Log {
        fn take(&self) -> Vec<Input> {
            std::mem::take(&mut self.0.lock().unwrap())
        }

        /// The keys' codes, negative when they go up.
        fn keys(&self) -> Vec<i32> {
            let code = |input| match input {
                Input::Key { code, down } => i32::from(code) * if down { 1 } else { -1 },
                other => panic!("{other:?} is no key"),
            };
            self.take().into_iter().map(code).collect()
        }
    }

    fn controls() -> (Arc<Log>, Controls) {
        let log = Arc::new(Log::default());
        (log.clone(), Controls::new(log))
    }

    #[test]
    fn a_character_gets_the_shift_that_it_needs() {
        let (log, mut controls) = controls();
        for down in [true, false] {
            controls.keysym('a'.into(), down);
        }
        assert_eq!(log.keys(), [30, -30]);
        for down in [true, false] {
            controls.keysym('A'.into(), down);
        }
        assert_eq!(log.keys(), [42, 30, -42, -30]);
        controls.keysym(0xffe2, true);
        controls.keysym('A'.into(), true);
        controls.keysym('A'.into(), false);
        controls.keysym('/'.into(), true);
        assert_eq!(log.keys(), [54, 30, -30, -54, 53, 54]);
    }

    #[test]
    fn caps_lock_is_a_shift_for_letters_alone() {
        let (log, mut controls) = controls();
        for (keysym, down) in [(0xffe5, true), (0xffe5, false), (0x41, true), (0x41, false), (0x31, true)] {
            controls.keysym(keysym, down);
        }
        assert_eq!(log.keys(), [58, -58, 30, -30, 2]);
        controls.keysym('a'.into(), true);
        assert_eq!(log.keys(), [42, 30, -42]);
    }

    #[test]
    fn what_a_viewer_holds_is_let_go_when_it_ends() {
        let (log, mut controls) = controls();
        controls.scan_code(0x9d, 0, true);
        controls.scan_code(0x1e, 0, true);
        controls.scan_code(0x1e, 0, true);
        controls.scan_code(0x30, 0, false);
        assert_eq!(log.keys(), [97, 30]);
        controls.pointer(0, 0, 1, Size::new(2, 2).unwrap());
        log.take();
        drop(controls);
        let up = |code| Input::Key { code, down: false };
        assert_eq!(log.take(), [up(30), up(97), Input::Button { button: Button::Left, down: false }]);
    }

    #[test]
    fn a_key_without_a_code_that_is_known_counts_by_its_keysym() {
        let (log, mut controls) = controls();
        controls.scan_code(0, 'q'.into(), true);
        controls.scan_code(0xdead_beef, 0xff0d, true);
        controls.scan_code(0, 0x20ac, true);
        assert_eq!(log.keys(), [16, 28]);
    }

    #[test]
    fn the_pointer_moves_presses_and_turns_the_wheel() {
        let (log, mut controls) = controls();
        let size = Size::new(101, 51).unwrap();
        let at = |x, y| Input::Pointer { x, y };
        controls.pointer(100, 25, 0b101, size);
        let press = |button, down| Input::Button { button, down };
        let (left, right) = (press(Button::Left, true), press(Button::Right, true));
        assert_eq!(log.take(), [at(0x7fff, 0x3fff), left, right]);
        controls.pointer(u16::MAX, 0, 0b1100, size);
        let wheel = |vertical, horizontal| Input::Wheel { vertical, horizontal };
        assert_eq!(log.take(), [at(0x7fff, 0), press(Button::Left, false), wheel(1, 0)]);
        controls.pointer(0, 0, 0b1110_0000, size);
        let side = press(Button::Side, true);
        assert_eq!(log.take(), [at(0, 0), press(Button::Right, false), side, wheel(0, -1), wheel(0, 1)]);
    }
}
