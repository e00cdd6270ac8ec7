//! Operations through io_uring(7), straight between the files and guest memory.
//!
//! The ring's own descriptor is what is watched: it is ready as long as completions wait, so that those which were
//! there at once, and have been taken, wake no thread. There is no eventfd to write and to read.
//!
//! A ring does what is asked of it without a system call that a filter would see, so it is restricted itself to what disks
//! need (io_uring_register(2), IORING_REGISTER_RESTRICTIONS): it opens no file, makes no socket, and works on no other
//! file than the disk's own, which are registered with it and named by their place there.
#![expect(unsafe_code, reason = "the kernel is handed addresses of guest memory")]

use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::{fmt, io};

use io_uring::register::Restriction;
use io_uring::{IoUring, Probe, opcode, squeue, types};

use super::disk::{Disk, Target};
use super::engine::{Action, Engine, Job, ZEROS};
use crate::GuestMemory;
use crate::virtio::{retry, vectored};

/// Entries of the submission ring: as many as one service takes from a queue.
const ENTRIES: u32 = 256;
/// The most operations that the kernel has at a time; more wait here.
const MOST: usize = 4096;

/// All that a ring can be asked for.
const OPERATIONS: [u8; 6] = [
    opcode::Read::CODE,
    opcode::Write::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
];

/// The ring that the last engine of a disk passes to the next: when a guest starts again, kite may no longer be allowed
/// to make one.
#[derive(Default)]
pub struct Spare(Mutex<Previous>);

#[derive(Default)]
struct Previous {
    /// There was an engine, or there was to be one.
    tried: bool,
    ring: Option<IoUring>,
}

impl Spare {
    fn lock(&self) -> MutexGuard<'_, Previous> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ring of the last engine, or the first.
    fn take(&self, most: usize, files: &[RawFd]) -> io::Result<IoUring> {
        let mut previous = self.lock();
        match (previous.ring.take(), std::mem::replace(&mut previous.tried, true)) {
            (Some(ring), _) => Ok(ring),
            (None, false) => ring(most, files),
            (None, true) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl fmt::Debug for Spare {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Spare")
    }
}

/// A ring, and what the kernel works on.
pub struct Uring {
    /// Goes back to the disk at the end.
    ring: ManuallyDrop<IoUring>,
    disk: Arc<Disk>,
    memory: GuestMemory,
    /// What the kernel has, by the number it knows them by.
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// What found no room.
    waiting: VecDeque<Job>,
    most: usize,
}

struct Slot {
    job: Job,
    /// The kernel reads it, at the latest when it begins.
    _pieces: Vec<libc::iovec>,
}

// SAFETY: the addresses in `_pieces` are of guest memory, which any thread may use.
unsafe impl Send for Uring {}

impl Uring {
    /// A ring for up to `depth` jobs at a time: the one that the disk's last engine had, or a new one.
    ///
    /// # Errors
    /// The host forbids io_uring, or lacks an operation that is needed, or cannot restrict a ring to those.
    pub fn new(disk: Arc<Disk>, memory: GuestMemory, depth: usize) -> io::Result<Self> {
        let most = depth.clamp(1, MOST);
        let ring = disk.ring().take(most, &FILES.map(|target| disk.fd(target).as_raw_fd()))?;
        let (slots, free, waiting) = (Vec::new(), Vec::new(), VecDeque::new());
        Ok(Self { ring: ManuallyDrop::new(ring), disk, memory, slots, free, waiting, most })
    }

    /// The entry of `job`, and the list that this may point to.
    fn entry(&self, job: &Job) -> (squeue::Entry, Vec<libc::iovec>) {
        let op = &job.op;
        let fd = place(op.target);
        let mut pieces = Vec::new();
        let allocate = |mode| opcode::Fallocate::new(fd, op.len).offset(op.offset).mode(mode).build();
        let entry = match op.action {
            Action::Read | Action::Write => {
                vectored::entries(&self.memory, &op.buffers, &mut pieces);
                let (list, count) = (pieces.as_ptr(), pieces.len() as u32);
                match (op.action, pieces.as_slice()) {
                    (Action::Read, [one]) => {
                        opcode::Read::new(fd, one.iov_base.cast(), length(one)).offset(op.offset).build()
                    }
                    (Action::Read, _) => opcode::Readv::new(fd, list, count).offset(op.offset).build(),
                    (_, [one]) => {
                        opcode::Write::new(fd, one.iov_base.cast(), length(one)).offset(op.offset).build()
                    }
                    _ => opcode::Writev::new(fd, list, count).offset(op.offset).build(),
                }
            }
            Action::WriteZeros => {
                let len = op.len.min(ZEROS.len() as u64) as u32;
                opcode::Write::new(fd, ZEROS.as_ptr(), len).offset(op.offset).build()
            }
            Action::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            Action::Punch => allocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE),
            Action::Zero => allocate(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE),
        };
        (entry, pieces)
    }

    fn held(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts `job` into the submission ring, which has room.
    fn enter(&mut self, job: Job) {
        let (entry, pieces) = self.entry(&job);
        let slot = Some(Slot { job, _pieces: pieces });
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number] = slot;
                number
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        let entry = entry.user_data(number as u64);
        // SAFETY: guest memory, the list of pieces and the files live until the completion: `memory`, the slot and
        // `disk` keep them, and dropping waits. Guest memory is only accessed volatilely, and zeros are never written.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        pushed.expect("the caller made room");
    }

    /// Calls the kernel until it has taken everything that is in the submission ring, and waits for `want` completions.
    fn call(&mut self, want: usize) {
        loop {
            match retry(|| self.ring.submit_and_wait(want)) {
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(_) => {}
                // Short of memory for a moment. There is nothing to give back: the entries are the kernel's.
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }
}

/// A disk's files, in the order in which a ring has them. Where a disk has fewer, one of them comes more than once.
const FILES: [Target; 3] = [Target::Image, Target::Direct, Target::Overlay];

/// The place of a disk's file in a ring.
fn place(target: Target) -> types::Fixed {
    let place = FILES.iter().position(|it| *it == target);
    types::Fixed(place.expect("a ring has every file") as u32)
}

/// A ring for up to `most` operations at a time on these `files`, and of no other kind than disks need.
fn ring(most: usize, files: &[RawFd]) -> io::Result<IoUring> {
    let size = (2 * ENTRIES).max(most.next_power_of_two() as u32);
    let build = |cooperative| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(size).dontfork().setup_r_disabled();
        if cooperative {
            builder.setup_coop_taskrun();
        }
        builder.build(ENTRIES)
    };
    // Cooperative, completions interrupt no running thread; kernels before 5.19 cannot.
    let ring = build(true).or_else(|_| build(false))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    if !OPERATIONS.iter().all(|code| probe.is_supported(*code)) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    ring.submitter().register_files(files)?;
    // Kernels before 5.10 cannot, and have no ring that is disabled at first.
    let operations = OPERATIONS.map(Restriction::sqe_op).into_iter();
    let mut restrictions: Vec<_> =
        operations.chain([Restriction::sqe_flags_required(squeue::Flags::FIXED_FILE.bits())]).collect();
    ring.submitter().register_restrictions(&mut restrictions)?;
    ring.submitter().register_enable_rings()?;
    // That entering is allowed too; nothing is submitted yet.
    ring.submitter().submit_and_wait(0)?;
    Ok(ring)
}

/// At most what one operation counts; the rest follows.
fn length(piece: &libc::iovec) -> u32 {
    u32::try_from(piece.iov_len).unwrap_or(1 << 30)
}

impl Engine for Uring {
    fn push(&mut self, job: Job) {
        if self.held() >= self.most {
            return self.waiting.push_back(job);
        }
        if self.ring.submission().is_full() {
            self.call(0);
        }
        self.enter(job);
    }

    fn submit(&mut self) {
        while self.held() < self.most
            && let Some(job) = self.waiting.pop_front()
        {
            self.push(job);
        }
        if !self.ring.submission().is_empty() {
            self.call(0);
        }
    }

    fn completed(&mut self) -> Option<(Job, io::Result<usize>)> {
        let completion = self.ring.completion().next()?;
        let number = completion.user_data() as usize;
        let slot = self.slots.get_mut(number)?.take().expect("the kernel completes what it was given, once");
        self.free.push(number);
        let result = usize::try_from(completion.result())
            .map_err(|_| io::Error::from_raw_os_error(-completion.result()));
        Some((slot.job, result))
    }

    fn in_flight(&self) -> usize {
        self.held() + self.waiting.len()
    }

    fn wait(&mut self) {
        self.submit();
        if self.held() > 0 && self.ring.completion().is_empty() {
            self.call(1);
        }
    }

    fn source(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring owns the descriptor for as long as it is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.waiting.clear();
        while self.held() > 0 {
            self.wait();
            while self.completed().is_some() {}
        }
        // SAFETY: it is not used after this, which happens once.
        let ring = unsafe { ManuallyDrop::take(&mut self.ring) };
        self.disk.ring().lock().ring = Some(ring);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ring_works_on_the_disk_s_files_alone_and_is_used_again() {
        let disk = Arc::new(Disk::new(tempfile::tempfile().unwrap(), 0));
        let memory = crate::virtio::testing::memory();
        let mut uring = match Uring::new(disk.clone(), memory.clone(), 8) {
            Ok(uring) => uring,
            Err(error) => {
                return println!(
                    "skipped: a_ring_works_on_the_disk_s_files_alone_and_is_used_again: {error}"
                );
            }
        };
        let mut ask = |entry: squeue::Entry| {
            // SAFETY: what the entry points to is constant.
            unsafe { uring.ring.submission().push(&entry) }.unwrap();
            uring.ring.submit_and_wait(1).unwrap();
            uring.ring.completion().next().unwrap().result()
        };
        let open = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), c"/".as_ptr()).build();
        assert_eq!(ask(open), -libc::EACCES);
        assert_eq!(ask(opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()), -libc::EACCES);
        let other = tempfile::tempfile().unwrap();
        let other = types::Fd(other.as_raw_fd());
        assert_eq!(ask(opcode::Fsync::new(other).build()), -libc::EACCES);
        assert_eq!(ask(opcode::Fallocate::new(other, 4096).build()), -libc::EACCES);
        let sync = |place| opcode::Fsync::new(types::Fixed(place)).build();
        assert_eq!([0, 2, 3, u32::MAX].map(|place| ask(sync(place))), [0, 0, -libc::EBADF, -libc::EBADF]);
        assert_eq!(ask(sync(0).flags(squeue::Flags::ASYNC)), -libc::EACCES);
        assert_eq!(
            uring.ring.submitter().register_files(&[0]).unwrap_err().raw_os_error(),
            Some(libc::EACCES)
        );

        // The disk's next engine has the same one.
        let number = uring.ring.as_raw_fd();
        drop(uring);
        assert_eq!(Uring::new(disk, memory, 8).unwrap().ring.as_raw_fd(), number);
    }
}
