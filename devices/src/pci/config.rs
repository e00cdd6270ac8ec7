//! The configuration space of a function: its header, its capabilities, and which bits of them the guest may change
//! (PCI Local Bus 3.0 §6.1 and §6.7).

use std::ops::Range;

use crate::device::{Error, check};

/// The bytes that have a meaning; the rest of a function's page is zeros.
pub const LEN: usize = 256;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CLASS: usize = 0x09;
const CACHE_LINE: usize = 0x0c;
const LATENCY: usize = 0x0d;
const BAR: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
/// The expansion ROM's BAR, of which there is none, ends here.
const ROM_END: usize = 0x34;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// The header ends here, and capabilities begin.
const HEADER: usize = 0x40;

/// The function answers in its memory region.
const MEMORY: u16 = 1 << 1;
/// Bits of the command register that the guest may set: [`MEMORY`], bus mastering, no INTx.
const COMMANDS: u16 = MEMORY | 1 << 2 | 1 << 10;
/// There is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;
/// Enough for Linux, which would write the register if this was less.
const LATENCY_CLOCKS: u8 = 64;
/// A BAR of memory with a 64-bit address.
const WIDE: u8 = 0b100;
/// The bits of a BAR that are not address.
const BAR_FLAGS: u64 = 0xf;

/// What a function is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Identity {
    /// The vendor id.
    pub vendor: u16,
    /// The device id.
    pub device: u16,
    /// The revision.
    pub revision: u8,
    /// Class, subclass and interface, a byte each.
    pub class: u32,
    /// The subsystem's vendor id.
    pub subsystem_vendor: u16,
    /// The subsystem's id.
    pub subsystem: u16,
}

/// The bytes of a configuration space, and which of their bits the guest may change.
#[derive(Clone)]
pub struct Config {
    bytes: [u8; LEN],
    writable: [u8; LEN],
    /// Where the next capability goes.
    next: usize,
    /// Where the number of the next capability goes.
    link: usize,
}

impl Config {
    /// One without capabilities and memory.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self { bytes: [0; LEN], writable: [0; LEN], next: HEADER, link: CAPABILITIES };
        config.set(VENDOR, &identity.vendor.to_le_bytes());
        config.set(DEVICE, &identity.device.to_le_bytes());
        config.set(REVISION, &[identity.revision]);
        config.set(CLASS, &identity.class.to_le_bytes()[..3]);
        config.set(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes());
        config.set(SUBSYSTEM, &identity.subsystem.to_le_bytes());
        config.set(LATENCY, &[LATENCY_CLOCKS]);
        config.allow(COMMAND, &COMMANDS.to_le_bytes());
        // Notes of the guest's own.
        config.allow(CACHE_LINE, &[0xff]);
        config.allow(INTERRUPT_LINE, &[0xff]);
        config
    }

    /// Gives the function a memory region of `len` bytes, a power of two, at `base`, as BAR 0 and 1.
    pub fn add_memory(&mut self, base: u64, len: u64) {
        self.set(BAR, &(base | u64::from(WIDE)).to_le_bytes());
        self.allow(BAR, &(!(len - 1) & !BAR_FLAGS).to_le_bytes());
    }

    /// Appends a capability, of which the guest may change the bits in `writable`, and says where it is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        self.set(self.link, &[at as u8]);
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.set(STATUS, &[HAS_CAPABILITIES]);
        self.link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Changes bytes, also those that the guest cannot.
    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; LEN] {
        &self.bytes
    }

    /// The register with this index: four bytes, little endian.
    pub fn register(&self, index: usize) -> u32 {
        u32::from_le_bytes(self.array(4 * index))
    }

    /// `LEN` bytes from `at` on.
    pub fn array<const LEN: usize>(&self, at: usize) -> [u8; LEN] {
        self.bytes[at..at + LEN].try_into().expect("a slice has the length that it was cut to")
    }

    /// Where the memory region is, if the function answers there.
    pub fn memory(&self) -> Option<u64> {
        let on = u16::from_le_bytes(self.array(COMMAND)) & MEMORY != 0;
        on.then(|| u64::from_le_bytes(self.array(BAR)) & !BAR_FLAGS)
    }

    /// The BARs of which the guest can change nothing, and all between them and the expansion ROM's: a start and a length.
    /// Drivers size them all the same.
    pub fn constant_bars(&self) -> (usize, usize) {
        let first = (BAR..ROM_END).find(|at| self.writable[*at..ROM_END].iter().all(|bits| *bits == 0));
        let first = first.unwrap_or(ROM_END);
        (first, ROM_END - first)
    }

    /// The guest reads: beyond the end are zeros.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let Ok(offset) = usize::try_from(offset) else { return };
        let bytes = self.bytes.iter().skip(offset);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    }

    /// The guest writes: of each byte the bits that it may change. Returns which bytes it has written to.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Range<usize> {
        let start = usize::try_from(offset).map_or(LEN, |offset| offset.min(LEN));
        let end = start.saturating_add(data.len()).min(LEN);
        let bytes = self.bytes[start..end].iter_mut().zip(&self.writable[start..end]);
        for ((byte, writable), new) in bytes.zip(data) {
            *byte = *byte & !writable | new & writable;
        }
        start..end
    }

    /// Takes over saved bytes.
    ///
    /// # Errors
    /// They differ where the guest can change nothing.
    pub fn load(&mut self, saved: &[u8; LEN]) -> Result<(), Error> {
        let bytes = saved.iter().zip(&self.bytes).zip(&self.writable);
        let same = bytes.clone().all(|((saved, byte), writable)| (saved ^ byte) & !writable == 0);
        check(same, "configuration space")?;
        self.bytes = *saved;
        Ok(())
    }
}
