//! `cargo xtask test`: everything. What passed, failed and was skipped is counted; why is told at the end.

use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::batch::{Batch, Outcome};
use crate::bench::latency;
use crate::calls;
use crate::guests;
use crate::host;
use crate::proof;
use crate::setup::{Setup, Unavailable};
use crate::step::{output, shown, step};

/// What was found so far.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    /// What failed, and how.
    failed: Vec<String>,
    /// What was skipped, and why.
    skipped: Vec<String>,
}

/// Runs everything; with `all`, every Linux guest.
///
/// # Errors
/// Something that all tests need cannot be made.
pub fn run(all: bool) -> Result<ExitCode> {
    let mut tally = Tally::default();
    let mut setup = Setup::new();
    components()?;
    tally.command("format", cargo().args(["fmt", "--all", "--check"]));
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    tally.command("clippy", cargo().args(lints));
    tally.unit_tests()?;
    tally.linux_guests(&mut setup, all)?;
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
    // This program lies beside it, in the folder of its own profile.
    let own = std::env::current_exe().context("finding this program")?;
    let profiles = own.parent().and_then(Path::parent).context("this program is in no build folder")?;
    step("building kite", || shown(cargo().args(["build", "--quiet", "--release", "--package", "kite"])))?;
    Ok(profiles.join("release/kite"))
}

/// Cargo, in the root folder of this tree.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(host::root());
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

    /// `cargo test`, with its output but for the names of what passed.
    fn unit_tests(&mut self) -> Result<()> {
        eprintln!("xtask: unit tests and tiny guests …");
        // A shell that starts this in the background ignores what some tests send.
        let mut tests = Command::new("env");
        tests.arg("--default-signal=HUP,INT,QUIT").arg(cargo().get_program()).current_dir(host::root());
        tests.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
        let mut child =
            tests.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running cargo test")?;
        let stdout = child.stdout.take().context("cargo test has an output")?;
        let mut reader = TestOutput::default();
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.context("reading what cargo test prints")?;
            let line = String::from_utf8_lossy(&line);
            if reader.line(self, &line) {
                println!("{line}");
            }
        }
        let status = child.wait().context("waiting for cargo test")?;
        if !status.success() && !reader.failed {
            self.failed.push(format!("cargo test: a test does not build or ended early ({status})"));
        }
        Ok(())
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

    fn linux_guests(&mut self, setup: &mut Setup, all: bool) -> Result<()> {
        let (mut kernels, missing) = setup.kernels()?;
        if all {
            kernels.push(setup.lab_kernel()?);
        }
        for kernel in missing {
            self.skipped.push(format!("linux-{}: {}", kernel.name, kernel.reason));
        }
        let mut arguments: Vec<OsString> = vec!["guests".into(), "--kite".into(), build_kite()?.into()];
        arguments.extend(all.then(|| "--all".into()));
        arguments.extend(kernels.iter().map(|kernel| OsString::from(&kernel.name)));
        let names = guests::cases(&kernels, all).iter().map(ToString::to_string).collect();
        let (limit, usual) = (guests::LIMIT, Duration::from_secs(90));
        self.batch(setup, &Batch { what: "Linux guests", names, arguments, limit, usual })
    }

    /// Devices on real guests.
    fn proofs(&mut self, setup: &mut Setup, all: bool) -> Result<()> {
        let names: Vec<String> = proof::proofs(all).iter().map(ToString::to_string).collect();
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
        println!("{} passed, {} failed, {} skipped", self.passed, self.failed.len(), self.skipped.len());
    }
}

/// Reads what libtest prints with `--show-output`.
#[derive(Default)]
struct TestOutput {
    /// Within what tests that passed have printed.
    successes: bool,
    /// Tests of this binary that passed without having tested.
    skipped: usize,
    /// A test has failed.
    failed: bool,
}

impl TestOutput {
    /// Counts what `line` tells; answers whether it is worth showing.
    fn line(&mut self, tally: &mut Tally, line: &str) -> bool {
        if let Some(skipped) = line.strip_prefix("skipped: ") {
            tally.skipped.push(skipped.to_owned());
            self.skipped += 1;
            return false;
        }
        if let Some(result) = line.strip_prefix("test result: ") {
            let words: Vec<&str> = result.split(' ').collect();
            let passed =
                words.windows(2).find(|pair| pair[1] == "passed;").and_then(|pair| pair[0].parse().ok());
            tally.passed += passed.unwrap_or(0usize).saturating_sub(self.skipped);
            (self.successes, self.skipped) = (false, 0);
            return true;
        }
        match line {
            "successes:" => self.successes = true,
            "failures:" => self.successes = false,
            _ => {}
        }
        let Some((name, outcome)) = line.strip_prefix("test ").and_then(|test| test.split_once(" ... "))
        else {
            return !self.successes && !line.is_empty();
        };
        if let Some(reason) = outcome.strip_prefix("ignored") {
            tally.skipped.push(format!("{name}: ignored{reason}"));
        } else if outcome.ends_with("FAILED") {
            self.failed = true;
            tally.failed.push(name.to_owned());
            return true;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtest_prints_is_counted() {
        let text = "running 4 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ignored, slow\n\
                    test d ... ok\n\n\
                    successes:\n\n---- d stdout ----\nskipped: d: no KVM\n\nsuccesses:\n    a\n    d\n\n\
                    failures:\n\n---- b stdout ----\nwhy\n\nfailures:\n    b\n\n\
                    test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out\n";
        let (mut tally, mut reader) = (Tally::default(), TestOutput::default());
        let shown: Vec<&str> = text.lines().filter(|line| reader.line(&mut tally, line)).collect();
        assert_eq!((tally.passed, reader.failed), (1, true));
        assert_eq!(tally.failed, ["b"]);
        assert_eq!(tally.skipped, ["c: ignored, slow", "d: no KVM"]);
        assert!(shown.contains(&"why") && !shown.contains(&"test a ... ok") && !shown.contains(&"    a"));
    }
}
