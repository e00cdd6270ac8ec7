//! What was measured, in the form that is kept: schema `exits/1`, which `resources/doc/json.md` describes.

use std::io::{self, Write};

use serde::{Deserialize, Serialize};

use super::clock::Overhead;
use super::payload::Payload;
use super::sample::{Block, Path, Row};
use super::{page, table};
use crate::cmd::bench::compare::{self, Change};
use crate::cmd::bench::measured::{self, BlockMeasured};
use crate::cmd::bench::statistics::{self, Random, SEED};
use crate::cmd::bench::tell::{Head, Told};

/// A row of the table.
pub type Measured = measured::Measured<Path>;

/// How far a counter may be from what is expected, and a batch from the single times.
const CLOSE: f64 = 0.02;
const BATCH_CLOSE: f64 = 0.05;

/// All of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What measured, when and where.
    #[serde(flatten)]
    pub head: Head,
    /// The clocks.
    pub clock: Clock,
    /// How.
    pub run: Run,
    /// What was measured.
    pub results: Vec<Measured>,
    /// What follows from it.
    pub derived: Vec<Derived>,
    /// What this host cannot do.
    pub skipped: Vec<Skipped>,
    /// Other monitors, running the same guests.
    #[serde(default)]
    pub peers: Vec<Peer>,
}

/// The clocks.
#[derive(Debug, Serialize, Deserialize)]
pub struct Clock {
    /// The time-stamp counter's grain.
    pub quantum_ns: f64,
    /// What a guest's two readings take.
    pub pair_overhead_cycles: Overhead,
    /// Whether guests have the host's clock.
    pub offset_zero: bool,
}

/// How it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// Of vCPU 0, and of the rest.
    pub cpus: [usize; 2],
    /// With real-time priority.
    pub rt: bool,
    /// How many blocks.
    pub blocks: u32,
    /// Of the draws.
    pub seed: u64,
    /// `ns`, or `ticks`, which are instructions where the time-stamp counter counts them.
    pub unit: String,
}

/// Something that follows.
#[derive(Debug, Serialize, Deserialize)]
pub struct Derived {
    /// The payload.
    pub id: String,
    /// What it is.
    pub metric: String,
    /// How much.
    pub value: f64,
    /// Its 95 % confidence interval.
    pub ci95: [f64; 2],
    /// The unit.
    pub unit: String,
}

/// What kite adds to the bare loop.
pub const ADDED: &str = "vmm_minus_raw_p50";

/// A payload that this host cannot do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// The payload.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// The same guest under another monitor.
#[derive(Debug, Serialize, Deserialize)]
pub struct Peer {
    /// The monitor.
    pub name: String,
    /// The payload.
    pub id: String,
    /// How many.
    pub n: u64,
    /// The median.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// The unit.
    pub unit: String,
}

/// How ticks become times.
#[derive(Clone, Copy)]
pub struct Scale {
    /// Ticks in one unit.
    pub ticks: f64,
    /// The unit's name.
    pub unit: &'static str,
    /// What a guest's clock readings take.
    pub overhead: Overhead,
    /// The clock's grain in ticks.
    pub quantum: u64,
}

impl Scale {
    fn time(&self, ticks: f64) -> f64 {
        (ticks / self.ticks * 100.0).round() / 100.0
    }
}

impl Report {
    /// Adds what was measured of a payload.
    pub fn add(&mut self, payload: &Payload, rows: &[Row], scale: &Scale) {
        for row in rows {
            let mut result = measured(payload, row, scale);
            if row.blocks.len() < self.run.blocks as usize {
                result.flags.push(format!("{} blocks", row.blocks.len()));
            }
            self.results.push(result);
        }
        let of = |path: Path| rows.iter().find(|row| row.path == path && row.stage == "total");
        if let (Some(raw), Some(vmm)) = (of(Path::Raw), of(Path::Vmm)) {
            let mut random = Random::new(SEED);
            let (low, high) = statistics::difference_interval(&quantiles(raw), &quantiles(vmm), &mut random);
            let median = |row: &Row| row.all.value_at_quantile(0.5) as f64;
            self.derived.push(Derived {
                id: payload.id.to_owned(),
                metric: ADDED.to_owned(),
                value: scale.time(median(vmm) - median(raw)),
                ci95: [scale.time(low), scale.time(high)],
                unit: scale.unit.to_owned(),
            });
        }
    }

    /// What kite adds to a payload.
    pub fn added(&self, id: &str) -> Option<&Derived> {
        self.derived.iter().find(|derived| derived.id == id && derived.metric == ADDED)
    }
}

fn quantiles(row: &Row) -> Vec<&[u32]> {
    row.blocks.iter().map(|block| block.quantiles.as_slice()).collect()
}

fn measured(payload: &Payload, row: &Row, scale: &Scale) -> Measured {
    let own = if payload.by_guest && row.stage == "total" { f64::from(scale.overhead.p50) } else { 0.0 };
    let time = |ticks: f64| scale.time((ticks - own).max(0.0));
    let at = |quantile| time(row.all.value_at_quantile(quantile) as f64);
    // A percentile of fewer than ten times beyond it says little.
    let calm = |quantile: f64| {
        let enough = row.calm.len() as f64 >= 10.0 / (1.0 - quantile);
        enough.then(|| time(row.calm.value_at_quantile(quantile) as f64))
    };
    let (low, high) = statistics::median_interval(&quantiles(row), &mut Random::new(SEED));
    let batch_mean = row.batch_mean().map(|mean| scale.time((mean - scale.overhead.batch).max(0.0)));
    let mut result = Measured {
        id: payload.id.to_owned(),
        path: row.path,
        stage: row.stage.to_owned(),
        unit: scale.unit.to_owned(),
        n: row.all.len(),
        min: time(row.all.min() as f64),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p999: calm(0.999),
        p9999: calm(0.9999),
        max: time(row.all.max() as f64),
        mean: time(row.all.mean()),
        stdev: scale.time(row.all.stdev()),
        ci95_p50: [time(low), time(high)],
        batch_mean,
        blocks: row.blocks.iter().map(|block| block_measured(block, &time)).collect(),
        exits_per_op: row.per_operation("exits").map(|count| (count * 1000.0).round() / 1000.0),
        flags: Vec::new(),
        curve: measured::curve(&row.all, &time),
        hist_v2: measured::encode(&row.all),
    };
    result.flags = flags(payload, row, &result, scale);
    result
}

fn block_measured(block: &Block, time: &dyn Fn(f64) -> f64) -> BlockMeasured {
    BlockMeasured {
        n: block.n,
        p50: time(block.p50().into()),
        nivcsw: block.meanwhile.nivcsw,
        steal_ns: block.meanwhile.steal_ns,
        stats_delta: block.meanwhile.counters.clone(),
    }
}

fn flags(payload: &Payload, row: &Row, result: &Measured, scale: &Scale) -> Vec<String> {
    let mut flags = Vec::new();
    let disturbed = row.blocks.iter().filter(|block| block.is_disturbed()).count();
    if disturbed > 0 {
        flags.push(format!("disturbed {disturbed}/{}", row.blocks.len()));
    }
    if let Some(batch) = result.batch_mean.filter(|batch| *batch > 0.0)
        && (result.mean / batch - 1.0).abs() > BATCH_CLOSE
    {
        flags.push(format!("batch {:+.0}%", (batch / result.mean.max(0.01) - 1.0) * 100.0));
    }
    if let (Some(expected), Some(counted)) = (payload.exits, result.exits_per_op) {
        match counted {
            _ if (counted - expected).abs() <= CLOSE.max(expected * CLOSE) => {}
            _ if counted < 0.1 => flags.push("exit-less".to_owned()),
            _ => flags.push(format!("{counted:.2} exits")),
        }
    }
    if result.p50 * scale.ticks < scale.quantum as f64 {
        flags.push("below the clock's grain".to_owned());
    }
    flags
}

impl Told for Report {
    const SCHEMA: &'static str = "exits/1";
    const COMMAND: &'static str = "kite bench exits";

    fn head(&self) -> &Head {
        &self.head
    }

    fn table(&self, to: &mut dyn Write) -> io::Result<()> {
        table::write(self, to)
    }

    fn page(&self) -> anyhow::Result<String> {
        page::page(self)
    }

    fn changes(&self, old: &Self) -> Vec<Change> {
        compare::changes(&old.results, &self.results)
    }
}

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
