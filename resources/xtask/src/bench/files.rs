//! Files brought near before anything is measured: into the page cache, and in the lab into its own memory. There,
//! each opening of a file of the machine outside takes a request to it, and the counting lab's clock jumps meanwhile.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use boot::modules::Modules;

use super::images::{self, Images};
use super::vmm::Programs;
use crate::host;
use crate::qemu;
use crate::setup::Kernel;
use crate::step::output;

/// Brings near whatever is opened on the way to a guest.
///
/// # Errors
/// A file is missing or cannot be read.
pub fn settle(programs: &Programs, kernel: &Kernel, images: &Images) -> Result<()> {
    let mut files = vec![programs.kite.clone(), programs.bare.clone(), kernel.bz_image(), kernel.elf()];
    files.extend(
        [&images.tiny, &images.idle, &images.bz_image, &images.elf, &images.initrd, &images.small_initrd]
            .map(PathBuf::from),
    );
    files.push(kernel.modules().join("modules.dep"));
    files.extend(
        Modules::open(&kernel.modules())?
            .resolve(&images::MODULES, &[])?
            .into_iter()
            .map(|module| module.path),
    );
    files.extend(qemu_files()?);
    // The program that runs this in the lab says so.
    let in_lab = std::env::var_os("LAB").is_some();
    for file in files {
        if in_lab {
            // Opened for writing, a file moves to the layer of memory over the folders outside.
            open(&file, File::options().append(true))?;
        }
        let mut file = open(&file, File::options().read(true))?;
        io::copy(&mut file, &mut io::sink())?;
    }
    Ok(())
}

fn open(path: &Path, how: &fs::OpenOptions) -> Result<File> {
    how.open(path).with_context(|| format!("opening {}", path.display()))
}

/// QEMU, its libraries, and its firmware.
fn qemu_files() -> Result<Vec<PathBuf>> {
    let program = host::program(qemu::PROGRAM).context("QEMU is not installed")?;
    let libraries = output(Command::new("ldd").arg(&program))?;
    let mut files: Vec<PathBuf> =
        libraries.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect();
    for folder in output(Command::new(&program).args(["-L", "help"]))?.lines() {
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for entry in entries {
            let path = entry.with_context(|| format!("listing {folder}"))?.path();
            files.extend(path.is_file().then_some(path));
        }
    }
    files.push(program);
    Ok(files)
}
