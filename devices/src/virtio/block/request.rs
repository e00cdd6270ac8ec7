//! A request of the driver (virtio 1.2 §5.2.6): checked once, then done in steps of one operation each.

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_blk::*;

use super::disk::{Disk, SECTOR, Target};
use super::engine::{Action, Op};
use crate::GuestMemory;
use crate::virtio::{Buffers, Chain};

/// The most segments that one DISCARD or WRITE_ZEROES has.
pub const MAX_SEGMENTS: u32 = 32;
/// The most sectors of a segment of DISCARD: 2 GiB.
pub const MAX_DISCARD: u32 = 1 << 22;
/// The most sectors of a segment of WRITE_ZEROES: 32 MiB, which may have to be written.
pub const MAX_ZEROES: u32 = 1 << 16;

const HEADER: usize = 16;
const SEGMENT: usize = 16;

/// How a request ends (§5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// It is done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// It is wrong, or the host failed.
    IoErr = VIRTIO_BLK_S_IOERR as u8,
    /// The device knows no such thing.
    Unsupp = VIRTIO_BLK_S_UNSUPP as u8,
}

/// What comes next.
#[derive(Debug)]
pub enum Next {
    /// This operation, and then [`Request::finished`].
    Op(Op),
    /// Nothing: the request ends.
    Done(Status),
}

/// What the driver has accepted, as requests depend on it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Accepted {
    /// The feature bits.
    pub features: u64,
}

impl Accepted {
    fn has(self, bit: u32) -> bool {
        self.features >> bit & 1 != 0
    }
}

/// A request in flight.
#[derive(Debug)]
pub struct Request {
    /// Its queue.
    pub queue: usize,
    /// Its chain's head.
    pub head: u16,
    /// The last writable byte of the chain.
    status: Buffers,
    /// The bytes that are written into the chain if it goes well.
    used: u32,
    task: Task,
}

#[derive(Debug)]
enum Task {
    /// Move `rest`, from or to `sector` on.
    Move { action: Action, sector: u64, rest: Buffers },
    /// Clear these ranges of sectors, by this action if the host can do that.
    Clear { action: Action, hint: bool, ranges: VecDeque<(u64, u64)> },
    /// Make durable what is written, unless that is done.
    Sync { done: bool },
}

/// What a chain turns out to be.
pub enum Parsed {
    /// It has no room for a status.
    Broken,
    /// It ends at once.
    Done(Request, Status),
    /// It wants work.
    Work(Request),
}

impl Request {
    /// Reads and checks what the driver asks for.
    pub fn parse(
        disk: &Disk,
        memory: &GuestMemory,
        accepted: Accepted,
        queue: usize,
        chain: Chain,
    ) -> Parsed {
        let Chain { head, mut readable, mut writable } = chain;
        let Some(room) = writable.len().checked_sub(1) else { return Parsed::Broken };
        let status = writable.split_off(room);
        let mut request = Self { queue, head, status, used: 1, task: Task::Sync { done: true } };
        let mut header = [0; HEADER];
        if readable.read(memory, 0, &mut header) < HEADER {
            return Parsed::Done(request, Status::IoErr);
        }
        let data = readable.split_off(HEADER);
        let [kind, sector] = [le(&header[..4]), le(&header[8..])];
        let task = match kind as u32 {
            VIRTIO_BLK_T_IN => {
                request.used = u32::try_from(room + 1).unwrap_or(u32::MAX);
                transfer(disk, Action::Read, sector, writable)
            }
            VIRTIO_BLK_T_OUT if disk.is_read_only() => Err(Status::IoErr),
            VIRTIO_BLK_T_OUT => transfer(disk, Action::Write, sector, data),
            VIRTIO_BLK_T_FLUSH => Ok(Task::Sync { done: false }),
            VIRTIO_BLK_T_GET_ID => {
                request.used += writable.write(memory, 0, disk.serial()) as u32;
                Err(Status::Ok)
            }
            VIRTIO_BLK_T_DISCARD if accepted.has(VIRTIO_BLK_F_DISCARD) => clear(disk, memory, true, &data),
            VIRTIO_BLK_T_WRITE_ZEROES if accepted.has(VIRTIO_BLK_F_WRITE_ZEROES) => {
                clear(disk, memory, false, &data)
            }
            _ => Err(Status::Unsupp),
        };
        match task {
            Ok(task) => {
                request.task = task;
                Parsed::Work(request)
            }
            Err(status) => Parsed::Done(request, status),
        }
    }

    /// Writes the status; returns how many bytes of the chain are written.
    pub fn end(&self, memory: &GuestMemory, status: Status) -> u32 {
        self.status.write(memory, 0, &[status as u8]);
        if status == Status::Ok { self.used } else { 1 }
    }

    /// The next operation.
    pub fn next(&mut self, disk: &Disk, accepted: Accepted) -> Next {
        if let Task::Clear { action, hint, ranges } = &mut self.task
            && let Some(op) = clear_op(disk, *action, *hint, ranges)
        {
            return Next::Op(op);
        }
        match &mut self.task {
            Task::Move { action, sector, rest } if !rest.is_empty() => {
                Next::Op(transfer_op(disk, *action, sector, rest))
            }
            Task::Sync { done: true } | Task::Move { action: Action::Read, .. } => Next::Done(Status::Ok),
            // A driver that does not know FLUSH takes a write for durable when it is done (§5.2.6.2).
            Task::Move { .. } | Task::Clear { .. } if accepted.has(VIRTIO_BLK_F_FLUSH) => {
                Next::Done(Status::Ok)
            }
            _ if disk.is_read_only() || disk.is_ephemeral() => Next::Done(Status::Ok),
            _ => {
                self.task = Task::Sync { done: true };
                let buffers = Buffers::default();
                Next::Op(Op { action: Action::Sync, target: Target::Image, offset: 0, len: 0, buffers })
            }
        }
    }

    /// What comes after `op`, which ended with so many bytes read or written.
    ///
    /// # Errors
    /// The host failed.
    pub fn finished(
        &mut self,
        disk: &Disk,
        accepted: Accepted,
        mut op: Op,
        result: io::Result<usize>,
    ) -> io::Result<Next> {
        let moved = match (result, op.action) {
            (Err(error), _) => return self.instead(op, error),
            (Ok(0), Action::Read) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (Ok(0), Action::Write | Action::WriteZeros) => return Err(io::ErrorKind::WriteZero.into()),
            (Ok(bytes), Action::Read | Action::Write | Action::WriteZeros) => (bytes as u64).min(op.len),
            (Ok(_), Action::Sync | Action::Punch | Action::Zero) => op.len,
        };
        let end = op.offset + moved;
        if op.target == Target::Overlay
            && op.action != Action::Read
            && let Some(mut written) = disk.written()
        {
            // Only now: as long as the write may fail, the image's sectors are read.
            written.insert(op.offset / SECTOR..end / SECTOR);
        }
        if moved == op.len {
            return Ok(self.next(disk, accepted));
        }
        op.buffers = op.buffers.split_off(moved as usize);
        (op.offset, op.len) = (end, op.len - moved);
        if op.target == Target::Direct {
            op.target = Target::Image; // The rest may be unaligned.
        }
        Ok(Next::Op(op))
    }

    /// What is done in place of an operation that the host's file cannot do.
    fn instead(&mut self, mut op: Op, error: io::Error) -> io::Result<Next> {
        let cannot = matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL | libc::ENOSYS));
        let mut hint = false;
        if let Task::Clear { hint: is_hint, .. } = self.task {
            hint = is_hint && op.target != Target::Overlay;
        }
        match (op.action, op.target) {
            (_, Target::Direct) if error.raw_os_error() == Some(libc::EINVAL) => op.target = Target::Image,
            // A discard that does nothing is one (§5.2.6.2); the next would not do more.
            (Action::Punch, _) if cannot && hint => return Ok(Next::Done(Status::Ok)),
            (Action::Punch, _) if cannot => op.action = Action::Zero,
            (Action::Zero, _) if cannot => op.action = Action::WriteZeros,
            _ => return Err(error),
        }
        Ok(Next::Op(op))
    }
}

fn le(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether `count` sectors from `sector` on are all on the disk.
fn is_on(disk: &Disk, sector: u64, count: u64) -> bool {
    sector.checked_add(count).is_some_and(|end| end <= disk.sectors())
}

fn transfer(disk: &Disk, action: Action, sector: u64, rest: Buffers) -> Result<Task, Status> {
    let bytes = rest.len() as u64;
    match bytes > 0 && bytes.is_multiple_of(SECTOR) && is_on(disk, sector, bytes / SECTOR) {
        true => Ok(Task::Move { action, sector, rest }),
        false => Err(Status::IoErr),
    }
}

/// Takes the next operation off `rest`: all of it, but for a read of an ephemeral disk, which takes what is in one file.
fn transfer_op(disk: &Disk, action: Action, sector: &mut u64, rest: &mut Buffers) -> Op {
    let mut buffers = std::mem::take(rest);
    let mut target = Target::Image;
    if let Some(written) = disk.written() {
        let (mut there, mut run) = (true, buffers.len() as u64 / SECTOR);
        if action == Action::Read {
            (there, run) = written.run(*sector..*sector + run);
        }
        if there {
            target = Target::Overlay;
        }
        *rest = buffers.split_off((run * SECTOR) as usize);
    }
    let (offset, len) = (*sector * SECTOR, buffers.len() as u64);
    *sector += len / SECTOR;
    if let (Target::Image, Some(align)) = (target, disk.alignment())
        && offset.is_multiple_of(align.into())
        && buffers.is_aligned(align as usize)
    {
        target = Target::Direct;
    }
    Op { action, target, offset, len, buffers }
}

/// Takes the next operation off `ranges`, if there is one. Of an ephemeral disk a discard, which may do nothing
/// (§5.2.6.2), is of what the guest has written: the map of that does not grow, nor does the file.
fn clear_op(disk: &Disk, action: Action, hint: bool, ranges: &mut VecDeque<(u64, u64)>) -> Option<Op> {
    while let Some((sector, mut count)) = ranges.pop_front() {
        let mut target = Target::Image;
        if let Some(written) = disk.written() {
            target = Target::Overlay;
            if hint {
                let (there, run) = written.run(sector..sector + count);
                if run < count {
                    ranges.push_front((sector + run, count - run));
                }
                if !there {
                    continue;
                }
                count = run;
            }
        }
        let (offset, len) = (sector * SECTOR, count * SECTOR);
        return Some(Op { action, target, offset, len, buffers: Buffers::default() });
    }
    None
}

/// DISCARD, or else WRITE_ZEROES: everything is checked before anything is done.
fn clear(disk: &Disk, memory: &GuestMemory, discard: bool, data: &Buffers) -> Result<Task, Status> {
    let most = if discard { MAX_DISCARD } else { MAX_ZEROES };
    let count = data.len() / SEGMENT;
    if count == 0 || !data.len().is_multiple_of(SEGMENT) || count > MAX_SEGMENTS as usize {
        return Err(Status::IoErr);
    }
    let mut ranges = VecDeque::with_capacity(count);
    let mut unmap = true;
    let mut wrong = false;
    for index in 0..count {
        let mut segment = [0; SEGMENT];
        data.read(memory, index * SEGMENT, &mut segment);
        let [sector, sectors, flags] = [le(&segment[..8]), le(&segment[8..12]), le(&segment[12..])];
        let known = if discard { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
        if flags & !u64::from(known) != 0 {
            return Err(Status::Unsupp);
        }
        wrong |= sectors > most.into() || !is_on(disk, sector, sectors);
        unmap &= discard || flags != 0;
        if sectors > 0 {
            ranges.push_back((sector, sectors));
        }
    }
    // Holes of an overlay do not matter; else space is retained if one segment wants that.
    let action = if unmap || disk.is_ephemeral() { Action::Punch } else { Action::Zero };
    if wrong { Err(Status::IoErr) } else { Ok(Task::Clear { action, hint: discard, ranges }) }
}
