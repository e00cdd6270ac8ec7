//! The kites that are traced.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::host;
use crate::setup;
use crate::step::{shown, step};
use crate::test::{Profile, cargo};

/// What the linker is told for a static program, as in `.cargo/config.toml`.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// A kite to be traced.
pub struct Kite {
    /// The version of the C library in it.
    pub glibc: &'static str,
    /// The one that tests run.
    pub tested: PathBuf,
    /// The one that Linux guests run on: as users get it.
    pub released: PathBuf,
}

impl Kite {
    /// With this host's C library, built so.
    ///
    /// # Errors
    /// It does not build.
    pub fn own(tested: &Path, profile: Profile) -> Result<Self> {
        Ok(Self { glibc: setup::own_glibc(), tested: tested.to_owned(), released: profile.build()? })
    }

    /// With the other release's C library.
    ///
    /// # Errors
    /// [`setup::Unavailable`] if there is none to be had; or it does not build.
    pub fn other() -> Result<Self> {
        let glibc = setup::other_glibc()?;
        let target = host::target("glibc")?.join("build");
        let root = glibc.root.display();
        step(format!("building kite with glibc {}", glibc.version), || {
            let mut cargo = cargo();
            cargo.args(["build", "--quiet", "--release", "--package", "kite", "--target-dir"]).arg(&target);
            // No folder that is named so may have a space: cargo splits these at spaces.
            let flags = format!("{STATIC} -C link-arg=--sysroot={root}");
            shown(cargo.env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags))
        })?;
        let kite = target.join("x86_64-unknown-linux-gnu/release/kite");
        Ok(Self { glibc: glibc.version, tested: kite.clone(), released: kite })
    }
}
