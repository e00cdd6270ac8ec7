//! What a monitor says of itself: an EDID 1.4 block (VESA E-EDID Standard, release A, revision 2).

use crate::screen::Size;

/// The length of the block in bytes.
pub const LEN: usize = 128;

/// A monitor whose preferred mode has `size`, at 60 Hz or as much as fits.
pub fn of(size: Size) -> [u8; LEN] {
    let mut block = [0; LEN];
    block[..8].copy_from_slice(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0]);
    // The manufacturer "KTE", five bits a letter; product 1, made in 2024.
    block[8..12].copy_from_slice(&[0x2e, 0x85, 1, 0]);
    block[17..20].copy_from_slice(&[34, 1, 4]);
    let [width_mm, height_mm] = [size.width, size.height].map(millimetres);
    let centimetres = |mm: u32| (mm / 10).clamp(1, 255) as u8;
    // Digital with 8 bits a colour; its size; gamma 2.2; sRGB, and the first timing is the preferred one.
    block[20..25].copy_from_slice(&[0xa0, centimetres(width_mm), centimetres(height_mm), 120, 0x06]);
    // The chromaticities of sRGB.
    block[25..35].copy_from_slice(&[0xee, 0x91, 0xa3, 0x54, 0x4c, 0x99, 0x26, 0x0f, 0x50, 0x54]);
    // No standard timings.
    block[38..54].fill(1);
    block[54..72].copy_from_slice(&timing(size, width_mm, height_mm));
    block[72..90].copy_from_slice(b"\0\0\0\xfc\0kite\n        ");
    // Two descriptors that say nothing.
    (block[93], block[111]) = (0x10, 0x10);
    let sum = block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    block[LEN - 1] = sum.wrapping_neg();
    block
}

/// The length of so many pixels at 96 dots an inch.
fn millimetres(pixels: u32) -> u32 {
    (pixels * 254 / 960).max(1)
}

/// A detailed timing (§3.10.2), with the blanking of a flat panel (CVT 1.2 §5.3.3, "reduced").
fn timing(size: Size, width_mm: u32, height_mm: u32) -> [u8; 18] {
    const H_BLANK: u32 = 160;
    const V_BLANK: u32 = 35;
    /// Pixels from the picture to the pulse, and of it.
    const H_SYNC: [u8; 2] = [48, 32];
    /// As [`H_SYNC`], in rows: four bits each.
    const V_SYNC: u8 = 3 << 4 | 6;
    let Size { width, height } = size;
    let clock = u64::from(width + H_BLANK) * u64::from(height + V_BLANK) * 60 / 10_000;
    let [clock_low, clock_high] = u16::try_from(clock).unwrap_or(u16::MAX).to_le_bytes();
    let high = |first: u32, second: u32| (first >> 8 << 4 | second >> 8) as u8;
    let low = |value: u32| value as u8;
    [
        clock_low,
        clock_high,
        low(width),
        low(H_BLANK),
        high(width, H_BLANK),
        low(height),
        low(V_BLANK),
        high(height, V_BLANK),
        H_SYNC[0],
        H_SYNC[1],
        V_SYNC,
        0,
        low(width_mm),
        low(height_mm),
        high(width_mm, height_mm),
        0,
        0,
        // Separate digital pulses, horizontal positive.
        0x1a,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::screen::MOST;

    #[test]
    fn every_block_sums_to_zero_and_says_the_preferred_size() {
        for (width, height) in [(1024, 768), (1, 1), (1366, 768), (MOST, 1), (1, MOST), (MOST, MOST)] {
            let block = of(Size { width, height });
            assert_eq!(block.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            let side =
                |low: usize, high: usize| u32::from(block[54 + low]) | u32::from(block[54 + high] >> 4) << 8;
            assert_eq!([side(2, 4), side(5, 7)], [width, height]);
            assert_ne!(block[54..56], [0, 0], "a clock of 0 would make it no timing");
        }
    }
}
