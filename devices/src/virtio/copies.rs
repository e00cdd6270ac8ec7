//! Guest memory that is replaced by a copy of itself while the host writes to it.
//!
//! The thread that replaces it holds the vCPUs paused and every device locked, and waits for nothing else: what is in flight may wait for
//! the host for ever. So what the host writes meanwhile may go to the pages of before. What a device writes itself
//! waits for the moment that the copy takes ([`Copies::write`]); what the host reads from a file into guest memory
//! ([`Copies::count`]) is read once more.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// How often a guest's memory was replaced by a copy, and whether it is just being.
#[derive(Debug, Default)]
pub struct Copies {
    count: AtomicU64,
    busy: RwLock<()>,
}

impl Copies {
    /// How often memory was replaced. If that is the same before and after, by who holds the device's lock or is in
    /// [`Self::write`], what was written in between is there.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// Does something short with guest memory, while it is not being copied.
    pub fn write<T>(&self, action: impl FnOnce() -> T) -> T {
        let _not_now = self.busy.read().unwrap_or_else(PoisonError::into_inner);
        action()
    }

    /// Replaces guest memory by a copy of itself.
    pub fn copy<T>(&self, replace: impl FnOnce() -> T) -> T {
        let _alone = self.busy.write().unwrap_or_else(PoisonError::into_inner);
        let result = replace();
        self.count.fetch_add(1, Ordering::Release);
        result
    }
}
