//! What was measured, in the form that is kept: schema `exits/1`, which the README describes.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path as FilePath;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

use super::clock::Overhead;
use super::facts::Facts;
use super::payload::Payload;
use super::sample::{Block, Path, Row};
use super::statistics::{self, Random};

/// The version of what is written.
pub const SCHEMA: &str = "exits/1";
/// Of the numbers that draw blocks.
pub const SEED: u64 = 1;
/// A file larger than this is not one of ours.
const LARGEST: u64 = 64 << 20;
/// How far a counter may be from what is expected, and a batch from the single times.
const CLOSE: f64 = 0.02;
const BATCH_CLOSE: f64 = 0.05;

/// All of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// [`SCHEMA`].
    pub schema: String,
    /// What measured.
    pub tool: Tool,
    /// When it began: RFC 3339.
    pub when: String,
    /// Where.
    pub host: Facts,
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

/// What measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tool {
    /// kite's version.
    pub version: String,
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

/// A row of the table.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The payload.
    pub id: String,
    /// Which loop answered.
    pub path: Path,
    /// Which part of it.
    pub stage: String,
    /// The unit of all times here but the histogram's.
    pub unit: String,
    /// How many.
    pub n: u64,
    /// The least.
    pub min: f64,
    /// Percentiles.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %, of blocks that nothing disturbed.
    pub p999: Option<f64>,
    /// 99.99 %, of the same.
    pub p9999: Option<f64>,
    /// The most.
    pub max: f64,
    /// The mean.
    pub mean: f64,
    /// The standard deviation.
    pub stdev: f64,
    /// The median's 95 % confidence interval.
    pub ci95_p50: [f64; 2],
    /// The mean of operations that were timed together.
    pub batch_mean: Option<f64>,
    /// Each block.
    pub blocks: Vec<BlockMeasured>,
    /// KVM's exits for each operation.
    pub exits_per_op: Option<f64>,
    /// What to know of it.
    pub flags: Vec<String>,
    /// Points of the distribution, how far it is to 1 and the time, for a curve.
    pub curve: Vec<[f64; 2]>,
    /// The times in ticks, clock readings included: HdrHistogram V2, base64.
    pub hist_v2: String,
}

/// One virtual machine's part.
#[derive(Debug, Serialize, Deserialize)]
pub struct BlockMeasured {
    /// How many.
    pub n: u64,
    /// Their median.
    pub p50: f64,
    /// How often the thread lost its CPU.
    pub nivcsw: u64,
    /// What the machine below took.
    pub steal_ns: u64,
    /// KVM's counters.
    pub stats_delta: BTreeMap<String, u64>,
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
            self.results.push(measured(payload, row, scale));
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

    /// Reads a report.
    ///
    /// # Errors
    /// It cannot be read, or is of another version.
    pub fn read(path: &FilePath) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema: String,
        }
        let name = path.display();
        let file = std::fs::File::open(path).with_context(|| format!("cannot open {name}"))?;
        let mut text = String::new();
        let read = file.take(LARGEST).read_to_string(&mut text);
        read.with_context(|| format!("cannot read {name}"))?;
        let version: Version = serde_json::from_str(&text)
            .map_err(|_| anyhow::anyhow!("{name} is no report of `kite bench exits --json`"))?;
        ensure!(
            version.schema == SCHEMA,
            "{name} has schema {:?}, and this kite reads {SCHEMA:?}: measure again, or use the kite that wrote it",
            version.schema
        );
        match serde_json::from_str(&text) {
            Ok(report) => Ok(report),
            Err(error) => bail!("{name} is damaged: {error}"),
        }
    }

    /// Writes it.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, mut to: impl io::Write) -> anyhow::Result<()> {
        serde_json::to_writer_pretty(&mut to, self)?;
        Ok(to.write_all(b"\n")?)
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
        curve: curve(row, &time),
        hist_v2: encode(row),
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

/// Quantiles, closer and closer to 1.
fn curve(row: &Row, time: &dyn Fn(f64) -> f64) -> Vec<[f64; 2]> {
    let n = row.all.len() as f64;
    let steps = (0..=60).map(|step| 10f64.powf(-f64::from(step) / 12.0));
    let steps = steps.take_while(|left| left * n >= 1.0);
    steps.map(|left| [left, time(row.all.value_at_quantile(1.0 - left) as f64)]).collect()
}

fn encode(row: &Row) -> String {
    let mut bytes = Vec::new();
    match V2Serializer::new().serialize(&row.all, &mut bytes) {
        Ok(_) => STANDARD.encode(bytes),
        // Only counts beyond 2^63 are refused.
        Err(_) => String::new(),
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

#[cfg(test)]
#[path = "report/tests.rs"]
mod tests;
