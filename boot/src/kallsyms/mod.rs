//! The names of a Linux kernel's functions: from its own tables in guest memory (Linux `scripts/kallsyms.c`,
//! `kernel/kallsyms.c`), or from a file beside it.
//!
//! A guest may have written anything where the tables are. All that follows is that names are wrong or missing: what is
//! read is bounded, and so is what is kept of it.

mod file;
mod find;
mod names;

use std::fmt;
use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use crate::GuestMemory;
pub use file::Files;
use names::Names;

/// Where the kernel's half of the address space begins (Linux `Documentation/arch/x86/x86_64/mm.rst`).
pub const KERNEL_HALF: u64 = 0xffff_8000_0000_0000;
/// The longest symbol of a kernel image in bytes; what is behind its last symbol is further away.
const SYMBOL_MAX: u64 = 1 << 24;

/// Guest-physical memory to be read.
pub trait Physical {
    /// Fills `into` from `address` on as far as there is memory; returns how many bytes that are.
    fn read(&self, address: u64, into: &mut [u8]) -> usize;
}

impl Physical for GuestMemory {
    fn read(&self, address: u64, into: &mut [u8]) -> usize {
        Bytes::read(self, into, GuestAddress(address)).unwrap_or(0)
    }
}

/// Somewhere in a kernel's image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Where the kernel sees it.
    pub address: u64,
    /// Where it is in guest-physical memory.
    pub physical: u64,
}

/// A kernel's symbols.
pub struct Symbols {
    /// Sorted; as the file or the table has them.
    addresses: Vec<u64>,
    names: Names,
    /// How far the kernel has been moved from these addresses.
    slide: u64,
}

/// Where an address is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// The symbol's name, printable ASCII.
    pub name: String,
    /// How far behind the symbol's start, in bytes.
    pub offset: u64,
    /// The symbol's length in bytes, up to the next one.
    pub size: u64,
    /// Whether it is code.
    pub is_code: bool,
}

impl fmt::Display for Symbol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}+{:#x}/{:#x}", self.name, self.offset, self.size)
    }
}

impl Symbols {
    /// The tables of the kernel whose image holds `near`.
    pub fn find(memory: &impl Physical, near: Place) -> Option<Self> {
        find::find(memory, near)
    }

    /// The symbols of a `System.map`; nothing if it lists none, as with the one that Debian puts in its place.
    pub fn from_system_map(text: Vec<u8>) -> Option<Self> {
        file::system_map(text)
    }

    /// The symbols of a file: a `System.map`, or an ELF `vmlinux` that has not been stripped of them.
    pub fn from_file(path: &Path) -> Option<Self> {
        file::read(&file::open(path).ok()?)
    }

    /// Moves symbols that are those of a file to where the kernel runs, given where one of its symbols is found.
    #[must_use]
    pub fn moved(mut self, name: &str, address: u64) -> Self {
        let index = (0..self.addresses.len()).find(|&index| self.names.is(index, name));
        self.slide = index.map_or(0, |index| address.wrapping_sub(self.addresses[index]));
        self
    }

    /// How many symbols there are.
    pub fn len(&self) -> usize {
        self.addresses.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// The symbol that `address` is in, if it is the kernel image's.
    pub fn at(&self, address: u64) -> Option<Symbol> {
        if address < KERNEL_HALF {
            return None;
        }
        let address = address.wrapping_sub(self.slide);
        let after = self.addresses.partition_point(|&it| it <= address);
        let start = *self.addresses.get(after.checked_sub(1)?)?;
        let first = self.addresses.partition_point(|&it| it < start);
        let (offset, size) = (address - start, self.addresses.get(after).map_or(0, |next| next - start));
        if start < KERNEL_HALF || offset >= SYMBOL_MAX {
            return None;
        }
        let (name, kind) = self.names.get(first)?;
        Some(Symbol { name, offset, size, is_code: matches!(kind, b't' | b'T' | b'w' | b'W') })
    }
}

#[cfg(test)]
mod tests;
