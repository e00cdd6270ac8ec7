//! bzImages.

use super::*;

pub(super) const LEN: usize = 5 * 512 + KERNEL as usize;
const KERNEL: u64 = 0x1000;
const VERSION_AT: usize = 0x800;

/// A bzImage with four setup sectors (Linux `Documentation/arch/x86/boot.rst`, "The Real-Mode Kernel Header").
pub(super) fn bzimage() -> Vec<u8> {
    let mut file = vec![0x90; LEN];
    file[0x1f1..0x268].fill(0);
    file[0x1f1] = 4;
    put(&mut file, 0x1f4, &(KERNEL as u32 / 16).to_le_bytes());
    put(&mut file, 0x1fe, &[0x55, 0xaa]);
    put(&mut file, 0x202, b"HdrS");
    put(&mut file, 0x206, &0x20fu16.to_le_bytes());
    put(&mut file, 0x20e, &(VERSION_AT as u16 - 0x200).to_le_bytes());
    file[0x211] = 1;
    put(&mut file, 0x214, &0x10_0000u32.to_le_bytes());
    put(&mut file, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(&mut file, 0x230, &0x20_0000u32.to_le_bytes());
    file[0x234] = 1;
    put(&mut file, 0x236, &1u16.to_le_bytes());
    put(&mut file, 0x238, &2047u32.to_le_bytes());
    put(&mut file, 0x258, &0x100_0000u64.to_le_bytes());
    put(&mut file, 0x260, &0x1_0000u32.to_le_bytes());
    put(&mut file, VERSION_AT, b"6.12.38+deb13-amd64 (debian)\0");
    file
}

fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = bzimage();
    put(&mut file, at, bytes);
    file
}

fn accepted(content: &[u8]) -> Image {
    let image = open(content).unwrap();
    assert_sound(&image, content.len() as u64);
    image
}

fn why(content: &[u8], expected: &str) {
    let message = refusal(content);
    assert!(message.starts_with("this bzImage is unusable: ") && message.contains(expected), "{message}");
}

#[test]
fn a_bzimage_is_entered_at_its_64_bit_entry() {
    let image = accepted(&bzimage());
    assert_eq!((image.protocol, image.entry, image.end), (Protocol::Linux64, 0x100_0200, 0x101_0000));
    assert_eq!(place(&image.segments[0]), (5 * 512, KERNEL));
    assert_eq!((image.initrd_max, image.cmdline_max), (0x7fff_ffff, 2047));
    assert_eq!(image.version().as_deref(), Some("6.12.38+deb13-amd64"));
    assert!(image.is_linux() && image.header.is_some());
}

#[test]
fn a_kernel_that_cannot_move_is_loaded_where_it_says() {
    let mut file = with(0x234, &[0]);
    put(&mut file, 0x214, &0x20_0000u32.to_le_bytes());
    assert_eq!(accepted(&file).entry, 0x20_0200);
}

#[test]
fn addresses_below_1_mib_are_not_taken() {
    assert_eq!(accepted(&with(0x258, &0u64.to_le_bytes())).entry, HIGH_MEMORY + 0x200);
    assert_eq!(accepted(&with(0x258, &0xf_ffffu64.to_le_bytes())).entry, HIGH_MEMORY + 0x200);
}

#[test]
fn zero_setup_sectors_mean_four() {
    assert_eq!(place(&accepted(&with(0x1f1, &[0])).segments[0]).0, 5 * 512);
}

#[test]
fn more_setup_sectors_than_the_file_has_are_a_truncation() {
    why(&with(0x1f1, &[255]), "truncated");
    why(&with(0x1f1, &[13]), "truncated");
}

#[test]
fn a_missing_part_of_the_kernel_is_a_truncation() {
    let file = bzimage();
    accepted(&file[..LEN - 15]);
    why(&file[..LEN - 16], "truncated");
    why(&file[..5 * 512], "truncated");
    why(&file[..0x240], "cut off");
    why(&with(0x1f4, &u32::MAX.to_le_bytes()), "truncated");
}

#[test]
fn a_kernel_too_short_for_its_entry_is_refused() {
    why(&with(0x1f4, &0u32.to_le_bytes()), "no kernel");
    why(&with(0x1f4, &0x20u32.to_le_bytes()), "no kernel");
}

#[test]
fn a_huge_kernel_is_refused_though_its_file_is_as_large() {
    let error = open_sparse(&with(0x1f4, &u32::MAX.to_le_bytes()), 100 << 30).unwrap_err();
    assert!(error.to_string().contains("above 1 GiB"), "{error}");
}

#[test]
fn the_memory_it_needs_is_at_least_its_size_and_within_reach() {
    assert_eq!(accepted(&with(0x260, &0u32.to_le_bytes())).end, 0x100_0000 + KERNEL);
    why(&with(0x260, &u32::MAX.to_le_bytes()), "above 1 GiB");
    why(&with(0x258, &IDENTITY_MAP.to_le_bytes()), "above 1 GiB");
    why(&with(0x258, &u64::MAX.to_le_bytes()), "wraps");
}

#[test]
fn old_32_bit_and_low_kernels_are_refused() {
    why(&with(0x206, &0x20bu16.to_le_bytes()), "64-bit");
    why(&with(0x236, &0u16.to_le_bytes()), "64-bit");
    why(&with(0x211, &[0]), "zImage");
}

#[test]
fn the_command_line_is_as_long_as_the_kernel_takes_and_never_longer_than_ours() {
    for (size, max) in [(0, 255), (1, 1), (2048, CMDLINE_MAX), (u32::MAX, CMDLINE_MAX)] {
        assert_eq!(accepted(&with(0x238, &size.to_le_bytes())).cmdline_max, max);
    }
}

#[test]
fn an_initrd_goes_as_high_as_the_kernel_can_find_it_and_not_into_the_kernel() {
    let image = accepted(&bzimage());
    assert_eq!(image.initrd_start(1 << 30, 1), Some((1 << 30) - 0x1000));
    assert_eq!(image.initrd_start(3 << 30, 0x1001), Some((2 << 30) - 0x2000));
    assert_eq!(image.initrd_start(0x102_0000, 0x1_0000), Some(image.end));
    for (end, len) in [(0x102_0000, 0x1_0001), (0x100_0000, 1), (1 << 30, 2 << 30), (1 << 30, u64::MAX)] {
        assert_eq!(image.initrd_start(end, len), None, "{end:#x}, {len:#x}");
    }
    let reach = |last: u32| accepted(&with(0x22c, &last.to_le_bytes())).initrd_start(1 << 30, 1);
    assert_eq!([reach(0), reach(0x101_0000), reach(0x101_0fff)], [None, Some(0x101_0000), Some(0x101_0000)]);
}

#[test]
fn a_version_outside_the_setup_part_is_none() {
    for pointer in [0u16, 0x800, 0x7fff, 0xffff] {
        assert_eq!(accepted(&with(0x20e, &pointer.to_le_bytes())).version(), None, "{pointer:#x}");
    }
    assert_eq!(accepted(&with(VERSION_AT, b"../etc ")).version(), None);
    let mut behind = with(5 * 512, b"6.1.0 ");
    put(&mut behind, 0x20e, &(5 * 512 - 0x200u16).to_le_bytes());
    assert_eq!(accepted(&behind).version(), None);
}
