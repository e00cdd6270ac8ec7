//! What every payload's measurement has in common: blocks, each with a virtual machine of its own.

use std::time::{Duration, Instant};

use super::payload::Payload;
use super::rig::Host;
use super::sample::{Leg, Row};

/// What one block may take.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// For its timed legs together.
    pub time: Duration,
    /// A block has at least so many times of each kind.
    pub least: u64,
    /// The CPU of vCPU 0, and of whatever else there is; the same if there is one.
    pub cpus: [usize; 2],
    /// How many ticks a microsecond has.
    pub ticks_per_us: f64,
}

impl Budget {
    /// In ticks.
    pub fn ticks(&self, microseconds: f64) -> u64 {
        (self.ticks_per_us * microseconds) as u64
    }
}

/// How a payload is measured.
pub trait Measure {
    /// Measures one block, in a new virtual machine.
    ///
    /// # Errors
    /// Why this host cannot do it.
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>>;
}

/// However slow a payload is, so many blocks there are.
const LEAST_BLOCKS: u32 = 3;
/// It may take so many times longer than it should, building machines and all.
const PATIENCE: u32 = 3;

/// A payload that is being measured.
pub struct Subject<'a> {
    /// Which.
    pub payload: &'a Payload,
    measure: Box<dyn Measure>,
    rows: Vec<Row>,
    taken: Duration,
    failed: Option<anyhow::Error>,
}

impl<'a> Subject<'a> {
    /// Nothing is measured yet; `failed` says why nothing ever will be.
    pub fn new(payload: &'a Payload, failed: Option<anyhow::Error>) -> Self {
        Self { payload, measure: (payload.make)(), rows: Vec::new(), taken: Duration::ZERO, failed }
    }

    /// Measures block `index` of `blocks`, unless the blocks before took too long.
    pub fn block(&mut self, host: &Host, budget: &Budget, (index, blocks): (u32, u32)) {
        let enough = index >= LEAST_BLOCKS && self.taken > budget.time * blocks * PATIENCE;
        if enough || self.failed.is_some() {
            return;
        }
        let start = Instant::now();
        match self.measure.block(host, budget) {
            Ok(legs) => Row::add_block(&mut self.rows, legs),
            Err(error) => self.failed = Some(error),
        }
        self.taken += start.elapsed();
    }

    /// What was measured. One block that fails behind others is not that this host cannot do it: it is left out, and the
    /// number of blocks tells.
    ///
    /// # Errors
    /// Why this host cannot do it.
    pub fn finish(self) -> anyhow::Result<Vec<Row>> {
        match self.failed {
            Some(error) if self.rows.iter().all(|row| row.blocks.len() < LEAST_BLOCKS as usize) => Err(error),
            _ => Ok(self.rows),
        }
    }
}
