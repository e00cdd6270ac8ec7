//! A descriptor chain as an exchange: data goes straight between files and the guest's memory. Whatever may have to wait
//! for a disk is done in a thread of a [`Pool`](crate::virtio::pool::Pool).
//!
//! A request that another process's lease blocks ([`Stop::Wait`](super::server::Stop::Wait)) is postponed, as it may be
//! kite itself that has to give the lease back: for that it needs the device drained.

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::server::{Exchange, Server};
use crate::GuestMemory;
use crate::virtio::pool::Work;
use crate::virtio::{Buffers, Chain, Copies, vectored};

/// How long a request is postponed at most: the kernel takes a lease from a holder that has it longer than 45 s
/// (proc(5), `/proc/sys/fs/lease-break-time`).
const LONGEST: Duration = Duration::from_secs(90);

/// A request in a chain, and the room for its reply.
pub struct Request<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// The chain.
    pub chain: &'a Chain,
    /// The copies of the guest's memory.
    pub copies: &'a Copies,
}

/// The `len` bytes of `buffers` from `offset` on.
fn part(buffers: &Buffers, offset: usize, len: usize) -> Buffers {
    let mut part = buffers.clone().split_off(offset);
    part.truncate(len);
    part
}

impl Exchange for Request<'_> {
    fn asked(&self) -> usize {
        self.chain.readable.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        self.chain.readable.read(self.memory, offset, into)
    }

    fn room(&self) -> usize {
        self.chain.writable.len()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.copies.write(|| self.chain.writable.write(self.memory, offset, bytes));
    }

    fn fill(&mut self, part: Range<usize>, file: &OwnedFd, from: u64, wait: bool) -> io::Result<usize> {
        let room = self::part(&self.chain.writable, part.start, part.len());
        let flags = if wait { 0 } else { libc::RWF_NOWAIT };
        loop {
            let before = self.copies.count();
            let got = vectored::read_at_as(file.as_fd(), self.memory, &room, from, flags)?;
            if self.copies.write(|| self.copies.count()) == before {
                return Ok(got);
            }
        }
    }

    fn drain(&self, offset: usize, len: usize, file: &OwnedFd, to: u64, append: bool) -> io::Result<usize> {
        let data = part(&self.chain.readable, offset, len);
        let flags = if append { libc::RWF_APPEND } else { 0 };
        vectored::write_at_as(file.as_fd(), self.memory, &data, to, flags)
    }
}

/// A chain in flight.
pub struct Job {
    queue: usize,
    chain: Chain,
    /// When it was first tried in vain.
    postponed: Option<Instant>,
}

impl Job {
    /// A chain of `queue` that nothing was tried with.
    pub fn new(queue: usize, chain: Chain) -> Self {
        Self { queue, chain, postponed: None }
    }
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

/// Serves chains of one guest.
#[derive(Clone)]
pub struct Worker {
    pub server: Arc<Server>,
    pub memory: GuestMemory,
    pub copies: Arc<Copies>,
}

impl Worker {
    /// What `chain` asks for.
    pub fn request<'a>(&'a self, chain: &'a Chain) -> Request<'a> {
        Request { memory: &self.memory, chain, copies: &self.copies }
    }
}

impl Work for Worker {
    type Job = Job;
    type Done = Done;

    fn perform(&self, mut job: Job, last: bool) -> Result<Done, Job> {
        let mut request = self.request(&job.chain);
        let written = match self.server.serve(&mut request, true) {
            Some(written) => written,
            None if !last && job.postponed.get_or_insert_with(Instant::now).elapsed() < LONGEST => {
                return Err(job);
            }
            None => Server::refuse(&mut request, Errno::EAGAIN),
        };
        Ok(Done { queue: job.queue, head: job.chain.head, written: written as u32 })
    }
}
