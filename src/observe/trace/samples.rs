//! How the exits of each device grew over time: looked at now and then, and less often the longer it takes, so that a
//! guest that runs for ever takes no more room.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::observe::stats::Stats;

/// No more are kept.
const MOST: usize = 1024;
/// How often to look at first.
const FIRST: Duration = Duration::from_millis(5);

/// One look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    pub at: Instant,
    /// Each device's exits since the start.
    pub exits: BTreeMap<String, u64>,
}

/// All looks.
#[derive(Clone, Debug)]
pub struct Samples {
    pub(super) kept: Vec<Sample>,
    every: Duration,
    next: Instant,
}

impl Default for Samples {
    fn default() -> Self {
        Self { kept: Vec::new(), every: FIRST, next: Instant::now() }
    }
}

impl Samples {
    /// When to look again.
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time.
    pub fn look(&mut self, now: Instant, stats: &Stats) {
        if now >= self.next {
            self.keep(now, stats.exits_by_device());
        }
    }

    fn keep(&mut self, now: Instant, exits: BTreeMap<String, u64>) {
        if self.kept.len() == MOST {
            // Every second goes, and from now on there are half as many.
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.every *= 2;
        }
        self.kept.push(Sample { at: now, exits });
        self.next = now + self.every;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_runs_on_is_looked_at_less_often_and_the_start_is_kept() {
        let mut samples = Samples::default();
        let start = Instant::now();
        let mut now = start;
        for count in 0..10_000 {
            samples.keep(now, [("serial".to_owned(), count)].into());
            now = samples.next();
        }
        assert!(samples.kept.len() <= MOST && samples.kept.len() >= MOST / 2);
        assert_eq!((samples.kept[0].at, samples.kept[0].exits["serial"]), (start, 0));
        assert!(samples.kept.is_sorted_by_key(|sample| sample.exits["serial"]));
        assert!(samples.every > FIRST * 10_000);
    }
}
