//! Multiboot images.

use super::*;
use crate::testing::{multiboot_header as header, words};

/// Where the header is: in a file that has addresses, and in one that has an ELF header.
pub(super) const AT: usize = 0x20;
pub(super) const IN_ELF: usize = 0x80;
const LEN: usize = 0x3000;

fn flat_with(flags: u32, addresses: [u32; 5]) -> Vec<u8> {
    let mut file = vec![0x90; LEN];
    put(&mut file, AT, &header(flags, &addresses));
    file
}

/// A file that is loaded from its start at 2 MiB, but for its last page.
const ADDRESSES: [u32; 5] = [0x20_0020, 0x20_0000, 0x20_2000, 0x20_8000, 0x20_0040];

pub(super) fn flat() -> Vec<u8> {
    flat_with(1 << 16 | 3, ADDRESSES)
}

/// Offset, virtual and physical address, length in the file and in memory.
pub(super) const PLAIN: [u32; 5] = [0, 0x40_0000, 0x40_0000, 0x2000, 0x4000];

/// A 32-bit executable, entered 256 bytes into the first segment (System V ABI, "ELF Header" and "Program Header").
pub(super) fn elf32(segments: &[[u32; 5]]) -> Vec<u8> {
    let mut file = vec![0x90; LEN];
    file[..IN_ELF].fill(0);
    put(&mut file, 0, b"\x7fELF\x01\x01\x01");
    put(&mut file, 16, &[2, 0, 3, 0, 1]);
    put(&mut file, 24, &words(&[segments.first().map_or(0, |it| it[1] + 0x100), 52]));
    put(&mut file, 40, &[52, 0, 32, 0, segments.len() as u8, 0]);
    put(&mut file, IN_ELF, &header(0, &[]));
    for (index, [offset, virt, phys, file_len, mem_len]) in segments.iter().enumerate() {
        put(&mut file, 52 + 32 * index, &words(&[1, *offset, *virt, *phys, *file_len, *mem_len, 7, 0x1000]));
    }
    file
}

fn accepted(content: &[u8]) -> Image {
    let image = open(content).unwrap();
    assert_sound(&image, content.len() as u64);
    assert_eq!((image.protocol, image.is_linux()), (Protocol::Multiboot, false));
    image
}

#[track_caller]
fn why(content: &[u8], expected: &str) {
    let message = refusal(content);
    assert!(
        message.starts_with("this Multiboot image is unusable: ") && message.contains(expected),
        "{message}"
    );
}

#[test]
fn the_addresses_of_the_header_say_what_goes_where() {
    let image = accepted(&flat());
    assert_eq!((image.entry, image.end, image.initrd_max), (0x20_0040, 0x20_8000, u32::MAX.into()));
    assert_eq!((image.segments[0].addr, image.segments[0].mem_len), (0x20_0000, 0x8000));
    assert_eq!(place(&image.segments[0]), (0, 0x2000));
}

#[test]
fn without_ends_all_of_the_file_is_loaded_and_nothing_else() {
    let image = accepted(&flat_with(1 << 16, [0x20_0010, 0x20_0000, 0, 0, 0x20_0040]));
    assert_eq!((place(&image.segments[0]), image.segments[0].mem_len), ((0x10, 0x2ff0), 0x2ff0));
}

#[test]
fn an_elf_header_says_what_goes_where() {
    let image = accepted(&elf32(&[PLAIN, [0x2000, 0x50_0000, 0x50_0000, 0x1000, 0x1000]]));
    assert_eq!((image.entry, image.end), (0x40_0100, 0x50_1000));
    assert_eq!((place(&image.segments[0]), image.segments[0].mem_len), ((0, 0x2000), 0x4000));
    assert_eq!((place(&image.segments[1]), image.segments[1].addr), ((0x2000, 0x1000), 0x50_0000));
}

#[test]
fn a_virtual_entry_point_is_made_physical() {
    let image = accepted(&elf32(&[[0, 0xc040_0000, 0x40_0000, 0x2000, 0x2000]]));
    assert_eq!((image.entry, image.segments[0].addr), (0x40_0100, 0x40_0000));
}

#[test]
fn a_64_bit_executable_with_a_header_is_a_multiboot_image_unless_it_has_the_pvh_note() {
    let mut file = elf::plain();
    put(&mut file, 0x300, &header(0, &[]));
    assert_eq!(accepted(&file).entry, 0x10_0000);
    let mut file = elf::with_notes(&elf::pvh_note(0x10_0010));
    put(&mut file, 0x300, &header(0, &[]));
    assert_eq!(open(&file).unwrap().protocol, Protocol::Pvh);
}

#[test]
fn addresses_win_over_an_elf_header() {
    let mut file = elf32(&[PLAIN]);
    put(&mut file, IN_ELF, &header(1 << 16, &[0x20_0080, 0x20_0000, 0, 0, 0x20_0100]));
    assert_eq!(accepted(&file).segments[0].addr, 0x20_0000);
}

#[test]
fn the_header_is_found_at_every_multiple_of_four_in_the_first_8_kib_and_nowhere_else() {
    let with = |at: usize| {
        let mut file = vec![0x90; LEN];
        put(&mut file, at, &header(1 << 16, &[0x20_0000 + at as u32, 0x20_0000, 0, 0, 0x20_0000]));
        file
    };
    for at in [0, 4, 4096, 8192 - 32] {
        accepted(&with(at));
    }
    why(&with(8192 - 28), "cut off");
    why(&with(8192 - 8), "cut off");
    for at in [1, 2, 3, 8192, 8190] {
        assert!(matches!(open(&with(at)), Err(Error::Unknown { .. })), "{at}");
    }
}

#[test]
fn a_broken_header_is_named_and_a_good_one_behind_it_counts() {
    let mut file = flat();
    file[AT + 8] ^= 1;
    why(&file, "checksum");
    put(&mut file, 0x100, &header(1 << 16, &[0x20_0100, 0x20_0000, 0, 0, 0x20_0040]));
    accepted(&file);
    for len in [AT + 4, AT + 11, AT + 31] {
        why(&flat()[..len], "cut off");
    }
    // In an executable that is a kernel without it, it is a coincidence.
    let mut elf = elf::plain();
    put(&mut elf, 0x300, &words(&[0x1bad_b002, 0, 0]));
    assert_eq!(open(&elf).unwrap().protocol, Protocol::Linux64);
}

#[test]
fn what_a_header_requires_is_granted_or_refused() {
    for flags in [0, 1, 2, 3, 1 << 17, 1 << 31] {
        accepted(&flat_with(1 << 16 | flags, ADDRESSES));
    }
    why(&flat_with(1 << 16 | 4, ADDRESSES), "video");
    for bit in 3..16 {
        why(&flat_with(1 << 16 | 1 << bit, ADDRESSES), "0.6.96");
    }
    why(&flat_with(0, ADDRESSES), "neither addresses nor an ELF header");
}

#[test]
fn addresses_that_make_no_sense_are_refused() {
    for (index, value, expected) in [
        (0, 0x1f_ffff, "outside"),
        (0, 0x20_0021, "outside"),
        (0, u32::MAX, "outside"),
        (1, u32::MAX, "outside"),
        (2, 0x1f_ffff, "no sense"),
        (2, 0x20_3001, "truncated"),
        (2, u32::MAX, "truncated"),
        (3, 0x20_1fff, "no sense"),
        (3, 1, "no sense"),
        (4, 0x1f_ffff, "entry point"),
        (4, 0x20_2000, "entry point"),
        (4, 0, "entry point"),
    ] {
        let mut addresses = ADDRESSES;
        addresses[index] = value;
        why(&flat_with(1 << 16, addresses), expected);
    }
}

#[test]
fn low_memory_is_taken_where_no_boot_data_goes() {
    let at = |load: u32, end: u32| flat_with(1 << 16, [load + AT as u32, load, 0, end, load + 0x40]);
    let image = accepted(&at(LOW_SEGMENTS as u32, MULTIBOOT_INFO as u32));
    assert_eq!(image.end, HIGH_MEMORY);
    assert!(image.initrd_start(4 << 20, 4096).unwrap() >= HIGH_MEMORY);
    for (load, end) in [(0, 0), (0xfff, 0), (0x9_d000, 0), (0x4000, MULTIBOOT_INFO as u32 + 1), (0xf_0000, 0)]
    {
        why(&at(load, end), "below 1 MiB");
    }
}

#[test]
fn elf_headers_that_make_no_sense_are_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut file = elf32(&[PLAIN]);
        put(&mut file, at, bytes);
        file
    };
    why(&with(5, &[2]), "not for x86");
    why(&with(18, &[40]), "not for x86");
    why(&with(16, &[1]), "not an executable");
    why(&with(42, &[31]), "program headers");
    why(&with(44, &[65]), "program headers");
    why(&with(44, &[0]), "entry point");
    why(&with(28, &words(&[u32::MAX])), "truncated");
    for (field, value, expected) in [
        (4, u32::MAX, "truncated"),
        (12, u32::MAX - 0x1000, "4 GiB"),
        (12, 0x800, "below 1 MiB"),
        (16, 0x3001, "truncated"),
        (20, 0x1fff, "truncated"),
        (20, u32::MAX, "4 GiB"),
    ] {
        let message = refusal(&with(52 + field, &words(&[value])));
        assert!(message.contains(expected), "{message}");
    }
    why(&elf32(&[PLAIN, PLAIN]), "overlap");
    assert!(refusal(&with(IN_ELF, &[0])).contains("not for x86-64"), "a 32-bit executable without a header");
}
