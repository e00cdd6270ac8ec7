//! A machine that runs until it is ended, in a group.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::attempt::{Attempt, KITE, run};
use crate::group::{folders, name};
use crate::image::elf_of;

/// For ever: `jmp $`.
const SPIN: &[u8] = b"\xeb\xfe";
/// What takes this long hangs. No time is asserted anywhere.
const HANG: Duration = Duration::from_secs(60);

/// kite with a guest that runs for ever, in a group.
pub struct Spinning {
    _attempt: Attempt,
    pub child: Child,
    pub group: String,
}

impl Spinning {
    /// Starts it and waits until the guest runs.
    pub fn start(test: &str, options: &[&str]) -> Self {
        let (attempt, group) = (Attempt::new(), name(test));
        let kernel = attempt.file("kernel", &elf_of(SPIN));
        let mut command = run(KITE, &kernel);
        command.args(["--cgroup", &group]).args(options).stdin(Stdio::null()).stderr(Stdio::piped());
        let this = Self { _attempt: attempt, child: command.spawn().unwrap(), group };
        this.until("a machine in its group", || this.processes().into_iter().any(has_vcpu));
        this
    }

    /// Waits for something that ought to happen.
    pub fn until(&self, what: &str, mut happens: impl FnMut() -> bool) {
        let deadline = Instant::now() + HANG;
        while !happens() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
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
        self.child.id() as i32
    }

    /// The exit code or 1000 + the signal's number, and what was said.
    pub fn end(mut self) -> (i32, String) {
        use std::os::unix::process::ExitStatusExt;
        let mut status = None;
        let deadline = Instant::now() + HANG;
        while status.is_none() {
            assert!(Instant::now() < deadline, "kite hangs");
            status = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = status.unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(folders(&self.group), Vec::<PathBuf>::new());
        (status.code().unwrap_or_else(|| 1000 + status.signal().unwrap()), said)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // All of it fails if it has ended. A supervisor that is asked removes the group.
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = kill(Pid::from_raw(self.supervisor()), Signal::SIGTERM);
            let deadline = Instant::now() + HANG;
            while self.child.try_wait().is_ok_and(|status| status.is_none()) && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
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
