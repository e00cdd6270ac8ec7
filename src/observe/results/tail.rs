//! The end of an output that may be endless.

use std::collections::VecDeque;

/// Keeps the last bytes that it is given.
pub struct Tail {
    bytes: VecDeque<u8>,
    most: usize,
    dropped: bool,
}

impl Tail {
    /// Keeps up to `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { bytes: VecDeque::new(), most, dropped: false }
    }

    /// Appends, and drops of the beginning what is too much.
    pub fn push(&mut self, bytes: &[u8]) {
        let new = &bytes[bytes.len().saturating_sub(self.most)..];
        let excess = (self.bytes.len() + new.len()).saturating_sub(self.most);
        self.dropped |= excess > 0 || new.len() < bytes.len();
        self.bytes.drain(..excess);
        self.bytes.extend(new);
    }

    /// What is kept, from the first whole line on if something was dropped and there is one; what is no UTF-8 is
    /// replaced.
    pub fn text(&self) -> String {
        let start = match self.dropped {
            true => self.bytes.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1),
            false => 0,
        };
        let bytes: Vec<_> = self.bytes.range(start..).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_lines_of_the_end_are_shown() {
        let mut tail = Tail::new(8);
        tail.push(b"one\n");
        assert_eq!(tail.text(), "one\n");
        tail.push(b"two\n");
        assert_eq!(tail.text(), "one\ntwo\n");
        tail.push(b"3\n");
        assert_eq!(tail.text(), "two\n3\n");
        tail.push(b"a line that is longer");
        assert_eq!(tail.text(), "s longer");
        tail.push(b"");
        assert_eq!(tail.text(), "s longer");
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        let mut tail = Tail::new(8);
        tail.push(b"a\xff");
        assert_eq!(tail.text(), "a\u{fffd}");
    }
}
