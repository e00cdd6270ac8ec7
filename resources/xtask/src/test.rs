//! `cargo xtask test`: everything. What passed, failed and was skipped is counted; why is told at the end.

mod native;

pub use native::Programs;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::batch::{Batch, Outcome};
use crate::bench::latency;
use crate::calls;
use crate::guests;
use crate::host;
use crate::proof;
use crate::setup::{Kernel, Setup, Unavailable};
use crate::step::{open_step, output, shown, step};
use crate::user;

/// What was found so far.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    /// What failed, and how.
    failed: Vec<String>,
    /// What was skipped, and why.
    skipped: Vec<String>,
    /// What was not run again as an ordinary user, since it takes root.
    left_to_root: usize,
}

/// Runs everything; with `all`, every Linux guest.
///
/// # Errors
/// Something that all tests need cannot be made.
pub fn run(all: bool) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let mut setup = Setup::new();
    components()?;
    // Tests read kernels, too, and have the script for CI checked.
    let (mut kernels, missing) = setup.kernels()?;
    let lab = setup.lab_kernel()?;
    kernels.extend(all.then_some(lab));
    for kernel in missing {
        tally.skipped.push(format!("linux-{}: {}", kernel.name, kernel.reason));
    }
    setup.programs(&[("shellcheck", "shellcheck")])?;
    tally.command("format", cargo().args(["fmt", "--all", "--check"]));
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally.command("clippy", cargo().args(lints));
    tally.native()?;
    tally.native_as_user()?;
    tally.linux_guests(&mut setup, all, &kernels)?;
    tally.proofs(&mut setup, all)?;
    tally.calls(&mut setup, all);
    tally.count(&mut setup)?;
    tally.close();
    Ok(if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// kite as users get it; answers where it is.
///
/// # Errors
/// It does not build.
pub fn build_kite() -> Result<PathBuf> {
    step("building kite", || shown(release().arg("--quiet")))?;
    released()
}

/// The same with what Cargo says, as it takes minutes the first time.
///
/// # Errors
/// It does not build.
pub fn build_kite_for_all_to_see() -> Result<PathBuf> {
    open_step("building kite, which takes two to four minutes the first time", || shown(&mut release()))?;
    released()
}

fn release() -> Command {
    let mut cargo = cargo();
    cargo.args(["build", "--release", "--package", "kite"]);
    cargo
}

/// Where it is: this program lies beside it, in the folder of its own profile.
fn released() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program")?;
    let profiles = own.parent().and_then(Path::parent).context("this program is in no build folder")?;
    Ok(profiles.join("release/kite"))
}

/// Cargo, in the root folder of this tree.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(host::root());
    // A relative one is from where this was started.
    cargo.envs(host::targets().ok().map(|folder| ("CARGO_TARGET_DIR", folder)));
    cargo
}

/// rustfmt and clippy are no part of rustup's minimal profile.
fn components() -> Result<()> {
    for (program, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if output(cargo().args([program, "--version"])).is_err() {
            let mut rustup = Command::new("rustup");
            rustup.args(["component", "add", component]).current_dir(host::root());
            step(format!("installing {component}"), || output(&mut rustup))?;
        }
    }
    Ok(())
}

impl Tally {
    /// One check that is a command.
    fn command(&mut self, name: &str, command: &mut Command) {
        match step(name, || shown(command)) {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("{name}: {error:#}")),
        }
    }

    /// Whether each rule of the sandbox is needed; with `all`, by either C library.
    fn calls(&mut self, setup: &mut Setup, all: bool) {
        match step("tracing kite's system calls", || calls::run(setup, all)) {
            Ok(()) => self.passed += 1,
            Err(error) if error.is::<Unavailable>() => self.skipped.push(format!("system calls: {error}")),
            Err(error) => self.failed.push(format!("system calls: {error:#}")),
        }
    }

    /// How many instructions kite adds to an exit.
    fn count(&mut self, setup: &mut Setup) -> Result<()> {
        let kite = build_kite()?;
        match step("counting instructions of VM exits", || latency::count(setup, &kite)) {
            Ok(()) => self.passed += 1,
            Err(error) => self.failed.push(format!("instructions of VM exits: {error:#}")),
        }
        Ok(())
    }

    fn linux_guests(&mut self, setup: &mut Setup, all: bool, kernels: &[Kernel]) -> Result<()> {
        let mut arguments: Vec<OsString> = vec!["guests".into(), "--kite".into(), build_kite()?.into()];
        arguments.extend(all.then(|| "--all".into()));
        arguments.extend(kernels.iter().map(|kernel| OsString::from(&kernel.name)));
        let names = guests::cases(kernels, all, user::is_another()).iter().map(ToString::to_string).collect();
        let (limit, usual) = (guests::LIMIT, Duration::from_secs(90));
        self.batch(setup, &Batch { what: "Linux guests", names, arguments, limit, usual })
    }

    /// Devices on real guests.
    fn proofs(&mut self, setup: &mut Setup, all: bool) -> Result<()> {
        let proofs = proof::proofs(all, user::is_another());
        let names: Vec<String> = proofs.iter().map(ToString::to_string).collect();
        match setup.debian() {
            Ok(_) => {}
            Err(error) if error.is::<Unavailable>() => {
                self.skipped.extend(names.iter().map(|name| format!("{name}: {error}")));
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        setup.programs(&proof::PROGRAMS)?;
        if all {
            setup.selftests()?;
        }
        let kernel = setup.kernel()?;
        let mut arguments: Vec<OsString> = vec!["proofs".into(), "--kite".into(), build_kite()?.into()];
        arguments.extend(all.then(|| "--all".into()));
        arguments.push(kernel.name.into());
        let (limit, usual) = (proof::LIMIT, Duration::from_secs(300));
        self.batch(setup, &Batch { what: "Devices on Linux guests", names, arguments, limit, usual })
    }

    fn batch(&mut self, setup: &mut Setup, batch: &Batch) -> Result<()> {
        for outcome in batch.run(setup)? {
            match outcome {
                Outcome::Passed => self.passed += 1,
                Outcome::Failed(why) => self.failed.push(why),
                Outcome::Skipped(why) => self.skipped.push(why),
            }
        }
        Ok(())
    }

    fn close(&self) {
        println!();
        for skipped in &self.skipped {
            println!("skipped: {skipped}");
        }
        for failed in &self.failed {
            println!("failed: {failed}");
        }
        if self.left_to_root > 0 {
            println!("run by root alone, not again as an ordinary user: {} tests", self.left_to_root);
        }
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
    }
}
