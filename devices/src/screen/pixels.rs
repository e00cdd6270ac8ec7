//! Where pixels are.

use std::collections::TryReserveError;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Memory with pixels of 32 bits, `0xXXRRGGBB`, which the guest may change while it is read.
pub trait Pixels: Send + Sync {
    /// Reads pixels from number `at` on; what is not there is black. The upper eight bits of a pixel may be anything.
    fn read(&self, at: usize, into: &mut [u32]);

    /// Whether nothing says when pixels change, so that [`Self::changed`] has to be asked now and then.
    fn is_silent(&self) -> bool {
        false
    }

    /// Hands the numbers of pixels that may have changed since the last call to `report`, if nothing else says so. Called
    /// by viewers' threads, one at a time.
    fn changed(&self, _report: &mut dyn FnMut(Range<usize>)) {}
}

/// Pixels in memory of the host.
#[derive(Debug, Default)]
pub struct PixelMemory(Vec<AtomicU32>);

impl PixelMemory {
    /// So many black pixels.
    ///
    /// # Errors
    /// The host has no room for them.
    pub fn new(count: usize) -> Result<Self, TryReserveError> {
        let mut pixels = Vec::new();
        pixels.try_reserve_exact(count)?;
        pixels.resize_with(count, AtomicU32::default);
        Ok(Self(pixels))
    }

    /// Writes pixels from number `at` on; what does not fit is dropped.
    pub fn write(&self, at: usize, pixels: impl Iterator<Item = u32>) {
        let places = self.0.get(at..).unwrap_or_default();
        places.iter().zip(pixels).for_each(|(place, pixel)| place.store(pixel, Ordering::Relaxed));
    }
}

impl Pixels for PixelMemory {
    fn read(&self, at: usize, into: &mut [u32]) {
        let places = self.0.get(at..).unwrap_or_default();
        let count = places.len().min(into.len());
        let (inside, outside) = into.split_at_mut(count);
        inside.iter_mut().zip(places).for_each(|(pixel, place)| *pixel = place.load(Ordering::Relaxed));
        outside.fill(0);
    }
}
