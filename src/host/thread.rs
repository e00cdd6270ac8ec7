//! Threads of kite's: how each starts, and how it confines itself in the sandbox.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

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

/// A thread that was started, or is yet to be.
pub struct Thread<T>(Receiver<T>);

impl<T> Thread<T> {
    /// Waits for what it comes to.
    pub fn join(self) -> T {
        self.0.recv().expect("a panic ends the process")
    }

    /// Waits until it has ended or the time is over; answers whether it has.
    pub fn ends_within(&self, time: Duration) -> bool {
        !matches!(self.0.recv_timeout(time), Err(RecvTimeoutError::Timeout))
    }
}

/// Starts a thread, which confines itself unless it is confined by who starts it.
type Start = Box<dyn FnOnce(bool) -> anyhow::Result<()> + Send>;

/// Threads of [`ThreadKind::Io`] that are not started yet. To confine oneself takes longer than to be started, and a thread is
/// confined as the one that starts it: so one starts all.
struct Waiting {
    /// Those that are gathered.
    gathered: Option<Vec<Start>>,
    /// Those that the first one is to start.
    rest: Vec<Start>,
    /// Why one could not be started.
    refusal: Option<anyhow::Error>,
}

static WAITING: Mutex<Waiting> = Mutex::new(Waiting { gathered: None, rest: Vec::new(), refusal: None });

/// Threads of [`ThreadKind::Io`] that are to be started together. Dropping it starts them.
pub struct Gathered(());

/// Gathers the threads of [`spawn_gathered`] from now on.
pub fn gather() -> Gathered {
    lock(&WAITING).gathered.get_or_insert_default();
    Gathered(())
}

impl Drop for Gathered {
    fn drop(&mut self) {
        let _ = start_gathered();
    }
}

/// Starts the threads that were gathered, if any, and waits until every thread is confined.
///
/// # Errors
/// The host has no thread left.
pub fn start_gathered() -> anyhow::Result<()> {
    let mut gathered = lock(&WAITING).gathered.take().unwrap_or_default().into_iter();
    if let Some(first) = gathered.next() {
        lock(&WAITING).rest = gathered.collect();
        if let Err(refusal) = first(false) {
            lock(&WAITING).rest.clear();
            return Err(refusal);
        }
    }
    wait_for_confinement();
    lock(&WAITING).refusal.take().map_or(Ok(()), Err)
}

/// Starts the rest of them from the first one.
fn start_rest() {
    let rest = std::mem::take(&mut lock(&WAITING).rest);
    let refusal = rest.into_iter().find_map(|start| start(true).err());
    if refusal.is_some() {
        lock(&WAITING).refusal = refusal;
    }
}

/// Waits until every thread that has been started is confined.
fn wait_for_confinement() {
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

/// As [`spawn`]; where threads are [gathered](gather), one of [`ThreadKind::Io`] is started with them.
///
/// # Errors
/// The host has no thread left.
pub fn spawn_gathered<T: Send + 'static>(
    name: &str,
    stack: usize,
    kind: ThreadKind,
    work: impl FnOnce() -> T + Send + 'static,
) -> anyhow::Result<Thread<T>> {
    let (entry, name) = (Entry::new(), name.to_owned());
    let (done, result) = channel();
    let starts_rest = kind == ThreadKind::Io;
    let start = move |is_confined: bool| {
        let thread = Builder::new().name(name.clone()).stack_size(stack);
        let run = move || {
            if is_confined {
                drop(entry);
            } else {
                // Until the rest is started, too, not all are confined.
                let _rest = Entry::new();
                entry.confine(kind);
                starts_rest.then(start_rest);
            }
            let _ = done.send(work());
        };
        thread.spawn(run).map(drop).with_context(|| format!("cannot start a thread ({name})"))
    };
    let mut waiting = lock(&WAITING);
    match waiting.gathered.as_mut().filter(|_| starts_rest) {
        Some(gathered) => gathered.push(Box::new(start)),
        None => {
            drop(waiting);
            start(false)?;
        }
    }
    Ok(Thread(result))
}

/// Whether the calling thread is scheduled as usual, and not by a policy that its user has chosen.
#[expect(unsafe_code, reason = "scheduling policies have no safe interface")]
pub fn is_scheduled_as_usual() -> bool {
    // SAFETY: it takes no memory.
    unsafe { libc::sched_getscheduler(0) == libc::SCHED_OTHER }
}

/// Whether the calling thread, when it is woken, waits until who woke it waits itself or its time is over, instead of
/// taking its processor at once (sched(7), SCHED_BATCH). Where the host refuses, nothing changes.
#[expect(unsafe_code, reason = "scheduling policies have no safe interface")]
pub fn set_patient(patient: bool) {
    let policy = if patient { libc::SCHED_BATCH } else { libc::SCHED_OTHER };
    let priority = libc::sched_param { sched_priority: 0 };
    // SAFETY: it reads the structure.
    unsafe { libc::sched_setscheduler(0, policy, &raw const priority) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_are_gathered_start_together() {
        let gathered = gather();
        let started = [1, 2, 3].map(|number| {
            spawn_gathered("test", 64 << 10, ThreadKind::Io, move || number)
                .expect("there is room for a thread")
        });
        start_gathered().expect("all are started");
        assert_eq!(started.map(Thread::join), [1, 2, 3]);
        drop(gathered);
        let alone = spawn_gathered("test", 64 << 10, ThreadKind::Io, || 4);
        assert_eq!(alone.map(Thread::join).expect("there is room for a thread"), 4);
    }

    #[test]
    fn a_patient_thread_is_not_scheduled_as_usual() {
        std::thread::spawn(|| {
            if is_scheduled_as_usual() {
                set_patient(true);
                assert!(!is_scheduled_as_usual());
                set_patient(false);
                assert!(is_scheduled_as_usual());
            }
        })
        .join()
        .unwrap();
    }
}
