//! What kite itself keeps in memory while a guest runs: what only the start needed is given back.
#![expect(unsafe_code, reason = "tells the kernel and the allocator about this process's own memory")]

unsafe extern "C" {
    /// Where the linker begins the program: headers, constants, then code.
    static __executable_start: u8;
    /// Where it ends the code.
    static etext: u8;
}

const PAGE: usize = 4096;

/// Keeps to one heap: the allocator makes one more for each thread otherwise, with system calls and 64 MiB of address
/// space each, and kite's threads hardly allocate.
pub fn keep_one_heap() {
    // SAFETY: sets a number in the allocator.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives back free heap, and code and constants as by [`drop_code`].
pub fn shrink() {
    // SAFETY: trims free memory only.
    unsafe { libc::malloc_trim(0) };
    drop_code();
}

/// Gives back the pages of code and constants. What is used again comes back from the page cache, some pages at a time: it
/// is best done right before a long wait.
pub fn drop_code() {
    let start = (&raw const __executable_start).addr();
    let len = (&raw const etext).addr().saturating_sub(start) / PAGE * PAGE;
    // SAFETY: these pages are the file's own, mapped read-only and never written (the program is linked where it is
    // loaded, so nothing was relocated in them): dropped, they read the same when they come back. An advice that the
    // kernel does not take changes nothing.
    unsafe { libc::madvise(std::ptr::without_provenance_mut(start), len, libc::MADV_DONTNEED) };
}
