//! How a tiny guest is written, and the file that holds it.

use std::path::PathBuf;
use std::process::Command;

use boot::testing::{Entry, kernel};
use tempfile::TempDir;

/// Where guests leave results: RAM that nothing else uses.
pub const RESULTS: u64 = 0x20_0000;
/// Nobody's memory: above the RAM of every guest here, within the identity map.
pub const NOWHERE: u64 = 0x3000_0000;

/// Assembles a guest that is entered at its first byte.
macro_rules! guest {
    ($($guest:tt)*) => { boot::testing::assembly!($($guest)*); };
}

/// Powers off, in any mode.
macro_rules! power_off {
    () => {
        "mov dx, 0x600
         mov al, 0x34
         out dx, al
         9: hlt
         jmp 9b"
    };
}

/// Prints one character, in any mode.
macro_rules! say {
    ($character:literal) => {
        concat!("mov dx, 0x3f8\n mov al, ", $character, "\n out dx, al")
    };
}

/// Prints the bytes from RESULTS to RDI.
macro_rules! print_results {
    () => {
        "cld
         mov esi, 0x200000
         mov ecx, edi
         sub ecx, esi
         mov dx, 0x3f8
         rep outsb"
    };
}

/// Prints as Linux does until kite concludes that output can wait in KVM's ring (see `coalesced.rs`), then far more than
/// the ring holds, without a look at the port.
macro_rules! print_in_a_hurry {
    () => {
        "mov dx, 0x3f8
         mov al, 'a'
         out dx, al
         mov dx, 0x3fd
         in al, dx
         mov dx, 0x3f9
         xor al, al
         out dx, al
         mov dx, 0x3f8
         mov ecx, 1500
         mov al, 'b'
         2: out dx, al
         inc al
         and al, 0x7f
         loop 2b"
    };
}

/// What that prints.
pub fn printed_in_a_hurry() -> Vec<u8> {
    let rest = (0..1500).map(|index| (usize::from(b'b') + index) as u8 & 0x7f);
    std::iter::once(b'a').chain(rest).collect()
}

/// A guest as a file.
pub struct Elf {
    _folder: TempDir,
    /// Where it is.
    pub path: PathBuf,
}

impl Elf {
    /// Wraps a guest's code.
    pub fn new(code: &[u8], entry: Entry) -> Self {
        Self::of(&kernel(code, entry))
    }

    /// The command that runs the guest.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(super::KITE);
        command.args(["run", "--memory", "64M", "--kernel"]).arg(&self.path).args(arguments);
        command
    }

    /// A file with this content.
    pub fn of(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.elf");
        std::fs::write(&path, content).unwrap();
        Self { _folder: folder, path }
    }
}
