//! System calls asked in a way that only answers: io_uring_setup(2), landlock_create_ruleset(2), unshare(2).
#![expect(unsafe_code, reason = "raw system calls; none is given memory to read or write")]

use std::ptr;

use nix::errno::Errno;

/// `LANDLOCK_CREATE_RULESET_VERSION`: answer the ABI version instead of making a ruleset.
const VERSION: libc::c_uint = 1;

/// How io_uring_setup(2) refuses a null pointer: `EFAULT` where io_uring works.
pub(super) fn io_uring_setup_error() -> Errno {
    // SAFETY: a null `params` cannot be read, so the kernel refuses it and no ring is made.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1 as libc::c_uint, ptr::null::<libc::c_void>()) };
    Errno::last()
}

/// How unshare(2) refuses a flag that does not exist: `EINVAL` where namespaces are allowed, as a filter comes first.
pub(super) fn unshare_error() -> Errno {
    // A signal's number, which is no flag of this call.
    const NO_FLAG: libc::c_int = 1;
    // SAFETY: takes a number; the kernel refuses the whole for the one flag, and nothing is changed.
    unsafe { libc::unshare(libc::CLONE_NEWUSER | NO_FLAG) };
    Errno::last()
}

/// The kernel's Landlock ABI version.
pub(super) fn landlock_abi() -> Result<i64, Errno> {
    // SAFETY: with this flag the kernel takes no memory (null, 0) and makes no descriptor.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<libc::c_void>(), 0_usize, VERSION)
    })
}
