//! A child process, which never outlives its test.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{HANG, until, until_stuck, vm_process};

/// What a thread reads, for others to wait for.
#[derive(Clone, Default)]
pub struct Seen(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Seen {
    /// Reads to the end on a thread of its own.
    pub fn read(&self, mut from: impl Read + Send + 'static) -> JoinHandle<()> {
        let seen = self.clone();
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = from.read(&mut buffer) {
                seen.0.0.lock().unwrap().extend_from_slice(&buffer[..got]);
                seen.0.1.notify_all();
            }
        })
    }

    /// What has been read so far.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.0.lock().unwrap().clone()
    }

    fn len(&self) -> usize {
        self.0.0.lock().unwrap().len()
    }

    /// Waits as long as `is_open` says that what has been read is not all, and returns that.
    pub fn wait_while(&self, is_open: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let deadline = Instant::now() + HANG;
        let mut seen = self.0.0.lock().unwrap();
        while is_open(&seen) && Instant::now() < deadline {
            seen = self.0.1.wait_timeout(seen, Duration::from_millis(100)).unwrap().0;
        }
        seen.clone()
    }
}

/// A child, while it runs.
pub struct Running {
    child: Child,
    stdout: Seen,
    stderr: Seen,
    readers: Vec<JoinHandle<()>>,
}

/// How a child ended, and what it wrote.
pub struct End {
    /// The exit status.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: String,
}

impl Running {
    /// Starts `command`. What it writes to pipes of its own is read as it comes.
    pub fn spawn(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let (stdout, stderr) = (Seen::default(), Seen::default());
        let mut readers = Vec::new();
        readers.extend(child.stdout.take().map(|pipe| stdout.read(pipe)));
        readers.extend(child.stderr.take().map(|pipe| stderr.read(pipe)));
        Self { child, stdout, stderr, readers }
    }

    /// Reads what the child prints from `pipe`, which is standard output's other end, from now on.
    pub fn read_from(&mut self, pipe: OwnedFd) {
        self.readers.push(self.stdout.read(File::from(pipe)));
    }

    /// The child's ID.
    pub fn child_id(&self) -> u32 {
        self.child.id()
    }

    /// The ID of the VM process, which kite has started in its sandbox.
    pub fn id(&self) -> u32 {
        vm_process(self.child_id())
    }

    /// The pipe to standard input; dropping it ends the input.
    pub fn stdin(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Types `bytes`.
    pub fn send(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Waits until the child has printed all of `expected` since the start.
    pub fn expect(&mut self, expected: &[u8]) {
        let seen = self.stdout.wait_while(|seen| seen.len() < expected.len() && expected.starts_with(seen));
        assert_eq!(seen.escape_ascii().to_string(), expected.escape_ascii().to_string(), "{}", self.stderr());
    }

    /// Waits until the child has printed more than `len` bytes.
    pub fn expect_more_than(&self, len: usize) {
        until("output", || self.stdout.len() > len);
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes()).into_owned()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child_id() as i32), signal).unwrap();
    }

    /// Whether a thread has this name.
    pub fn has_thread(&self, name: &str) -> bool {
        let Ok(tasks) = std::fs::read_dir(format!("/proc/{}/task", self.id())) else { return false };
        let name_of =
            |task: std::path::PathBuf| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        tasks.flatten().any(|task| name_of(task.path()).trim() == name)
    }

    /// Kills the child.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    /// Whether the child has ended.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(mut self) -> End {
        self.wait()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn wait(&mut self) -> End {
        drop(self.child.stdin.take());
        let mut status = None;
        let stdout = self.stdout.clone();
        until_stuck(
            "the end",
            || stdout.len(),
            || {
                status = self.child.try_wait().unwrap();
                status.is_some()
            },
        );
        for reader in self.readers.drain(..) {
            // A process that the child has left behind may hold the pipe.
            until_stuck("the end of what is written", || stdout.len(), || reader.is_finished());
            reader.join().unwrap();
        }
        End { status: status.unwrap(), stdout: self.stdout.bytes(), stderr: self.stderr() }
    }

    /// Waits for the end and fails the test unless it is this exit code.
    #[track_caller]
    pub fn assert_ends_with(self, code: i32) {
        let end = self.end();
        assert_eq!(end.status.code(), Some(code), "{}", end.status);
    }

    /// Waits for the end and fails the test unless this signal made it.
    #[track_caller]
    pub fn assert_killed_by(self, signal: Signal) {
        self.end().assert_killed_by(signal);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl End {
    /// What was printed, as text.
    pub fn text(&self) -> &str {
        str::from_utf8(&self.stdout).unwrap()
    }

    /// Fails the test unless kite ended with `code` and said `stderr`, and the guest printed `stdout`.
    #[track_caller]
    pub fn assert(&self, code: i32, stdout: impl AsRef<[u8]>, stderr: &str) {
        assert_eq!(self.stderr, stderr);
        assert_eq!(self.stdout.escape_ascii().to_string(), stdout.as_ref().escape_ascii().to_string());
        assert_eq!(self.status.code(), Some(code), "{}", self.status);
    }

    /// Fails the test unless the child died by `signal`, and said nothing.
    #[track_caller]
    pub fn assert_killed_by(&self, signal: Signal) {
        assert_eq!(self.stderr, "");
        assert_eq!(self.status.signal(), Some(signal as i32), "{}", self.status);
    }

    /// Fails the test unless this is a refusal that says `expected`.
    #[track_caller]
    pub fn assert_refusal(&self, expected: &str) {
        let line = &self.stderr;
        assert_eq!(self.status.code(), Some(125), "{}: {line}", self.status);
        assert_eq!(self.text(), "", "{line}");
        assert!(line.starts_with("kite: ") && line.ends_with('\n') && line.lines().count() == 1, "{line:?}");
        assert!(line.contains(expected), "{expected:?} is not in {line:?}");
        assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        // The words around it are one sentence.
        assert!(!line.contains("  ") && !line.contains(": :") && !line.trim_end().ends_with(':'), "{line:?}");
    }
}
