//! A kernel's panic by what it prints, for guests that have no better way to tell.

/// What a panic's first line has behind the time.
const PANIC: &[u8] = b"Kernel panic - not syncing: ";
/// What the kernel says last when all is well: `Restarting system`, `Power down`, `System halted` follow.
const PEACE: &[u8] = b"reboot: ";

/// Looks for the line of a panic in a stream of console output, in pieces of any size.
///
/// The words count at the start of a line only, or behind the kernel's time and, in that order, the caller's id
/// (`[    1.234567][    T1] `): what a program prints of an old panic mostly looks otherwise.
#[derive(Debug, Default)]
pub struct PanicText {
    place: Place,
    seen: bool,
}

/// Where in a line the last byte was.
#[derive(Clone, Copy, Debug, Default)]
enum Place {
    /// At its start, or behind a bracket, or a space behind that.
    #[default]
    Start,
    /// In brackets.
    Brackets,
    /// Behind so many bytes of these words.
    Words(&'static [u8], usize),
    /// Behind something else.
    Other,
}

impl PanicText {
    /// Takes what the guest has printed.
    pub fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.place = match (self.place, byte) {
                (_, b'\n' | b'\r') => Place::Start,
                (Place::Start, b'[') => Place::Brackets,
                (Place::Start, b' ') => Place::Start,
                (Place::Start, byte) if byte == PANIC[0] => Place::Words(PANIC, 1),
                (Place::Start, byte) if byte == PEACE[0] => Place::Words(PEACE, 1),
                (Place::Brackets, b']') => Place::Start,
                (Place::Brackets, b'0'..=b'9' | b'.' | b' ' | b'T' | b'C') => Place::Brackets,
                (Place::Words(words, len), byte) if words[len] == byte && len + 1 < words.len() => {
                    Place::Words(words, len + 1)
                }
                (Place::Words(words, len), byte) if words[len] == byte => {
                    self.seen = words == PANIC;
                    Place::Other
                }
                _ => Place::Other,
            };
        }
    }

    /// Whether a panic has been seen, and no peaceful end after it.
    pub fn seen(&self) -> bool {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(text: &[u8]) -> bool {
        let whole = {
            let mut matcher = PanicText::default();
            matcher.feed(text);
            matcher.seen()
        };
        let mut matcher = PanicText::default();
        text.iter().for_each(|byte| matcher.feed(&[*byte]));
        assert_eq!(matcher.seen(), whole);
        whole
    }

    #[test]
    fn a_panic_is_seen_with_and_without_its_time() {
        for text in [
            "[    1.234567] Kernel panic - not syncing: sysrq triggered crash\r\n",
            "login: \r\n[12345.234567][    T1] Kernel panic - not syncing: Attempted to kill init!",
            "Kernel panic - not syncing: x",
        ] {
            assert!(seen(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_looks_otherwise_is_no_panic() {
        for text in [
            "Kernel panic - not syncing",
            "$ grep 'Kernel panic - not syncing: ' log\n",
            "log:Kernel panic - not syncing: x\n",
            "[root@host ~] Kernel panic - not syncing: x\n",
            "[ 1.0] ---[ end Kernel panic - not syncing: x ]---\n",
            "[ 1.0] Kernel panic - not syncing: x\n[ 1.0] reboot: Restarting system\n",
            "KKernel panic - not syncing: x\nKernel panic\n - not syncing: x",
        ] {
            assert!(!seen(text.as_bytes()), "{text}");
        }
    }
}
