//! Where the kernel's modules are, and which of them the guest gets.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use boot::kernel::Image;
use boot::modules::{ModuleFile, Modules};

use super::devices::Devices;
use crate::cli::RunOptions;

/// The module that finds the board's devices.
const TRANSPORT: &str = "virtio_mmio";
/// Where a kernel lies in the folder that it was built in.
const BUILT: &str = "arch/x86/boot/bzImage";
/// What such a folder has once its modules are built.
const ORDER: &str = "modules.order";

/// The folder of the kernel's modules: the one that is named; or the one that the kernel was built in, `lib/modules`
/// beside it, or the host's, whichever there is.
pub(super) fn folder(options: &RunOptions, kernel: &Path, version: Option<&str>) -> Option<PathBuf> {
    options.modules.clone().or_else(|| {
        let built = built_in(kernel).filter(|tree| tree.join(ORDER).is_file());
        built.or_else(|| {
            let modules = Path::new("lib/modules").join(version?);
            let beside = kernel.ancestors().skip(1).take(2).map(|folder| folder.join(&modules));
            beside.chain([Path::new("/").join(&modules)]).find(|folder| folder.is_dir())
        })
    })
}

/// The folder that a kernel was built in, by its place in it: a bzImage's, or a vmlinux's.
fn built_in(kernel: &Path) -> Option<PathBuf> {
    // `./bzImage` may be started from the folder that it is in.
    let kernel = kernel.canonicalize().ok()?;
    match kernel.ends_with(BUILT) {
        true => kernel.ancestors().nth(4).map(Path::to_owned),
        false => kernel.parent().map(Path::to_owned),
    }
}

/// The module files to load from `folder`. A kernel without a folder of modules has what it needs built in, unless the
/// user says otherwise.
///
/// # Errors
/// A module that is needed is missing, or the user has named some and there is no folder.
pub(super) fn to_load(
    options: &RunOptions,
    image: &Image,
    folder: Option<&Path>,
    devices: &Devices,
) -> anyhow::Result<Vec<ModuleFile>> {
    let Some(folder) = folder else {
        let name = options.more_modules.first();
        ensure!(
            name.is_none(),
            "cannot load module {}: there is no folder of modules for kernel {}; name it with --modules DIR",
            name.map_or("", String::as_str),
            image.version().as_deref().unwrap_or("(which does not tell its version)")
        );
        return Ok(Vec::new());
    };
    let (needed, optional) = devices.modules();
    let mut names = vec![TRANSPORT];
    names.extend(needed);
    names.extend(options.more_modules.iter().map(String::as_str));
    Modules::open(folder)
        .and_then(|modules| modules.resolve(&names, &optional))
        .context("cannot find the kernel's modules")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: RunOptions,
    }

    fn found(arguments: &[&str], kernel: &Path) -> Option<PathBuf> {
        folder(&Line::parse_from(["x"].iter().chain(arguments)).options, kernel, Some("1.2.3-none"))
    }

    #[test]
    fn modules_are_where_the_kernel_was_built_or_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let kernel = dir.join(BUILT);
        fs::create_dir_all(kernel.parent().unwrap()).unwrap();
        fs::write(&kernel, "").unwrap();
        assert_eq!(found(&[], &kernel), None);
        fs::write(dir.join(ORDER), "").unwrap();
        assert_eq!(found(&[], &kernel), Some(dir.clone()));
        assert_eq!(found(&["--modules", "/m"], &kernel), Some("/m".into()));
        let beside = dir.join("boot/lib/modules/1.2.3-none");
        fs::create_dir_all(&beside).unwrap();
        fs::write(dir.join("boot/vmlinuz"), "").unwrap();
        assert_eq!(found(&[], &dir.join("boot/vmlinuz")), Some(beside));
    }
}
