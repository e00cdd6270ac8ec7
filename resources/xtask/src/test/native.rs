//! The tests that need no Linux guest: all that `cargo test` runs, and kite's own once more as an ordinary user. Where this
//! host lets anybody have namespaces, each kite in them has to be locked in with everything.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, pipe};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::unistd::geteuid;
use serde_json::Value;

use super::{Tally, cargo};
use crate::host;
use crate::step::output;
use crate::user;
use crate::vmm::namespaces;

/// What `kite run` does without `--sandbox`.
const SANDBOX: (&str, &str) = ("KITE_SANDBOX", "require");
/// What tests say that only root can run.
const NOT_ROOT: &str = "not root";

/// The programs that `cargo test` has built of kite.
pub struct Programs {
    /// kite itself, as they run it.
    pub kite: PathBuf,
    /// Those of the integration tests, in the order of their names.
    tests: BTreeMap<String, PathBuf>,
}

impl Tally {
    /// `cargo test`, with its output but for the names of what passed.
    pub(super) fn native(&mut self) -> Result<()> {
        eprintln!("xtask: unit tests and tiny guests …");
        if let Err(why) = namespaces() {
            self.skipped.push(format!("tests with the whole sandbox: this host does not allow it: {why}"));
        }
        let mut tests = command();
        tests.arg(cargo().get_program()).args([
            "test",
            "--workspace",
            "--no-fail-fast",
            "--",
            "--show-output",
        ]);
        let mut reader = TestOutput::default();
        if !read(self, &mut reader, &mut tests)? && !reader.failed {
            self.failed.push("cargo test: a test does not build or ended early".to_owned());
        }
        Ok(())
    }

    /// The same of kite's integration tests as an ordinary user, unless this is one.
    pub(super) fn native_as_user(&mut self) -> Result<()> {
        if !geteuid().is_root() {
            return Ok(());
        }
        eprintln!("xtask: kite's tests as an ordinary user …");
        let folder = user::folder()?;
        let own = std::env::current_exe().context("finding this program")?;
        let as_user = |program: &Path| {
            let mut command = command();
            command.arg(&own).args(["as-user", "--"]).arg(program).env("TMPDIR", folder.path());
            command
        };
        let programs = Programs::built()?;
        if let Err(why) = output(as_user(&programs.kite).arg("--version")) {
            self.skipped.push(format!("kite's tests as an ordinary user: {why:#}"));
            return Ok(());
        }
        for (name, test) in &programs.tests {
            println!("     Running {name} as an ordinary user");
            let mut reader = TestOutput { user: true, ..TestOutput::default() };
            if !read(self, &mut reader, as_user(test).arg("--show-output"))? && !reader.failed {
                self.failed.push(format!("{}{name}: it ended early", user::MARK));
            }
        }
        Ok(())
    }
}

/// A command with the signals that tests send: a shell that starts this in the background ignores some.
fn command() -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,QUIT").current_dir(host::root());
    command.envs(namespaces().is_ok().then_some(SANDBOX));
    command
}

/// Runs tests; answers whether all went well. What has to be said past the harness comes by standard error.
fn read(tally: &mut Tally, reader: &mut TestOutput, tests: &mut Command) -> Result<bool> {
    let (from, into) = pipe().context("making a pipe")?;
    tests.stdin(Stdio::null()).stdout(into.try_clone().context("sharing a pipe")?).stderr(into);
    let mut child = tests.spawn().context("running tests")?;
    // The pipe ends when the tests do, not with these copies of it.
    tests.stdout(Stdio::null()).stderr(Stdio::null());
    for line in BufReader::new(from).split(b'\n') {
        let line = line.context("reading what tests print")?;
        let line = String::from_utf8_lossy(&line);
        if reader.line(tally, &line) {
            println!("{line}");
        }
    }
    Ok(child.wait().context("waiting for tests")?.success())
}

impl Programs {
    /// Asks Cargo for them, who builds them.
    ///
    /// # Errors
    /// They do not build.
    pub fn built() -> Result<Self> {
        let messages = output(cargo().args(["test", "--workspace", "--no-run", "--message-format=json"]))?;
        let manifest = host::root().canonicalize().context("finding the source tree")?.join("Cargo.toml");
        let (mut kite, mut tests) = (None, BTreeMap::new());
        for message in messages.lines() {
            let message: Value = serde_json::from_str(message).context("reading what Cargo says")?;
            let Some(program) = message["executable"].as_str().map(PathBuf::from) else { continue };
            if message["manifest_path"].as_str().map(Path::new) != Some(&manifest) {
                continue;
            }
            match message["target"]["kind"][0].as_str() {
                Some("test") => {
                    tests.insert(message["target"]["name"].as_str().unwrap_or_default().to_owned(), program);
                }
                Some("bin") if message["profile"]["test"] == false => kite = Some(program),
                _ => {}
            }
        }
        Ok(Self { kite: kite.context("Cargo has built no kite")?, tests })
    }

    /// The integration test of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn test(&self, name: &str) -> Result<&Path> {
        self.tests.get(name).map(PathBuf::as_path).with_context(|| format!("there are no tests {name}"))
    }
}

/// Reads what libtest prints with `--show-output`.
#[derive(Default)]
struct TestOutput {
    /// The tests run as an ordinary user, and root has run them before.
    user: bool,
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
            self.skip(tally, skipped);
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
            if !self.user {
                tally.skipped.push(format!("{name}: ignored{reason}"));
            }
        } else if outcome.ends_with("FAILED") {
            self.failed = true;
            tally.failed.push(format!("{}{name}", self.mark()));
            return true;
        }
        false
    }

    /// A test, or in parentheses a part of it, was skipped: `NAME: WHY`.
    fn skip(&mut self, tally: &mut Tally, skipped: &str) {
        let (name, why) = skipped.split_once(": ").unwrap_or((skipped, ""));
        self.skipped += usize::from(!name.ends_with(')'));
        match self.user {
            true if why.starts_with(NOT_ROOT) => tally.left_to_root += 1,
            // It is as impossible for anybody.
            true if tally.skipped.iter().any(|known| known == skipped) => {}
            _ => tally.skipped.push(format!("{}{skipped}", self.mark())),
        }
    }

    fn mark(&self) -> &'static str {
        if self.user { user::MARK } else { "" }
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
    fn what_an_ordinary_user_skips_that_nobody_can_run_or_root_has_run_is_not_told_again() {
        let text = "skipped: a: no tool\nskipped: b: not root\nskipped: c (part): not root\nskipped: d: no tap\n\
                    test e ... FAILED\ntest f ... ignored, slow\n\
                    test result: FAILED. 5 passed; 1 failed; 1 ignored;\n";
        let mut tally = Tally { skipped: vec!["a: no tool".to_owned()], ..Tally::default() };
        let mut reader = TestOutput { user: true, ..TestOutput::default() };
        text.lines().for_each(|line| _ = reader.line(&mut tally, line));
        assert_eq!((tally.passed, tally.left_to_root), (2, 2));
        assert_eq!(tally.skipped, ["a: no tool", "user/d: no tap"]);
        assert_eq!(tally.failed, ["user/e"]);
    }
}
