//! A machine that runs until it is ended, in a group.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::group::{folders, name};
use crate::support::attempt::{Attempt, run};
use crate::support::child::Running;
use crate::support::image::elf_of;
use crate::support::{HANG, KITE, until};

/// For ever: `jmp $`.
const SPIN: &[u8] = b"\xeb\xfe";

/// kite with a guest that runs for ever, in a group.
pub struct Spinning {
    _attempt: Attempt,
    pub child: Running,
    pub group: String,
}

impl Spinning {
    /// Starts it and waits until the guest runs.
    pub fn start(test: &str, options: &[&str]) -> Self {
        let (attempt, group) = (Attempt::new(), name(test));
        let kernel = attempt.file("kernel", &elf_of(SPIN));
        let mut command = run(KITE, &kernel);
        command.args(["--cgroup", &group]).args(options).stdin(Stdio::null()).stderr(Stdio::piped());
        let this = Self { _attempt: attempt, child: Running::spawn(&mut command), group };
        until("a machine in its group", || this.processes().into_iter().any(has_vcpu));
        this
    }

    /// The processes in the group.
    fn processes(&self) -> Vec<i32> {
        let folder = folders(&self.group).into_iter().next();
        let list = folder.and_then(|it| fs::read_to_string(it.join("cgroup.procs")).ok()).unwrap_or_default();
        let mut processes: Vec<i32> = list.lines().filter_map(|line| line.parse().ok()).collect();
        processes.sort_unstable();
        processes
    }

    /// The process in the group, which runs the guest.
    pub fn machine(&self) -> Option<i32> {
        self.processes().into_iter().find(|process| has_vcpu(*process))
    }

    /// The process that the user started.
    pub fn supervisor(&self) -> i32 {
        self.child.child_id() as i32
    }

    /// The exit code or 1000 + the signal's number, and what was said.
    pub fn end(mut self) -> (i32, String) {
        let end = self.child.wait();
        assert_eq!(folders(&self.group), Vec::<PathBuf>::new());
        (end.status.code().unwrap_or_else(|| 1000 + end.status.signal().unwrap()), end.stderr)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // A supervisor that is asked removes the group.
        if !self.child.has_ended() {
            self.child.signal(Signal::SIGTERM);
            let deadline = Instant::now() + HANG;
            while !self.child.has_ended() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn has_vcpu(process: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks
        .into_iter()
        .any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("vcpu")))
}

/// The processes that a process has started.
pub fn children(process: i32) -> Vec<i32> {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let lists: Vec<_> = lists.collect();
    lists.iter().flat_map(|list| list.split_whitespace()).map(|child| child.parse().unwrap()).collect()
}

/// Sends a signal.
pub fn signal(process: i32, signal: Signal) {
    kill(Pid::from_raw(process), signal).unwrap();
}
