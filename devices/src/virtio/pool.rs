//! A pool of threads for requests that may wait for the host's disks.
//!
//! This crate starts no thread: [`Spawn`], which the owner of threads supplies, runs a closure in a new one. The closure
//! returns when the pool is dropped, or when there has been no work for a while.
//!
//! A job that cannot be done yet is postponed: it counts as one that no thread has, and begins again when the device is
//! served. So a device can be drained while jobs wait for something that only a drained device can give.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};

/// How long a thread waits for work before it ends.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a postponed job waits before it is tried again.
const RETRY: Duration = Duration::from_millis(5);

/// Runs a closure in a new thread; fails if the host has none left.
pub type Spawn = Box<dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send>;

/// What the threads of a pool do.
pub trait Work: Send + Sync + 'static {
    /// What has to be done.
    type Job: Send;
    /// What has been done.
    type Done: Send;

    /// Does a job, for as long as it takes; returns a job that has to be postponed, which must not be if it is the `last`
    /// try.
    ///
    /// # Errors
    /// The job is postponed.
    fn perform(&self, job: Self::Job, last: bool) -> Result<Self::Done, Self::Job>;
}

/// Threads that do jobs, started when there are jobs for them.
pub struct Pool<W: Work> {
    shared: Arc<Shared<W>>,
    spawn: Spawn,
    most: usize,
    in_flight: usize,
}

struct Shared<W: Work> {
    work: W,
    state: Mutex<State<W>>,
    /// There is a job, or the pool is dropped.
    wanted: Condvar,
    /// A job is done, or a thread ends.
    progress: Condvar,
    event: EventFd,
}

struct State<W: Work> {
    /// As many as the driver has requests, at most.
    todo: VecDeque<W::Job>,
    done: VecDeque<W::Done>,
    /// What is tried again when the device is served.
    postponed: VecDeque<W::Job>,
    threads: usize,
    idle: usize,
    /// A thread waits for progress: a notification costs a system call, needed or not.
    awaited: bool,
    closed: bool,
}

impl<W: Work> State<W> {
    /// A thread ends, or a job is done.
    fn progress(&self, to: &Condvar) {
        if self.awaited {
            to.notify_all();
        }
    }
}

impl<W: Work> Shared<W> {
    fn state(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until the pool is dropped, or there are none for a while.
    fn run(&self) {
        let mut state = self.state();
        loop {
            if let Some(job) = state.todo.pop_front() {
                drop(state);
                let performed = self.work.perform(job, false);
                state = self.state();
                self.finish(&mut state, performed);
                state.progress(&self.progress);
                continue;
            }
            if !state.closed {
                let goes_on;
                (state, goes_on) = self.rest(state);
                if goes_on {
                    continue;
                }
            }
            state.threads -= 1;
            state.progress(&self.progress);
            return;
        }
    }

    fn finish(&self, state: &mut State<W>, performed: Result<W::Done, W::Job>) {
        match performed {
            Ok(done) => {
                state.done.push_back(done);
                if state.done.len() == 1 {
                    self.ring();
                }
            }
            Err(job) => state.postponed.push_back(job),
        }
    }

    /// Waits for work, or until postponed jobs can be tried again; answers whether the thread has a reason to go on.
    fn rest<'a>(&self, mut state: MutexGuard<'a, State<W>>) -> (MutexGuard<'a, State<W>>, bool) {
        let patience = if state.postponed.is_empty() { PATIENCE } else { RETRY };
        state.idle += 1;
        let (mut state, waited) =
            self.wanted.wait_timeout(state, patience).unwrap_or_else(PoisonError::into_inner);
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
}

impl<W: Work> Pool<W> {
    /// A pool that does `work` in at most `most` threads, of which it has none yet.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(work: W, most: usize, spawn: Spawn) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (todo, done, postponed) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        let state = State { todo, done, postponed, threads: 0, idle: 0, awaited: false, closed: false };
        let (state, wanted, progress) = (Mutex::new(state), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { work, state, wanted, progress, event });
        Ok(Self { shared, spawn, most, in_flight: 0 })
    }

    /// Hands a job to a thread. A host without threads does it here, for as long as it takes.
    pub fn push(&mut self, job: W::Job) {
        self.in_flight += 1;
        self.hand_over(job);
    }

    fn hand_over(&self, job: W::Job) {
        let mut state = self.shared.state();
        state.todo.push_back(job);
        let grow = state.todo.len() > state.idle && state.threads < self.most;
        state.threads += usize::from(grow);
        let wake = state.idle > 0;
        drop(state);
        if grow {
            let shared = self.shared.clone();
            if (self.spawn)(Box::new(move || shared.run())).is_err() {
                self.work_without_thread();
            }
        }
        if wake {
            self.shared.wanted.notify_one();
        }
    }

    /// One thread could not be started: if there is no other, its work is done here.
    fn work_without_thread(&self) {
        let mut state = self.shared.state();
        state.threads -= 1;
        while state.threads == 0
            && let Some(job) = state.todo.pop_front()
        {
            drop(state);
            let performed = self.shared.work.perform(job, true);
            state = self.shared.state();
            self.shared.finish(&mut state, performed);
        }
    }

    /// Takes everything that is done.
    pub fn completed(&mut self) -> VecDeque<W::Done> {
        let done = std::mem::take(&mut self.shared.state().done);
        self.in_flight -= done.len();
        done
    }

    /// How many jobs were pushed and are not taken yet, postponed ones among them.
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Hands postponed jobs to threads again.
    pub fn resume(&mut self) {
        let mut postponed = std::mem::take(&mut self.shared.state().postponed);
        while let Some(job) = postponed.pop_front() {
            self.hand_over(job);
        }
    }

    /// Drops postponed jobs.
    pub fn forget_postponed(&mut self) {
        let forgotten = std::mem::take(&mut self.shared.state().postponed).len();
        self.in_flight -= forgotten;
    }

    /// Waits until a job is done; answers false if no thread has one.
    pub fn wait(&self) -> bool {
        let mut state = self.shared.state();
        state.awaited = true;
        while self.in_flight > state.done.len() + state.postponed.len() && state.done.is_empty() {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.awaited = false;
        !state.done.is_empty()
    }

    /// Becomes readable, edge-triggered, when a job is done or postponed ones can be tried again.
    pub fn source(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl<W: Work> Drop for Pool<W> {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        (state.closed, state.awaited) = (true, true);
        state.todo.clear();
        state.postponed.clear();
        self.shared.wanted.notify_all();
        while state.threads > 0 {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
