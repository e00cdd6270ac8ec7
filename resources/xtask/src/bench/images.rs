//! What is booted: a tiny guest, and copies of a stock kernel whose first instruction says that it runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use boot::Piece;
use boot::initramfs;
use boot::kernel::Image;
use boot::modules::Modules;
use boot::testing::{Entry, kernel as tiny_kernel};

use crate::setup::Kernel;

/// Writes [`BYTE`] to COM1, and halts for ever; the same bytes in 32-bit and in 64-bit mode:
/// `mov dx, 0x3f8; mov al, '!'; out dx, al; hlt; jmp` back to the `hlt`.
const CODE: [u8; 10] = [0x66, 0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xf4, 0xeb, 0xfd];
/// As [`CODE`], but it halts with its interrupts on, of which none comes: a guest that is idle, and not dead.
const IDLE_CODE: [u8; 11] = [0x66, 0xba, 0xf8, 0x03, 0xb0, BYTE, 0xee, 0xfb, 0xf4, 0xeb, 0xfd];
/// What the guest says.
pub const BYTE: u8 = b'!';
/// The modules that kite gives a guest.
pub const MODULES: [&str; 1] = ["virtio_mmio"];

/// The files, all in one folder.
pub struct Images {
    /// A guest of ten bytes, as ELF.
    pub tiny: PathBuf,
    /// One that stays idle.
    pub idle: PathBuf,
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
            idle: path("idle"),
            bz_image: path("vmlinuz"),
            elf: path("vmlinux"),
            initrd: path("initrd"),
            small_initrd: path("small-initrd"),
        }
    }

    /// Makes the guest that stays idle alone, which needs no kernel.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn make_idle(&self) -> Result<()> {
        write(&self.idle, &tiny_kernel(&IDLE_CODE, Entry::Pvh))
    }

    /// Makes the files.
    ///
    /// # Errors
    /// The kernel is none that kite boots, or a file cannot be written.
    pub fn make(&self, kernel: &Kernel, kite: &Path) -> Result<()> {
        write(&self.tiny, &tiny_kernel(&CODE, Entry::Pvh))?;
        self.make_idle()?;
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

#[cfg(test)]
mod tests {
    use boot::testing::BASE;

    use super::*;

    #[test]
    fn the_tiny_guest_is_a_kernel_with_a_pvh_entry() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write(file.path(), &tiny_kernel(&CODE, Entry::Pvh)).unwrap();
        let image = image(file.path()).unwrap();
        assert_eq!(image.protocol, boot::kernel::Protocol::Pvh);
        assert_eq!((image.entry, place(&image, image.entry).unwrap()), (BASE, 4096));
        assert!(place(&image, BASE + 10).is_err());
    }
}
