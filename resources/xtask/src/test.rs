//! `cargo xtask test`: everything. What passed, failed and was skipped is counted; why is told at the end.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::guests::{self, Case};
use crate::host;
use crate::lab::Lab;
use crate::setup::{Setup, Unavailable};
use crate::step::{output, shown, step};

/// RAM of the lab in MiB: room for a guest of 5 GiB.
const LAB_MEMORY: u32 = 8192;

/// What the lab takes at most from its start to its first guest's, on a busy machine.
const STARTING: Duration = Duration::from_secs(60);

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
        let mut tests = cargo();
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

    fn linux_guests(&mut self, setup: &mut Setup, all: bool) -> Result<()> {
        let (mut kernels, missing) = setup.kernels()?;
        if all {
            kernels.push(setup.lab_kernel()?);
        }
        for kernel in missing {
            self.skipped.push(format!("linux-{}: {}", kernel.name, kernel.reason));
        }
        let cases = guests::cases(&kernels, all);
        let kite = build_kite()?;
        let Err(reason) = host::hardware_kvm() else {
            println!("Linux guests on this machine's /dev/kvm: {}", cases.len());
            let mut lines = Lines::new(io::stdout());
            guests::run(&kite, &cases, &mut lines)?;
            self.guests(&cases, &lines.lines, None);
            return Ok(());
        };
        println!("Linux guests in the lab: {} ({reason})", cases.len());
        let mut lab = match Lab::new(setup) {
            Ok(lab) => lab,
            Err(error) if error.is::<Unavailable>() => {
                let skips = cases.iter().map(|case| format!("{case}: {reason}, and no lab: {error}"));
                self.skipped.extend(skips);
                return Ok(());
            }
            Err(error) => return Err(error.context("setting up the lab")),
        };
        lab.memory = LAB_MEMORY;
        lab.timeout = Duration::from_secs(300 + 90 * cases.len() as u64);
        lab.silence = guests::LIMIT + STARTING;
        let mut argv: Vec<OsString> = ["/proc/self/exe", "guests", "--kite"].map(OsString::from).into();
        argv.push(kite.into());
        argv.extend(all.then(|| "--all".into()));
        argv.extend(kernels.iter().map(|kernel| OsString::from(&kernel.name)));
        let mut lines = Lines::new(io::stdout());
        let mut ended = lab.run(&argv, &mut lines, &mut io::stderr());
        // A guest that hangs or crashes is told as failed by a lab that goes on. Rarely emulation ruins the lab itself.
        if let Err(error) = &ended {
            let told = lines.outcomes();
            eprintln!("xtask: {error:#}; running it once more for the last {} guests", cases.len() - told);
            argv.extend(["--skip".into(), told.to_string().into()]);
            ended = lab.run(&argv, &mut lines, &mut io::stderr());
        }
        let problem = match ended {
            Ok(0) => None,
            Ok(status) => Some(format!("the lab's command ended with {status}")),
            Err(error) => Some(format!("{error:#}")),
        };
        self.guests(&cases, &lines.lines, problem);
        Ok(())
    }

    /// Counts each case by the last line about it: a lab that had to be run again has told twice.
    fn guests(&mut self, cases: &[Case], lines: &[String], problem: Option<String>) {
        for case in cases {
            let (ok, fail) = (format!("ok {case} "), format!("FAIL {case}: "));
            match lines.iter().rev().find(|line| line.starts_with(&ok) || line.starts_with(&fail)) {
                Some(line) if line.starts_with(&ok) => self.passed += 1,
                Some(line) => self.failed.push(line.trim_start_matches("FAIL ").to_owned()),
                None => self.failed.push(format!("{case}: {}", problem.as_deref().unwrap_or("not run"))),
            }
        }
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

/// Passes lines on and keeps them.
struct Lines<W> {
    out: W,
    part: Vec<u8>,
    lines: Vec<String>,
}

impl<W: Write> Lines<W> {
    fn new(out: W) -> Self {
        Self { out, part: Vec::new(), lines: Vec::new() }
    }

    /// How many guests have been told of; what has been told half of another is forgotten.
    fn outcomes(&mut self) -> usize {
        self.part.clear();
        // By name: a lab that had to be run again has told twice.
        let name = |line: &'_ String| {
            let (outcome, rest) = line.split_once(' ')?;
            let name = rest.split([' ', ':']).next()?.to_owned();
            ["ok", "FAIL"].contains(&outcome).then_some(name)
        };
        self.lines.iter().filter_map(name).collect::<BTreeSet<_>>().len()
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            match byte {
                b'\n' => {
                    self.lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.part)).into_owned())
                }
                _ => self.part.push(byte),
            }
        }
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
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

    #[test]
    fn a_lab_that_died_goes_on_behind_the_last_guest_it_told_of() {
        let mut lines = Lines::new(Vec::new());
        write!(lines, "ok a (1.0 s)\nok a (1.0 s)\nFAIL b: why\n  | ok c \nok d (1").unwrap();
        assert_eq!(lines.outcomes(), 2);
        writeln!(lines, "ok d (2.0 s)").unwrap();
        assert_eq!(lines.lines.last().unwrap(), "ok d (2.0 s)");
    }

    #[test]
    fn a_guest_counts_by_the_last_line_about_it() {
        let kernel = crate::setup::Kernel::at("6.1", "6.1.0", Path::new("/nowhere"));
        let cases = guests::cases(&[kernel], false);
        let mut lines = Lines::new(Vec::new());
        let (first, second) = (&cases[0], &cases[1]);
        write!(lines, "FAIL {first}: why\n  | ok {second} \nok {first} (1.0 s)\n").unwrap();
        let mut tally = Tally::default();
        tally.guests(&cases, &lines.lines, Some("the lab died".into()));
        assert_eq!((tally.passed, tally.failed.len()), (1, 3));
        assert_eq!(tally.failed[0], format!("{second}: the lab died"));
    }
}
