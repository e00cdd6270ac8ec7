//! PCI: bus 0 behind a host bridge, with one function a device (PCI Local Bus 3.0 §6, PCI Express 5.0 §7.2.2).
//!
//! The guest reads configuration space as memory: each function has a page of it, and all that are absent have pages of
//! ones. Only writes come here; what they change is shown in the page ([`Page`]). Functions have one memory region each,
//! which the guest moves within the bridge's window ([`memory`]), and interrupt by messages ([`msix`]).

pub mod config;
pub mod memory;
pub mod msix;
mod root;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;

pub use root::{Root, Shown};

use crate::device::Error;
use config::Config;

/// The length in bytes of one function's configuration space.
pub const PAGE: u64 = 4096;
/// How many devices there can be on a bus, the host bridge among them.
pub const DEVICES: usize = 32;
/// How many functions a device can have; those here have one.
pub const FUNCTIONS: usize = 8;
/// The length in bytes of a bus's configuration space.
pub const BUS: u64 = PAGE * (DEVICES * FUNCTIONS) as u64;

/// A function: its configuration space, and the memory region that its BAR 0 places.
pub trait Function: Send {
    /// The configuration space, as the guest reads it.
    fn config(&self) -> &Config;

    /// The guest wrote `data` at `offset` of the configuration space, which may be anywhere and of any length.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// Takes over the bytes of a saved configuration space, which are not checked. No interrupt is sent.
    ///
    /// # Errors
    /// The function cannot have such a configuration space.
    fn load_config(&mut self, saved: &[u8; config::LEN]) -> Result<(), Error>;

    /// The guest reads at `offset` of the memory region.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The guest wrote at `offset` of the memory region.
    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

/// The page in which the guest sees a function's configuration space without asking. Its other bytes are zeros.
pub trait Page: Send {
    /// Shows `value`, little endian, as the register with this index.
    fn show(&self, register: usize, value: u32);
}

/// The host bridge, which has nothing to configure.
pub struct HostBridge(Config);

impl HostBridge {
    /// The vendor and device id: QEMU's generic PCI Express host bridge (QEMU `docs/specs/pci-ids.rst`).
    const ID: (u16, u16) = (0x1b36, 0x0008);
    /// Bridge, host.
    const CLASS: u32 = 0x06_00_00;

    /// The only kind there is.
    pub fn new() -> Self {
        let (vendor, device) = Self::ID;
        let identity = config::Identity { vendor, device, class: Self::CLASS, ..config::Identity::default() };
        Self(Config::new(identity))
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn config(&self) -> &Config {
        &self.0
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.0.write(offset, data);
    }

    fn load_config(&mut self, saved: &[u8; config::LEN]) -> Result<(), Error> {
        self.0.load(saved)
    }
}
