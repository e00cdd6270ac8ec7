//! How operations on a disk's files get done: io_uring ([`super::uring`]), or threads ([`super::threads`]) where that is
//! forbidden.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, LazyLock};

use super::disk::{Disk, Target};
use super::request::Request;
use super::threads::Threads;
use super::uring::Uring;
use crate::GuestMemory;
use crate::virtio::Buffers;
use crate::virtio::pool::Spawn;

/// What [`Action::WriteZeros`] writes: it bounds how much one operation does.
pub static ZEROS: LazyLock<Box<[u8]>> = LazyLock::new(|| vec![0; 64 << 10].into());

/// What is done to a part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The part is read into the buffers.
    Read,
    /// The buffers are written.
    Write,
    /// What was written to the file before is made durable (fdatasync(2)).
    Sync,
    /// The part gives its space back and reads as zeros (FALLOC_FL_PUNCH_HOLE).
    Punch,
    /// The part reads as zeros and retains its space (FALLOC_FL_ZERO_RANGE).
    Zero,
    /// At most as much as [`ZEROS`] has is overwritten with it.
    WriteZeros,
}

/// One operation on one file.
#[derive(Debug)]
pub struct Op {
    /// What is done.
    pub action: Action,
    /// To which file.
    pub target: Target,
    /// From where on, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// As many bytes of guest memory, for [`Action::Read`] and [`Action::Write`].
    pub buffers: Buffers,
}

/// An operation, and the request that it is a step of.
#[derive(Debug)]
pub struct Job {
    /// The operation.
    pub op: Op,
    /// What it is for: engines only pass it on.
    pub request: Request,
    /// How often the guest's memory had been copied when it was pushed.
    pub copies: u64,
}

/// Does operations, in any order. It owns guest memory, so that this stays mapped while the host writes to it.
///
/// When one is dropped, it waits for what is in flight.
pub trait Engine: Send {
    /// Takes a job. It begins at once or with [`Self::submit`].
    fn push(&mut self, job: Job);

    /// Begins everything that was pushed, without waiting for it.
    fn submit(&mut self);

    /// The next job that is done, with the number of bytes read or written; 0 for other actions.
    fn completed(&mut self) -> Option<(Job, io::Result<usize>)>;

    /// How many jobs were pushed and not yet returned.
    fn in_flight(&self) -> usize;

    /// Waits until [`Self::completed`] has one, if any is in flight.
    fn wait(&mut self);

    /// Becomes ready to read, edge-triggered, when jobs are done.
    fn source(&self) -> BorrowedFd<'_>;
}

/// The engine that this host allows, for up to `depth` jobs. Threads are made by `spawn`, if at all.
///
/// # Errors
/// The host has no file descriptors left.
pub fn start(
    disk: &Arc<Disk>,
    memory: &GuestMemory,
    depth: usize,
    spawn: Spawn,
) -> io::Result<Box<dyn Engine>> {
    match Uring::new(disk.clone(), memory.clone(), depth) {
        Ok(ring) => Ok(Box::new(ring)),
        Err(error) => {
            log::info!("no io_uring ({error}): disks are served by threads");
            Ok(Box::new(Threads::new(disk.clone(), memory.clone(), spawn)?))
        }
    }
}
