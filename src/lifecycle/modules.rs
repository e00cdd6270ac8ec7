//! Where the kernel's modules are, and which of them the guest gets.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use boot::kernel::Image;
use boot::modules::{self, ModuleFile, Modules, PCI_TRANSPORT, TRANSPORT};

use super::devices::Devices;
use crate::spec::MachineSpec;
use crate::spec::machine::BootSpec;

/// The folder of the kernel's modules: the one that is named, or the kernel's own.
pub(super) fn folder(options: &BootSpec, kernel: &Path, version: Option<&str>) -> Option<PathBuf> {
    options.modules.clone().or_else(|| modules::of_kernel(kernel, version))
}

/// The module files to load from `folder`. A kernel without a folder of modules has what it needs built in, unless the
/// user says otherwise.
///
/// # Errors
/// A module that is needed is missing, or the user has named some and there is no folder.
pub(super) fn to_load(
    spec: &MachineSpec,
    image: &Image,
    folder: Option<&Path>,
    devices: &Devices,
) -> anyhow::Result<Vec<ModuleFile>> {
    let options = &spec.boot;
    let Some(folder) = folder else {
        let name = options.extra_modules.first();
        ensure!(
            name.is_none(),
            "cannot load module {}: there is no folder of modules for kernel {}; name it with --modules DIR",
            name.map_or("", String::as_str),
            image.version().as_deref().unwrap_or("(which does not tell its version)")
        );
        return Ok(Vec::new());
    };
    let modules = devices.modules();
    let mut names = vec![if spec.has_pci() { PCI_TRANSPORT } else { TRANSPORT }];
    names.extend(modules.needed);
    names.extend(options.extra_modules.iter().map(String::as_str));
    Modules::open(folder)
        .and_then(|installed| installed.resolve(&names, &modules.optional))
        .context("cannot find the kernel's modules")
}
