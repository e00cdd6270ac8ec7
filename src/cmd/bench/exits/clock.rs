//! The clocks: how long a tick is, how fine they are, what reading them takes, and whether guest and host have the same.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::code;
use super::raw;
use super::rig::{Ends, Host, Rig, Setup};
use super::sample::Path;

/// How long the rate is measured.
const CALIBRATION: Duration = Duration::from_millis(200);
/// What two measurements of it may differ by, in parts per million.
const TOLERANCE: f64 = 100.0;
/// How many times the clocks are read to find one reading that nothing interrupted.
const READINGS: usize = 50;
/// How often guest and host compare their clocks.
const PINGS: u64 = 1000;
/// No guest here takes so long.
const LIMIT: Duration = Duration::from_secs(20);

/// The time-stamp counter against the kernel's clock.
pub struct Rate {
    start: (u64, u64),
    /// Ticks in a nanosecond.
    pub ticks_per_ns: f64,
}

/// Ticks, and nanoseconds of CLOCK_MONOTONIC_RAW, at one moment: of many readings the one that took least.
fn moment() -> anyhow::Result<(u64, u64)> {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..READINGS {
        let before = raw::ticks();
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).context("cannot read the clock")?;
        let after = raw::ticks();
        let now = now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64;
        if after - before < best.0 {
            best = (after - before, before + (after - before) / 2, now);
        }
    }
    Ok((best.1, best.2))
}

fn rate(from: (u64, u64), to: (u64, u64)) -> f64 {
    (to.0 - from.0) as f64 / (to.1 - from.1).max(1) as f64
}

impl Rate {
    /// Measures it.
    ///
    /// # Errors
    /// The host has no such clock.
    pub fn measure() -> anyhow::Result<Self> {
        let start = moment()?;
        std::thread::sleep(CALIBRATION);
        Ok(Self { start, ticks_per_ns: rate(start, moment()?) })
    }

    /// Measures it again, over all the time since.
    ///
    /// # Errors
    /// It has changed.
    pub fn check(&self) -> anyhow::Result<()> {
        let again = rate(self.start, moment()?);
        let off = (again / self.ticks_per_ns - 1.0).abs() * 1e6;
        ensure!(
            off <= TOLERANCE,
            "the time-stamp counter's rate changed by {off:.0} parts per million meanwhile; the times would be wrong"
        );
        Ok(())
    }
}

/// What reading the clock costs a guest, in ticks.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Overhead {
    /// The least that two readings are apart.
    pub min: u32,
    /// The median.
    pub p50: u32,
    /// What a batch's loop takes for each operation.
    pub batch: f64,
}

/// Measures what timing nothing takes.
///
/// # Errors
/// The host's KVM cannot run a guest.
pub fn overhead(host: &Host) -> anyhow::Result<Overhead> {
    let mut rig = Rig::new(host, &code::NULL, Setup::default())?;
    let at = (Path::Raw, Ends::Guest);
    rig.leg(at, 500, false, LIMIT)?;
    let mut times = rig.leg(at, 2000, false, LIMIT)?.times;
    times.sort_unstable();
    let started = Instant::now();
    let short = rig.leg(at, 2000, true, LIMIT)?;
    // A loop of nothing takes a nanosecond or a microsecond.
    let more = (Duration::from_millis(20).as_nanos() / started.elapsed().as_nanos().max(1)) as u64 + 1;
    let batch = rig.leg(at, 2000 * more.min(20_000), true, LIMIT)?;
    let (ticks, count) = batch.batch.or(short.batch).unwrap_or((0, 1));
    Ok(Overhead { min: times[0], p50: times[times.len() / 2], batch: ticks as f64 / count as f64 })
}

/// The smallest step that the host's counter makes, in ticks.
pub fn quantum() -> u64 {
    let mut least = u64::MAX;
    for _ in 0..10_000 {
        let step = raw::ticks().wrapping_sub(raw::ticks()).wrapping_neg();
        if step > 0 {
            least = least.min(step);
        }
    }
    // Steps of a coarse counter are multiples of it; of a fine one this is what two readings take at least.
    let mut divisor = least;
    for _ in 0..10_000 {
        let (before, after) = (raw::ticks(), raw::ticks());
        divisor = greatest_divisor(after.wrapping_sub(before), divisor);
    }
    divisor
}

fn greatest_divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

/// Whether a guest's clock is the host's: whatever the guest reads lies between what the host read before and after.
///
/// # Errors
/// The host's KVM cannot run a guest.
pub fn is_shared(host: &Host) -> anyhow::Result<bool> {
    let mut rig = Rig::new(host, &code::CLOCK, Setup::default())?;
    if !rig.shares_clock {
        return Ok(false);
    }
    for _ in 0..PINGS {
        let before = raw::ticks();
        rig.run((Path::Raw, Ends::Kernel), LIMIT)?;
        let after = raw::ticks();
        let guest = rig.get(code::TOTAL)?;
        if guest < before || guest > after {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_divisor_of_a_counters_steps_is_its_grain() {
        assert_eq!([26, 52, 78, 130].into_iter().fold(104, |b, a| greatest_divisor(a, b)), 26);
        assert_eq!([7, 9].into_iter().fold(5, |b, a| greatest_divisor(a, b)), 1);
    }

    #[test]
    fn a_rate_is_ticks_by_nanoseconds() {
        assert!((rate((100, 1000), (350, 1100)) - 2.5).abs() < 1e-9);
    }
}
