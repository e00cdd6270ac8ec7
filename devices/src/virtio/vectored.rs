//! Host I/O straight into and out of guest memory (readv(2), preadv(2), getrandom(2)).
#![expect(unsafe_code, reason = "the host is handed addresses of guest memory")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use super::{Buffers, retry};
use crate::GuestMemory;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub const MOST: usize = 1024;

/// Appends an entry for each piece of `buffers`, at most [`MOST`] in all. They point into `memory` and hold as long as it
/// is mapped.
pub fn entries(memory: &GuestMemory, buffers: &Buffers, entries: &mut Vec<libc::iovec>) {
    let room = MOST.saturating_sub(entries.len());
    entries.extend(buffers.slices(memory).take(room).map(|slice| entry(&slice)));
}

fn entry(slice: &VolatileSlice<'_, ()>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Calls the host once with the pieces of `buffers` as `call` takes them: a list and its length.
fn transfer(
    memory: &GuestMemory,
    buffers: &Buffers,
    call: impl Fn(*const libc::iovec, libc::c_int) -> isize,
) -> io::Result<usize> {
    let mut list = Vec::with_capacity(16);
    entries(memory, buffers, &mut list);
    retry(|| checked(call(list.as_ptr(), list.len() as libc::c_int)))
}

/// Reads once into guest memory (readv(2)).
///
/// # Errors
/// The call fails; EAGAIN if there is nothing to read.
pub fn read(fd: BorrowedFd<'_>, memory: &GuestMemory, buffers: &Buffers) -> io::Result<usize> {
    // SAFETY: each entry is guest memory, mapped as long as `memory` lives; nothing in this process refers to its
    // content but by volatile accesses.
    transfer(memory, buffers, |list, count| unsafe { libc::readv(fd.as_raw_fd(), list, count) })
}

/// Writes once out of guest memory (writev(2)).
///
/// # Errors
/// The call fails; EAGAIN if there is no room.
pub fn write(fd: BorrowedFd<'_>, memory: &GuestMemory, buffers: &Buffers) -> io::Result<usize> {
    // SAFETY: as in `read`.
    transfer(memory, buffers, |list, count| unsafe { libc::writev(fd.as_raw_fd(), list, count) })
}

/// Reads once into guest memory, from `offset` of a file on (preadv(2)).
///
/// # Errors
/// The call fails.
pub fn read_at(fd: impl AsFd, memory: &GuestMemory, buffers: &Buffers, offset: u64) -> io::Result<usize> {
    let (fd, offset) = (fd.as_fd().as_raw_fd(), offset as libc::off_t);
    // SAFETY: as in `read`.
    transfer(memory, buffers, |list, count| unsafe { libc::preadv(fd, list, count, offset) })
}

/// Writes once out of guest memory, to `offset` of a file and on (pwritev(2)).
///
/// # Errors
/// The call fails.
pub fn write_at(fd: impl AsFd, memory: &GuestMemory, buffers: &Buffers, offset: u64) -> io::Result<usize> {
    let (fd, offset) = (fd.as_fd().as_raw_fd(), offset as libc::off_t);
    // SAFETY: as in `read`.
    transfer(memory, buffers, |list, count| unsafe { libc::pwritev(fd, list, count, offset) })
}

/// As [`read_at`], with flags of preadv2(2).
///
/// # Errors
/// The call fails; EAGAIN if `RWF_NOWAIT` is among the flags and it would wait.
pub fn read_at_as(
    fd: BorrowedFd<'_>,
    memory: &GuestMemory,
    buffers: &Buffers,
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
    // SAFETY: as in `read`.
    transfer(memory, buffers, |list, count| unsafe { libc::preadv2(fd, list, count, offset, flags) })
}

/// As [`write_at`], with flags of pwritev2(2).
///
/// # Errors
/// The call fails.
pub fn write_at_as(
    fd: BorrowedFd<'_>,
    memory: &GuestMemory,
    buffers: &Buffers,
    offset: u64,
    flags: libc::c_int,
) -> io::Result<usize> {
    let (fd, offset) = (fd.as_raw_fd(), offset as libc::off_t);
    // SAFETY: as in `read`.
    transfer(memory, buffers, |list, count| unsafe { libc::pwritev2(fd, list, count, offset, flags) })
}

/// Reads once into `room`, of which no more than the first [`MOST`] - 1 pieces may be there, and what has no room into
/// `beyond` (readv(2)).
///
/// # Errors
/// The call fails; EAGAIN if there is nothing to read.
pub fn read_beyond<'a>(
    fd: BorrowedFd<'_>,
    memory: &GuestMemory,
    room: impl Iterator<Item = &'a Buffers>,
    beyond: &mut [u8],
) -> io::Result<usize> {
    let mut list = Vec::with_capacity(64);
    room.for_each(|buffers| entries(memory, buffers, &mut list));
    list.push(libc::iovec { iov_base: beyond.as_mut_ptr().cast(), iov_len: beyond.len() });
    // SAFETY: as in `read`; the last entry is `beyond`, which is borrowed for this call alone.
    retry(|| checked(unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }))
}

/// Pieces of guest memory and of the host's own, in order, to be sent with one call.
pub struct Gather<'a> {
    memory: &'a GuestMemory,
    list: Vec<libc::iovec>,
    own: PhantomData<&'a [u8]>,
}

impl<'a> Gather<'a> {
    /// Nothing yet; the guest's memory is `memory`.
    pub fn new(memory: &'a GuestMemory) -> Self {
        Self { memory, list: Vec::with_capacity(64), own: PhantomData }
    }

    /// Appends `head`, and then `buffers` from `offset` on, if there is room for all their pieces.
    pub fn push(&mut self, head: &'a [u8], buffers: &Buffers, offset: usize) -> bool {
        let fits = self.list.len() + 1 + buffers.pieces() <= MOST;
        if fits {
            self.list.push(libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() });
            buffers.walk(self.memory, offset, buffers.len(), |slice| self.list.push(entry(&slice)));
        }
        fits
    }

    /// Sends once over a socket, without waiting (sendmsg(2)).
    ///
    /// # Errors
    /// The call fails; EAGAIN if there is no room.
    pub fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        // SAFETY: a message header is integers and pointers, all of which may be zero.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = self.list.as_ptr().cast_mut();
        message.msg_iovlen = self.list.len() as _;
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        // SAFETY: as in `read`; entries of the host's own are borrowed as long as `self` lives, and are only read.
        retry(|| checked(unsafe { libc::sendmsg(socket.as_raw_fd(), &message, flags) }))
    }
}

/// Fills guest memory with entropy (getrandom(2)); returns how many bytes it got.
///
/// # Errors
/// The host has none yet, or no such call.
pub fn random(memory: &GuestMemory, buffers: &Buffers) -> io::Result<usize> {
    let mut done = 0;
    for slice in buffers.slices(memory) {
        let mut at = 0;
        while at < slice.len() {
            let part = slice.offset(at).expect("within the slice");
            let to = part.ptr_guard_mut();
            let got = retry(|| {
                // SAFETY: as in `read`; not more than the slice's length.
                checked(unsafe { libc::getrandom(to.as_ptr().cast(), part.len(), libc::GRND_NONBLOCK) })
            })?;
            at += got;
            done += got;
        }
    }
    Ok(done)
}
