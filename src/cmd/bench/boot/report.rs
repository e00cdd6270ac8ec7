//! What boots took, in the form that is kept: schema `boot/1`, whose rows are those of `exits/1`.

use std::collections::BTreeMap;
use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::subject::{Guest, Monitor};
use super::watch::{Boot, Stage};
use super::{page, table};
use crate::cmd::bench::compare::{self, Change};
use crate::cmd::bench::measured::{self, BlockMeasured};
use crate::cmd::bench::statistics::{self, Random, SEED};
use crate::cmd::bench::tell::{Head, Told};

/// A row of the table.
pub type Measured = measured::Measured<Monitor>;

/// All of a run.
#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    /// What measured, when and where.
    #[serde(flatten)]
    pub head: Head,
    /// How.
    pub run: Run,
    /// What was measured; a block is a boot.
    pub results: Vec<Measured>,
    /// How the monitors differ.
    pub derived: Vec<Derived>,
    /// What was not reached, or cannot be.
    pub skipped: Vec<Skipped>,
}

/// How it was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Run {
    /// How often each was booted.
    pub runs: u32,
    /// What QEMU calls itself, if it was measured, too.
    pub qemu: Option<String>,
    /// The kernels.
    pub kernels: Vec<Kernel>,
}

/// A kernel.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// Its path.
    pub id: String,
    /// What it calls itself.
    pub version: Option<String>,
    /// Its command line.
    pub cmdline: String,
}

/// How the monitors differ in a stage.
#[derive(Debug, Serialize, Deserialize)]
pub struct Derived {
    /// The kernel.
    pub id: String,
    /// The stage.
    pub stage: String,
    /// What it is.
    pub metric: String,
    /// How much.
    pub value: f64,
    /// Its 95 % confidence interval.
    pub ci95: [f64; 2],
    /// The unit.
    pub unit: String,
}

/// How much longer QEMU takes.
const DIFFERENCE: &str = "qemu_minus_kite_p50";

/// A row that there is not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Skipped {
    /// The kernel.
    pub id: String,
    /// By whom; nothing for all.
    pub path: Option<Monitor>,
    /// The stage; nothing for all.
    pub stage: Option<String>,
    /// Why.
    pub reason: String,
}

/// The boots of one guest by one monitor.
pub struct Series<'a> {
    /// What was booted.
    pub guest: &'a Guest,
    /// By whom.
    pub monitor: Monitor,
    /// The boots, in the order of the rounds.
    pub boots: Vec<Boot>,
    /// The first boot came to nothing, and there are no more.
    pub is_dead: bool,
}

impl Series<'_> {
    /// Microseconds to a stage in each boot that reached it, in the order of the rounds.
    fn times(&self, stage: Stage) -> Vec<u32> {
        self.boots.iter().filter_map(|boot| boot.us[stage as usize]).collect()
    }

    /// Why boots do not get far.
    pub fn trouble(&self) -> Option<&str> {
        self.boots.iter().find_map(|boot| boot.trouble.as_deref())
    }
}

impl Report {
    /// Adds what was measured of one guest, by all monitors.
    pub fn add(&mut self, all: &[Series<'_>]) {
        for stage in Stage::ALL {
            for series in all {
                match row(series, stage) {
                    Some(row) => self.results.push(row),
                    None => self.skipped.push(Skipped {
                        id: series.guest.id.clone(),
                        path: Some(series.monitor),
                        stage: Some(stage.name().to_owned()),
                        reason: missing(series, stage),
                    }),
                }
            }
            self.derived.extend(difference(all, stage));
        }
    }

    /// How the monitors differ in what a row is about.
    pub fn difference(&self, row: &Measured) -> Option<&Derived> {
        self.derived.iter().find(|it| it.id == row.id && it.stage == row.stage)
    }

    /// The rows of a kernel.
    pub fn of<'a>(&'a self, id: &'a str) -> impl Iterator<Item = &'a Measured> {
        self.results.iter().filter(move |row| row.id == id)
    }
}

/// Why no boot has reached a stage.
fn missing(series: &Series<'_>, stage: Stage) -> String {
    let trouble = series.trouble();
    match (stage, series.monitor) {
        (Stage::FirstInstruction, Monitor::Qemu) => {
            "QEMU does not tell when it enters the guest, and its firmware runs first: compare first_output"
                .to_owned()
        }
        (Stage::UserSpace, _) if !series.guest.is_linux => {
            "the guest is no Linux, and has no /init of kite's".to_owned()
        }
        (..) if trouble.is_some() => trouble.unwrap_or_default().to_owned(),
        (Stage::FirstOutput, _) => "the guest printed nothing".to_owned(),
        (Stage::UserSpace, _) => "kite's /init printed nothing on the serial port".to_owned(),
        _ => "the trace does not tell".to_owned(),
    }
}

/// Nanoseconds of microseconds.
fn ns(us: f64) -> f64 {
    us * 1000.0
}

fn row(series: &Series<'_>, stage: Stage) -> Option<Measured> {
    let times = series.times(stage);
    let mut sorted = times.clone();
    sorted.sort_unstable();
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    let n = sorted.len();
    let at = |quantile: f64| {
        let rank = (quantile * n as f64).ceil() as usize;
        ns(sorted[rank.clamp(1, n) - 1].into())
    };
    let mut all =
        Histogram::<u64>::new_with_bounds(1, 1 << 43, 3).expect("the bounds are two numbers that make sense");
    times.iter().for_each(|us| all.saturating_record(u64::from(*us) * 1000));
    let mean = sorted.iter().map(|us| f64::from(*us)).sum::<f64>() / n as f64;
    let variance = sorted.iter().map(|us| (f64::from(*us) - mean).powi(2)).sum::<f64>() / n as f64;
    let blocks: Vec<&[u32]> = times.iter().map(std::slice::from_ref).collect();
    let (low, high) = statistics::median_interval(&blocks, &mut Random::new(SEED));
    let boots = series.boots.iter().filter(|boot| boot.us[stage as usize].is_some());
    let missed = series.boots.len() - n;
    Some(Measured {
        id: series.guest.id.clone(),
        path: series.monitor,
        stage: stage.name().to_owned(),
        unit: "ns".to_owned(),
        n: n as u64,
        min: ns(min.into()),
        p50: ns(sorted[n / 2].into()),
        p90: at(0.9),
        p99: at(0.99),
        p999: None,
        p9999: None,
        max: ns(max.into()),
        mean: ns(mean).round(),
        stdev: ns(variance.sqrt()).round(),
        ci95_p50: [ns(low), ns(high)],
        batch_mean: None,
        blocks: times.iter().zip(boots).map(|(us, boot)| block(*us, boot)).collect(),
        exits_per_op: None,
        flags: if missed > 0 { vec![format!("missed {missed}/{}", series.boots.len())] } else { Vec::new() },
        curve: measured::curve(&all, &|ns| ns),
        hist_v2: measured::encode(&all),
    })
}

fn block(us: u32, boot: &Boot) -> BlockMeasured {
    BlockMeasured {
        n: 1,
        p50: ns(us.into()),
        nivcsw: boot.nivcsw,
        steal_ns: boot.steal_ns,
        stats_delta: BTreeMap::new(),
    }
}

/// How much longer QEMU takes to a stage than kite, by the rounds in which both have reached it.
fn difference(all: &[Series<'_>], stage: Stage) -> Option<Derived> {
    let of = |monitor| all.iter().find(|series| series.monitor == monitor);
    let (kite, qemu) = (of(Monitor::Kite)?, of(Monitor::Qemu)?);
    let pairs = kite.boots.iter().zip(&qemu.boots);
    let (kite, qemu): (Vec<u32>, Vec<u32>) =
        pairs.filter_map(|(kite, qemu)| kite.us[stage as usize].zip(qemu.us[stage as usize])).unzip();
    let median = |times: &[u32]| {
        let mut sorted = times.to_vec();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).map(|us| f64::from(*us))
    };
    let value = median(&qemu)? - median(&kite)?;
    let [kite, qemu] =
        [&kite, &qemu].map(|times| times.iter().map(std::slice::from_ref).collect::<Vec<&[u32]>>());
    let (low, high) = statistics::difference_interval(&kite, &qemu, &mut Random::new(SEED));
    Some(Derived {
        id: all.first()?.guest.id.clone(),
        stage: stage.name().to_owned(),
        metric: DIFFERENCE.to_owned(),
        value: ns(value),
        ci95: [ns(low), ns(high)],
        unit: "ns".to_owned(),
    })
}

impl Told for Report {
    const SCHEMA: &'static str = "boot/1";
    const COMMAND: &'static str = "kite bench boot";

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
