//! The smallest kernels there are, for tests to break.
//!
//! System V ABI, "Object Files"; Linux `Documentation/arch/x86/boot.rst`.

use boot::testing::{HEADER, LOAD, MULTIBOOT_ADDRESSES, Program, headers, multiboot_header, put, words};

/// The program header of [`elf`]: where its fields begin, and which they are.
pub const PROGRAM: usize = HEADER;
pub const TYPE: usize = PROGRAM;
pub const OFFSET: usize = PROGRAM + 8;
pub const ADDRESS: usize = PROGRAM + 24;
pub const FILE_LEN: usize = PROGRAM + 32;
pub const MEMORY_LEN: usize = PROGRAM + 40;
/// The length of one.
pub const PROGRAM_LEN: usize = boot::testing::PROGRAM;
/// The length of [`elf`], and where its segment is in the file.
pub const LEN: usize = 0x1000;
pub const CODE: usize = 0x800;

/// A guest that powers off at once: `mov dx, 0x600; mov al, 0x34; out dx, al; hlt`.
pub const POWER_OFF: &[u8] = b"\x66\xba\x00\x06\xb0\x34\xee\xf4";

/// An ELF image that powers off.
pub fn elf() -> Vec<u8> {
    elf_of(POWER_OFF)
}

/// An ELF image with one segment at 1 MiB, entered in long mode at its first byte.
pub fn elf_of(code: &[u8]) -> Vec<u8> {
    let (addr, offset) = (0x10_0000, CODE as u64);
    let mut file = headers(addr, &[Program { kind: LOAD, offset, addr, file_len: 0x400, mem_len: 0x1000 }]);
    file.resize(LEN, 0);
    put(&mut file, CODE, code);
    file
}

/// [`elf`] with a number somewhere in it.
pub fn elf_with(changes: &[(usize, u64)]) -> Vec<u8> {
    let mut file = elf();
    changes.iter().for_each(|(at, value)| put(&mut file, *at, &value.to_le_bytes()));
    file
}

/// [`elf`] with a second program header: notes that hold these bytes.
pub fn elf_with_notes(notes: &[u8]) -> Vec<u8> {
    const NOTES: usize = 0x400;
    let mut file = elf();
    file[56] = 2;
    let at = PROGRAM_LEN;
    put(&mut file, TYPE + at, &[4]);
    put(&mut file, OFFSET + at, &(NOTES as u64).to_le_bytes());
    put(&mut file, FILE_LEN + at, &(notes.len() as u64).to_le_bytes());
    put(&mut file, MEMORY_LEN + at, &(notes.len() as u64).to_le_bytes());
    put(&mut file, NOTES, notes);
    file
}

/// A bzImage with four setup sectors and a 4 KiB kernel that powers off at its 64-bit entry.
pub fn bzimage() -> Vec<u8> {
    const SETUP: usize = 5 * 512;
    let mut file = vec![0; SETUP + 0x1000];
    put(&mut file, 0x1f1, &[4]);
    put(&mut file, 0x1f4, &0x100u32.to_le_bytes());
    put(&mut file, 0x1fe, b"\x55\xaa\xeb\x6aHdrS\x0f\x02");
    put(&mut file, 0x211, &[1]);
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x234, &[1, 0, 1, 0]);
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &0x20_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x2000u32.to_le_bytes());
    put(&mut file, SETUP + 0x200, POWER_OFF);
    file
}

/// [`bzimage`] with these bytes somewhere in it.
pub fn bzimage_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, at, bytes);
    file
}

/// Where the header of [`multiboot`] is, and that of [`multiboot_elf`].
pub const MULTIBOOT_AT: usize = 0x20;
pub const MULTIBOOT_ELF_AT: usize = 0x60;

/// A Multiboot image of a page, with addresses, that powers off at its first byte (Multiboot Specification 0.6.96 §3.1).
pub fn multiboot() -> Vec<u8> {
    let mut file = vec![0; LEN];
    put(&mut file, 0, POWER_OFF);
    let addresses = [0x20_0020, 0x20_0000, 0, 0x20_2000, 0x20_0000];
    put(&mut file, MULTIBOOT_AT, &multiboot_header(MULTIBOOT_ADDRESSES | 3, &addresses));
    file
}

/// The same as a 32-bit executable, without addresses.
pub fn multiboot_elf() -> Vec<u8> {
    let mut file = vec![0; LEN];
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &words(&[3 << 16 | 2, 1, 0x20_0000, 52, 0, 0, 32 << 16 | 52, 1, 0]));
    put(&mut file, 52, &words(&[1, CODE as u32, 0x20_0000, 0x20_0000, 0x400, 0x1000, 7, 4]));
    put(&mut file, MULTIBOOT_ELF_AT, &multiboot_header(0, &[]));
    put(&mut file, CODE, POWER_OFF);
    file
}
