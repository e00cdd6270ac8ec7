//! `cargo xtask demo debian`: a whole Debian booted from a disk to its login prompt, with a network; logged in, looked
//! at, powered off, and its file system checked.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use super::short;
use crate::debian;
use crate::e2e::{Wire, go_alone};
use crate::host;
use crate::lab::Lab;
use crate::machine::{Access, Net, Vmm};
use crate::setup::{Debian, Setup};
use crate::test::build_kite_for_all_to_see;

/// Runs the demonstration, here or in the lab.
///
/// # Errors
/// Set-up fails, or the guest does.
pub fn run() -> Result<ExitCode> {
    println!("kite's demonstration: boot a whole Debian from a disk, log in, look around, power off.");
    let kite = build_kite_for_all_to_see()?;
    let mut setup = Setup::new();
    setup.debian()?;
    if let Err(error) = setup.programs(&[("passt", "passt")]) {
        eprintln!("xtask: the guest will have no network, as there is no passt: {error:#}");
    }
    let code = anywhere(&mut setup, &kite)?;
    println!("\n{}", next(&kite));
    Ok(code)
}

/// What to try next.
fn next(kite: &Path) -> String {
    let kite = short(kite);
    format!(
        "Next:\n  {kite} run --help\n      every option; those of the machine above are behind `$`\n  \
         cargo xtask test --help\n      every check there is, or some of them"
    )
}

fn anywhere(setup: &mut Setup, kite: &Path) -> Result<ExitCode> {
    let Err(reason) = host::hardware_kvm() else { return here(kite) };
    setup.programs(&[("ip", "iproute2")])?;
    println!("Booting in the lab, an emulated machine with KVM, where it takes minutes: {reason}.");
    let lab = Lab::new(setup)?;
    let argv = ["/proc/self/exe", "demo", "debian", "--here"].map(OsString::from);
    let argv: Vec<OsString> = argv.into_iter().chain([kite.into()]).collect();
    Ok(ExitCode::from(lab.run(&argv, &mut io::stdout(), &mut io::stderr())?))
}

/// Runs it in the lab, which has no network but the one that is made here.
///
/// # Errors
/// As [`here`]; or the network cannot be made.
pub fn in_lab(vmm: &Path) -> Result<ExitCode> {
    go_alone()?;
    let _wire = Wire::new(None)?;
    here(vmm)
}

/// Runs it on this machine's KVM, on a copy of the disk.
///
/// # Errors
/// The guest fails, or leaves a broken file system.
fn here(vmm: &Path) -> Result<ExitCode> {
    let made = Debian::open()?.context("there is no Debian disk")?;
    let folder = tempfile::tempdir().context("making a folder")?;
    let disk: PathBuf = folder.path().join("disk.img");
    debian::copy(&made.disk(), &disk)?;
    let nets = if host::program("passt").is_some() { vec![Net::User] } else { Vec::new() };
    let machine = debian::machine(&made, &disk, Access::Write, 2, nets);
    let vmm = Vmm::named(vmm);
    let command = machine.command(&vmm);
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy()).collect();
    println!("$ {} {}", command.get_program().display(), words.join(" "));
    let visit = debian::visit(&machine, &vmm, true)?;
    debian::check(&disk)?;
    println!("\n{visit}{:<20}clean", "file system");
    Ok(ExitCode::SUCCESS)
}
