//! Commands while they run: how long they take, what memory is theirs, and what is around them.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::subject::Subject;
use super::{Around, filter};
use crate::step::output;

/// Memory of all processes that a command takes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    pub kib: u64,
}

/// A machine's process, as `kite inspect` tells of it.
#[derive(Debug, Default)]
pub struct Inspected {
    own: Vec<String>,
    /// Whether its root folder is its own.
    pub root_own: bool,
    /// How many system calls it may make.
    pub calls: usize,
}

impl Inspected {
    /// Whether it has a namespace of this kind of its own.
    pub fn has_own(&self, kind: &str) -> bool {
        self.own.iter().any(|own| own == kind)
    }
}

/// From exec to exit.
///
/// # Errors
/// The command fails.
pub fn time(subject: &Subject, words: &[&str]) -> Result<Duration> {
    let mut command = subject.command(words);
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let ended = command.spawn().and_then(Child::wait_with_output);
    let time = start.elapsed();
    let ended = ended.with_context(|| format!("starting {} as {}", words[0], subject.name))?;
    let said = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.success(), "{} as {}: {}: {said}", words[0], subject.name, ended.status);
    Ok(time)
}

/// Looks at a command that waits for more to read.
///
/// # Errors
/// It fails, or cannot be looked at.
pub fn look(subject: &Subject, kite: &Path) -> Result<(Memory, Around)> {
    let mut waiting = Waiting::start(subject)?;
    let family = family(waiting.child.id());
    let kib = family.iter().map(|pid| pss(*pid)).sum();
    if !subject.is_machine() {
        waiting.end()?;
        return Ok((Memory { kib }, Around::Kernel));
    }
    Ok((Memory { kib }, Around::Machine(inspect(kite, waiting.child.id())?)))
}

/// `cat`, which has given back a line, so that all around it has started.
struct Waiting {
    child: Child,
    name: &'static str,
}

impl Waiting {
    fn start(subject: &Subject) -> Result<Self> {
        let mut command = subject.command(&["cat"]);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let child = command.spawn().with_context(|| format!("starting cat as {}", subject.name))?;
        let mut this = Self { child, name: subject.name };
        let (stdin, stdout) = (this.child.stdin.as_mut(), this.child.stdout.as_mut());
        let (stdin, stdout) = (stdin.context("cat has an input")?, stdout.context("cat has an output")?);
        let mut line = [0; 2];
        stdin.write_all(b"x\n").and_then(|()| stdout.read_exact(&mut line)).context("talking to cat")?;
        ensure!(line == *b"x\n", "cat gives back {line:?}");
        Ok(this)
    }

    fn end(&mut self) -> Result<()> {
        drop(self.child.stdin.take());
        let status = self.child.wait().context("waiting for cat")?;
        ensure!(status.success(), "cat as {} ended with {status}", self.name);
        Ok(())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A process and all that it has started.
fn family(pid: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let children: Vec<u32> = lists
        .flat_map(|list| list.split_whitespace().filter_map(|it| it.parse().ok()).collect::<Vec<_>>())
        .collect();
    std::iter::once(pid).chain(children.into_iter().flat_map(family)).collect()
}

/// A process's share of memory in KiB (proc(5)).
fn pss(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

/// The process that runs the guest: the one with a vCPU.
fn inspect(kite: &Path, pid: u32) -> Result<Inspected> {
    let report = output(Command::new(kite).args(["inspect", "--json", &pid.to_string()]))?;
    let report: Value = serde_json::from_str(&report).context("reading what kite inspect says")?;
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let is_machine =
        |process: &Value| list(&process["threads"]).iter().any(|thread| thread["name"] == "vcpu0");
    let processes = list(&report["machines"][0]["processes"]);
    let process = processes.iter().find(|process| is_machine(process)).context("there is no vCPU")?;
    let own = list(&process["namespaces"]).into_iter().filter(|it| it["own"] == true);
    let filtered = list(&process["threads"]).iter().any(|thread| thread["seccomp"] == "filter");
    let calls = match filtered {
        false => filter::all_calls()?,
        true => {
            // What one thread may do, the process may.
            let threads = list(&process["threads"]);
            let ids = threads.iter().filter_map(|thread| i32::try_from(thread["id"].as_i64()?).ok());
            filter::calls_of(&ids.collect::<Vec<_>>())?
        }
    };
    Ok(Inspected {
        own: own.filter_map(|it| it["kind"].as_str().map(str::to_owned)).collect(),
        root_own: process["root"]["own"] == true,
        calls,
    })
}
