//! The block device (virtio 1.2 §5.2): what it offers, and the way of requests through it.

pub mod disk;
pub mod engine;
mod overlay;
mod request;
#[cfg(test)]
mod tests;
pub mod threads;
pub mod uring;

use std::sync::Arc;

use virtio_bindings::virtio_blk::*;
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

use super::{Copies, Error, Kind, Queues, Source, VirtioDevice};
use crate::device::{self, State};
use disk::{Disk, SECTOR};
use engine::{Action, Engine, Job};
use request::{Accepted, MAX_DISCARD, MAX_SEGMENTS, MAX_ZEROES, Next, Parsed, Request, Status};

/// What all block devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_BLOCK, module: "virtio_blk" };
/// Entries of a queue.
pub const QUEUE_SIZE: u16 = 256;
/// Pieces of data of a request: a queue's entries without header and status.
const MAX_PIECES: u32 = QUEUE_SIZE as u32 - 2;
/// The most queues that a device has.
pub const MAX_QUEUES: u16 = 64;

/// A disk in the guest.
pub struct Block {
    name: String,
    disk: Arc<Disk>,
    engine: Box<dyn Engine>,
    queue_sizes: Vec<u16>,
    config: Vec<u8>,
    accepted: Accepted,
    copies: Arc<Copies>,
    /// The host failed since the last reset, and the log has it.
    warned: bool,
}

impl Block {
    /// Shows `disk` through 1 to [`MAX_QUEUES`] queues; `engine` is made for it and for the guest's memory, of which there may
    /// be `copies`.
    pub fn new(
        name: impl Into<String>,
        disk: Arc<Disk>,
        engine: Box<dyn Engine>,
        copies: Arc<Copies>,
        queues: u16,
    ) -> Self {
        let queues = queues.clamp(1, MAX_QUEUES);
        let config = config(&disk, queues);
        let queue_sizes = vec![QUEUE_SIZE; queues.into()];
        let (name, accepted) = (name.into(), Accepted::default());
        Self { name, disk, engine, queue_sizes, config, accepted, copies, warned: false }
    }

    /// Takes requests from queue `index` and begins them.
    fn take(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        while let Some(chain) = queues.take(index)? {
            let head = chain.head;
            match Request::parse(&self.disk, queues.memory(), self.accepted, index, chain) {
                Parsed::Broken => return Err(Error::Chain { head, what: "it has no room for a status" }),
                Parsed::Done(request, status) => end(queues, &request, status)?,
                Parsed::Work(mut request) => {
                    let next = request.next(&self.disk, self.accepted);
                    self.go_on(queues, request, next)?;
                }
            }
        }
        Ok(())
    }

    fn go_on(&mut self, queues: &mut Queues<'_>, request: Request, next: Next) -> Result<(), Error> {
        match next {
            Next::Op(op) => self.engine.push(Job { op, request, copies: self.copies.count() }),
            Next::Done(status) => end(queues, &request, status)?,
        }
        Ok(())
    }

    /// Begins what was taken, and completes what is done, until nothing more is. What the host has in memory is done at
    /// once.
    fn complete(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.engine.submit();
        while let Some((job, result)) = self.engine.completed() {
            if job.op.action == Action::Read && job.copies != self.copies.count() {
                // What was read may have gone where the guest's memory was before.
                self.engine.push(Job { copies: self.copies.count(), ..job });
                self.engine.submit();
                continue;
            }
            let Job { op, mut request, .. } = job;
            let next = match request.finished(&self.disk, self.accepted, op, result) {
                Ok(next) => next,
                Err(error) => {
                    if !std::mem::replace(&mut self.warned, true) {
                        let name = queues.name();
                        log::warn!(target: name, "{name} fails: {error}; the guest gets I/O errors");
                    }
                    Next::Done(Status::IoErr)
                }
            };
            let more = matches!(next, Next::Op(_));
            self.go_on(queues, request, next)?;
            if more {
                self.engine.submit();
            }
        }
        // What found no room before.
        self.engine.submit();
        Ok(())
    }
}

fn end(queues: &mut Queues<'_>, request: &Request, status: Status) -> Result<(), Error> {
    let written = request.end(queues.memory(), status);
    queues.complete(request.queue, request.head, written)
}

/// The configuration space (§5.2.4), up to `write_zeroes_may_unmap`.
fn config(disk: &Disk, queues: u16) -> Vec<u8> {
    let blocks = disk.blocks();
    let exponent = (blocks.physical / blocks.logical).max(1).ilog2() as u8;
    let least = (blocks.physical / blocks.logical).clamp(1, u16::MAX.into()) as u16;
    let discard_alignment = blocks.physical / SECTOR as u32;
    let mut config = Vec::with_capacity(60);
    config.extend(disk.sectors().to_le_bytes());
    config.extend(0u32.to_le_bytes()); // size_max, not offered
    config.extend(MAX_PIECES.to_le_bytes());
    config.extend([0; 4]); // geometry, not offered
    config.extend(blocks.logical.to_le_bytes());
    config.extend([exponent, 0]);
    config.extend(least.to_le_bytes());
    config.extend(0u32.to_le_bytes()); // no optimal size
    config.extend([0; 2]); // writeback, not offered
    config.extend(queues.to_le_bytes());
    for field in [MAX_DISCARD, MAX_SEGMENTS, discard_alignment, MAX_ZEROES, MAX_SEGMENTS] {
        config.extend(field.to_le_bytes());
    }
    config.extend([1, 0, 0, 0]); // write_zeroes_may_unmap
    config
}

impl VirtioDevice for Block {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn gathers(&self) -> bool {
        true
    }

    fn features(&self) -> u64 {
        let mut bits = vec![VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_TOPOLOGY];
        bits.push(VIRTIO_BLK_F_FLUSH);
        if self.queue_sizes.len() > 1 {
            bits.push(VIRTIO_BLK_F_MQ);
        }
        if self.disk.is_read_only() {
            bits.push(VIRTIO_BLK_F_RO);
        } else {
            bits.extend([VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]);
        }
        bits.iter().fold(0, |all, bit| all | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.engine.source())]
    }

    fn negotiated(&mut self, features: u64) {
        self.accepted = Accepted { features };
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let taken = self.take(index, queues);
        // What was taken before a broken chain is done all the same.
        self.complete(queues)?;
        taken
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.complete(queues)
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.complete(queues)?;
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            self.complete(queues)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        while self.engine.in_flight() > 0 {
            self.engine.wait();
            while self.engine.completed().is_some() {}
        }
        self.accepted = Accepted::default();
        self.warned = false;
    }

    /// What an ephemeral disk's guest has written is in a file of this process alone, and lost with it.
    fn save(&self) -> Result<State, device::Error> {
        if self.disk.written().is_some_and(|written| !written.is_empty()) {
            let what =
                "the guest has written to this ephemeral disk, and that cannot be saved; save before it does";
            return Err(device::Error::Unsaveable(what.into()));
        }
        Ok(State::empty())
    }
}
