//! Another release's C library under `target/glibc`, to link with what that release would link with.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::Unavailable;
use super::apt::Apt;
use crate::host::{self, Distribution};
use crate::step::{output, step};

/// Debian's releases that kite is built on, and their C library.
const RELEASES: [(&str, &str); 2] = [("bookworm", "2.36"), ("trixie", "2.41")];

/// A C library.
pub struct Glibc {
    /// Its version, such as `2.41`.
    pub version: &'static str,
    /// The folder that is the linker's root folder.
    pub root: PathBuf,
}

/// The version that this host links with, as far as it is known here.
pub fn own() -> &'static str {
    let here = Distribution::here().map(|here| here.codename).unwrap_or_default();
    RELEASES.iter().find(|(release, _)| *release == here).map_or("of this host", |(_, version)| version)
}

/// The other release's library, fetched and unpacked if it is not there.
///
/// # Errors
/// [`Unavailable`] where the host is no such release; or it cannot be fetched or unpacked.
pub fn other() -> Result<Glibc> {
    let here = Distribution::here()?;
    if !RELEASES.iter().any(|(release, _)| *release == here.codename) {
        let why = format!("it takes Debian's bookworm or trixie to have both, and this is {}", here.name);
        return Err(Unavailable(why).into());
    }
    let other = RELEASES.iter().find(|(release, _)| *release != here.codename);
    let (release, version) = other.context("there is no other release")?;
    let root = host::target("glibc")?.join(version);
    let glibc = Glibc { version, root: root.clone() };
    if root.exists() {
        return Ok(glibc);
    }
    let apt = Apt::open("glibc/apt", &here, &RELEASES.map(|(release, _)| release))?;
    let found = apt.candidate("libc6-dev", version)?;
    let found = found.with_context(|| format!("no package libc6-dev {version} in {release}"))?;
    let packages = [format!("libc6-dev={}", found.version)];
    // The finished folder appears in one step, so that an interrupted run leaves nothing that looks whole.
    let part = root.with_extension("part");
    let _ = fs::remove_dir_all(&part);
    fs::create_dir_all(&part).with_context(|| format!("making {}", part.display()))?;
    step(format!("fetching glibc {version}"), || apt.download(&packages, &part))?;
    for package in fs::read_dir(&part).context("looking for the package")? {
        let package = package.context("looking for the package")?.path();
        output(Command::new("dpkg").arg("-x").arg(&package).arg(&part))?;
        fs::remove_file(package).context("removing an unpacked package")?;
    }
    fs::rename(&part, &root).with_context(|| format!("renaming {}", part.display()))?;
    Ok(glibc)
}
