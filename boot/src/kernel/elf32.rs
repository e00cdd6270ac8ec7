//! The headers of 32-bit ELF executables, which only Multiboot images are (System V ABI, "Object Files").

use std::fs::File;

use linux_loader::elf::Elf64_Phdr;

use super::elf::{EXECUTABLE, LITTLE_ENDIAN, MACHINE_X86_64, MAX_PROGRAM_HEADERS};
use super::{Error, multiboot, read_up_to};

pub(super) const CLASS_32: u8 = 1;
const MACHINE_386: u16 = 3;
/// The size of an `Elf32_Ehdr`.
const HEADER: usize = 52;
/// The size of an `Elf32_Phdr`.
const PROGRAM_HEADER: usize = 32;

fn half(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The entry point and the program headers, as wide as those of 64-bit executables.
pub(super) fn program_headers(file: &File) -> Result<(u64, Vec<Elf64_Phdr>), Error> {
    let bad = multiboot::bad;
    let header: [u8; HEADER] = get(file, 0)?;
    let machine = half(&header, 18);
    // What turns a 64-bit executable into a 32-bit one may leave the machine as it was.
    if header[5] != LITTLE_ENDIAN || ![MACHINE_386, MACHINE_X86_64].contains(&machine) {
        return Err(bad("it is not for x86"));
    }
    if half(&header, 16) != EXECUTABLE {
        return Err(bad("it is not an executable"));
    }
    let (size, count) = (half(&header, 42), half(&header, 44));
    if usize::from(size) != PROGRAM_HEADER || count > MAX_PROGRAM_HEADERS {
        return Err(bad("its program headers make no sense"));
    }
    let start = u64::from(word(&header, 28));
    let program = |index: usize| Ok(widen(&get(file, start + (index * PROGRAM_HEADER) as u64)?));
    let programs = (0..usize::from(count)).map(program).collect::<Result<_, Error>>()?;
    Ok((word(&header, 24).into(), programs))
}

fn get<const LEN: usize>(file: &File, offset: u64) -> Result<[u8; LEN], Error> {
    let mut bytes = [0; LEN];
    match read_up_to(file, &mut bytes, offset)? {
        got if got == LEN => Ok(bytes),
        _ => Err(multiboot::bad("it is truncated")),
    }
}

fn widen(program: &[u8; PROGRAM_HEADER]) -> Elf64_Phdr {
    let field = |index: usize| word(program, index * 4);
    Elf64_Phdr {
        p_type: field(0),
        p_offset: field(1).into(),
        p_vaddr: field(2).into(),
        p_paddr: field(3).into(),
        p_filesz: field(4).into(),
        p_memsz: field(5).into(),
        p_flags: field(6),
        p_align: field(7).into(),
    }
}
