//! Host I/O straight into and out of guest memory (readv(2), preadv(2), getrandom(2)).
#![expect(unsafe_code, reason = "the host is handed addresses of guest memory")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{Buffers, retry};
use crate::GuestMemory;

/// The most pieces that one call takes (`UIO_MAXIOV`).
pub const MOST: usize = 1024;

/// Appends an entry for each piece of `buffers`, at most [`MOST`] in all. They point into `memory` and hold as long as it
/// is mapped.
pub fn entries(memory: &GuestMemory, buffers: &Buffers, entries: &mut Vec<libc::iovec>) {
    let room = MOST.saturating_sub(entries.len());
    entries.extend(
        buffers.slices(memory).take(room).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        }),
    );
}

fn checked(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Reads once into guest memory (readv(2)).
///
/// # Errors
/// The call fails; EAGAIN if there is nothing to read.
pub fn read(fd: BorrowedFd<'_>, memory: &GuestMemory, buffers: &Buffers) -> io::Result<usize> {
    let mut list = Vec::with_capacity(16);
    entries(memory, buffers, &mut list);
    // SAFETY: each entry is guest memory, mapped as long as `memory` lives; nothing in this process refers to its
    // content but by volatile accesses.
    retry(|| checked(unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }))
}

/// Writes once out of guest memory (writev(2)).
///
/// # Errors
/// The call fails; EAGAIN if there is no room.
pub fn write(fd: BorrowedFd<'_>, memory: &GuestMemory, buffers: &Buffers) -> io::Result<usize> {
    let mut list = Vec::with_capacity(16);
    entries(memory, buffers, &mut list);
    // SAFETY: as in `read`.
    retry(|| checked(unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.len() as libc::c_int) }))
}

/// Reads once into guest memory, from `offset` of a file on (preadv(2)).
///
/// # Errors
/// The call fails.
pub fn read_at(
    fd: BorrowedFd<'_>,
    memory: &GuestMemory,
    buffers: &Buffers,
    offset: u64,
) -> io::Result<usize> {
    let mut list = Vec::with_capacity(16);
    entries(memory, buffers, &mut list);
    let (fd, count, offset) = (fd.as_raw_fd(), list.len() as libc::c_int, offset as libc::off_t);
    // SAFETY: as in `read`.
    retry(|| checked(unsafe { libc::preadv(fd, list.as_ptr(), count, offset) }))
}

/// Writes once out of guest memory, to `offset` of a file and on (pwritev(2)).
///
/// # Errors
/// The call fails.
pub fn write_at(
    fd: BorrowedFd<'_>,
    memory: &GuestMemory,
    buffers: &Buffers,
    offset: u64,
) -> io::Result<usize> {
    let mut list = Vec::with_capacity(16);
    entries(memory, buffers, &mut list);
    let (fd, count, offset) = (fd.as_raw_fd(), list.len() as libc::c_int, offset as libc::off_t);
    // SAFETY: as in `read`.
    retry(|| checked(unsafe { libc::pwritev(fd, list.as_ptr(), count, offset) }))
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
