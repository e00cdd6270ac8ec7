//! Multiboot images that are broken, and those that do not fit.

use crate::support::attempt::{Attempt, run};
use crate::support::image::{MULTIBOOT_AT, MULTIBOOT_ELF_AT, multiboot, multiboot_elf};
use crate::support::{KITE, kvm};

#[track_caller]
fn refused(image: &[u8], expected: &str) {
    let (attempt, kernel) = Attempt::with(image);
    attempt.kernel_refused(&kernel, &["--test-devices"], expected);
    attempt.kernel_refused(&kernel, &["--test-devices"], kernel.to_str().unwrap());
}

fn with(mut image: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    image[at..at + 4].copy_from_slice(&value.to_le_bytes());
    image
}

/// [`multiboot`] with other flags, and the checksum that belongs to them.
fn with_flags(flags: u32) -> Vec<u8> {
    let checksum = 0u32.wrapping_sub(0x1bad_b002).wrapping_sub(flags);
    with(with(multiboot(), MULTIBOOT_AT + 4, flags), MULTIBOOT_AT + 8, checksum)
}

#[test]
fn the_multiboot_images_that_the_tests_break_work() {
    needs!(kvm());
    let attempt = Attempt::new();
    for image in [multiboot(), multiboot_elf()] {
        let end = attempt.end_of(&mut run(KITE, &attempt.file("kernel", &image)));
        assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    }
}

#[test]
fn a_multiboot_header_that_is_cut_off_is_refused() {
    for len in [MULTIBOOT_AT + 4, MULTIBOOT_AT + 11, MULTIBOOT_AT + 12, MULTIBOOT_AT + 31] {
        refused(&multiboot()[..len], "this Multiboot image is unusable: its header is cut off");
    }
}

#[test]
fn a_multiboot_header_with_a_wrong_checksum_is_refused() {
    refused(&with(multiboot(), MULTIBOOT_AT + 8, 0), "its header's checksum is wrong");
    refused(&with(multiboot_elf(), MULTIBOOT_ELF_AT + 8, 1), "its header's checksum is wrong");
}

#[test]
fn a_multiboot_header_that_asks_for_what_there_is_not_is_refused() {
    refused(&with_flags(1 << 16 | 4), "video mode");
    refused(&with_flags(1 << 16 | 0x8000), "0.6.96");
    refused(&with_flags(0), "neither addresses nor an ELF header");
}

#[test]
fn hostile_multiboot_addresses_are_refused() {
    let field = |index: usize, value: u32| with(multiboot(), MULTIBOOT_AT + 12 + 4 * index, value);
    for (index, value, expected) in [
        (0, 0, "header lies outside"),
        (0, u32::MAX, "header lies outside"),
        (1, u32::MAX, "header lies outside"),
        (2, u32::MAX, "truncated"),
        (2, 1, "make no sense"),
        (3, 1, "make no sense"),
        (4, 0, "entry point"),
        (4, u32::MAX, "entry point"),
    ] {
        refused(&field(index, value), expected);
    }
}

#[test]
fn hostile_headers_of_32_bit_executables_are_refused() {
    let program = |field: usize, value: u32| with(multiboot_elf(), 52 + field, value);
    for (image, expected) in [
        (program(4, u32::MAX), "truncated"),
        (program(12, !0x7ff), "4 GiB"),
        (program(12, 0), "below 1 MiB"),
        (program(16, u32::MAX), "truncated"),
        (program(20, u32::MAX), "4 GiB"),
        (program(0, 0), "entry point"),
        (with(multiboot_elf(), 24, u32::MAX), "entry point"),
        (with(multiboot_elf(), 28, u32::MAX), "truncated"),
        (with(multiboot_elf(), 44, 0xffff), "program headers"),
        (with(multiboot_elf(), MULTIBOOT_ELF_AT, 0), "it is not for x86-64"),
    ] {
        refused(&image, expected);
    }
}

#[test]
fn a_multiboot_image_beyond_the_guests_memory_is_refused() {
    needs!(kvm());
    let at = 64u32 << 20;
    refused_by_size(&with(with(with(multiboot_elf(), 24, at), 52 + 8, at), 52 + 12, at));
    refused_by_size(&with(multiboot_elf(), 52 + 20, at));
    let mut flat = multiboot();
    for (index, value) in [at + MULTIBOOT_AT as u32, at, 0, 0, at].into_iter().enumerate() {
        flat = with(flat, MULTIBOOT_AT + 12 + 4 * index, value);
    }
    refused_by_size(&flat);
}

#[track_caller]
fn refused_by_size(image: &[u8]) {
    let attempt = Attempt::new();
    attempt.kernel_refused(&attempt.file("kernel", image), &[], "and the guest has 64 MiB");
}

#[test]
fn a_module_that_does_not_fit_is_refused() {
    needs!(kvm());
    let (attempt, kernel) = Attempt::with(&multiboot());
    for len in [63 << 20, 1 << 32, 1 << 40] {
        let module = attempt.sparse("module", b"x", len);
        attempt.kernel_refused(&kernel, &["--initrd", module.to_str().unwrap()], "do not fit in memory");
    }
    attempt.kernel_refused(
        &kernel,
        &["--initrd", attempt.file("module", b"").to_str().unwrap()],
        "it is empty",
    );
}

#[test]
fn a_command_in_a_multiboot_image_is_refused() {
    let (attempt, kernel) = Attempt::with(&multiboot());
    attempt.kernel_refused(&kernel, &["--", "true"], "a command needs Linux");
    attempt.kernel_refused(&kernel, &["--test-devices", "--", "true"], "--test-devices");
}
