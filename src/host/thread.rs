//! Threads of kite's: how each starts, and how it confines itself in the sandbox.

use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::Context;

use crate::host::lock::lock;

/// What a thread is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThreadKind {
    /// It runs a vCPU.
    Vcpu,
    /// It serves a device, or carries bytes between one and the host.
    Io,
    /// It serves a folder shared with the guest, which may change it.
    Share,
    /// It serves a folder shared with the guest to be read.
    ReadOnlyShare,
    /// It serves viewers of the screen.
    Vnc,
    /// It attends the machine.
    Main,
    /// It is the supervisor's, and attends the VM process.
    Supervisor,
}

impl ThreadKind {
    /// The name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcpu => "vcpu",
            Self::Io => "io",
            Self::Share | Self::ReadOnlyShare => "share",
            Self::Vnc => "vnc",
            Self::Main => "main",
            Self::Supervisor => "supervisor",
        }
    }
}

/// What confines the calling thread. A process has one sandbox, which is above this room.
static CONFINE: OnceLock<fn(ThreadKind)> = OnceLock::new();
/// How many threads have been started and are not yet confined.
static ON_THE_WAY: Mutex<usize> = Mutex::new(0);
/// One of them is.
static ARRIVED: Condvar = Condvar::new();

/// Has each thread that starts from now on confine itself by `confine`; the first one counts.
pub fn confine_by(confine: fn(ThreadKind)) {
    let _ = CONFINE.set(confine);
}

/// A thread's way into the sandbox, from before it starts until it is confined.
pub struct Entry(());

impl Entry {
    /// For a thread to be started, and handed to it.
    pub fn new() -> Self {
        *lock(&ON_THE_WAY) += 1;
        Self(())
    }

    /// Confines the calling thread, if this process is in a sandbox: from now on it makes no other system calls than one of
    /// its kind does, and has no capability unless it serves a folder as root. Threads that it starts are confined as well.
    pub fn confine(self, kind: ThreadKind) {
        if let Some(confine) = CONFINE.get() {
            confine(kind);
        }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        *lock(&ON_THE_WAY) -= 1;
        ARRIVED.notify_all();
    }
}

/// Waits until every thread that has been started is confined.
pub fn wait_for_confinement() {
    let mut on_the_way = lock(&ON_THE_WAY);
    while *on_the_way > 0 {
        on_the_way = ARRIVED.wait(on_the_way).unwrap_or_else(PoisonError::into_inner);
    }
}

/// Starts a thread with a stack of `stack` bytes, of which the host gives what is touched. It confines itself as one of its
/// `kind`, and so are threads that it starts.
///
/// # Errors
/// The host has no thread left.
pub fn spawn<T: Send + 'static>(
    name: &str,
    stack: usize,
    kind: ThreadKind,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<JoinHandle<T>> {
    let entry = Entry::new();
    let run = move || {
        entry.confine(kind);
        work()
    };
    let thread = Builder::new().name(name.to_owned()).stack_size(stack).spawn(run);
    thread.with_context(|| format!("cannot start a thread ({name})"))
}
