//! Requests and replies in this process's own memory.
#![expect(unsafe_code, reason = "reads and writes as the device does")]

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};

use super::super::server::Exchange;

/// A request as /dev/fuse gives it, and its reply.
pub struct Message<'a> {
    pub request: &'a [u8],
    pub reply: &'a mut [u8],
}

impl Exchange for Message<'_> {
    fn asked(&self) -> usize {
        self.request.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let from = self.request.get(offset..).unwrap_or_default();
        let len = from.len().min(into.len());
        into[..len].copy_from_slice(&from[..len]);
        len
    }

    fn room(&self) -> usize {
        self.reply.len()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.reply[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn fill(&mut self, at: Range<usize>, file: &OwnedFd, from: u64, wait: bool) -> io::Result<usize> {
        let part = &mut self.reply[at];
        let piece = libc::iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() };
        let flags = if wait { 0 } else { libc::RWF_NOWAIT };
        // SAFETY: the piece is `part`.
        let got = unsafe { libc::preadv2(file.as_raw_fd(), &raw const piece, 1, from.cast_signed(), flags) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    fn drain(&self, offset: usize, len: usize, file: &OwnedFd, to: u64, append: bool) -> io::Result<usize> {
        let part = &self.request[offset..offset + len];
        let piece = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        let flags = if append { libc::RWF_APPEND } else { 0 };
        // SAFETY: the piece is `part`, which is only read.
        let put = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const piece, 1, to.cast_signed(), flags) };
        usize::try_from(put).map_err(|_| io::Error::last_os_error())
    }
}
