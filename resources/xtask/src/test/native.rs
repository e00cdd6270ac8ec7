//! The tests that need no Linux guest: all that Cargo builds, run by an ordinary user who may use KVM, and what they cannot
//! run by root. Where this host lets anybody have namespaces, each kite in them has to be locked in with everything.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write, pipe, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use nix::unistd::geteuid;
use serde_json::Value;
use tempfile::TempDir;

use super::tally::Tally;
use super::{cargo, lab};
use crate::host;
use crate::machine::namespaces;
use crate::step::output;
use crate::tier::{Choice, Tier};
use crate::user;

/// What `kite run` does without `--sandbox`.
const SANDBOX: (&str, &str) = ("KITE_SANDBOX", "require");
/// What the reason begins with why a test is ignored that is not for the quick run.
const LATER: &str = ", nightly: ";

/// The programs that Cargo has built for tests.
pub struct Programs {
    /// kite itself, as they run it.
    pub kite: PathBuf,
    tests: Vec<Program>,
}

/// A program of tests.
pub struct Program {
    name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The folder of its package, in which it is run.
    folder: PathBuf,
    /// It tests kite from outside.
    is_integration: bool,
}

/// What runs programs as an ordinary user.
struct AsUser {
    /// Of theirs.
    folder: TempDir,
    own: PathBuf,
}

impl AsUser {
    /// If this is root, who can become them.
    fn new(programs: &Programs, tally: &mut Tally) -> Result<Option<Self>> {
        if !geteuid().is_root() {
            return Ok(None);
        }
        let own = std::env::current_exe().context("finding this program")?;
        let this = Self { folder: user::folder()?, own };
        match output(this.command(&programs.kite).arg("--version")) {
            Ok(_) => Ok(Some(this)),
            Err(why) => {
                tally.skipped.push(format!("tests as an ordinary user: {why:#}"));
                Ok(None)
            }
        }
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = command();
        command.arg(&self.own).args(["as-user", "--"]).arg(program).env("TMPDIR", self.folder.path());
        command
    }
}

impl Tally {
    /// The parts of names by which tests are chosen here; all, if there are none; nothing, if the choice is of others.
    pub(super) fn native_filters(&mut self, choice: &Choice) -> Option<Vec<String>> {
        let (name, tier) = super::NATIVE;
        if choice.names.is_empty() || choice.names.iter().any(|wanted| wanted == name) {
            self.found.insert(name.to_owned());
            return choice.takes(name, tier).then(Vec::new);
        }
        // What means something else is no part of a test's name.
        let is_ours = |name: &&String| {
            super::PARTS.iter().all(|part| !part.name.starts_with(*name)) && !lab::means(name)
        };
        let filters: Vec<_> = choice.names.iter().filter(is_ours).cloned().collect();
        (!filters.is_empty()).then_some(filters)
    }

    /// Runs all, or those with such a part in their names: by an ordinary user, and by root what that user could not run;
    /// in a nightly run all.
    pub(super) fn native(&mut self, programs: &Programs, tier: Tier, filters: &[String]) {
        if let Err(why) = namespaces() {
            self.skipped.push(format!("tests with the whole sandbox: this host does not allow it: {why}"));
        }
        if let Err(error) = self.by_both(programs, tier, filters) {
            self.failed.push(format!("native tests: {error:#}"));
        }
    }

    fn by_both(&mut self, programs: &Programs, tier: Tier, filters: &[String]) -> Result<()> {
        let Some(user) = AsUser::new(programs, self)? else {
            return self.part("native tests", |tally| {
                programs.tests.iter().try_for_each(|program| {
                    tally.program(program, command().arg(&program.path), filters, tier, false).map(drop)
                })
            });
        };
        let mut left = Vec::new();
        self.part("native tests as an ordinary user", |tally| {
            programs.tests.iter().try_for_each(|program| {
                let mut command = user.command(&program.path);
                left.push((program, tally.program(program, &mut command, filters, tier, true)?));
                anyhow::Ok(())
            })
        })?;
        self.part("native tests as root", |tally| {
            for (program, skipped) in &left {
                let filters = if tier >= Tier::Nightly { filters } else { skipped.as_slice() };
                if tier >= Tier::Nightly || !skipped.is_empty() {
                    tally.program(program, command().arg(&program.path), filters, tier, false)?;
                }
            }
            Ok(())
        })
    }

    /// Runs a program's tests; answers which were skipped by a user whose skipped tests root runs.
    fn program(
        &mut self,
        program: &Program,
        tests: &mut Command,
        filters: &[String],
        tier: Tier,
        user: bool,
    ) -> Result<Vec<String>> {
        tests.args(filters).arg("--show-output").args((tier >= Tier::Nightly).then_some("--include-ignored"));
        tests.current_dir(&program.folder).env("CARGO_MANIFEST_DIR", &program.folder);
        let mut reader = TestOutput { user, ..TestOutput::default() };
        let (whole, shown) = read(self, &mut reader, tests)?;
        if !whole && !reader.failed {
            self.failed.push(format!("{}{}: it ended early", reader.mark(), program.name));
        }
        let runs = |filter: &&String| reader.ran.iter().any(|name| name.contains(*filter));
        self.found.extend(filters.iter().filter(runs).cloned());
        if !reader.ran.is_empty() || !whole {
            // In one piece, as another lane speaks at the same time.
            let who = if user { " as an ordinary user" } else { "" };
            let text = format!("     Running {}{who}\n{shown}", program.name);
            stdout().write_all(text.as_bytes()).context("showing what tests print")?;
        }
        Ok(reader.left.into_iter().collect())
    }
}

/// A command with the signals that tests send: a shell that starts this in the background ignores some.
fn command() -> Command {
    let mut command = Command::new("env");
    command.arg("--default-signal=HUP,INT,QUIT").current_dir(host::root());
    command.envs(namespaces().is_ok().then_some(SANDBOX));
    command
}

/// Runs tests; answers whether all went well, and what is worth showing. What has to be said past the harness comes by
/// standard error.
fn read(tally: &mut Tally, reader: &mut TestOutput, tests: &mut Command) -> Result<(bool, String)> {
    let (from, into) = pipe().context("making a pipe")?;
    tests.stdin(Stdio::null()).stdout(into.try_clone().context("sharing a pipe")?).stderr(into);
    let mut child = tests.spawn().context("running tests")?;
    // The pipe ends when the tests do, not with these copies of it.
    tests.stdout(Stdio::null()).stderr(Stdio::null());
    let mut shown = String::new();
    for line in BufReader::new(from).split(b'\n') {
        let line = line.context("reading what tests print")?;
        let line = String::from_utf8_lossy(&line);
        if reader.line(tally, &line) {
            shown += &format!("{line}\n");
        }
    }
    Ok((child.wait().context("waiting for tests")?.success(), shown))
}

impl Programs {
    /// Asks Cargo for them, who builds them.
    ///
    /// # Errors
    /// They do not build.
    pub fn built() -> Result<Self> {
        let messages = output(cargo().args(["test", "--workspace", "--no-run", "--message-format=json"]))?;
        let root = host::root().canonicalize().context("finding the source tree")?;
        let (mut kite, mut tests) = (None, Vec::new());
        for message in messages.lines() {
            let message: Value = serde_json::from_str(message).context("reading what Cargo says")?;
            let Some(path) = message["executable"].as_str().map(PathBuf::from) else { continue };
            let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
            let folder = manifest.parent().context("a manifest is in a folder")?.to_owned();
            let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
            if message["profile"]["test"] == true {
                let is_integration = folder == root && message["target"]["kind"][0] == "test";
                tests.push(Program { name, path, folder, is_integration });
            } else if folder == root {
                kite = Some(path);
            }
        }
        Ok(Self { kite: kite.context("Cargo has built no kite")?, tests })
    }

    /// All programs of tests.
    pub fn tests(&self) -> &[Program] {
        &self.tests
    }

    /// The integration test of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn test(&self, name: &str) -> Result<&Path> {
        let test = self.tests.iter().find(|test| test.is_integration && test.name == name);
        test.map(|test| test.path.as_path()).with_context(|| format!("there are no tests {name}"))
    }
}

/// Reads what libtest prints with `--show-output`.
#[derive(Default)]
struct TestOutput {
    /// The tests run as an ordinary user, and root runs what they skip.
    user: bool,
    /// What is left to root.
    left: BTreeSet<String>,
    /// The names of the tests that were run.
    ran: Vec<String>,
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
        self.ran.push(name.to_owned());
        if let Some(reason) = outcome.strip_prefix("ignored") {
            match (self.user, reason.starts_with(LATER)) {
                (true, _) => {}
                (false, true) => tally.later += 1,
                (false, false) => tally.failed.push(format!("{name}: it is in no tier: ignored{reason}")),
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
        let name = skipped.split_once(": ").map_or(skipped, |(name, _)| name);
        self.skipped += usize::from(!name.ends_with(')'));
        match self.user {
            true => _ = self.left.insert(name.split(' ').next().unwrap_or(name).to_owned()),
            false => tally.skipped.push(skipped.to_owned()),
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
        assert_eq!(tally.failed, ["b", "c: it is in no tier: ignored, slow"]);
        assert_eq!(tally.skipped, ["d: no KVM"]);
        assert!(shown.contains(&"why") && !shown.contains(&"test a ... ok") && !shown.contains(&"    a"));
    }

    #[test]
    fn a_test_that_is_ignored_for_a_later_run_is_in_a_tier() {
        let (mut tally, mut reader) = (Tally::default(), TestOutput::default());
        reader.line(&mut tally, "test a ... ignored, nightly: it takes a minute");
        assert_eq!((tally.later, tally.failed.len()), (1, 0));
    }

    #[test]
    fn what_an_ordinary_user_skips_is_left_to_root() {
        let text = "skipped: a: no tool\nskipped: b: not root\nskipped: c (part): not root\n\
                    test e ... FAILED\ntest f ... ignored, slow\n\
                    test result: FAILED. 5 passed; 1 failed; 1 ignored;\n";
        let mut tally = Tally::default();
        let mut reader = TestOutput { user: true, ..TestOutput::default() };
        text.lines().for_each(|line| _ = reader.line(&mut tally, line));
        assert_eq!((tally.passed, tally.skipped.len()), (3, 0));
        assert_eq!(reader.left, ["a", "b", "c"].map(str::to_owned).into());
        assert_eq!(tally.failed, ["user/e"]);
    }
}
