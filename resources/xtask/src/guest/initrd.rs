//! The initrd of xtask's guests, made by kite's own initramfs code: this program as `/init`, kernel modules, and files.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use boot::initramfs;
use boot::modules::{ModuleFile, Modules};

use crate::setup::Kernel;
use crate::vmlinux::decompress;

/// What an initrd holds.
pub struct Initrd<'a> {
    /// The program that is `/init`.
    pub program: File,
    /// Kernel modules that the guest cannot do without, by their names.
    pub needed: &'a [&'a str],
    /// Kernel modules that the guest uses where there are any.
    pub useful: &'a [&'a str],
    /// Files by their names, with their contents.
    pub files: &'a [(&'a str, &'a [u8])],
}

impl Initrd<'_> {
    /// Writes the initrd for `kernel` to the file `path`.
    ///
    /// # Errors
    /// A needed module is missing, or the file cannot be written.
    pub fn write(self, kernel: &Kernel, path: &Path) -> Result<()> {
        let folder = tempfile::tempdir().context("making a folder")?;
        let mut modules = Modules::open(&kernel.modules())?.resolve(self.needed, self.useful)?;
        for module in &mut modules {
            unpack(module, folder.path())
                .with_context(|| format!("unpacking kernel module {}", module.name))?;
        }
        let archive = initramfs::standard(Arc::new(self.program), &modules, self.files)?;
        let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
        archive.write_to(&mut BufWriter::new(file)).with_context(|| format!("writing {}", path.display()))
    }
}

/// Replaces a compressed module by its unpacked copy in `folder`: emulation would take its time over unpacking.
fn unpack(module: &mut ModuleFile, folder: &Path) -> Result<()> {
    if module.path.extension().is_some_and(|extension| extension != "ko") {
        let unpacked = folder.join(format!("{}.ko", module.name));
        fs::write(&unpacked, decompress(&fs::read(&module.path)?)?)?;
        module.path = unpacked;
    }
    Ok(())
}
