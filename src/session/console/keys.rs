//! The keys that kite keeps for itself: Ctrl-A and the one after it.

const CTRL_A: u8 = 1;

/// What Ctrl-A H prints; the terminal may be raw.
pub(crate) const HELP: &str = "\r\n\
    kite: Ctrl-A X       quit: stop the guest at once\r\n\
    kite: Ctrl-A H       this list\r\n\
    kite: Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n";

/// What a byte of input means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// It goes to the guest.
    Byte(u8),
    /// It is half a key, or an unknown one, which is swallowed.
    Nothing,
    /// List the keys.
    Help,
    /// Quit.
    Quit,
}

/// Tells kite's keys from the guest's.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes the next byte of input.
    pub fn feed(&mut self, byte: u8) -> Key {
        if !std::mem::take(&mut self.escaped) {
            self.escaped = byte == CTRL_A;
            return if self.escaped { Key::Nothing } else { Key::Byte(byte) };
        }
        match byte {
            b'x' | b'X' => Key::Quit,
            b'h' | b'H' | b'?' => Key::Help,
            CTRL_A => Key::Byte(CTRL_A),
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(input: &[u8]) -> Vec<Key> {
        let mut keys = Keys::default();
        input.iter().map(|byte| keys.feed(*byte)).filter(|key| *key != Key::Nothing).collect()
    }

    #[test]
    fn ordinary_bytes_go_to_the_guest() {
        assert_eq!(feed(b"x\x03\xff"), [Key::Byte(b'x'), Key::Byte(3), Key::Byte(0xff)]);
    }

    #[test]
    fn ctrl_a_takes_the_next_key_and_only_that() {
        assert_eq!(feed(b"\x01x"), [Key::Quit]);
        assert_eq!(feed(b"\x01Hx"), [Key::Help, Key::Byte(b'x')]);
        assert_eq!(feed(b"\x01qx"), [Key::Byte(b'x')]);
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(feed(b"\x01\x01x"), [Key::Byte(1), Key::Byte(b'x')]);
    }
}
