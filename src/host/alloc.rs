//! The heap. Where the host gives no more of it, kite ends as it does for all else that the host lacks, with one line
//! and a documented exit code, where the standard library would abort.
#![expect(unsafe_code, reason = "an allocator is unsafe to write")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, Write};

use crate::host::exit_code::FAILED;
use crate::host::terminal;

/// The system's allocator, which here never answers with nothing.
pub struct Heap;

// SAFETY: each method is the system allocator's, called with what its own caller vouches for; an allocation that fails
// does not return.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        given(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        given(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is the same, and all memory here is the system allocator's.
        given(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same, and all memory here is the system allocator's.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn given(memory: *mut u8, size: usize) -> *mut u8 {
    if memory.is_null() {
        exhausted(size);
    }
    memory
}

/// Allocates nothing.
#[cold]
fn exhausted(size: usize) -> ! {
    terminal::restore();
    let _ = writeln!(io::stderr(), "kite: the host has no memory left: {size} bytes more were refused");
    std::process::exit(FAILED.into())
}
