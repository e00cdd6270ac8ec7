//! pc-testdev's latches and scratch memory: what is written is read back, and every access leaves the guest.

use super::give;
use crate::bus::BusDevice;

/// The length of the scratch memory in bytes.
pub const SCRATCH_LEN: u64 = 64 << 10;

/// Keeps what is written to its `LEN` bytes; beyond them nothing is kept, and all ones are read.
struct Kept<const LEN: usize>(Box<[u8; LEN]>);

impl<const LEN: usize> Kept<LEN> {
    fn new() -> Self {
        Self(vec![0; LEN].into_boxed_slice().try_into().expect("as long as it was made"))
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        give(self.0.as_slice(), offset, data, 0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap_or(LEN).min(LEN);
        for (byte, value) in self.0[from..].iter_mut().zip(data) {
            *byte = *value;
        }
    }
}

/// Four ports that keep what is written, at any width and any of them.
pub struct Latch(Kept<4>);

impl Latch {
    /// How many ports it has.
    pub const LEN: u64 = 4;

    /// Holds zero.
    #[expect(clippy::new_without_default, reason = "a device is made, not defaulted")]
    pub fn new() -> Self {
        Self(Kept::new())
    }
}

impl BusDevice for Latch {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

/// 64 KiB that look like memory.
pub struct Scratch(Kept<{ SCRATCH_LEN as usize }>);

impl Scratch {
    /// Holds zeros.
    #[expect(clippy::new_without_default, reason = "a device is made, not defaulted")]
    pub fn new() -> Self {
        Self(Kept::new())
    }
}

impl BusDevice for Scratch {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.0.read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::storm;

    fn read<const LEN: usize>(device: &mut dyn BusDevice, offset: u64) -> [u8; LEN] {
        let mut data = [0x55; LEN];
        device.read(offset, &mut data);
        data
    }

    #[test]
    fn a_latch_takes_and_gives_any_width_at_any_port() {
        let mut latch = Latch::new();
        latch.write(0, &[0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(&mut latch, 0), [0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(&mut latch, 1), [0x56, 0x34]);
        latch.write(2, &[0xbe, 0xba]);
        latch.write(1, &[0xfe]);
        assert_eq!(read(&mut latch, 0), [0x78, 0xfe, 0xbe, 0xba]);
    }

    #[test]
    fn what_lies_beyond_is_lost_and_reads_as_ones() {
        let mut latch = Latch::new();
        latch.write(3, &[1, 2, 3, 4]);
        assert_eq!(read(&mut latch, 2), [0, 1, 0xff, 0xff]);
        let mut scratch = Scratch::new();
        scratch.write(SCRATCH_LEN - 2, &[1, 2, 3, 4]);
        assert_eq!(read(&mut scratch, SCRATCH_LEN - 2), [1, 2, 0xff, 0xff]);
        scratch.write(u64::MAX, &[9]);
        assert_eq!(read(&mut scratch, u64::MAX), [0xff]);
        assert_eq!(read(&mut scratch, 0), [0; 8]);
    }

    #[test]
    fn scratch_memory_keeps_every_byte() {
        let mut scratch = Scratch::new();
        for at in 0..SCRATCH_LEN / 8 {
            scratch.write(at * 8, &(at * 0x0101_0101_0101).to_le_bytes());
        }
        for at in 0..SCRATCH_LEN / 8 {
            assert_eq!(u64::from_le_bytes(read(&mut scratch, at * 8)), at * 0x0101_0101_0101);
        }
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut Latch::new(), Latch::LEN, 22, |_| {});
    }
}
