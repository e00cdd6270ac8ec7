//! Whether something has become slower since an earlier run.

use std::io::{self, Write};

use super::measured::{Measured, Way};
use super::statistics::{Random, SEED, unpaired_interval};
use super::time::time;

/// A difference smaller than this, in parts and in nanoseconds, is none.
const LEAST_PART: f64 = 0.03;
const LEAST_NS: f64 = 50.0;

/// Of one row, what it took and what it takes.
pub struct Change {
    /// The row.
    pub name: String,
    /// The median before.
    pub before: f64,
    /// The median now.
    pub now: f64,
    /// The 95 % confidence interval of the difference.
    pub interval: (f64, f64),
    unit: String,
}

impl Change {
    fn is_certain(&self) -> bool {
        let delta = self.now - self.before;
        let least = (self.before * LEAST_PART).max(LEAST_NS);
        delta.abs() > least && (self.interval.0 > 0.0 || self.interval.1 < 0.0)
    }

    /// Whether it is slower beyond doubt.
    pub fn is_regression(&self) -> bool {
        self.is_certain() && self.now > self.before
    }
}

fn name<P: Way>(row: &Measured<P>) -> String {
    format!("{} {} {}", row.id, row.path.name(), row.stage)
}

/// All rows that both runs have, in the order of the new one.
pub fn changes<P: Way>(old: &[Measured<P>], new: &[Measured<P>]) -> Vec<Change> {
    let blocks = |row: &Measured<P>| row.blocks.iter().map(|block| block.p50).collect::<Vec<_>>();
    let change = |row: &Measured<P>| {
        let before = old.iter().find(|other| name(other) == name(row) && other.unit == row.unit)?;
        let (a, b) = (blocks(before), blocks(row));
        if a.is_empty() || b.is_empty() {
            return None;
        }
        let interval = unpaired_interval(&a, &b, &mut Random::new(SEED));
        Some(Change { name: name(row), before: before.p50, now: row.p50, interval, unit: row.unit.clone() })
    };
    new.iter().filter_map(change).collect()
}

/// Writes what has changed beyond doubt since `when`.
///
/// # Errors
/// Nobody reads it.
pub fn write(when: &str, changes: &[Change], to: &mut dyn Write) -> io::Result<()> {
    writeln!(to, "\ncompared with {when}, {} rows in both:", changes.len())?;
    if changes.iter().all(|change| !change.is_certain()) {
        writeln!(to, "no row has changed beyond doubt")?;
    }
    for change in changes.iter().filter(|change| change.is_certain()) {
        let word = if change.is_regression() { "REGRESSION" } else { "faster" };
        let [before, now] = [change.before, change.now].map(|value| time(value, &change.unit));
        let [low, high] = [change.interval.0, change.interval.1].map(|value| time(value, &change.unit));
        writeln!(to, "{word} {}: {before} before, {now} now; 95% sure: {low} to {high}", change.name)?;
    }
    Ok(())
}
