//! What is booted: a tiny guest, and copies of a stock kernel whose first instruction says that it runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use boot::Piece;
use boot::initramfs;
use boot::kernel::Image;
use boot::modules::Modules;

use crate::setup::Kernel;

/// Writes [`BYTE`] to COM1, and halts for ever; the same bytes in 32-bit and in 64-bit mode:
/// `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt; jmp` back to the `hlt`.
const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xf4, 0xeb, 0xfd];
/// What the guest says.
pub const BYTE: u8 = b'!';
/// Where the tiny guest is loaded, and its place in its file.
const TINY: (u64, usize) = (0x10_0000, 4096);
/// The modules that kite gives a guest.
pub const MODULES: [&str; 1] = ["virtio_mmio"];
/// XEN_ELFNOTE_PHYS32_ENTRY (Xen `public/elfnote.h`).
const PVH_NOTE: u32 = 18;

/// The files, all in one folder.
pub struct Images {
    /// A guest of ten bytes, as ELF.
    pub tiny: PathBuf,
    /// A stock kernel, patched, as bzImage.
    pub bz_image: PathBuf,
    /// The same as ELF.
    pub elf: PathBuf,
    /// kite's own initramfs for the kernel as it is.
    pub initrd: PathBuf,
    /// An initrd of one byte.
    pub small_initrd: PathBuf,
}

impl Images {
    /// Their paths in `folder`.
    pub fn at(folder: &Path) -> Self {
        let path = |name: &str| folder.join(name);
        Self {
            tiny: path("tiny"),
            bz_image: path("vmlinuz"),
            elf: path("vmlinux"),
            initrd: path("initrd"),
            small_initrd: path("small-initrd"),
        }
    }

    /// Makes the files.
    ///
    /// # Errors
    /// The kernel is none that kite boots, or a file cannot be written.
    pub fn make(&self, kernel: &Kernel, kite: &Path) -> Result<()> {
        write(&self.tiny, &elf(&CODE))?;
        write(&self.small_initrd, &[0])?;
        let bz_image = image(&kernel.bz_image())?;
        // The 64-bit entry point, and the 32-bit one below it (Linux `Documentation/arch/x86/boot.rst`).
        patch(&kernel.bz_image(), &bz_image, &[bz_image.entry, bz_image.entry - 0x200], &self.bz_image)?;
        let elf = image(&kernel.elf())?;
        let without_note = image(&kernel.elf_without_pvh())?;
        patch(&kernel.elf(), &elf, &[elf.entry, without_note.entry], &self.elf)?;
        let modules = Modules::open(&kernel.modules())?.resolve(&MODULES, &[])?;
        let init = File::open(kite).with_context(|| format!("opening {}", kite.display()))?;
        let initrd = initramfs::standard(Arc::new(init), &modules, &[]).context("making an initramfs")?;
        let mut file =
            File::create(&self.initrd).with_context(|| format!("making {}", self.initrd.display()))?;
        initrd.write_to(&mut file).context("writing the initramfs")
    }
}

fn image(path: &Path) -> Result<Image> {
    Image::open(path).with_context(|| format!("reading {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))
}

/// Writes a copy of the image `from`, whose headers are `image`, with [`CODE`] at the guest-physical `entries`.
fn patch(from: &Path, image: &Image, entries: &[u64], to: &Path) -> Result<()> {
    let mut bytes = fs::read(from).with_context(|| format!("reading {}", from.display()))?;
    for entry in entries {
        let at = place(image, *entry).with_context(|| format!("{} has no {entry:#x}", from.display()))?;
        let code = bytes.get_mut(at..at + CODE.len()).context("an entry point is cut off")?;
        code.copy_from_slice(&CODE);
    }
    write(to, &bytes)
}

/// Where in its file an image has what is loaded at `address`.
fn place(image: &Image, address: u64) -> Result<usize> {
    for segment in &image.segments {
        if let (Piece::File { offset, len, .. }, Some(into)) =
            (&segment.piece, address.checked_sub(segment.addr))
            && into < *len
        {
            return Ok(usize::try_from(offset + into)?);
        }
    }
    bail!("no part of the file is loaded there")
}

/// An ELF file of one page of headers and this code, with a PVH note that points at it (System V ABI, "Object Files").
pub fn elf(code: &[u8]) -> Vec<u8> {
    let (address, start) = TINY;
    let mut file = Vec::new();
    let words =
        |file: &mut Vec<u8>, words: &[u64]| file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    let halves =
        |file: &mut Vec<u8>, halves: &[u32]| file.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
    let note_at = 64 + 2 * 56;
    // 64-bit, little-endian; executable, x86-64; entry, program headers, no section headers; header sizes and counts.
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0");
    words(&mut file, &[address, 64, 0]);
    file.extend(b"\0\0\0\0\x40\0\x38\0\x02\0\x40\0\0\0\0\0");
    // Type and flags; place in the file, virtual and physical address; length in the file and in memory; alignment.
    halves(&mut file, &[1, 7]);
    words(&mut file, &[start as u64, address, address, code.len() as u64, code.len() as u64, 4096]);
    halves(&mut file, &[4, 4]);
    words(&mut file, &[note_at, 0, 0, 20, 20, 4]);
    // Lengths of name and content, type, name, content.
    halves(&mut file, &[4, 4, PVH_NOTE]);
    file.extend(b"Xen\0");
    halves(&mut file, &[address as u32]);
    file.resize(start, 0);
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tiny_guest_is_a_kernel_with_a_pvh_entry() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny");
        write(&path, &elf(&CODE)).unwrap();
        let image = image(&path).unwrap();
        assert_eq!(image.protocol, boot::kernel::Protocol::Pvh);
        assert_eq!((image.entry, place(&image, image.entry).unwrap()), TINY);
        assert!(place(&image, TINY.0 + 10).is_err());
    }
}
