//! pc-testdev's latches and scratch memory: what is written is read back, and every access leaves the guest.

use serde::{Deserialize, Serialize};

use super::give;
use crate::bus::BusDevice;
use crate::device::{Device, Error, State, base64_bytes, check};

/// `SIZE` bytes that read as what was written to them; what is written beyond is lost, and reads as all ones.
pub struct Memory<const SIZE: usize> {
    name: &'static str,
    bytes: Vec<u8>,
}

/// The guest-visible state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Bytes {
    #[serde(with = "base64_bytes")]
    bytes: Vec<u8>,
}

impl<const SIZE: usize> Memory<SIZE> {
    /// The length in bytes.
    pub const LEN: u64 = SIZE as u64;

    /// Holds zeros.
    pub fn new(name: &'static str) -> Self {
        Self { name, bytes: vec![0; SIZE] }
    }
}

impl<const SIZE: usize> BusDevice for Memory<SIZE> {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        give(&self.bytes, offset, data, 0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let from = usize::try_from(offset).unwrap_or(SIZE).min(SIZE);
        for (byte, value) in self.bytes[from..].iter_mut().zip(data) {
            *byte = *value;
        }
    }
}

impl<const SIZE: usize> Device for Memory<SIZE> {
    fn name(&self) -> &str {
        self.name
    }

    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&Bytes { bytes: self.bytes.clone() }))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        let Bytes { bytes } = state.take()?;
        check(bytes.len() == SIZE, "length")?;
        self.bytes = bytes;
        Ok(())
    }
}

/// Four ports, at any width and any of them.
pub type Latch = Memory<4>;
/// 64 KiB that look like memory.
pub type Scratch = Memory<{ 64 << 10 }>;

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
        let mut latch = Latch::new("latch");
        latch.write(0, &[0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(&mut latch, 0), [0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(&mut latch, 1), [0x56, 0x34]);
        latch.write(2, &[0xbe, 0xba]);
        latch.write(1, &[0xfe]);
        assert_eq!(read(&mut latch, 0), [0x78, 0xfe, 0xbe, 0xba]);
    }

    #[test]
    fn what_lies_beyond_is_lost_and_reads_as_ones() {
        let mut latch = Latch::new("latch");
        latch.write(3, &[1, 2, 3, 4]);
        assert_eq!(read(&mut latch, 2), [0, 1, 0xff, 0xff]);
        let mut scratch = Scratch::new("scratch");
        scratch.write(Scratch::LEN - 2, &[1, 2, 3, 4]);
        assert_eq!(read(&mut scratch, Scratch::LEN - 2), [1, 2, 0xff, 0xff]);
        scratch.write(u64::MAX, &[9]);
        assert_eq!(read(&mut scratch, u64::MAX), [0xff]);
        assert_eq!(read(&mut scratch, 0), [0; 8]);
    }

    #[test]
    fn scratch_memory_keeps_every_byte() {
        let mut scratch = Scratch::new("scratch");
        for at in 0..Scratch::LEN / 8 {
            scratch.write(at * 8, &(at * 0x0101_0101_0101).to_le_bytes());
        }
        for at in 0..Scratch::LEN / 8 {
            assert_eq!(u64::from_le_bytes(read(&mut scratch, at * 8)), at * 0x0101_0101_0101);
        }
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut Latch::new("latch"), Latch::LEN, 22, |_| {});
    }
}
