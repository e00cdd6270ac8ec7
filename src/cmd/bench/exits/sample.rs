//! What has been measured: legs, blocks of legs, and a row of blocks.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::counters::Meanwhile;
use crate::cmd::bench::measured::Way;
use crate::cmd::bench::statistics;

/// Which loop answers the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The least there is, or none if user space has no part in it.
    Raw,
    /// kite's own.
    Vmm,
}

impl Way for Path {
    fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vmm => "vmm",
        }
    }

    fn rank(self) -> usize {
        self as usize
    }
}

/// One stretch of operations on one path.
#[derive(Debug)]
pub struct Leg {
    /// The path.
    pub path: Path,
    /// Which part of an operation this is.
    pub stage: &'static str,
    /// What each took, in ticks.
    pub times: Vec<u32>,
    /// Of operations that were timed together, ticks and how many they were.
    pub batch: Option<(u64, u64)>,
    /// What else happened.
    pub meanwhile: Meanwhile,
}

/// What one virtual machine gave.
pub struct Block {
    /// How many times.
    pub n: u64,
    /// [`statistics::QUANTILES`] evenly spaced ones, in ticks.
    pub quantiles: Vec<u32>,
    /// What else happened while it was measured.
    pub meanwhile: Meanwhile,
}

impl Block {
    /// The median in ticks.
    pub fn p50(&self) -> u32 {
        self.quantiles.get(self.quantiles.len() / 2).copied().unwrap_or(0)
    }

    /// Whether this thread lost its CPU more often than once in a thousand operations.
    pub fn is_disturbed(&self) -> bool {
        self.meanwhile.nivcsw * 1000 > self.n
    }
}

/// What was measured of one stage of a payload on one path.
pub struct Row {
    /// The path.
    pub path: Path,
    /// The stage.
    pub stage: &'static str,
    /// All times, in ticks.
    pub all: Histogram<u64>,
    /// The times of blocks that nothing disturbed.
    pub calm: Histogram<u64>,
    /// The blocks.
    pub blocks: Vec<Block>,
    /// Of all batches together, ticks and operations.
    pub batch: (u64, u64),
}

/// The longest time that differs from a longer one, in ticks; about ten seconds.
const LONGEST: u64 = 1 << 36;

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("the bounds are two numbers that make sense")
}

impl Row {
    fn new(path: Path, stage: &'static str) -> Self {
        Self { path, stage, all: histogram(), calm: histogram(), blocks: Vec::new(), batch: (0, 0) }
    }

    /// Adds a block's legs to the rows that they belong to.
    pub fn add_block(rows: &mut Vec<Self>, legs: Vec<Leg>) {
        let mut kinds: Vec<(Path, &'static str)> = Vec::new();
        for leg in &legs {
            if !kinds.contains(&(leg.path, leg.stage)) {
                kinds.push((leg.path, leg.stage));
            }
        }
        for (path, stage) in kinds {
            let row = match rows.iter().position(|row| (row.path, row.stage) == (path, stage)) {
                Some(index) => &mut rows[index],
                None => {
                    rows.push(Self::new(path, stage));
                    rows.last_mut().expect("one was just added")
                }
            };
            row.add(legs.iter().filter(|leg| (leg.path, leg.stage) == (path, stage)));
        }
    }

    fn add<'a>(&mut self, legs: impl Iterator<Item = &'a Leg>) {
        let (mut times, mut meanwhile) = (Vec::new(), Meanwhile::default());
        for leg in legs {
            match leg.batch {
                Some((ticks, count)) => self.batch = (self.batch.0 + ticks, self.batch.1 + count),
                None => {
                    times.extend(&leg.times);
                    meanwhile.add(&leg.meanwhile);
                }
            }
        }
        times.sort_unstable();
        let n = times.len() as u64;
        let block = Block { n, quantiles: statistics::quantiles(&times), meanwhile };
        for time in times {
            self.all.saturating_record(time.into());
            if !block.is_disturbed() {
                self.calm.saturating_record(time.into());
            }
        }
        self.blocks.push(block);
    }

    /// How often a counter of KVM's went up for each operation; nothing without that counter.
    pub fn per_operation(&self, counter: &str) -> Option<f64> {
        let n: u64 = self.blocks.iter().map(|block| block.n).sum();
        let counts = self.blocks.iter().map(|block| block.meanwhile.counters.get(counter).copied());
        let total: u64 = counts.collect::<Option<Vec<_>>>()?.iter().sum();
        (n > 0).then(|| total as f64 / n as f64)
    }

    /// The mean of the batches, in ticks.
    pub fn batch_mean(&self) -> Option<f64> {
        let (ticks, count) = self.batch;
        (count > 0).then(|| ticks as f64 / count as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg(path: Path, times: &[u32]) -> Leg {
        let counters = [("exits".to_owned(), times.len() as u64)].into();
        let meanwhile = Meanwhile { counters, ..Default::default() };
        Leg { path, stage: "total", times: times.to_vec(), batch: None, meanwhile }
    }

    #[test]
    fn legs_of_one_path_are_one_block_of_its_row() {
        let mut rows = Vec::new();
        for _ in 0..2 {
            let legs = [
                leg(Path::Raw, &[1, 2]),
                leg(Path::Vmm, &[10]),
                leg(Path::Vmm, &[12]),
                leg(Path::Raw, &[3]),
                Leg { batch: Some((500, 100)), ..leg(Path::Raw, &[]) },
            ];
            Row::add_block(&mut rows, legs.into());
        }
        let [raw, vmm] = &rows[..] else { panic!("{} rows", rows.len()) };
        assert_eq!((raw.all.len(), raw.blocks.len(), raw.all.max()), (6, 2, 3));
        assert_eq!((vmm.all.len(), vmm.blocks.len(), vmm.all.min()), (4, 2, 10));
        assert_eq!((raw.per_operation("exits"), raw.per_operation("other")), (Some(1.0), None));
        assert_eq!((raw.batch_mean(), vmm.batch_mean()), (Some(5.0), None));
    }

    #[test]
    fn the_far_tail_is_of_blocks_that_kept_their_cpu() {
        let mut rows = Vec::new();
        Row::add_block(&mut rows, vec![leg(Path::Raw, &[5; 1000])]);
        let mut disturbed = leg(Path::Raw, &[9; 1000]);
        disturbed.meanwhile.nivcsw = 2;
        Row::add_block(&mut rows, vec![disturbed]);
        assert_eq!((rows[0].all.max(), rows[0].calm.max()), (9, 5));
    }
}
