//! Requests in threads: whatever may have to wait for a disk.
//!
//! This crate makes no threads: [`Spawn`], which the owner of threads hands in, runs a closure in a new one, and it
//! returns when the pool is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::chain::Request;
use super::server::Server;
use crate::GuestMemory;
use crate::virtio::Chain;
use crate::virtio::block::pool::Spawn;

/// The most threads of a share. They wait for disks more than they work.
const THREADS: usize = 8;

/// How long a thread waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// A chain in flight.
struct Job {
    queue: usize,
    chain: Chain,
}

/// A chain that is done.
pub struct Done {
    /// The queue it is from.
    pub queue: usize,
    /// Its head.
    pub head: u16,
    /// Bytes of the reply.
    pub written: u32,
}

/// Threads, made when there is work for them.
pub struct Pool {
    shared: Arc<Shared>,
    spawn: Spawn,
    in_flight: usize,
}

struct Shared {
    server: Arc<Server>,
    memory: GuestMemory,
    state: Mutex<State>,
    /// There is work, or the end has come.
    work: Condvar,
    /// Work is done, or a thread ends.
    progress: Condvar,
    event: EventFd,
}

#[derive(Default)]
struct State {
    /// As many as the driver has requests, at most.
    todo: VecDeque<Job>,
    done: VecDeque<Done>,
    threads: usize,
    idle: usize,
    /// Somebody waits for progress: to tell of it costs a system call, needed or not.
    awaited: bool,
    closed: bool,
}

impl State {
    /// A thread ends, or a job is done.
    fn progress(&self, to: &Condvar) {
        if self.awaited {
            to.notify_all();
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until the pool is dropped.
    fn work(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.todo.pop_front() {
                drop(state);
                let done = self.perform(&job);
                state = self.state();
                state.done.push_back(done);
                state.progress(&self.progress);
                if state.done.len() == 1 {
                    // It only fails if it was not read 2^64 times.
                    let _ = self.event.write(1);
                }
            } else if state.closed {
                state.threads -= 1;
                state.progress(&self.progress);
                return;
            } else {
                state.idle += 1;
                let (woken, waited) =
                    self.work.wait_timeout(state, PATIENCE).unwrap_or_else(PoisonError::into_inner);
                state = woken;
                state.idle -= 1;
                if waited.timed_out() && state.todo.is_empty() {
                    state.threads -= 1;
                    state.progress(&self.progress);
                    return;
                }
            }
        }
    }

    fn perform(&self, job: &Job) -> Done {
        let mut request = Request { memory: &self.memory, chain: &job.chain };
        let written = self.server.serve(&mut request, true).unwrap_or_default();
        Done { queue: job.queue, head: job.chain.head, written: written as u32 }
    }
}

impl Pool {
    /// A pool without threads as yet.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(server: Arc<Server>, memory: GuestMemory, spawn: Spawn) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { server, memory, state, work, progress, event });
        Ok(Self { shared, spawn, in_flight: 0 })
    }

    /// Hands a chain to a thread. A host without threads does it here, and takes as long as it takes.
    pub fn push(&mut self, queue: usize, chain: Chain) {
        self.in_flight += 1;
        let mut state = self.shared.state();
        state.todo.push_back(Job { queue, chain });
        let grow = state.todo.len() > state.idle && state.threads < THREADS;
        state.threads += usize::from(grow);
        let wake = state.idle > 0;
        drop(state);
        if grow {
            let shared = self.shared.clone();
            let made = (self.spawn)(Box::new(move || shared.work()));
            if made.is_err() {
                self.without_thread();
            }
        }
        if wake {
            self.shared.work.notify_one();
        }
    }

    /// One thread could not be made: if there is no other, its work is done here.
    fn without_thread(&self) {
        let mut state = self.shared.state();
        state.threads -= 1;
        while state.threads == 0
            && let Some(job) = state.todo.pop_front()
        {
            drop(state);
            let done = self.shared.perform(&job);
            state = self.shared.state();
            state.done.push_back(done);
            let _ = self.shared.event.write(1);
        }
    }

    /// All chains that are done.
    pub fn completed(&mut self) -> VecDeque<Done> {
        let done = std::mem::take(&mut self.shared.state().done);
        self.in_flight -= done.len();
        done
    }

    /// How many chains are not [`Self::completed`].
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Waits until a chain is done, if any is in flight.
    pub fn wait(&self) {
        let mut state = self.shared.state();
        state.awaited = true;
        while self.in_flight > 0 && state.done.is_empty() {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = false;
    }

    /// Is ready when a chain is done.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        (state.closed, state.awaited) = (true, true);
        state.todo.clear();
        self.shared.work.notify_all();
        while state.threads > 0 {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
