//! Guests made of machine code, for tests and measurements: the assembler's macro, and the files that hold such a guest.
//!
//! System V ABI, "Object Files"; Xen `public/elfnote.h` for the PVH note; Multiboot Specification 0.6.96 §3.1.

pub use crate::assembly;

/// Where [`elf`] has its code, in guest memory.
pub const BASE: u64 = 0x10_0000;
/// The type of a loadable segment.
pub const LOAD: u32 = 1;
/// The type of a segment of notes.
pub const NOTE: u32 = 4;
/// The length of an ELF header.
pub const HEADER: usize = 64;
/// The length of a program header.
pub const PROGRAM: usize = 56;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
/// Where [`elf`] has its code, in the file.
const CODE: usize = 4096;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// The flag of a Multiboot header that has addresses.
pub const MULTIBOOT_ADDRESSES: u32 = 1 << 16;

/// The machine code of a guest, which [`assembly!`] makes.
#[derive(Debug)]
pub struct Code(fn() -> &'static [u8]);

impl Code {
    /// Code that `bytes` returns.
    pub const fn new(bytes: fn() -> &'static [u8]) -> Self {
        Self(bytes)
    }

    /// The code.
    pub fn code(&self) -> &'static [u8] {
        (self.0)()
    }
}

/// Assembles a guest's code, entered at its first byte, into a static [`Code`]: `assembly!(pub NAME, "hlt", ...)`. In
/// the code, `.Lstart_NAME` is its start.
#[macro_export]
macro_rules! assembly {
    ($visibility:vis $name:ident, $($asm:expr),+ $(,)?) => {
        std::arch::global_asm!(
            ".pushsection .rodata.guests, \"a\"",
            ".balign 8",
            concat!(".globl kite_guest_", stringify!($name)),
            concat!(".globl kite_guest_end_", stringify!($name)),
            concat!("kite_guest_", stringify!($name), ": .Lstart_", stringify!($name), ":"),
            $($asm,)+
            concat!("kite_guest_end_", stringify!($name), ":"),
            ".code64",
            ".popsection",
        );
        /// A guest's code.
        $visibility static $name: $crate::testing::Code = {
            // SAFETY: the symbols are those just defined.
            unsafe extern "C" {
                #[link_name = concat!("kite_guest_", stringify!($name))]
                safe static START: [u8; 0];
                #[link_name = concat!("kite_guest_end_", stringify!($name))]
                safe static END: [u8; 0];
            }
            fn bytes() -> &'static [u8] {
                let len = (&raw const END).addr() - (&raw const START).addr();
                // SAFETY: between the two symbols is the code, which is read-only data.
                unsafe { std::slice::from_raw_parts((&raw const START).cast(), len) }
            }
            $crate::testing::Code::new(bytes)
        };
    };
}

/// How a guest is entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// In long mode, with the first GiB mapped to itself, and RSI at the zero page.
    Long,
    /// In 32-bit protected mode without paging, EBX at PVH's start information.
    Pvh,
    /// The same with Multiboot's information.
    Multiboot,
}

/// A program header.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The segment's type.
    pub kind: u32,
    /// The segment's place in the file, in bytes.
    pub offset: u64,
    /// The segment's guest-physical address.
    pub addr: u64,
    /// The segment's length in the file, in bytes.
    pub file_len: u64,
    /// The segment's length in memory, in bytes.
    pub mem_len: u64,
}

/// An ELF header and program headers: a 64-bit executable for x86-64, entered at `entry`.
pub fn headers(entry: u64, programs: &[Program]) -> Vec<u8> {
    let mut file = vec![0; HEADER + programs.len() * PROGRAM];
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    let sizes = [HEADER, PROGRAM, programs.len()].map(|size| size as u16);
    for (at, value) in [(16, 2), (18, 62), (20, 1), (52, sizes[0]), (54, sizes[1]), (56, sizes[2])] {
        put(&mut file, at, &value.to_le_bytes());
    }
    put(&mut file, 24, &entry.to_le_bytes());
    put(&mut file, 32, &(HEADER as u64).to_le_bytes());
    for (index, program) in programs.iter().enumerate() {
        let at = HEADER + index * PROGRAM;
        put(&mut file, at, &words(&[program.kind, 7]));
        let align = if program.kind == NOTE { 4 } else { 4096 };
        let fields = [program.offset, program.addr, program.addr, program.file_len, program.mem_len, align];
        put(&mut file, at + 8, &fields.map(u64::to_le_bytes).concat());
    }
    file
}

/// The note of a kernel's 32-bit entry, with a value of these bytes.
pub fn pvh_note(value: &[u8]) -> Vec<u8> {
    [&words(&[4, value.len() as u32, PHYS32_ENTRY]), &b"Xen\0"[..], value].concat()
}

/// A file of this code for any of the entries: the code is at [`BASE`], and entered there.
pub fn kernel(code: &[u8], entry: Entry) -> Vec<u8> {
    if entry == Entry::Multiboot { multiboot_at(code, BASE as u32) } else { elf(code, entry) }
}

fn elf(code: &[u8], entry: Entry) -> Vec<u8> {
    let len = code.len() as u64;
    let load = Program { kind: LOAD, offset: CODE as u64, addr: BASE, file_len: len, mem_len: len };
    let note = pvh_note(&words(&[BASE as u32]));
    let (offset, len) = ((HEADER + 2 * PROGRAM) as u64, note.len() as u64);
    let note_header = Program { kind: NOTE, offset, addr: 0, file_len: len, mem_len: len };
    let mut file = match entry {
        Entry::Pvh => [headers(BASE, &[load, note_header]), note].concat(),
        _ => headers(BASE, &[load]),
    };
    file.resize(CODE, 0);
    file.extend_from_slice(code);
    file
}

/// A Multiboot header. The addresses of one with [`MULTIBOOT_ADDRESSES`] are the header's own, the start and end of what is loaded, the end of what is
/// zeroed, and the entry.
pub fn multiboot_header(flags: u32, addresses: &[u32]) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(MULTIBOOT_MAGIC).wrapping_sub(flags);
    words(&[&[MULTIBOOT_MAGIC, flags, checksum], addresses].concat())
}

/// The code at `start`, and behind it a Multiboot header with addresses.
///
/// # Panics
/// The code is longer than the 8 KiB in which a loader looks for the header.
pub fn multiboot_at(code: &[u8], start: u32) -> Vec<u8> {
    let mut file = code.to_vec();
    file.resize(code.len().next_multiple_of(4), 0);
    let header = start + file.len() as u32;
    file.extend(multiboot_header(MULTIBOOT_ADDRESSES | 3, &[header, start, 0, 0, start]));
    assert!(file.len() <= 8192, "the header would be too far back");
    file
}

/// The code at [`BASE`] in a 32-bit executable whose Multiboot header has no addresses, as KVM's unit tests are.
pub fn multiboot_elf(code: &[u8]) -> Vec<u8> {
    let (base, len) = (BASE as u32, code.len() as u32);
    let mut file = [
        b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec(),
        words(&[3 << 16 | 2, 1, base, 52, 0, 0, 32 << 16 | 52, 1, 0]),
        words(&[LOAD, CODE as u32, base, base, len, len, 7, CODE as u32]),
        multiboot_header(0, &[]),
    ]
    .concat();
    file.resize(CODE, 0);
    file.extend_from_slice(code);
    file
}

/// The bytes of little-endian words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Overwrites a part of `file`.
pub fn put(file: &mut [u8], at: usize, bytes: &[u8]) {
    file[at..at + bytes.len()].copy_from_slice(bytes);
}
