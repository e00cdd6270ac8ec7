//! Formats of pixels (RFC 6143 §7.4): each viewer says in which one it wants them.

use std::ops::Range;

/// A colour's part of a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Channel {
    /// Its value when it is full.
    max: u16,
    /// How far its lowest bit is from the pixel's.
    shift: u8,
}

/// How a pixel's colours lie in its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    bits: u8,
    depth: u8,
    big_endian: bool,
    /// Red, green and blue.
    channels: [Channel; 3],
}

impl PixelFormat {
    /// What kite proposes: the screen's own.
    pub const OWN: Self = Self {
        bits: 32,
        depth: 24,
        big_endian: false,
        channels: [
            Channel { max: 255, shift: 16 },
            Channel { max: 255, shift: 8 },
            Channel { max: 255, shift: 0 },
        ],
    };

    /// Reads a format as a message has it.
    ///
    /// # Errors
    /// No pixel can be like that, or it is a number in a map of colours.
    pub fn parse(bytes: &[u8; 16]) -> Result<Self, &'static str> {
        let [bits, depth, big_endian, true_color, rest @ ..] = *bytes;
        if true_color == 0 {
            return Err("it wants a map of colours, which kite doesn't have");
        }
        if !matches!(bits, 8 | 16 | 32) || depth > bits {
            return Err("it wants pixels of a size that there is not");
        }
        let channel = |at: usize| Channel {
            max: u16::from_be_bytes([rest[2 * at], rest[2 * at + 1]]),
            shift: rest[6 + at],
        };
        let channels = [channel(0), channel(1), channel(2)];
        let fits = |it: &Channel| {
            let width = (u32::from(it.max) + 1).ilog2();
            (u32::from(it.max) + 1).is_power_of_two() && u32::from(it.shift) + width <= u32::from(bits)
        };
        if !channels.iter().all(fits) {
            return Err("it wants colours that don't fit into a pixel");
        }
        Ok(Self { bits, depth, big_endian: big_endian != 0, channels })
    }

    /// The format as a message has it.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&[self.bits, self.depth, self.big_endian.into(), 1]);
        for (at, Channel { max, shift }) in self.channels.into_iter().enumerate() {
            bytes[4 + 2 * at..6 + 2 * at].copy_from_slice(&max.to_be_bytes());
            bytes[10 + at] = shift;
        }
        bytes
    }

    /// What writes whole pixels.
    pub fn pixels(self) -> PixelWriter {
        let size = usize::from(self.bits / 8);
        PixelWriter::new(self, if self.big_endian { 4 - size..4 } else { 0..size })
    }

    /// What writes the pixels of ZRLE, which drop a byte that no colour is in (§7.7.5).
    pub fn compact_pixels(self) -> PixelWriter {
        let used = self.channels.iter().fold(0, |used, it| used | u32::from(it.max) << it.shift);
        let low = match (used >> 24 == 0, used & 0xff == 0) {
            (true, _) => true,
            (false, true) => false,
            _ => return self.pixels(),
        };
        if self.bits != 32 || self.depth > 24 {
            return self.pixels();
        }
        PixelWriter::new(self, if low == self.big_endian { 1..4 } else { 0..3 })
    }

    /// What writes the pixels of Tight: red, green and blue where each has a byte.
    pub fn tight_pixels(self) -> PixelWriter {
        let full = self.channels.iter().all(|it| it.max == 255);
        if self.bits != 32 || self.depth != 24 || !full {
            return self.pixels();
        }
        PixelWriter::new(Self { big_endian: true, ..Self::OWN }, 1..4)
    }
}

/// Writes the screen's pixels in a viewer's format.
pub struct PixelWriter {
    /// For each value of red, green and blue its part of the pixel.
    parts: [[u32; 256]; 3],
    big_endian: bool,
    /// Which of four bytes are written.
    bytes: Range<usize>,
}

impl PixelWriter {
    fn new(format: PixelFormat, bytes: Range<usize>) -> Self {
        let parts = format.channels.map(|Channel { max, shift }| {
            std::array::from_fn(|value| ((value as u32 * u32::from(max) + 127) / 255) << shift)
        });
        Self { parts, big_endian: format.big_endian, bytes }
    }

    /// How many bytes a pixel has.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Appends `pixel`, `0xXXRRGGBB`, to `out`.
    pub fn write(&self, pixel: u32, out: &mut Vec<u8>) {
        let [_, red, green, blue] = pixel.to_be_bytes().map(usize::from);
        let value = self.parts[0][red] | self.parts[1][green] | self.parts[2][blue];
        let bytes = if self.big_endian { value.to_be_bytes() } else { value.to_le_bytes() };
        out.extend_from_slice(&bytes[self.bytes.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(bits: u8, depth: u8, big_endian: bool, max: [u16; 3], shift: [u8; 3]) -> [u8; 16] {
        let channels = std::array::from_fn(|at| Channel { max: max[at], shift: shift[at] });
        PixelFormat { bits, depth, big_endian, channels }.to_bytes()
    }

    fn written(writer: &PixelWriter) -> Vec<u8> {
        let mut out = Vec::new();
        writer.write(0xee_ff_80_01, &mut out);
        assert_eq!(out.len(), writer.size());
        out
    }

    #[test]
    fn a_pixel_is_written_in_each_format() {
        type Case = ([u8; 16], &'static [u8], &'static [u8], &'static [u8]);
        let cases: [Case; 7] = [
            (PixelFormat::OWN.to_bytes(), &[1, 0x80, 0xff, 0], &[1, 0x80, 0xff], &[0xff, 0x80, 1]),
            (
                format(32, 24, true, [255; 3], [16, 8, 0]),
                &[0, 0xff, 0x80, 1],
                &[0xff, 0x80, 1],
                &[0xff, 0x80, 1],
            ),
            (
                format(32, 24, false, [255; 3], [8, 16, 24]),
                &[0, 0xff, 0x80, 1],
                &[0xff, 0x80, 1],
                &[0xff, 0x80, 1],
            ),
            (
                format(32, 24, true, [255; 3], [8, 16, 24]),
                &[1, 0x80, 0xff, 0],
                &[1, 0x80, 0xff],
                &[0xff, 0x80, 1],
            ),
            (
                format(32, 30, false, [1023; 3], [20, 10, 0]),
                &[4, 8, 0xf8, 0x3f],
                &[4, 8, 0xf8, 0x3f],
                &[4, 8, 0xf8, 0x3f],
            ),
            (format(16, 16, false, [31, 63, 31], [11, 5, 0]), &[0, 0xfc], &[0, 0xfc], &[0, 0xfc]),
            (format(8, 8, true, [7, 7, 3], [5, 2, 0]), &[0xf0], &[0xf0], &[0xf0]),
        ];
        for (bytes, whole, compact, tight) in cases {
            let format = PixelFormat::parse(&bytes).unwrap();
            assert_eq!(format.to_bytes(), bytes);
            assert_eq!(written(&format.pixels()), whole, "{format:?}");
            assert_eq!(written(&format.compact_pixels()), compact, "{format:?}");
            assert_eq!(written(&format.tight_pixels()), tight, "{format:?}");
        }
    }

    #[test]
    fn a_format_that_no_pixel_can_have_is_refused() {
        let good = PixelFormat::OWN.to_bytes();
        let wrong = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            PixelFormat::parse(&bytes).is_err()
        };
        assert!(wrong(0, 0) && wrong(0, 24) && wrong(0, 64) && wrong(0, 255), "bits");
        assert!(wrong(1, 33) && wrong(3, 0), "depth, or a map");
        assert!(wrong(4, 254) && wrong(5, 254), "a maximum that is no power of two less one");
        assert!(wrong(10, 25) && wrong(10, 255) && wrong(12, 32), "shifts");
        assert!(!wrong(10, 24) && !wrong(1, 32));
    }
}
