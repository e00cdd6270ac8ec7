//! A payload as an image that other monitors boot: the same operation in the same loop, entered in 32-bit protected mode
//! by PVH (Xen `docs/misc/pvh.pandoc`) or Multiboot 1 (Multiboot specification 0.6.96 §3), which it takes into long mode
//! itself. It executes the operation a few thousand times, prints the last thousand times in ticks on COM1, eight
//! hexadecimal digits a line, and powers off as kite's board does, then as QEMU's isa-debug-exit, then by a triple fault.

use std::path::Path;

use anyhow::bail;
use boot::testing::{self, Code, Program};

use super::code;
use super::payload::Payload;
use crate::host::atomic_file;

/// Where the file is loaded.
const BASE: u32 = 0x10_0000;
/// The ELF header and two program headers are before it.
const NOTE_AT: usize = testing::HEADER + 2 * testing::PROGRAM;
const NOTE: usize = 20;
const MULTIBOOT_AT: usize = (NOTE_AT + NOTE).next_multiple_of(16);
const MULTIBOOT: usize = 32;
const ENTRY_AT: usize = MULTIBOOT_AT + MULTIBOOT;

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

fn image(blob: &'static Code) -> Vec<u8> {
    let code = [code::IMAGE.code(), blob.code()].concat();
    let (size, note_len) = ((ENTRY_AT + code.len()) as u64, NOTE as u64);
    let (addr, entry) = (u64::from(BASE), BASE + ENTRY_AT as u32);
    let load = Program { kind: testing::LOAD, offset: 0, addr, file_len: size, mem_len: size };
    let (offset, addr) = (NOTE_AT as u64, addr + NOTE_AT as u64);
    let note = Program { kind: testing::NOTE, offset, addr, file_len: note_len, mem_len: note_len };
    let mut file = testing::headers(entry.into(), &[load, note]);
    file.extend(testing::pvh_note(&entry.to_le_bytes()));
    file.resize(MULTIBOOT_AT, 0);
    let addresses = [BASE + MULTIBOOT_AT as u32, BASE, 0, 0, entry];
    file.extend(testing::multiboot_header(testing::MULTIBOOT_ADDRESSES, &addresses));
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
        assert_eq!(word(MULTIBOOT_AT), 0x1bad_b002);
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
