//! ELF images.

use super::*;
pub(super) use crate::testing::Program;
use crate::testing::{LOAD, NOTE, headers};

/// Where the tests' segments and notes are in the file.
const CODE: u64 = 0x400;
const NOTES: u64 = 0x800;
pub(super) const LEN: usize = 0x1000;

pub(super) const PLAIN: Program =
    Program { kind: LOAD, offset: CODE, addr: 0x10_0000, file_len: 0x400, mem_len: 0x2000 };

/// An executable of [`LEN`] bytes.
pub(super) fn elf(entry: u64, programs: &[Program]) -> Vec<u8> {
    let mut file = headers(entry, programs);
    file.resize(LEN, 0);
    file
}

pub(super) fn plain() -> Vec<u8> {
    elf(0x10_0000, &[PLAIN])
}

fn note(kind: u32, name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [name.len() as u32, value.len() as u32, kind] {
        note.extend(word.to_le_bytes());
    }
    for part in [name, value] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// An executable with these bytes as its notes.
pub(super) fn with_notes(notes: &[u8]) -> Vec<u8> {
    let program = Program {
        kind: NOTE,
        offset: NOTES,
        file_len: notes.len() as u64,
        mem_len: notes.len() as u64,
        ..PLAIN
    };
    let mut file = elf(0x10_0000, &[PLAIN, program]);
    put(&mut file, NOTES as usize, notes);
    file
}

pub(super) fn pvh_note(entry: u32) -> Vec<u8> {
    note(18, b"Xen\0", &entry.to_le_bytes())
}

fn why(content: &[u8], expected: &str) {
    let message = refusal(content);
    assert!(message.starts_with("this ELF image is unusable: ") && message.contains(expected), "{message}");
}

/// The plain image with one field of its program header changed.
fn refused(change: impl FnOnce(&mut Program), expected: &str) {
    let mut program = PLAIN;
    change(&mut program);
    why(&elf(0x10_0000, &[program]), expected);
}

#[test]
fn an_executable_without_notes_is_entered_in_long_mode() {
    let image = open(&plain()).unwrap();
    assert_sound(&image, LEN as u64);
    assert_eq!((image.protocol, image.entry, image.end), (Protocol::Linux64, 0x10_0000, 0x10_2000));
    assert_eq!(place(&image.segments[0]), (CODE, 0x400));
    assert_eq!((image.version(), image.is_linux()), (None, false));
}

#[test]
fn a_pvh_note_decides_the_entry() {
    let other = note(6, b"Xen\0", b"linux\0");
    let foreign = note(18, b"GNU\0", &0x10_0008u32.to_le_bytes());
    for entry in [pvh_note(0x10_0010), note(18, b"Xen\0", &0x10_0010u64.to_le_bytes())] {
        let image = open(&with_notes(&[other.clone(), foreign.clone(), entry].concat())).unwrap();
        assert_sound(&image, LEN as u64);
        assert_eq!((image.protocol, image.entry), (Protocol::Pvh, 0x10_0010));
    }
}

#[test]
fn notes_that_end_early_are_no_pvh_entry() {
    let whole = pvh_note(0x10_0010);
    for len in 0..whole.len() {
        let image = open(&with_notes(&whole[..len])).unwrap();
        assert_eq!(image.protocol, Protocol::Linux64, "{len}");
    }
    let mut long = pvh_note(0x10_0010);
    put(&mut long, 0, &u32::MAX.to_le_bytes());
    assert_eq!(open(&with_notes(&long)).unwrap().protocol, Protocol::Linux64);
    put(&mut long, 4, &u32::MAX.to_le_bytes());
    assert_eq!(open(&with_notes(&long)).unwrap().protocol, Protocol::Linux64);
}

#[test]
fn a_pvh_note_without_an_address_in_the_image_is_refused() {
    why(&with_notes(&note(18, b"Xen\0", b"")), "PVH note");
    why(&with_notes(&note(18, b"Xen\0", &[0; 5])), "PVH note");
    for entry in [0, 0xf_ffff, 0x10_0400, u32::MAX] {
        why(&with_notes(&pvh_note(entry)), "entry point");
    }
}

#[test]
fn a_large_note_segment_is_not_read() {
    let large = Program { kind: NOTE, file_len: u64::MAX, ..PLAIN };
    assert_eq!(open(&elf(0x10_0000, &[PLAIN, large])).unwrap().protocol, Protocol::Linux64);
}

#[test]
fn another_machine_or_kind_of_file_is_refused() {
    for (at, value, expected) in
        [(4, 1, "x86-64"), (5, 2, "x86-64"), (18, 183, "x86-64"), (16, 1, "object"), (16, 4, "object")]
    {
        let mut file = plain();
        file[at] = value;
        why(&file, expected);
    }
}

#[test]
fn senseless_program_headers_are_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = plain();
        put(&mut file, at, bytes);
        file
    };
    why(&with(56, &u16::MAX.to_le_bytes()), "program headers");
    why(&with(56, &65u16.to_le_bytes()), "program headers");
    why(&with(56, &0u16.to_le_bytes()), "nothing to load");
    why(&with(54, &55u16.to_le_bytes()), "program headers");
    for offset in
        [LEN as u64, LEN as u64 - 55, i64::MAX as u64 - 10, i64::MAX as u64, u64::MAX - 20, u64::MAX]
    {
        why(&with(32, &offset.to_le_bytes()), "truncated");
    }
}

#[test]
fn a_segment_must_lie_in_the_file() {
    refused(|it| it.offset = LEN as u64 - 0x3ff, "truncated");
    refused(|it| it.offset = u64::MAX - 0x3fe, "truncated");
    refused(|it| it.offset = u64::MAX, "truncated");
    refused(|it| (it.file_len, it.mem_len) = (u64::MAX, u64::MAX), "truncated");
    refused(|it| it.mem_len = 0x3ff, "truncated");
}

#[test]
fn a_segment_must_lie_where_the_entry_protocol_can_reach_it() {
    refused(|it| it.addr = 0, "below 1 MiB");
    refused(|it| it.addr = 0xf_ffff, "below 1 MiB");
    refused(|it| it.addr = IDENTITY_MAP, "above 1 GiB");
    refused(|it| it.mem_len = IDENTITY_MAP, "above 1 GiB");
    refused(|it| it.addr = u64::MAX - 0x2000, "above 1 GiB");
    refused(|it| it.addr = u64::MAX, "wraps");
    refused(|it| it.mem_len = u64::MAX, "wraps");
    refused(|it| it.addr = 0xffff_ffff_8100_0000, "above 1 GiB");
}

#[test]
fn segments_must_not_overlap() {
    let second = |addr| Program { addr, mem_len: 0x1000, ..PLAIN };
    for addr in [0x10_0000, 0x10_1fff] {
        why(&elf(0x10_0000, &[PLAIN, second(addr)]), "overlap");
        why(&elf(0x10_0000, &[second(addr), PLAIN]), "overlap");
    }
    let image = open(&elf(0x10_0000, &[second(0x10_2000), PLAIN])).unwrap();
    assert_sound(&image, LEN as u64);
}

#[test]
fn the_entry_must_lie_in_the_bytes_of_a_segment() {
    for entry in [0, 0xf_ffff, 0x10_0400, 0x10_2000, 0xffff_ffff_8100_0000, u64::MAX] {
        why(&elf(entry, &[PLAIN]), "entry point");
    }
}

#[test]
fn the_version_is_that_of_the_first_banner_with_one() {
    for text in
        ["Linux version 6.1.0-37-cloud-amd64 (", "\0Linux version %s\0Linux version 6.1.0-37-cloud-amd64 #1"]
    {
        let mut file = plain();
        put(&mut file, 0x700, text.as_bytes());
        let image = open(&file).unwrap();
        assert_eq!(image.version().as_deref(), Some("6.1.0-37-cloud-amd64"));
        assert!(image.is_linux());
    }
}

#[test]
fn a_version_that_names_no_folder_is_none() {
    for word in ["../../etc ", "6.1/../../etc ", "/etc ", "x6.1 ", "6.1;id ", ""] {
        let mut file = plain();
        put(&mut file, 0x700, format!("Linux version {word}").as_bytes());
        assert_eq!(open(&file).unwrap().version(), None, "{word}");
    }
}

#[test]
fn no_more_than_what_is_loaded_is_searched_for_the_version() {
    let mut file = plain();
    file.resize(1 << 20, 0);
    put(&mut file, 0x8_0000, b"Linux version 6.1.0 (");
    assert_eq!(open_sparse(&file, 100 << 30).unwrap().version(), None);
}

#[test]
fn hostile_section_headers_hide_no_version() {
    for section_offset in [0u64, 0x200, u64::MAX, i64::MAX as u64 - 8] {
        for (count, names) in [(0u16, 0u16), (u16::MAX, 0), (1, u16::MAX), (u16::MAX, u16::MAX)] {
            let mut file = plain();
            put(&mut file, 0x700, b"Linux version 6.1.0 (");
            put(&mut file, 40, &section_offset.to_le_bytes());
            put(&mut file, 58, &64u16.to_le_bytes());
            put(&mut file, 60, &count.to_le_bytes());
            put(&mut file, 62, &names.to_le_bytes());
            assert_eq!(open(&file).unwrap().version().as_deref(), Some("6.1.0"));
        }
    }
}

#[test]
fn the_read_only_data_is_searched_first() {
    let mut file = plain();
    put(&mut file, 0x700, b"Linux version 6.1.0 (");
    put(&mut file, 0x900, b"Linux version 6.2.0 (");
    put(&mut file, 0xa00, b"\0.rodata\0");
    put(&mut file, 40, &0xb00u64.to_le_bytes());
    put(&mut file, 58, &64u16.to_le_bytes());
    put(&mut file, 60, &2u16.to_le_bytes());
    put(&mut file, 0xb00 + 24, &0xa00u64.to_le_bytes()); // section 0: the names
    put(&mut file, 0xb40, &1u32.to_le_bytes()); // section 1: .rodata
    put(&mut file, 0xb40 + 24, &0x900u64.to_le_bytes());
    for len in [0x100, u64::MAX] {
        put(&mut file, 0xb40 + 32, &len.to_le_bytes());
        assert_eq!(open(&file).unwrap().version().as_deref(), Some("6.2.0"));
    }
}
