//! How often something happened and how long it took: counted by one thread, read by any, without a lock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A power of two is divided into so many parts, as a power of two: a percentile is off by a sixteenth at most.
const PARTS: u32 = 3;
/// Ticks are counted as this many bits at most, some 20 seconds.
const BITS: u32 = 36;
/// How many buckets of time there are.
const LENGTHS: usize = ((BITS - PARTS + 1) << PARTS) as usize;

/// The numbers of one kind of event. Only one thread at a time may [`Self::add`].
pub struct Histogram {
    count: AtomicU64,
    ticks: AtomicU64,
    longest: AtomicU64,
    lengths: [AtomicU32; LENGTHS],
}

impl Default for Histogram {
    fn default() -> Self {
        let zero = || AtomicU64::new(0);
        let lengths = std::array::from_fn(|_| AtomicU32::new(0));
        Self { count: zero(), ticks: zero(), longest: zero(), lengths }
    }
}

impl Histogram {
    /// Counts an event that took `ticks`.
    #[inline]
    pub fn add(&self, ticks: u64) {
        // Nobody else writes, so that none of these needs to lock the bus.
        let add = |to: &AtomicU64, more: u64| {
            to.store(to.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
        };
        add(&self.count, 1);
        add(&self.ticks, ticks);
        if ticks > self.longest.load(Ordering::Relaxed) {
            self.longest.store(ticks, Ordering::Relaxed);
        }
        let length = &self.lengths[length(ticks)];
        length.store(length.load(Ordering::Relaxed).saturating_add(1), Ordering::Relaxed);
    }

    /// How many events there were, and how many ticks they took together.
    pub fn totals(&self) -> (u64, u64) {
        (self.count.load(Ordering::Relaxed), self.ticks.load(Ordering::Relaxed))
    }
}

/// The bucket of `ticks`.
#[inline]
fn length(ticks: u64) -> usize {
    let ticks = ticks.min((1 << BITS) - 1);
    let top = 63 - (ticks | 1 << PARTS).leading_zeros();
    let shift = top - PARTS;
    // The part has its leading one where a greater power adds a whole round of parts.
    (u64::from(shift) << PARTS) as usize + (ticks >> shift) as usize
}

/// The middle of a length, in ticks.
fn middle(length: usize) -> u64 {
    let parts = 1 << PARTS;
    if length < 2 * parts {
        return length as u64;
    }
    let shift = (length >> PARTS) - 1;
    let part = (length - (shift << PARTS)) as u64;
    (part << shift) + (1 << shift >> 1)
}

/// Several histograms taken together.
#[derive(Clone)]
pub struct Sum {
    /// How many events.
    pub count: u64,
    /// How many ticks they took together.
    pub ticks: u64,
    /// How many ticks the longest took.
    pub longest: u64,
    lengths: Vec<u64>,
}

impl Default for Sum {
    fn default() -> Self {
        Self { count: 0, ticks: 0, longest: 0, lengths: vec![0; LENGTHS] }
    }
}

impl Sum {
    /// Takes `histogram` in. Of one that is being counted, the last event may be in some numbers and not in others.
    pub fn add(&mut self, histogram: &Histogram) {
        let (count, ticks) = histogram.totals();
        self.count += count;
        self.ticks = self.ticks.wrapping_add(ticks);
        self.longest = self.longest.max(histogram.longest.load(Ordering::Relaxed));
        for (sum, length) in self.lengths.iter_mut().zip(&histogram.lengths) {
            *sum += u64::from(length.load(Ordering::Relaxed));
        }
    }

    /// Takes another sum in.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.ticks = self.ticks.wrapping_add(other.ticks);
        self.longest = self.longest.max(other.longest);
        for (sum, length) in self.lengths.iter_mut().zip(&other.lengths) {
            *sum += length;
        }
    }

    /// How many ticks at most `thousandths` of the events took; none if there were none.
    pub fn percentile(&self, thousandths: u64) -> u64 {
        let count: u64 = self.lengths.iter().sum();
        let wanted = (count * thousandths).div_ceil(1000).max(1);
        let mut seen = 0;
        let found = self.lengths.iter().position(|length| {
            seen += length;
            seen >= wanted
        });
        found.map_or(0, |length| middle(length).min(self.longest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_near_what_it_stands_for() {
        let sparse = (8..36).flat_map(|power| [(1 << power) - 1, 1 << power, (1 << power) + 12_345]);
        for ticks in (0..5000).chain(sparse) {
            let middle = middle(length(ticks));
            assert!(middle.abs_diff(ticks) <= ticks / 16, "{ticks} is taken for {middle}");
        }
        assert!((0..5000).is_sorted_by_key(length));
        assert_eq!(length(u64::MAX), LENGTHS - 1);
        assert_eq!(length((1 << BITS) - 1), LENGTHS - 1);
    }

    #[test]
    fn percentiles_are_those_of_all_events() {
        let (one, other) = (Histogram::default(), Histogram::default());
        (0..90).for_each(|_| one.add(100));
        (0..9).for_each(|_| other.add(10_000));
        other.add(1_000_000);
        let mut sum = Sum::default();
        sum.add(&one);
        let mut second = Sum::default();
        second.add(&other);
        sum.merge(&second);
        assert_eq!((sum.count, sum.ticks, sum.longest), (100, 9_000 + 90_000 + 1_000_000, 1_000_000));
        let near = |found: u64, wanted: u64| found.abs_diff(wanted) <= wanted / 16;
        assert!(near(sum.percentile(500), 100) && near(sum.percentile(900), 100));
        assert!(near(sum.percentile(990), 10_000));
        assert!(near(sum.percentile(1000), 1_000_000));
        assert_eq!(Sum::default().percentile(500), 0);
    }

    #[test]
    fn no_percentile_is_longer_than_the_longest() {
        let histogram = Histogram::default();
        histogram.add(1025);
        let mut sum = Sum::default();
        sum.add(&histogram);
        assert_eq!(sum.percentile(990), 1025);
    }
}
