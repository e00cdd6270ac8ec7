//! Operations in threads, with preadv(2) and its like: where io_uring is forbidden.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::uio::pwrite;
use nix::unistd::fdatasync;

use super::disk::Disk;
use super::engine::{Action, Engine, Job, Op, ZEROS};
use crate::GuestMemory;
use crate::virtio::pool::{Pool, Spawn, Work};
use crate::virtio::vectored;

/// The most threads of a disk.
const THREADS: usize = 4;

type Done = (Job, io::Result<usize>);

/// Threads that work on one disk.
pub struct Threads {
    pool: Pool<Files>,
    /// What the pool has given back.
    done: VecDeque<Done>,
}

/// A disk's files and the guest's memory.
struct Files {
    disk: Arc<Disk>,
    memory: GuestMemory,
}

impl Files {
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

impl Work for Files {
    type Job = Job;
    type Done = Done;

    fn perform(&self, job: Job, _last: bool) -> Result<Done, Job> {
        let result = self.perform(&job.op);
        Ok((job, result))
    }
}

impl Threads {
    /// An engine that starts threads with `spawn` when there is work for them.
    ///
    /// # Errors
    /// The host has no file descriptors left.
    pub fn new(disk: Arc<Disk>, memory: GuestMemory, spawn: Spawn) -> io::Result<Self> {
        let pool = Pool::new(Files { disk, memory }, THREADS, spawn)?;
        Ok(Self { pool, done: VecDeque::new() })
    }
}

impl Engine for Threads {
    fn push(&mut self, job: Job) {
        self.pool.push(job);
    }

    fn submit(&mut self) {}

    fn completed(&mut self) -> Option<Done> {
        if self.done.is_empty() {
            self.done = self.pool.completed();
        }
        self.done.pop_front()
    }

    fn in_flight(&self) -> usize {
        self.pool.in_flight() + self.done.len()
    }

    fn wait(&mut self) {
        if self.done.is_empty() {
            self.pool.wait();
        }
    }

    fn source(&self) -> BorrowedFd<'_> {
        self.pool.source()
    }
}
