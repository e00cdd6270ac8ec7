//! A payload as an image that other monitors boot: the same operation in the same loop, entered in 32-bit protected mode
//! by PVH (Xen `docs/misc/pvh.pandoc`) or Multiboot 1 (Multiboot specification 0.6.96 §3), which it takes into long mode
//! itself. It executes the operation a few thousand times, prints the last thousand times in ticks on COM1, eight
//! hexadecimal digits a line, and powers off as kite's board does, then as QEMU's isa-debug-exit, then by a triple fault.

use std::path::Path;

use anyhow::bail;

use super::code::{self, Blob};
use super::payload::Payload;
use crate::host::atomic_file;

/// Where the file is loaded.
const BASE: u32 = 0x10_0000;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const NOTE_AT: usize = HEADER + 2 * PROGRAM_HEADER;
const NOTE: usize = 20;
const MULTIBOOT_AT: usize = (NOTE_AT + NOTE).next_multiple_of(16);
const MULTIBOOT: usize = 32;
const ENTRY_AT: usize = MULTIBOOT_AT + MULTIBOOT;
/// XEN_ELFNOTE_PHYS32_ENTRY.
const PHYS32_ENTRY: u32 = 18;
const MULTIBOOT_MAGIC: u32 = 0x1bad_b002;
/// The header has addresses.
const MULTIBOOT_ADDRESSES: u32 = 1 << 16;
const ET_EXEC: u16 = 2;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;

/// Writes `payload` to `path`.
///
/// # Errors
/// It needs what only kite's own machine has, or the file cannot be written.
pub fn write(payload: &Payload, path: &Path) -> anyhow::Result<()> {
    let Some(blob) = payload.image else {
        bail!(
            "{} needs more than a guest, and cannot be an image: try cpuid, pio.in.4 or mmio.w.4",
            payload.id
        )
    };
    atomic_file::write(path, |file| file.write_all(&image(blob)))
}

fn image(blob: &'static Blob) -> Vec<u8> {
    let code = [code::IMAGE.code(), blob.code()].concat();
    let size = (ENTRY_AT + code.len()) as u64;
    let entry = BASE + ENTRY_AT as u32;
    let mut file = Vec::new();
    // The ELF header (System V ABI, "Object Files").
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(ET_EXEC.to_le_bytes());
    file.extend(EM_X86_64.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    file.extend(u64::from(entry).to_le_bytes());
    file.extend((HEADER as u64).to_le_bytes());
    file.extend(0u64.to_le_bytes());
    file.extend(0u32.to_le_bytes());
    for field in [HEADER as u16, PROGRAM_HEADER as u16, 2, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    let mut segment = |kind: u32, flags: u32, at: usize, len: u64, align: u64| {
        let address = u64::from(BASE) + at as u64;
        file.extend(kind.to_le_bytes());
        file.extend(flags.to_le_bytes());
        for field in [at as u64, address, address, len, len, align] {
            file.extend(field.to_le_bytes());
        }
    };
    segment(PT_LOAD, 7, 0, size, 0x1000);
    segment(PT_NOTE, 4, NOTE_AT, NOTE as u64, 4);
    for field in [4, 4, PHYS32_ENTRY, u32::from_le_bytes(*b"Xen\0"), entry] {
        file.extend(field.to_le_bytes());
    }
    file.resize(MULTIBOOT_AT, 0);
    let header = BASE + MULTIBOOT_AT as u32;
    let checksum = 0u32.wrapping_sub(MULTIBOOT_MAGIC).wrapping_sub(MULTIBOOT_ADDRESSES);
    for field in [MULTIBOOT_MAGIC, MULTIBOOT_ADDRESSES, checksum, header, BASE, 0, 0, entry] {
        file.extend(field.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_an_elf_file_with_a_multiboot_header_where_loaders_look() {
        let image = image(&code::CPUID);
        assert_eq!(&image[..4], b"\x7fELF");
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        assert_eq!(word(MULTIBOOT_AT), MULTIBOOT_MAGIC);
        let sum =
            word(MULTIBOOT_AT).wrapping_add(word(MULTIBOOT_AT + 4)).wrapping_add(word(MULTIBOOT_AT + 8));
        assert_eq!(sum, 0);
        assert!(image.len() < 8192 && MULTIBOOT_AT.is_multiple_of(4));
        assert!(image.ends_with(code::CPUID.code()));
    }

    #[test]
    fn a_payload_that_needs_threads_is_no_image() {
        let payload = crate::cmd::bench::exits::payload::PAYLOADS
            .iter()
            .find(|payload| payload.image.is_none())
            .unwrap();
        let error = write(payload, Path::new("/nonexistent/file")).unwrap_err();
        assert!(error.to_string().contains(payload.id), "{error}");
    }
}
