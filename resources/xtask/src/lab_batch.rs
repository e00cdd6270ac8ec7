//! Guests tried one after the other by a hidden command of this program, where hardware KVM is: here, or in the lab. It
//! writes a line about each: `ok NAME …`, `skip NAME: WHY`, or `FAIL NAME: WHY` and more below.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::host;
use crate::lab::Lab;
use crate::setup::{Setup, Unavailable};

/// RAM of the lab in MiB: room for a guest of 5 GiB.
const LAB_MEMORY: u32 = 8192;
/// What the lab takes at most from its start to its first guest's, on a busy machine.
const STARTING: Duration = Duration::from_secs(60);

/// Guests of one kind.
pub struct Batch {
    /// What they are.
    pub what: &'static str,
    /// Their names, in order.
    pub names: Vec<String>,
    /// The command that tries them, which takes `--skip N`, too.
    pub arguments: Vec<OsString>,
    /// What one takes at most.
    pub limit: Duration,
    /// What one takes, about.
    pub usual: Duration,
}

/// What became of one guest.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it should be.
    Passed,
    /// Its name, and why it is not.
    Failed(String),
    /// Its name, and why it was not tried.
    Skipped(String),
}

impl Batch {
    /// Tries all; answers what became of each.
    ///
    /// # Errors
    /// Set-up fails, or a process cannot be started.
    pub fn run(&self, setup: &mut Setup) -> Result<Vec<Outcome>> {
        let Err(reason) = host::hardware_kvm() else {
            println!("{} on this machine's /dev/kvm: {}", self.what, self.names.len());
            return self.here();
        };
        println!("{} in the lab: {} ({reason})", self.what, self.names.len());
        match Lab::new(setup) {
            Ok(lab) => Ok(self.in_lab(lab)),
            Err(error) if error.is::<Unavailable>() => {
                let skip = |name: &String| Outcome::Skipped(format!("{name}: {reason}, and no lab: {error}"));
                Ok(self.names.iter().map(skip).collect())
            }
            Err(error) => Err(error.context("setting up the lab")),
        }
    }

    fn here(&self) -> Result<Vec<Outcome>> {
        let own = std::env::current_exe().context("finding this program")?;
        let mut command = Command::new(own);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting this program")?;
        let mut lines = Lines::new(io::stdout());
        let mut said = child.stdout.take().context("it has an output")?;
        io::copy(&mut said, &mut lines).context("reading what it says")?;
        let status = child.wait().context("waiting for it")?;
        let problem = (!status.success()).then(|| format!("the command ended with {status}"));
        Ok(self.outcomes(&lines.lines, problem))
    }

    fn in_lab(&self, mut lab: Lab) -> Vec<Outcome> {
        lab.memory = LAB_MEMORY;
        lab.timeout = Duration::from_secs(300) + self.usual * self.names.len() as u32;
        lab.silence = self.limit + STARTING;
        let mut argv = vec![OsString::from("/proc/self/exe")];
        argv.extend(self.arguments.iter().cloned());
        let mut lines = Lines::new(io::stdout());
        let mut ended = lab.run(&argv, &mut lines, &mut io::stderr());
        // A guest that hangs or crashes is told as failed by a lab that goes on. Rarely emulation ruins the lab itself.
        if let Err(error) = &ended {
            let told = lines.outcomes();
            eprintln!(
                "xtask: {error:#}; running it once more for the last {} guests",
                self.names.len() - told
            );
            argv.extend(["--skip".into(), told.to_string().into()]);
            ended = lab.run(&argv, &mut lines, &mut io::stderr());
        }
        let problem = match ended {
            Ok(0) => None,
            Ok(status) => Some(format!("the lab's command ended with {status}")),
            Err(error) => Some(format!("{error:#}")),
        };
        self.outcomes(&lines.lines, problem)
    }

    /// Takes the last line about each: a lab that had to be run again has told twice.
    fn outcomes(&self, lines: &[String], problem: Option<String>) -> Vec<Outcome> {
        let outcome = |name: &String| {
            let starts = [format!("ok {name} "), format!("FAIL {name}: "), format!("skip {name}: ")];
            match lines.iter().rev().find(|line| starts.iter().any(|start| line.starts_with(start))) {
                Some(line) if line.starts_with(&starts[0]) => Outcome::Passed,
                Some(line) if line.starts_with(&starts[2]) => {
                    Outcome::Skipped(line.trim_start_matches("skip ").to_owned())
                }
                Some(line) => Outcome::Failed(line.trim_start_matches("FAIL ").to_owned()),
                None => Outcome::Failed(format!("{name}: {}", problem.as_deref().unwrap_or("not run"))),
            }
        };
        self.names.iter().map(outcome).collect()
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
            ["ok", "FAIL", "skip"].contains(&outcome).then_some(name)
        };
        self.lines.iter().filter_map(name).collect::<BTreeSet<_>>().len()
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            self.part.push(byte);
            if byte == b'\n' {
                let line = std::mem::take(&mut self.part);
                // Whole lines: another batch may write at the same time.
                self.out.write_all(&line)?;
                self.lines.push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            }
        }
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
    fn a_lab_that_died_goes_on_behind_the_last_guest_it_told_of() {
        let mut lines = Lines::new(Vec::new());
        write!(lines, "ok a (1.0 s)\nok a (1.0 s)\nFAIL b: why\n  | ok c \nok d (1").unwrap();
        assert_eq!(lines.outcomes(), 2);
        writeln!(lines, "ok d (2.0 s)").unwrap();
        assert_eq!(lines.lines.last().unwrap(), "ok d (2.0 s)");
    }

    #[test]
    fn a_guest_counts_by_the_last_line_about_it() {
        let names = ["a", "a/b", "c", "d"].map(str::to_owned).into();
        let time = Duration::ZERO;
        let batch = Batch { what: "", names, arguments: Vec::new(), limit: time, usual: time };
        let mut lines = Lines::new(Vec::new());
        write!(lines, "FAIL a: why\n  | ok a/b \nok a (1.0 s)\nFAIL c: that\nskip d: no\n").unwrap();
        let outcomes = batch.outcomes(&lines.lines, Some("the lab died".into()));
        let failed = |text: &str| Outcome::Failed(text.to_owned());
        let skipped = Outcome::Skipped("d: no".to_owned());
        assert_eq!(outcomes, [Outcome::Passed, failed("a/b: the lab died"), failed("c: that"), skipped]);
    }
}
