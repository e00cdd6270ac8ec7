//! What demo, test and lab need on a bare Debian or Ubuntu: kernels, and an emulator if there is no hardware
//! KVM. Nothing is done twice: what is there is used.

mod apt;
mod debian;
mod glibc;
mod kernels;
mod podman;
mod selftests;
mod viewers;

use std::fmt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use self::apt::Apt;
pub use self::debian::{Debian, PASSWORD};
pub use self::glibc::{other as other_glibc, own as own_glibc};
pub use self::kernels::{Kernel, LAB, Missing, TODAY};
pub use self::podman::{archive as podman_archive, engines_archive};
pub use self::selftests::folder as selftests_folder;
pub use self::viewers::python as viewers_python;
use crate::host::{self, Distribution};
use crate::qemu;

/// The oldest major version of QEMU whose emulated SVM runs nested guests.
const QEMU_MAJOR: u32 = 10;

/// What is missing and no package of this distribution has.
#[derive(Debug)]
pub struct Unavailable(pub String);

impl fmt::Display for Unavailable {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

impl std::error::Error for Unavailable {}

/// The set-up of this machine: what is asked for is made if it is missing.
#[derive(Default)]
pub struct Setup {
    apt: Option<Apt>,
}

impl Setup {
    /// Starts with nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// apt, its lists fetched at the first use.
    fn apt(&mut self) -> Result<&Apt> {
        if self.apt.is_none() {
            let distribution = Distribution::here()?;
            // Backports are only taken where nothing else has a package, or they are asked for.
            let suites: &[&str] = match distribution.is_ubuntu() {
                true => &[],
                false => &["bookworm", "bookworm-backports", "trixie-backports"],
            };
            self.apt = Some(Apt::open("apt", &distribution, suites)?);
        }
        self.apt.as_ref().context("apt was just opened")
    }

    /// The kernels that guests are tested with, and those that cannot be had, with the reason.
    ///
    /// # Errors
    /// A package cannot be fetched or unpacked.
    pub fn kernels(&mut self) -> Result<(Vec<Kernel>, Vec<Missing>)> {
        let (origins, mut missing) = kernels::origins(&Distribution::here()?);
        let mut found = Vec::new();
        for origin in origins {
            match kernels::ensure(self, &origin)? {
                Some(kernel) => found.push(kernel),
                None => missing.push(Missing { name: origin.name, reason: "no package has it".to_owned() }),
            }
        }
        Ok((found, missing))
    }

    /// The kernel to show, to prove devices on and to measure with: the newest of a release of the distribution's.
    ///
    /// # Errors
    /// None can be fetched.
    pub fn kernel(&mut self) -> Result<Kernel> {
        let (origins, _) = kernels::origins(&Distribution::here()?);
        for origin in origins.iter().rev().filter(|origin| origin.name != kernels::TODAY) {
            if let Some(kernel) = kernels::ensure(self, origin)? {
                return Ok(kernel);
            }
        }
        bail!("no package has a kernel")
    }

    /// The lab's own kernel.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub fn lab_kernel(&mut self) -> Result<Kernel> {
        let origin = kernels::lab_origin(&Distribution::here()?);
        kernels::ensure(self, &origin)?.context("no package has a kernel for the lab")
    }

    /// A disk with a whole Debian on it.
    ///
    /// # Errors
    /// [`Unavailable`] where there is none to be had; or it cannot be made.
    pub fn debian(&mut self) -> Result<Debian> {
        debian::ensure(self)
    }

    /// Programs of the host's that tests use, each with the package that has it.
    ///
    /// # Errors
    /// A package cannot be installed.
    pub fn programs(&mut self, programs: &[(&str, &str)]) -> Result<()> {
        for (program, package) in programs {
            if host::program(program).is_none() {
                self.apt()?.install(&[package], None)?;
            }
        }
        Ok(())
    }

    /// A kernel tree's own tests.
    ///
    /// # Errors
    /// [`Unavailable`] where there is none to be had; or it cannot be made.
    pub fn selftests(&mut self) -> Result<std::path::PathBuf> {
        selftests::ensure(self)
    }

    /// An archive of an image with podman.
    ///
    /// # Errors
    /// [`Unavailable`] where there is none to be had; or it cannot be made.
    pub fn podman(&mut self) -> Result<std::path::PathBuf> {
        podman::ensure(self)
    }

    /// An archive of a root folder with engines of containers.
    ///
    /// # Errors
    /// [`Unavailable`] where there is none to be had; or it cannot be made.
    pub fn engines(&mut self) -> Result<std::path::PathBuf> {
        podman::ensure_engines(self)
    }

    /// What looks at a guest's screen, and what a guest shows there.
    ///
    /// # Errors
    /// A package cannot be had.
    pub fn viewers(&mut self) -> Result<()> {
        viewers::ensure(self)
    }

    /// A package.
    ///
    /// # Errors
    /// It cannot be installed.
    pub fn install(&mut self, package: &str) -> Result<()> {
        self.apt()?.install(&[package], None)
    }

    /// QEMU for the lab.
    ///
    /// # Errors
    /// [`Unavailable`] if a new enough one is neither installed nor to be had; or it cannot be installed.
    pub fn qemu(&mut self) -> Result<()> {
        if qemu_major().is_some_and(|major| major >= QEMU_MAJOR) {
            return Ok(());
        }
        let distribution = Distribution::here()?;
        let apt = self.apt()?;
        let suite = (distribution.codename == "bookworm").then_some("bookworm-backports");
        let package = "qemu-system-x86";
        let newest = apt.candidate(package, "")?.and_then(|candidate| major(&candidate.version));
        if newest.is_none_or(|major| major < QEMU_MAJOR) {
            let newest = newest.map_or("none".to_owned(), |major| major.to_string());
            let needs = format!("the lab needs QEMU {QEMU_MAJOR}, {} has {newest}", distribution.name);
            return Err(Unavailable(needs).into());
        }
        apt.install(&[package], suite)
    }
}

/// The major version of the QEMU that is installed.
fn qemu_major() -> Option<u32> {
    let output = Command::new(qemu::PROGRAM).arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    major(text.strip_prefix("QEMU emulator version ")?)
}

/// The number a package's version starts with, behind its epoch.
fn major(version: &str) -> Option<u32> {
    let version = version.split_once(':').map_or(version, |(_, version)| version);
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn an_epoch_is_not_the_major_version() {
        assert_eq!(major("1:10.0.2+ds-2"), Some(10));
        assert_eq!(major("8.2.2"), Some(8));
        assert_eq!(major("none"), None);
    }
}
