//! A kernel tree's own tests under `target/selftests`: what building and running a few of them takes, out of the
//! distribution's package of the kernel's source.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Setup, Unavailable};
use crate::host;
use crate::step::{output, step};

/// The package, and the archive and the folder in it.
const PACKAGE: &str = "linux-source-6.1";
/// The parts of the tree that are unpacked.
const PARTS: [&str; 4] = ["Makefile", "scripts", "tools", "include/uapi"];

/// The tree, fetched and unpacked if it is not there.
///
/// # Errors
/// [`Unavailable`] where no package has it; or it cannot be fetched or unpacked.
pub fn ensure(setup: &mut Setup) -> Result<PathBuf> {
    let tree = folder()?;
    if tree.exists() {
        return Ok(tree);
    }
    let apt = setup.apt()?;
    if apt.candidate(PACKAGE, "")?.is_none() {
        return Err(Unavailable(format!("no package {PACKAGE}")).into());
    }
    // The finished folder appears in one step, so that an interrupted run leaves nothing that looks whole.
    let part = tree.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    step(format!("fetching {PACKAGE}"), || apt.download(&[PACKAGE.to_owned()], &part))?;
    step(format!("unpacking {PACKAGE}"), || {
        let entries = fs::read_dir(&part).context("looking for the package")?;
        for package in entries {
            let package = package.context("looking for the package")?.path();
            output(Command::new("dpkg").arg("-x").arg(package).arg(&part))?;
        }
        let archive = part.join(format!("usr/src/{PACKAGE}.tar.xz"));
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(archive).arg("-C").arg(&part).arg("--strip-components=1");
        output(tar.args(PARTS.map(|path| format!("{PACKAGE}/{path}"))))
    })?;
    fs::rename(&part, &tree).with_context(|| format!("renaming {}", part.display()))?;
    Ok(tree)
}

/// Where the tree is or would be.
///
/// # Errors
/// The folder around it cannot be made.
pub fn folder() -> Result<PathBuf> {
    Ok(host::target("selftests")?.join("linux"))
}
