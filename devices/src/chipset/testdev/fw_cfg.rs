//! fw_cfg, QEMU's firmware configuration interface by I/O ports, without DMA (QEMU `docs/specs/fw_cfg.rst`): a selector of 16
//! bits at offset 0, and a data port at offset 1 that gives the selected item's bytes in turn.

use serde::{Deserialize, Serialize};

use super::number;
use crate::bus::BusDevice;
use crate::device::{Device, Error, State};

const SELECTOR: u64 = 0;
const DATA: u64 = 1;

/// Items.
const SIGNATURE: u16 = 0;
const INTERFACE: u16 = 1;
const RAM_SIZE: u16 = 3;
const CPUS: u16 = 5;
const MOST_CPUS: u16 = 15;
/// Of the interface's features there is the traditional one alone: these two ports.
const TRADITIONAL: u32 = 1;

/// The interface. An item that does not exist, and the end of one that does, read as zeros.
pub struct FwCfg {
    cpus: u16,
    ram: u64,
    state: Registers,
}

/// The guest-visible state.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registers {
    selected: u16,
    position: usize,
}

impl FwCfg {
    /// How many ports it has.
    pub const LEN: u64 = 2;

    /// Tells of a machine with `cpus` CPUs and `ram` bytes of RAM.
    pub fn new(cpus: u16, ram: u64) -> Self {
        Self { cpus, ram, state: Registers { selected: SIGNATURE, position: 0 } }
    }

    /// The item's byte at a position.
    fn byte(&self, position: usize) -> u8 {
        let at = |bytes: &[u8]| bytes.get(position).copied().unwrap_or(0);
        match self.state.selected {
            SIGNATURE => at(b"QEMU"),
            INTERFACE => at(&TRADITIONAL.to_le_bytes()),
            RAM_SIZE => at(&self.ram.to_le_bytes()),
            CPUS | MOST_CPUS => at(&self.cpus.to_le_bytes()),
            // What there is not; and the directory of files (0x19), which begins with how many there are.
            _ => 0,
        }
    }
}

impl Device for FwCfg {
    fn name(&self) -> &'static str {
        "fw_cfg"
    }

    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&self.state))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        self.state = state.take()?;
        Ok(())
    }
}

impl BusDevice for FwCfg {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset != DATA {
            data.fill(0);
            return;
        }
        for byte in data {
            *byte = self.byte(self.state.position);
            self.state.position = self.state.position.saturating_add(1);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // The data port has been read-only since QEMU 2.4.
        if offset == SELECTOR && data.len() == 2 {
            self.state = Registers { selected: number(data) as u16, position: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::storm;

    fn device() -> FwCfg {
        FwCfg::new(0x0102, 0x1_8000_0000)
    }

    /// An item, read a byte at a time.
    fn item<const LEN: usize>(device: &mut FwCfg, selector: u16) -> [u8; LEN] {
        device.write(SELECTOR, &selector.to_le_bytes());
        std::array::from_fn(|_| {
            let mut data = [0x55];
            device.read(DATA, &mut data);
            data[0]
        })
    }

    #[test]
    fn items_tell_of_the_machine() {
        let mut device = device();
        assert_eq!(&item(&mut device, 0), b"QEMU");
        assert_eq!(u32::from_le_bytes(item(&mut device, 1)), 1);
        assert_eq!(u64::from_le_bytes(item(&mut device, 3)), 0x1_8000_0000);
        assert_eq!(u16::from_le_bytes(item(&mut device, 5)), 0x0102);
        assert_eq!(u16::from_le_bytes(item(&mut device, 15)), 0x0102);
        assert_eq!(item(&mut device, 0x19), [0; 4]);
    }

    #[test]
    fn what_does_not_exist_reads_as_zeros() {
        let mut device = device();
        assert_eq!(item(&mut device, 5), [2, 1, 0, 0, 0]);
        for selector in [2, 0x7fff, 0x8000, 0xffff] {
            assert_eq!(item(&mut device, selector), [0; 8]);
        }
    }

    #[test]
    fn a_string_of_reads_goes_on_where_the_last_one_stopped() {
        let mut device = device();
        device.write(SELECTOR, &[0, 0]);
        let mut data = [0; 3];
        device.read(DATA, &mut data);
        assert_eq!(&data, b"QEM");
        device.read(DATA, &mut data);
        assert_eq!(&data, b"U\0\0");
    }

    #[test]
    fn only_the_selector_can_be_written_and_only_whole() {
        let mut device = device();
        device.write(SELECTOR, &[5]);
        device.write(DATA, &[5, 0]);
        device.write(SELECTOR, &[5, 0, 0, 0]);
        let mut data = [0; 4];
        device.read(SELECTOR, &mut data);
        assert_eq!(data, [0; 4]);
        device.read(DATA, &mut data);
        assert_eq!(&data, b"QEMU");
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut device(), FwCfg::LEN, 25, |_| {});
    }
}
