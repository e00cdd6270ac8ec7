//! A row of what was measured, in the form that is kept, whatever it was that took the time.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Serializer, V2Serializer};
use serde::{Deserialize, Serialize};

/// One of several ways to do the same thing, which are compared.
pub trait Way: Copy + Eq {
    /// As it is written.
    fn name(self) -> &'static str;

    /// Which of them it is, from 0 on: plots give each a colour.
    fn rank(self) -> usize;
}

/// What measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Tool {
    /// kite's version.
    pub version: String,
}

impl Tool {
    /// This kite.
    pub fn this() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned() }
    }
}

/// A row of the table.
#[derive(Debug, Serialize, Deserialize)]
pub struct Measured<P> {
    /// What was done.
    pub id: String,
    /// In which way.
    pub path: P,
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

/// Quantiles, closer and closer to 1.
pub fn curve(all: &Histogram<u64>, time: &dyn Fn(f64) -> f64) -> Vec<[f64; 2]> {
    let n = all.len() as f64;
    let steps = (0..=60).map(|step| 10f64.powf(-f64::from(step) / 12.0));
    let steps = steps.take_while(|left| left * n >= 1.0);
    steps.map(|left| [left, time(all.value_at_quantile(1.0 - left) as f64)]).collect()
}

/// All times: HdrHistogram V2 in base64.
pub fn encode(all: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    match V2Serializer::new().serialize(all, &mut bytes) {
        Ok(_) => STANDARD.encode(bytes),
        // Only counts beyond 2^63 are refused.
        Err(_) => String::new(),
    }
}
