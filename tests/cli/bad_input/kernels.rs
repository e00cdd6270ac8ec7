//! Kernel images that are broken, on purpose or not.

use boot::testing::pvh_note;

use crate::support::attempt::{Attempt, run};
use crate::support::image::{
    ADDRESS, FILE_LEN, MEMORY_LEN, OFFSET, TYPE, bzimage, bzimage_with, elf, elf_with, elf_with_notes,
};
use crate::support::{KITE, kvm};

#[test]
fn the_images_that_the_tests_break_work() {
    needs!(kvm());
    let attempt = Attempt::new();
    for image in [elf(), bzimage(), elf_with_notes(&pvh_note(&0x10_0000u32.to_le_bytes())[..15])] {
        let end = attempt.end_of(&mut run(KITE, &attempt.file("kernel", &image)));
        assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    }
}

#[track_caller]
fn refused(image: &[u8], expected: &str) {
    let (attempt, kernel) = Attempt::with(image);
    attempt.kernel_refused(&kernel, &[], expected);
    attempt.kernel_refused(&kernel, &[], kernel.to_str().unwrap());
}

#[test]
fn other_kinds_of_files_are_named() {
    for (content, looks_like) in [
        (&b""[..], "an empty file"),
        (b"\0", "unknown data"),
        (b"\x7fEL", "unknown data"),
        (b"#!/bin/sh\n", "a script"),
        (b"no kernel\n", "text"),
        (b"\x1f\x8b\x08\0", "gzip"),
        (b"070701", "a cpio archive"),
        (&[0xff; 100_000], "unknown data"),
    ] {
        refused(content, &format!("it looks like {looks_like}"));
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    })
    .take(200_000)
    .collect();
    refused(&content, "it looks like unknown data");
    refused(&[b"\x7fELF", &content[..]].concat(), "ELF image");
    let head = bzimage();
    refused(&[&head[..0x206], &content[..]].concat(), "bzImage");
}

#[test]
fn truncated_kernels_are_refused() {
    let (elf, bzimage) = (elf(), bzimage());
    for len in [4, 5, 16, 63, 64, 100, 119, 120, 0x7ff, 0x800, 0xbff] {
        refused(&elf[..len], "this ELF image is unusable: ");
    }
    for len in [0x206, 0x210, 0x26b, 0x400, 5 * 512, 5 * 512 + 0x200, bzimage.len() - 16] {
        refused(&bzimage[..len], "this bzImage is unusable: ");
    }
}

#[test]
fn huge_kernels_are_refused_without_being_read() {
    let attempt = Attempt::new();
    let huge = 100 << 30;
    attempt.kernel_refused(&attempt.sparse("kernel", b"", huge), &[], "unknown data");
    let all = elf_with(&[(FILE_LEN, huge - 0x800), (MEMORY_LEN, huge)]);
    attempt.kernel_refused(&attempt.sparse("kernel", &all, huge), &[], "1 GiB");
    let all = bzimage_with(0x1f4, &u32::MAX.to_le_bytes());
    attempt.kernel_refused(&attempt.sparse("kernel", &all, huge), &[], "1 GiB");
}

#[test]
fn a_huge_file_with_a_small_kernel_is_not_searched_to_its_end() {
    needs!(kvm());
    let attempt = Attempt::new();
    let end = attempt.end_of(&mut run(KITE, &attempt.sparse("kernel", &elf(), 100 << 30)));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
}

#[test]
fn hostile_elf_headers_are_refused() {
    let phnum = |count: u16| {
        let mut file = elf();
        file[56..58].copy_from_slice(&count.to_le_bytes());
        file
    };
    refused(&phnum(u16::MAX), "program headers make no sense");
    refused(&phnum(0), "nothing to load");
    for offset in [0xfff, u64::MAX, i64::MAX as u64, i64::MAX as u64 - 8] {
        refused(&elf_with(&[(32, offset)]), "truncated");
    }
    for entry in [0, 0x10_0400, 0xffff_ffff_8100_0000, u64::MAX] {
        refused(&elf_with(&[(24, entry)]), "entry point");
    }
    refused(&elf_with(&[(TYPE, 0)]), "nothing to load");
}

#[test]
fn hostile_elf_segments_are_refused() {
    for (field, value, expected) in [
        (OFFSET, u64::MAX, "truncated"),
        (OFFSET, u64::MAX - 0x3ff, "truncated"),
        (OFFSET, 0xc01, "truncated"),
        (FILE_LEN, u64::MAX, "truncated"),
        (FILE_LEN, 0x801, "truncated"),
        (MEMORY_LEN, 0x3ff, "truncated"),
        (MEMORY_LEN, u64::MAX, "wraps"),
        (MEMORY_LEN, 1 << 30, "1 GiB"),
        (ADDRESS, 0, "below 1 MiB"),
        (ADDRESS, 0xf_f000, "below 1 MiB"),
        (ADDRESS, 1 << 30, "1 GiB"),
        (ADDRESS, 0xffff_ffff_8100_0000, "1 GiB"),
        (ADDRESS, u64::MAX, "wraps"),
    ] {
        refused(&elf_with(&[(field, value)]), expected);
    }
    let mut overlapping = elf();
    overlapping.copy_within(TYPE..TYPE + 56, TYPE + 56);
    overlapping[56] = 2;
    refused(&overlapping, "overlap");
}

#[test]
fn hostile_pvh_notes_are_refused() {
    refused(&elf_with_notes(&pvh_note(b"")), "PVH note");
    refused(&elf_with_notes(&pvh_note(&[0; 5])), "PVH note");
    refused(&elf_with_notes(&pvh_note(&u32::MAX.to_le_bytes())), "entry point");
    refused(&elf_with_notes(&pvh_note(&u64::MAX.to_le_bytes())), "entry point");
    refused(&elf_with_notes(&[0; 0x400])[..0x7ff], "truncated");
}

#[test]
fn hostile_bzimage_headers_are_refused() {
    refused(&bzimage_with(0x1f1, &[255]), "truncated");
    refused(&bzimage_with(0x1f4, &0u32.to_le_bytes()), "no kernel");
    refused(&bzimage_with(0x1f4, &u32::MAX.to_le_bytes()), "truncated");
    refused(&bzimage_with(0x206, &0x0200u16.to_le_bytes()), "64-bit");
    refused(&bzimage_with(0x211, &[0]), "zImage");
    refused(&bzimage_with(0x236, &[0]), "64-bit");
    refused(&bzimage_with(0x258, &u64::MAX.to_le_bytes()), "wraps");
    refused(&bzimage_with(0x258, &(1u64 << 30).to_le_bytes()), "1 GiB");
    refused(&bzimage_with(0x260, &u32::MAX.to_le_bytes()), "1 GiB");
}

#[test]
fn a_kernel_that_needs_more_memory_than_the_guest_has_is_refused() {
    needs!(kvm());
    refused_by_size(&elf_with(&[(ADDRESS, 512 << 20), (24, 512 << 20)]));
    refused_by_size(&elf_with(&[(MEMORY_LEN, 64 << 20)]));
    refused_by_size(&bzimage_with(0x260, &(63u32 << 20).to_le_bytes()));
    refused_by_size(&bzimage_with(0x258, &(64u64 << 20).to_le_bytes()));
}

#[track_caller]
fn refused_by_size(image: &[u8]) {
    let attempt = Attempt::new();
    attempt.kernel_refused(&attempt.file("kernel", image), &[], "and the guest has 64 MiB");
}
