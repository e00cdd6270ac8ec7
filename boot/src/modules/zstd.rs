//! The frames of a zstd file, without what they hold (RFC 8878 §3.1).

use std::ops::Range;

/// What every frame begins with.
const MAGIC: u32 = 0xfd2f_b528;
/// What frames begin with that hold nothing, but for the lowest four bits.
const SKIPPED: u32 = 0x184d_2a50;
/// What a block holds at most.
const BLOCK_MAX: u64 = 128 << 10;
/// The smallest window's logarithm.
const WINDOW_LOG_MIN: u32 = 10;

/// A frame that holds something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it is.
    pub range: Range<usize>,
    /// Where it says how large a window it needs; one without that needs all that it holds.
    pub window: Option<usize>,
    /// How many bytes it holds at most.
    pub most: u64,
}

impl Frame {
    /// What describes a window as large as all that the frame holds, or the one that it asks for, `asked`, if that is
    /// smaller: nothing farther back is there to be referred to.
    pub fn enough(&self, asked: u8) -> u8 {
        // A window also bounds the size of blocks.
        let log = self.most.max(BLOCK_MAX).next_power_of_two().trailing_zeros();
        asked.min(((log.saturating_sub(WINDOW_LOG_MIN)).min(31) << 3) as u8)
    }
}

/// The frames of a file, which is all of it.
///
/// # Errors
/// What is wrong with it.
pub fn frames(bytes: &[u8]) -> Result<Vec<Frame>, &'static str> {
    let mut rest = Reader { bytes, at: 0 };
    let mut frames = Vec::new();
    while rest.at < bytes.len() {
        match rest.number(4)? as u32 {
            MAGIC => frames.push(frame(&mut rest)?),
            magic if magic & !0xf == SKIPPED => {
                let len = rest.number(4)?;
                rest.skip(len)?;
            }
            _ => return Err("it has something else behind its end"),
        }
    }
    Ok(frames)
}

/// The frame behind its magic number.
fn frame(rest: &mut Reader<'_>) -> Result<Frame, &'static str> {
    let start = rest.at - 4;
    let descriptor = rest.number(1)?;
    let is_single = descriptor & 0x20 != 0;
    let window = (!is_single).then_some(rest.at);
    rest.skip(u64::from(!is_single))?;
    rest.skip([0, 1, 2, 4][(descriptor & 3) as usize])?;
    let size = match (descriptor >> 6, is_single) {
        (0, false) => None,
        (0, true) => Some(rest.number(1)?),
        (1, _) => Some(rest.number(2)? + 256),
        (2, _) => Some(rest.number(4)?),
        _ => Some(rest.number(8)?),
    };
    let mut most = 0;
    loop {
        let header = rest.number(3)?;
        let len = header >> 3;
        let (stored, held) = match header >> 1 & 3 {
            0 => (len, len),
            1 => (1, len),
            2 => (len, BLOCK_MAX),
            _ => return Err("it has a block of an unknown kind"),
        };
        rest.skip(stored)?;
        most += held;
        if header & 1 != 0 {
            break;
        }
    }
    rest.skip(if descriptor & 4 != 0 { 4 } else { 0 })?;
    match size {
        Some(size) if size > most => Err("it holds less than it says"),
        size => Ok(Frame { range: start..rest.at, window, most: size.unwrap_or(most) }),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    /// The next number, of so many bytes.
    fn number(&mut self, len: usize) -> Result<u64, &'static str> {
        let start = self.at;
        self.skip(len as u64)?;
        let mut number = [0; 8];
        number[..len].copy_from_slice(&self.bytes[start..self.at]);
        Ok(u64::from_le_bytes(number))
    }

    fn skip(&mut self, len: u64) -> Result<(), &'static str> {
        let left = (self.bytes.len() - self.at) as u64;
        self.at += usize::try_from(len).ok().filter(|_| len <= left).ok_or("it is cut short")?;
        Ok(())
    }
}
