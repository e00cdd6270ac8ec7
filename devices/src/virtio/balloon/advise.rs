//! Gives guest memory back to the host (madvise(2)).
#![expect(unsafe_code, reason = "drops pages of guest memory")]

use std::io;

use vm_memory::VolatileSlice;

use crate::virtio::retry;

/// The size of a page of the balloon in bytes, which is the host's too (virtio 1.2 §5.5.6).
pub const PAGE: usize = 4096;

/// Drops the whole pages within `slice`, of guest memory: the next read finds other content, zeros mostly.
/// Returns how many bytes that were.
///
/// # Errors
/// The host refuses: they are locked, say.
pub fn give_back(slice: &VolatileSlice<'_, ()>) -> io::Result<usize> {
    let guard = slice.ptr_guard_mut();
    let start = guard.as_ptr();
    let head = start.align_offset(PAGE);
    let len = slice.len().saturating_sub(head) / PAGE * PAGE;
    if len == 0 {
        return Ok(0);
    }
    retry(|| {
        // SAFETY: `head + len` is at most the slice's length, so all of the range is guest memory, which is mapped as long
        // as the slice lives. Nothing in this process refers to its content but by volatile accesses, and the guest has
        // said that it does not need it.
        let result = unsafe { libc::madvise(start.wrapping_add(head).cast(), len, libc::MADV_DONTNEED) };
        if result == 0 { Ok(len) } else { Err(io::Error::last_os_error()) }
    })
}
