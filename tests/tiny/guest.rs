//! How a guest is written, what it looks like as a file, and when there is no running it.
//!
//! System V ABI, "Object Files"; Xen `public/elfnote.h` for the PVH note.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

use tempfile::TempDir;

/// Where the code is loaded and entered.
pub const BASE: u64 = 0x10_0000;
/// Where guests leave results: RAM that nothing else uses.
pub const RESULTS: u64 = 0x20_0000;
/// Nobody's memory: above the RAM of every guest here, within the identity map.
pub const NOWHERE: u64 = 0x3000_0000;

/// A guest's code as `guest!` lays it out: its length, then its bytes.
#[repr(C)]
pub struct Blob {
    len: u64,
    code: [u8; 0],
}

impl Blob {
    /// The code.
    pub fn code(&'static self) -> &'static [u8] {
        // SAFETY: `guest!` alone makes these, with `len` bytes of read-only data behind the length.
        unsafe { std::slice::from_raw_parts((&raw const self.code).cast(), self.len as usize) }
    }
}

/// Assembles a guest that is entered at its first byte; `NAME_AT` is a label's guest address without `BASE`.
macro_rules! guest {
    ($name:ident, $($asm:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\"",
            ".balign 8",
            concat!(".globl ", stringify!($name)),
            concat!(stringify!($name), ": .quad .Lend_", stringify!($name), " - .Lstart_", stringify!($name)),
            concat!(".Lstart_", stringify!($name), ":"),
            $($asm,)+
            concat!(".Lend_", stringify!($name), ":"),
            ".code64",
            ".popsection",
        );
        // SAFETY: the symbol is the one just defined, read-only, and laid out as `Blob` says.
        unsafe extern "C" { safe static $name: $crate::guest::Blob; }
    };
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

/// How a guest is entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, with the first GiB mapped to itself, and RSI at the zero page.
    Long,
    /// In 32-bit protected mode without paging, EBX at PVH's start information.
    Pvh,
    /// The same with Multiboot's information.
    Multiboot,
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
        Self::of(&if entry == Entry::Multiboot { multiboot(code) } else { elf(code, entry) })
    }

    /// A file with this content.
    pub fn of(content: &[u8]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.elf");
        std::fs::write(&path, content).unwrap();
        Self { _folder: folder, path }
    }
}

/// The code at `BASE`, and behind it a header with addresses (Multiboot Specification 0.6.96 §3.1).
pub fn multiboot(code: &[u8]) -> Vec<u8> {
    multiboot_at(code, BASE as u32)
}

/// The same somewhere else.
pub fn multiboot_at(code: &[u8], start: u32) -> Vec<u8> {
    const FLAGS: u32 = 1 << 16 | 3;
    const MAGIC: u32 = 0x1bad_b002;
    let len = code.len() as u32;
    let checksum = 0u32.wrapping_sub(MAGIC).wrapping_sub(FLAGS);
    let header = [MAGIC, FLAGS, checksum, start + len.next_multiple_of(4), start, 0, 0, start];
    let mut file = code.to_vec();
    file.resize(code.len().next_multiple_of(4), 0);
    file.extend(header.iter().flat_map(|word| word.to_le_bytes()));
    assert!(file.len() <= 8192, "the header would be too far back");
    file
}

/// The code at `BASE` in a 32-bit executable with a header that has no addresses, as KVM's unit tests are.
pub fn multiboot_elf(code: &[u8]) -> Vec<u8> {
    const CODE: u32 = 4096;
    const HEADER: [u32; 3] = [0x1bad_b002, 0, 0u32.wrapping_sub(0x1bad_b002)];
    let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let (base, len) = (BASE as u32, code.len() as u32);
    let mut file = [
        b"\x7fELF\x01\x01\x01".to_vec(),
        vec![0; 9],
        bytes(&[3 << 16 | 2, 1, base, 52, 0, 0, 32 << 16 | 52, 1, 0]),
        bytes(&[1, CODE, base, base, len, len, 7, CODE]),
        bytes(&HEADER),
    ]
    .concat();
    file.resize(CODE as usize, 0);
    file.extend_from_slice(code);
    file
}

/// One loadable segment at `BASE`, and a note if the entry is PVH's.
fn elf(code: &[u8], entry: Entry) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = HEADER + 2 * PROGRAM_HEADER;
    const CODE: u64 = 4096;
    const LOAD: [u32; 2] = [1, 7];
    const NOTES: [u32; 2] = [4, 4];
    const PHYS32_ENTRY: u32 = 18;

    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let halves = |halves: &[u32]| halves.iter().flat_map(|half| half.to_le_bytes()).collect::<Vec<_>>();
    let note = [halves(&[4, 4, PHYS32_ENTRY]), b"Xen\0".to_vec(), halves(&[BASE as u32])].concat();
    let (count, len) = (1 + u16::from(entry == Entry::Pvh), code.len() as u64);
    let shorts: Vec<u8> = [HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0]
        .iter()
        .flat_map(|it| it.to_le_bytes())
        .collect();
    let mut file = [
        b"\x7fELF\x02\x01\x01".to_vec(),
        vec![0; 9],
        halves(&[62 << 16 | 2, 1]),
        words(&[BASE, HEADER, 0]),
        halves(&[0]),
        shorts,
        halves(&LOAD),
        words(&[CODE, BASE, BASE, len, len, 4096]),
        halves(&NOTES),
        words(&[NOTE, 0, 0, note.len() as u64, note.len() as u64, 4]),
        note,
    ]
    .concat();
    file.resize(CODE as usize, 0);
    file.extend_from_slice(code);
    file
}

/// Says that `test` does not run for want of KVM, if that is so.
pub fn no_kvm(test: &str) -> bool {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => false,
        Err(error) => {
            skipped(test, &format!("/dev/kvm: {error}"));
            true
        }
    }
}

/// Says that `test` does not run, past the test harness, which would hide it.
pub fn skipped(test: &str, reason: &str) {
    // In one piece: other tests print at the same time.
    let _ = io::stderr().write_all(format!("skipped: {test}: {reason}\n").as_bytes());
}
