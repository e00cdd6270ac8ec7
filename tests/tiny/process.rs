//! kite as a child process, which never outlives its test.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use boot::testing::{Code, Entry};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::guest::Elf;

const KITE: &str = env!("CARGO_BIN_EXE_kite");
/// What takes this long hangs. No time is asserted anywhere.
pub const HANG: Duration = Duration::from_secs(60);

/// What somebody else reads on a thread of their own.
#[derive(Clone, Default)]
struct Seen(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Seen {
    fn read(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let seen = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut buffer) {
                seen.0.0.lock().unwrap().extend_from_slice(&buffer[..got]);
                seen.0.1.notify_all();
            }
        })
    }

    fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }
}

/// kite, while it runs.
pub struct Kite {
    child: Child,
    elf: Elf,
    stdout: Seen,
    stderr: Seen,
    readers: Vec<JoinHandle<()>>,
}

/// How kite ended, and what it said.
pub struct End {
    /// The exit status.
    pub status: ExitStatus,
    /// What the guest printed.
    pub stdout: Vec<u8>,
    /// What kite had to say about it.
    pub stderr: String,
}

impl Kite {
    /// Runs a guest in long mode, with nothing on standard input.
    pub fn run(guest: &'static Code, arguments: &[&str]) -> Self {
        Self::start(guest, Entry::Long, arguments, Stdio::null(), Stdio::piped())
    }

    /// Runs a guest that is typed to.
    pub fn typed_to(guest: &'static Code, arguments: &[&str]) -> Self {
        Self::start(guest, Entry::Long, arguments, Stdio::piped(), Stdio::piped())
    }

    /// Runs a guest. What goes to standard output is read here if that is a pipe of kite's own.
    pub fn start(
        guest: &'static Code,
        entry: Entry,
        arguments: &[&str],
        stdin: Stdio,
        stdout: Stdio,
    ) -> Self {
        Self::start_file(Elf::new(guest.code(), entry), arguments, stdin, stdout)
    }

    /// Runs a file, with nothing on standard input.
    pub fn run_file(elf: Elf, arguments: &[&str]) -> Self {
        Self::start_file(elf, arguments, Stdio::null(), Stdio::piped())
    }

    fn start_file(elf: Elf, arguments: &[&str], stdin: Stdio, stdout: Stdio) -> Self {
        let mut command = Command::new(KITE);
        command.args(["run", "--memory", "64M", "--kernel"]).arg(&elf.path).args(arguments);
        Self::spawn(elf, command.stdin(stdin).stdout(stdout))
    }

    /// Runs a guest as the shell would with `redirection`, or options, behind the command.
    pub fn redirected(guest: &'static Code, redirection: &str) -> Self {
        Self::in_shell(guest, "", redirection)
    }

    /// Runs a guest as the shell would with `assignments` of variables before the command and `options` behind it.
    pub fn in_shell(guest: &'static Code, assignments: &str, options: &str) -> Self {
        let elf = Elf::new(guest.code(), Entry::Long);
        let mut shell = Command::new("sh");
        let script = format!("{assignments} exec \"$0\" run --memory 64M --kernel \"$1\" {options}");
        shell.args(["-c", &script, KITE]).arg(&elf.path);
        Self::spawn(elf, shell.stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    /// Runs a guest by a program that becomes kite.
    pub fn by(program: &[&str], guest: &'static Code, arguments: &[&str]) -> Self {
        let elf = Elf::new(guest.code(), Entry::Long);
        let mut command = Command::new(program[0]);
        command.args(&program[1..]).args([KITE, "run", "--memory", "64M", "--kernel"]).arg(&elf.path);
        Self::spawn(elf, command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()))
    }

    fn spawn(elf: Elf, command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, stderr) = (Seen::default(), Seen::default());
        let mut readers = vec![stderr.read(child.stderr.take().unwrap())];
        readers.extend(child.stdout.take().map(|pipe| stdout.read(pipe)));
        Self { child, elf, stdout, stderr, readers }
    }

    /// Reads what the guest prints from `pipe`, which is standard output's other end, from now on.
    pub fn read_from(&mut self, pipe: OwnedFd) {
        self.readers.push(self.stdout.read(File::from(pipe)));
    }

    /// The id of the machine's process, which kite has started in its sandbox.
    pub fn id(&self) -> u32 {
        let id = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        children.split_whitespace().next().map_or(id, |child| child.parse().unwrap())
    }

    /// The guest's file.
    pub fn image(&self) -> &Path {
        &self.elf.path
    }

    /// The pipe to standard input; dropping it ends the input.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Types `bytes`.
    pub fn send(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Waits until the guest has printed all of `expected` since the start.
    pub fn expect(&mut self, expected: &[u8]) {
        let deadline = Instant::now() + HANG;
        let (lock, changed) = &*self.stdout.0;
        let mut seen = lock.lock().unwrap();
        while seen.len() < expected.len() && expected.starts_with(&seen) && Instant::now() < deadline {
            seen = changed.wait_timeout(seen, Duration::from_millis(100)).unwrap().0;
        }
        assert_eq!(seen.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{}", self.stderr());
    }

    /// Waits until the guest has printed more than `len` bytes.
    pub fn expect_more_than(&self, len: usize) {
        until("output", || self.stdout.0.0.lock().unwrap().len() > len);
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Whether a thread has this name.
    pub fn has_thread(&self, name: &str) -> bool {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.id())) else { return false };
        let name_of =
            |task: std::path::PathBuf| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        tasks.flatten().any(|task| name_of(task.path()).trim() == name)
    }

    /// Waits for the end.
    pub fn end(mut self) -> End {
        drop(self.child.stdin.take());
        let mut status = None;
        let printed = || self.stdout.0.0.lock().unwrap().len();
        until_stuck("kite to end", printed, || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        for reader in std::mem::take(&mut self.readers) {
            reader.join().unwrap();
        }
        End { status: status.unwrap(), stdout: self.stdout.bytes(), stderr: self.stderr() }
    }
}

impl Drop for Kite {
    fn drop(&mut self) {
        // Both fail only if kite has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// Fails the test unless kite ended with `code` and said `stderr`, and the guest printed `stdout`.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: impl AsRef<[u8]>, stderr: &str) {
        assert_eq!(self.stderr, stderr);
        assert_eq!(self.stdout.escape_ascii().to_string(), stdout.as_ref().escape_ascii().to_string());
        assert_eq!(self.status.code(), Some(code), "{}", self.status);
    }

    /// Fails the test unless kite died by `signal`, and said nothing.
    #[track_caller]
    pub fn assert_killed_by(&self, signal: Signal) {
        assert_eq!(self.stderr, "");
        assert_eq!(self.status.signal(), Some(signal as i32), "{}", self.status);
    }
}

/// Waits for something that ought to happen.
#[track_caller]
pub fn until(what: &str, happens: impl FnMut() -> bool) {
    until_stuck(what, || 0, happens);
}

/// Waits for something that ought to happen, as long as there is progress: an emulated processor takes its time.
#[track_caller]
fn until_stuck(what: &str, progress: impl Fn() -> usize, mut happens: impl FnMut() -> bool) {
    let (mut deadline, mut reached) = (Instant::now() + HANG, progress());
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(2));
        if progress() != reached {
            (deadline, reached) = (Instant::now() + HANG, progress());
        }
    }
}

/// Does something that may hang, and fails the test if it does.
pub fn guarded<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let worker = thread::spawn(work);
    until("the library to return", || worker.is_finished());
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
