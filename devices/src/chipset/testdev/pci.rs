//! PCI configuration mechanism 1 (PCI Local Bus 3.0 §3.2.2.3.2) in front of the only function there is.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::pci_test::PciTest;
use super::{give, number};
use crate::bus::BusDevice;
use crate::device::{Device, Error, State};

/// CONFIG_ADDRESS: bit 31 enables; bus, device, function, and the byte in the configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_DATA's first port.
const DATA: u64 = 4;
/// Bus 0, device 1, function 0.
const FUNCTION: u32 = 1 << 11;
const FUNCTION_MASK: u32 = 0x00ff_ff00;

/// CONFIG_ADDRESS and CONFIG_DATA, four ports each. A function that does not exist reads as ones.
pub struct ConfigPorts {
    address: u32,
    function: Arc<Mutex<PciTest>>,
}

impl ConfigPorts {
    /// How many ports there are.
    pub const LEN: u64 = 8;

    /// Ports with `function` at bus 0, device 1.
    pub fn new(function: Arc<Mutex<PciTest>>) -> Self {
        Self { address: 0, function }
    }

    /// The function that is addressed, and the byte of its configuration space that an access to CONFIG_DATA at `offset`
    /// begins with. The lowest two bits of the address count, too: some drivers put the byte there and use the first port.
    fn addressed(&self, offset: u64) -> Option<(MutexGuard<'_, PciTest>, u8)> {
        let here = self.address & ENABLE != 0 && self.address & FUNCTION_MASK == FUNCTION;
        let byte = (self.address & 0xff) as u8 | (offset & 3) as u8;
        here.then(|| (self.function.lock().unwrap_or_else(PoisonError::into_inner), byte))
    }
}

/// The guest-visible state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    address: u32,
}

impl Device for ConfigPorts {
    fn name(&self) -> &'static str {
        "PCI configuration"
    }

    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&Saved { address: self.address }))
    }

    fn load(&mut self, state: State) -> Result<(), Error> {
        self.address = state.take::<Saved>()?.address;
        Ok(())
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if offset < DATA {
            give(&self.address.to_le_bytes(), offset, data, 0xff);
            return;
        }
        data.fill(0xff);
        if let Some((function, byte)) = self.addressed(offset).filter(|_| offset < Self::LEN) {
            function.read_config(byte, data);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match offset {
            // Only as a whole: the ports have other meanings byte by byte.
            0 if data.len() == 4 => self.address = number(data),
            DATA..Self::LEN => {
                if let Some((mut function, byte)) = self.addressed(offset) {
                    function.write_config(byte, data);
                }
            }
            _ => {}
        }
    }
}

/// Which of the function's two windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// BAR 0, memory.
    Memory,
    /// BAR 1, ports.
    Port,
}

/// Where the board has put the function's windows.
#[derive(Clone, Copy, Debug)]
pub struct Wiring {
    /// The guest-physical address of BAR 0.
    pub memory: u32,
    /// The first port of BAR 1.
    pub port: u16,
}

#[cfg(test)]
mod tests {
    use super::super::pci_test::tests::function;
    use super::*;
    use crate::testing::storm;

    fn ports() -> ConfigPorts {
        ConfigPorts::new(Arc::new(Mutex::new(function().0)))
    }

    fn select(ports: &mut ConfigPorts, address: u32) {
        ports.write(0, &address.to_le_bytes());
    }

    fn read<const LEN: usize>(ports: &mut ConfigPorts, offset: u64) -> [u8; LEN] {
        let mut data = [0x55; LEN];
        ports.read(offset, &mut data);
        data
    }

    #[test]
    fn device_1_of_bus_0_is_there_and_no_other() {
        let mut ports = ports();
        for function in 0..=0xffffu32 {
            select(&mut ports, ENABLE | function << 8);
            let expected = if function == 1 << 3 { [0x36, 0x1b, 5, 0] } else { [0xff; 4] };
            assert_eq!(read(&mut ports, DATA), expected, "{function:#x}");
        }
        select(&mut ports, FUNCTION);
        assert_eq!(read(&mut ports, DATA), [0xff; 4], "not enabled");
    }

    #[test]
    fn a_byte_is_chosen_by_the_port_or_by_the_lowest_bits_of_the_address() {
        let mut ports = ports();
        for byte in 0..4u8 {
            let expected = [0x36, 0x1b, 5, 0][usize::from(byte)];
            select(&mut ports, ENABLE | FUNCTION);
            assert_eq!(read(&mut ports, DATA + u64::from(byte)), [expected]);
            select(&mut ports, ENABLE | FUNCTION | u32::from(byte));
            assert_eq!(read(&mut ports, DATA), [expected]);
        }
        select(&mut ports, ENABLE | FUNCTION | 2);
        assert_eq!(read(&mut ports, DATA), [5, 0]);
        select(&mut ports, ENABLE | FUNCTION | 0x3e);
        ports.write(DATA, &[9]);
        select(&mut ports, ENABLE | FUNCTION | 0x3c);
        ports.write(DATA, &[7]);
        assert_eq!(read(&mut ports, DATA), [7, 0, 0, 0]);
    }

    #[test]
    fn the_address_is_written_whole_and_read_back() {
        let mut ports = ports();
        select(&mut ports, 0x8765_4321);
        for (offset, data) in [(0, &[1u8][..]), (1, &[6]), (0, &[1, 2]), (1, &[1; 4]), (0, &[1; 8])] {
            ports.write(offset, data);
        }
        assert_eq!(read(&mut ports, 0), 0x8765_4321u32.to_le_bytes());
        assert_eq!(read(&mut ports, 2), [0x65, 0x87, 0xff]);
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        let mut ports = ports();
        storm(&mut ports, ConfigPorts::LEN, 27, |_| {});
        for address in 0..=0xff {
            select(&mut ports, ENABLE | FUNCTION | address);
            for width in 0..16 {
                ports.write(DATA, &[0xff; 16][..width]);
                ports.read(DATA + 3, &mut [0; 16][..width]);
            }
        }
    }
}
