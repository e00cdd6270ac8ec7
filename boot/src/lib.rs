//! What the guest finds at reset: kernel, initramfs, command line, tables and registers.
//!
//! Nothing here opens `/dev/kvm` or maps memory. A file's bytes are not read but placed: a [`Piece`] names them,
//! and the owner of guest memory maps or copies them.

#![forbid(unsafe_code)]

pub mod acpi;
pub mod cpuid;
pub mod erofs;
pub mod firmware;
pub mod initramfs;
pub mod kallsyms;
pub mod kernel;
pub mod layout;
pub mod modules;
pub mod mptable;
mod multiboot;
pub mod params;
pub mod registers;
pub mod testing;

use std::fs::File;
use std::sync::Arc;

/// Guest RAM as the loader sees it.
pub type GuestMemory = vm_memory::GuestMemoryMmap;

/// Bytes on their way into guest memory.
#[derive(Clone, Debug)]
pub enum Piece {
    /// These bytes.
    Bytes(Vec<u8>),
    /// `len` bytes of `file` from `offset`.
    File {
        /// The file, open for reading.
        file: Arc<File>,
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
}

impl Piece {
    /// The length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { len, .. } => *len,
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
