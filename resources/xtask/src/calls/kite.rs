//! The kites that are traced, and the tests that run them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::host;
use crate::setup;
use crate::step::{output, shown, step};
use crate::test::{build_kite, cargo};

/// Tests that run machines of every kind.
const TESTS: [&str; 3] = ["tiny", "terminal", "cgroup"];
/// What the linker is told for a static program, as in `.cargo/config.toml`.
const STATIC: &str = "-C target-feature=+crt-static -C relocation-model=static";

/// What cargo has built of the tests.
pub struct Tests {
    /// The kite that they run.
    pub kite: PathBuf,
    /// Their names and files.
    pub executables: Vec<(String, PathBuf)>,
}

impl Tests {
    /// Builds them.
    ///
    /// # Errors
    /// They do not build.
    pub fn build() -> Result<Self> {
        let arguments = ["test", "--no-run", "--package", "kite", "--message-format", "json"];
        let messages = step("building tests", || output(cargo().args(arguments)))?;
        let (mut kite, mut executables) = (None, Vec::new());
        for line in messages.lines() {
            let message: Value = serde_json::from_str(line).context("understanding cargo")?;
            let Some(executable) = message["executable"].as_str() else { continue };
            let name = message["target"]["name"].as_str().unwrap_or_default();
            match message["profile"]["test"].as_bool() {
                Some(true) if TESTS.contains(&name) => executables.push((name.to_owned(), executable.into())),
                Some(false) if name == "kite" => kite = Some(executable.into()),
                _ => {}
            }
        }
        ensure!(executables.len() == TESTS.len(), "cargo built {executables:?}");
        Ok(Self { kite: kite.context("cargo built no kite")?, executables })
    }
}

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
    /// With this host's C library.
    ///
    /// # Errors
    /// It does not build.
    pub fn own(tests: &Tests) -> Result<Self> {
        Ok(Self { glibc: setup::own_glibc(), tested: tests.kite.clone(), released: build_kite()? })
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
