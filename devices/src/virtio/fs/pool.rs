//! Requests in threads: whatever may have to wait for a disk.
//!
//! This crate makes no threads: [`Spawn`], which the owner of threads hands in, runs a closure in a new one, and it
//! returns when the pool is dropped.
//!
//! A request that a lease of somebody's stands in the way of ([`Stop::Wait`](super::server::Stop::Wait)) is postponed, as it is
//! kite itself that may have to give the lease back: for that it needs the device still. So a postponed request counts as
//! one that no thread has, and begins again when the device is served.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::exchange::Request;
use super::server::Server;
use crate::GuestMemory;
use crate::virtio::block::pool::Spawn;
use crate::virtio::{Chain, Copies};

/// The most threads of a share. They wait for disks more than they work.
const THREADS: usize = 8;

/// How long a thread waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a postponed request waits before it is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// How long a request is postponed at most: the kernel takes a lease from a holder that keeps it longer than 45 s
/// (proc(5), `/proc/sys/fs/lease-break-time`).
const LONGEST: Duration = Duration::from_secs(90);

/// A chain in flight.
struct Job {
    queue: usize,
    chain: Chain,
    /// When it was first tried in vain.
    postponed: Option<Instant>,
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
    copies: Arc<Copies>,
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
    /// What is tried again when the device is served.
    postponed: VecDeque<Job>,
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
                let performed = self.perform(job);
                state = self.state();
                match performed {
                    Ok(done) => {
                        state.done.push_back(done);
                        if state.done.len() == 1 {
                            self.ring();
                        }
                    }
                    Err(job) => state.postponed.push_back(job),
                }
                state.progress(&self.progress);
                continue;
            }
            if !state.closed {
                let rest;
                (state, rest) = self.rest(state);
                if rest {
                    continue;
                }
            }
            state.threads -= 1;
            state.progress(&self.progress);
            return;
        }
    }

    /// Waits for work, or until postponed requests can be tried again; answers whether the thread has a reason to go on.
    fn rest<'a>(&self, mut state: MutexGuard<'a, State>) -> (MutexGuard<'a, State>, bool) {
        let patience = if state.postponed.is_empty() { PATIENCE } else { RETRY };
        state.idle += 1;
        let (mut state, waited) =
            self.work.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
        state.idle -= 1;
        if !state.postponed.is_empty() {
            self.ring();
        }
        let goes_on = !waited.timed_out() || !state.todo.is_empty() || !state.postponed.is_empty();
        (state, goes_on)
    }

    /// Has the device served.
    fn ring(&self) {
        // It only fails if it was not read 2^64 times.
        let _ = self.event.write(1);
    }

    /// Does a job, or returns one that has to be postponed.
    fn perform(&self, mut job: Job) -> Result<Done, Job> {
        let mut request = Request { memory: &self.memory, chain: &job.chain, copies: &self.copies };
        let written = match self.server.serve(&mut request, true) {
            Some(written) => written,
            None if job.postponed.get_or_insert_with(Instant::now).elapsed() < LONGEST => return Err(job),
            None => Server::refuse(&mut request, Errno::EAGAIN),
        };
        Ok(Done { queue: job.queue, head: job.chain.head, written: written as u32 })
    }

    /// As [`Self::perform`], where there is no thread to try again.
    fn perform_at_once(&self, job: Job) -> Done {
        self.perform(job).unwrap_or_else(|job| {
            let mut request = Request { memory: &self.memory, chain: &job.chain, copies: &self.copies };
            let written = Server::refuse(&mut request, Errno::EAGAIN);
            Done { queue: job.queue, head: job.chain.head, written: written as u32 }
        })
    }
}

impl Pool {
    /// A pool without threads as yet.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(
        server: Arc<Server>,
        memory: GuestMemory,
        copies: Arc<Copies>,
        spawn: Spawn,
    ) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { server, memory, copies, state, work, progress, event });
        Ok(Self { shared, spawn, in_flight: 0 })
    }

    /// Hands a chain to a thread. A host without threads does it here, and takes as long as it takes.
    pub fn push(&mut self, queue: usize, chain: Chain) {
        self.in_flight += 1;
        self.hand_over(Job { queue, chain, postponed: None });
    }

    fn hand_over(&self, job: Job) {
        let mut state = self.shared.state();
        state.todo.push_back(job);
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
            let done = self.shared.perform_at_once(job);
            state = self.shared.state();
            state.done.push_back(done);
            self.shared.ring();
        }
    }

    /// All chains that are done.
    pub fn completed(&mut self) -> VecDeque<Done> {
        let done = std::mem::take(&mut self.shared.state().done);
        self.in_flight -= done.len();
        done
    }

    /// Hands postponed chains to threads again.
    pub fn resume(&mut self) {
        let mut postponed = std::mem::take(&mut self.shared.state().postponed);
        while let Some(job) = postponed.pop_front() {
            self.hand_over(job);
        }
    }

    /// Drops postponed chains, which nobody waits for any more.
    pub fn forget_postponed(&mut self) {
        let forgotten = std::mem::take(&mut self.shared.state().postponed).len();
        self.in_flight -= forgotten;
    }

    /// Waits until a chain is done; answers false if no thread has one.
    pub fn wait(&self) -> bool {
        let mut state = self.shared.state();
        state.awaited = true;
        while self.in_flight > state.done.len() + state.postponed.len() && state.done.is_empty() {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = false;
        !state.done.is_empty()
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
        state.postponed.clear();
        self.shared.work.notify_all();
        while state.threads > 0 {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
