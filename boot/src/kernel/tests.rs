//! Kernel images, whole and broken: what is accepted arrives as the file says, and nothing a file says does harm.

mod bzimage;
mod elf;
mod multiboot;
mod mutation;

use std::io::Write;
use std::os::unix::fs::FileExt;

use super::*;
use crate::testing::put;

/// One image for each way in: bzImage, ELF, ELF with a PVH note.
pub(crate) fn images() -> [Image; 3] {
    let pvh = elf::with_notes(&elf::pvh_note(0x10_0010));
    [bzimage::bzimage(), elf::plain(), pvh].map(|content| open(&content).unwrap())
}

/// A Multiboot image.
pub(crate) fn multiboot_image() -> Image {
    open(&multiboot::flat()).unwrap()
}

/// Opens `content` as a file.
fn open(content: &[u8]) -> Result<Image, Error> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    Image::open(file.path())
}

/// Opens `content` at the start of a file of `len` bytes, the rest a hole.
fn open_sparse(content: &[u8], len: u64) -> Result<Image, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at(content, 0).unwrap();
    file.as_file().set_len(len).unwrap();
    Image::open(file.path())
}

/// The message of the refusal.
fn refusal(content: &[u8]) -> String {
    open(content).expect_err("an unusable image was accepted").to_string()
}

/// Where a segment's bytes are in the file.
fn place(segment: &Segment) -> (u64, u64) {
    match &segment.piece {
        Piece::File { offset, len, .. } => (*offset, *len),
        Piece::Bytes(_) => panic!("a segment that is not from the file"),
    }
}

/// What every accepted image promises to the loader, for a file of `file_len` bytes.
fn assert_sound(image: &Image, file_len: u64) {
    let low = image.protocol == Protocol::Multiboot;
    let mut free = if low { LOW_SEGMENTS } else { HIGH_MEMORY };
    for segment in &image.segments {
        assert!(segment.addr >= free, "{image:x?}");
        assert!(segment.piece.len() <= segment.mem_len, "{image:x?}");
        free = segment.addr.checked_add(segment.mem_len).unwrap();
        assert!(segment.addr >= HIGH_MEMORY || free <= MULTIBOOT_INFO, "{image:x?}");
        let (offset, len) = place(segment);
        assert!(offset.checked_add(len).unwrap() <= file_len, "{image:x?}");
    }
    assert_eq!(free.max(HIGH_MEMORY), image.end);
    let addressable = if image.protocol == Protocol::Linux64 { IDENTITY_MAP } else { 1 << 32 };
    assert!(image.end <= addressable, "{image:x?}");
    let holds = |segment: &Segment| (segment.addr..segment.addr + segment.piece.len()).contains(&image.entry);
    assert!(image.segments.iter().any(holds), "{image:x?}");
    assert!(image.cmdline_max <= CMDLINE_MAX);
    assert!(image.initrd_max < 1 << 32);
    if let Some(version) = image.version() {
        assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
        assert!(!version.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()), "{version}");
    }
}

#[test]
fn what_is_no_kernel_is_named() {
    for (content, looks_like) in [
        (&b""[..], "an empty file"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"\xfd7zXZ\0\0", "xz"),
        (b"\x28\xb5\x2f\xfd\0", "zstd"),
        (b"070701\0", "cpio"),
        (b"#!/bin/sh\n", "script"),
        (b"MZ\0\0", "EFI"),
        (b"hello\n", "text"),
        (b"\x7fEL", "unknown data"),
        (&[0; 4096], "unknown data"),
        (&[0xff; 5000], "unknown data"),
    ] {
        let message = refusal(content);
        assert!(message.contains(looks_like), "{message}");
        assert!(message.contains("bzImage") && message.contains("ELF"), "{message}");
    }
}

#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path(), Path::new("/dev/zero"), Path::new("/dev/null")] {
        assert!(matches!(Image::open(path), Err(Error::NotAFile)), "{}", path.display());
    }
    assert!(matches!(Image::open(&folder.path().join("none")), Err(Error::Read(_))));
}

#[test]
fn a_huge_file_of_nothing_is_refused_by_its_start() {
    assert!(matches!(open_sparse(b"", 100 << 30), Err(Error::Unknown { .. })));
}

#[test]
fn random_bytes_are_no_kernel() {
    let mut state = 1;
    for _ in 0..200 {
        let content: Vec<u8> = (0..1024).map(|_| mutation::random(&mut state) as u8).collect();
        assert!(open(&content).is_err());
    }
}
