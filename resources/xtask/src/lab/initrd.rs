//! The lab's initrd, made with kite's own initramfs code: this program as `/init`, and the kernel modules.

use std::fs::{self, File};
use std::io::{BufWriter, Read};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use boot::initramfs::{Initramfs, MANIFEST, MODULES};
use boot::modules::{ModuleFile, Modules};

use super::init;
use crate::setup::Kernel;

/// Without these there is no lab.
const NEEDED: [&str; 6] = ["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "kvm_amd"];
/// What guests and their devices may use.
const USEFUL: [&str; 6] = ["virtio_rng", "tun", "vhost_net", "vhost_vsock", "veth", "bridge"];

/// Writes the initrd for `kernel` to the file `path`.
///
/// # Errors
/// A needed module is missing, or the file cannot be written.
pub fn write(kernel: &Kernel, path: &Path) -> Result<()> {
    let modules = Modules::open(&kernel.modules())?;
    let mut archive = Initramfs::new();
    archive.dir("/dev", 0o755)?.device("/dev/console", 0o600, 5, 1)?;
    for folder in init::FOLDERS {
        archive.dir(folder, 0o755)?;
    }
    archive.dir(MODULES, 0o755)?;
    let mut manifest = String::new();
    for module in modules.resolve(&NEEDED, &USEFUL)? {
        add(&mut archive, &module).with_context(|| format!("adding kernel module {}", module.name))?;
        manifest += &format!("{MODULES}/{}.ko\n", module.name);
    }
    archive.file(MANIFEST, 0o644, manifest.as_bytes())?;
    // By way of the kernel: a build that runs meanwhile may have replaced the file of that name.
    let program = File::open("/proc/self/exe").context("opening this program")?;
    archive.file_from("/init", 0o755, Arc::new(program))?;
    let file = File::create(path).with_context(|| format!("making {}", path.display()))?;
    archive
        .finish()
        .write_to(&mut BufWriter::new(file))
        .with_context(|| format!("writing {}", path.display()))
}

/// Adds a module, decompressed: emulation would take its time over that.
pub fn add(archive: &mut Initramfs, module: &ModuleFile) -> Result<()> {
    let name = format!("{MODULES}/{}.ko", module.name);
    let file = module.open()?;
    let mut bytes = Vec::new();
    match module.path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => lzma_rust2::XzReader::new(file, false).read_to_end(&mut bytes)?,
        Some("gz") => flate2::read::GzDecoder::new(file).read_to_end(&mut bytes)?,
        Some("zst") => {
            let packed = fs::read(&module.path)?;
            ruzstd::decoding::StreamingDecoder::new(packed.as_slice())?.read_to_end(&mut bytes)?
        }
        _ => {
            archive.file_from(&name, 0o644, Arc::new(file))?;
            return Ok(());
        }
    };
    archive.file(&name, 0o644, &bytes)?;
    Ok(())
}
