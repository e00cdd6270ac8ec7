//! What every payload's measurement has in common: blocks, each with a virtual machine of its own.

use std::time::{Duration, Instant};

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

/// Measures `blocks` blocks, or fewer if they take very long; `tick` is called behind each.
///
/// # Errors
/// Why this host cannot do it.
pub fn measure(
    payload: &mut dyn Measure,
    host: &Host,
    budget: &Budget,
    blocks: u32,
    mut tick: impl FnMut(),
) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    let start = Instant::now();
    for index in 0..blocks {
        let most = budget.time * blocks * 3;
        if index < LEAST_BLOCKS || start.elapsed() < most {
            Row::add_block(&mut rows, payload.block(host, budget)?);
        }
        tick();
    }
    Ok(rows)
}
