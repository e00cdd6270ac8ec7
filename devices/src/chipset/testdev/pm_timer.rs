//! The ACPI power management timer (ACPI 6.5 §4.8.3.3): a counter of 32 bits that runs at 3.579545 MHz.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::give;
use crate::bus::BusDevice;
use crate::device::{Device, Error, State};

/// Returns the time since the machine was made.
pub type Elapsed = Box<dyn Fn() -> Duration + Send>;

const HERTZ: u128 = 3_579_545;

/// The counter. There is no interrupt when its highest bit changes.
pub struct PmTimer {
    elapsed: Elapsed,
    /// What the machine that this one was saved from had counted by then.
    before: Duration,
}

/// The guest-visible state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    elapsed: Duration,
}

impl PmTimer {
    /// How many ports it has.
    pub const LEN: u64 = 4;

    /// Counts what `elapsed` returns.
    pub fn new(elapsed: Elapsed) -> Self {
        Self { elapsed, before: Duration::ZERO }
    }

    fn elapsed(&self) -> Duration {
        self.before.saturating_add((self.elapsed)())
    }
}

impl Device for PmTimer {
    fn name(&self) -> &'static str {
        "PM timer"
    }

    fn save(&mut self) -> Result<State, Error> {
        Ok(State::of(&Saved { elapsed: self.elapsed() }))
    }

    /// Time goes on from when the state was saved.
    fn load(&mut self, state: State) -> Result<(), Error> {
        let Saved { elapsed } = state.take()?;
        self.before = elapsed.saturating_sub((self.elapsed)());
        Ok(())
    }
}

impl BusDevice for PmTimer {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        // It wraps around.
        let ticks = (self.elapsed().as_nanos() * HERTZ / 1_000_000_000) as u32;
        give(&ticks.to_le_bytes(), offset, data, 0xff);
    }

    fn write(&mut self, _offset: u64, _data: &[u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::storm;

    fn at(elapsed: Duration) -> u32 {
        let mut data = [0; 4];
        PmTimer::new(Box::new(move || elapsed)).read(0, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn it_counts_3_579_545_a_second_and_wraps_at_32_bits() {
        for (elapsed, count) in [
            (Duration::ZERO, 0),
            (Duration::from_nanos(279), 0),
            (Duration::from_nanos(280), 1),
            (Duration::from_secs(1), 3_579_545),
            (Duration::from_secs(1200), 4_295_454_000u64 as u32),
            (Duration::from_secs(365 * 86400 * 100), (3_153_600_000u64 * 3_579_545) as u32),
        ] {
            assert_eq!(at(elapsed), count, "{elapsed:?}");
        }
        assert_eq!(at(Duration::MAX), (Duration::MAX.as_nanos() * 3_579_545 / 1_000_000_000) as u32);
    }

    #[test]
    fn any_part_of_it_can_be_read() {
        let mut timer = PmTimer::new(Box::new(|| Duration::from_secs(1)));
        let mut data = [0; 4];
        timer.read(2, &mut data);
        assert_eq!(data, [0x36, 0, 0xff, 0xff]);
    }

    #[test]
    fn a_storm_of_accesses_does_no_harm() {
        storm(&mut PmTimer::new(Box::new(|| Duration::MAX)), PmTimer::LEN, 26, |_| {});
    }
}
