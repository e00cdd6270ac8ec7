//! Operations in threads, with preadv(2) and its like: where io_uring is forbidden.
//!
//! This crate makes no threads. What a thread does is [`Shared::work`]; `Spawn`, which the owner of threads hands in,
//! runs it in a new one, and it returns when the pool is dropped.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::uio::pwrite;
use nix::unistd::fdatasync;

use super::disk::Disk;
use super::engine::{Action, Engine, Job, Op, ZEROS};
use crate::GuestMemory;
use crate::virtio::vectored;

/// The most threads of a disk.
const THREADS: usize = 4;

/// Runs a closure in a new thread; fails if the host has none left.
pub type Spawn = Box<dyn Fn(Box<dyn FnOnce() + Send>) -> io::Result<()> + Send>;

/// Threads, made when there is work for them.
pub struct Pool {
    shared: Arc<Shared>,
    spawn: Spawn,
    in_flight: usize,
}

struct Shared {
    disk: Arc<Disk>,
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
    done: VecDeque<(Job, io::Result<usize>)>,
    threads: usize,
    idle: usize,
    closed: bool,
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
                let result = self.perform(&job.op);
                state = self.state();
                state.done.push_back((job, result));
                self.progress.notify_all();
                if state.done.len() == 1 {
                    // It only fails if it was not read 2^64 times.
                    let _ = self.event.write(1);
                }
            } else if state.closed {
                state.threads -= 1;
                self.progress.notify_all();
                return;
            } else {
                state.idle += 1;
                state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn perform(&self, op: &Op) -> io::Result<usize> {
        let fd = self.disk.fd(op.target);
        let offset = op.offset as libc::off_t;
        let allocate = |mode: FallocateFlags| {
            fallocate(fd, mode | FallocateFlags::FALLOC_FL_KEEP_SIZE, offset, op.len as libc::off_t)?;
            Ok(0)
        };
        match op.action {
            Action::Read => vectored::read_at(fd, &self.memory, &op.buffers, op.offset),
            Action::Write => vectored::write_at(fd, &self.memory, &op.buffers, op.offset),
            Action::WriteZeros => {
                let len = op.len.min(ZEROS.len() as u64) as usize;
                Ok(pwrite(fd, &ZEROS[..len], offset)?)
            }
            Action::Sync => Ok(fdatasync(fd).map(|()| 0)?),
            Action::Punch => allocate(FallocateFlags::FALLOC_FL_PUNCH_HOLE),
            Action::Zero => allocate(FallocateFlags::FALLOC_FL_ZERO_RANGE),
        }
    }
}

impl Pool {
    /// A pool without threads as yet.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(disk: Arc<Disk>, memory: GuestMemory, spawn: Spawn) -> io::Result<Self> {
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let (state, work, progress) = (Mutex::default(), Condvar::new(), Condvar::new());
        let shared = Arc::new(Shared { disk, memory, state, work, progress, event });
        Ok(Self { shared, spawn, in_flight: 0 })
    }

    /// Makes one more thread; answers whether there is any.
    fn grow(&self) -> bool {
        self.shared.state().threads += 1;
        let shared = self.shared.clone();
        let made = (self.spawn)(Box::new(move || shared.work()));
        let mut state = self.shared.state();
        if made.is_err() {
            state.threads -= 1;
        }
        state.threads > 0
    }
}

impl Engine for Pool {
    fn push(&mut self, job: Job) {
        self.in_flight += 1;
        self.shared.state().todo.push_back(job);
    }

    fn submit(&mut self) {
        loop {
            let state = self.shared.state();
            let (jobs, idle, threads) = (state.todo.len(), state.idle, state.threads);
            drop(state);
            if jobs == 0 {
                return;
            }
            if jobs <= idle || threads >= THREADS {
                break;
            }
            if !self.grow() {
                // A host without threads: it is done here, and takes as long as it takes.
                let job = self.shared.state().todo.pop_front();
                let Some(job) = job else { break };
                let result = self.shared.perform(&job.op);
                self.shared.state().done.push_back((job, result));
            } else if threads + 1 >= jobs {
                break;
            }
        }
        self.shared.work.notify_all();
    }

    fn completed(&mut self) -> Option<(Job, io::Result<usize>)> {
        let done = self.shared.state().done.pop_front()?;
        self.in_flight -= 1;
        Some(done)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn wait(&mut self) {
        self.submit();
        let mut state = self.shared.state();
        while self.in_flight > 0 && state.done.is_empty() {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn source(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.closed = true;
        state.todo.clear();
        self.shared.work.notify_all();
        while state.threads > 0 {
            state = self.shared.progress.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
