//! Event descriptors (eventfd(2)) by which threads, KVM and devices wake one another.

use anyhow::Context;
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

/// What of a refused eventfd is said.
const REFUSED: &str = "cannot make an eventfd";

/// An event that is read without waiting.
///
/// # Errors
/// The process has no descriptor left.
pub fn event() -> anyhow::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).context(REFUSED)
}

/// An event whose reader waits for it.
///
/// # Errors
/// The process has no descriptor left.
pub fn awaited_event() -> anyhow::Result<EventFd> {
    EventFd::from_flags(EfdFlags::EFD_CLOEXEC).context(REFUSED)
}

/// An event that KVM writes or reads, too.
///
/// # Errors
/// The process has no descriptor left.
pub fn kvm_event() -> anyhow::Result<vmm_sys_util::eventfd::EventFd> {
    vmm_sys_util::eventfd::EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).context(REFUSED)
}
