//! Memory regions of functions, which the guest places in the host bridge's window: no other address is passed on to them.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::Function;
use crate::bus::BusDevice;

/// No function has its region here.
const NOWHERE: u64 = u64::MAX;

/// Where a function's memory region is.
pub struct Place {
    window: Range<u64>,
    len: u64,
    base: AtomicU64,
}

impl Place {
    /// A region of `len` bytes that is nowhere yet, and can be within `window` only.
    pub fn new(window: Range<u64>, len: u64) -> Self {
        Self { window, len, base: AtomicU64::new(NOWHERE) }
    }

    /// Moves the region; it is nowhere if it is not whole in the window. Answers where it is, if that has changed.
    pub fn set(&self, base: Option<u64>) -> Option<Option<u64>> {
        let fits = |base: &u64| {
            *base >= self.window.start && base.checked_add(self.len).is_some_and(|end| end <= self.window.end)
        };
        let base = base.filter(fits);
        let new = base.unwrap_or(NOWHERE);
        (self.base.swap(new, Ordering::SeqCst) != new).then_some(base)
    }

    /// How far into the region `address` is, if it is in it.
    fn offset(&self, address: u64) -> Option<u64> {
        let base = self.base.load(Ordering::SeqCst);
        address.checked_sub(base).filter(|offset| base != NOWHERE && *offset < self.len)
    }
}

/// A function and where its memory region is.
pub type Placed = (Arc<Place>, Arc<Mutex<dyn Function>>);

/// A part of the window. It has no state: several parts, each with the lock of its own, have the same functions.
///
/// Where regions overlap the first function answers.
pub struct Window {
    start: u64,
    functions: Arc<[Placed]>,
}

impl Window {
    /// The part that begins at `start`.
    pub fn new(start: u64, functions: Arc<[Placed]>) -> Self {
        Self { start, functions }
    }

    fn find(&self, offset: u64) -> Option<(u64, &Mutex<dyn Function>)> {
        let address = self.start.checked_add(offset)?;
        self.functions.iter().find_map(|(place, function)| Some((place.offset(address)?, &**function)))
    }
}

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((at, function)) => {
                function.lock().unwrap_or_else(PoisonError::into_inner).read(at, data);
            }
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((at, function)) = self.find(offset) {
            function.lock().unwrap_or_else(PoisonError::into_inner).write(at, data);
        }
    }
}
