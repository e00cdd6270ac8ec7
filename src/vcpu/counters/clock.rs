//! The clock that exits are measured with: the processor's time-stamp counter (Intel SDM vol. 3 §18.17), which takes some
//! 20 nanoseconds to read, where the kernel's clock takes more and on some hosts a system call.

use std::arch::x86_64::_rdtsc;
use std::time::{Duration, Instant};

/// The time-stamp counter now, in ticks of a length that [`Scale`] knows.
#[expect(unsafe_code, reason = "RDTSC has no safe interface")]
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux lets processes use it.
    unsafe { _rdtsc() }
}

/// How long a tick is, by what both clocks have shown since a common start.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    begun: Instant,
    ticks: u64,
}

impl Scale {
    /// Both clocks start now.
    pub fn begin() -> Self {
        Self { begun: Instant::now(), ticks: ticks() }
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Nanoseconds a tick, the better the longer ago the start is; 0 if the counter stands still.
    pub fn tick_ns(&self) -> f64 {
        let (ticks, elapsed) = (ticks().saturating_sub(self.ticks), self.begun.elapsed());
        if ticks == 0 { 0.0 } else { elapsed.as_nanos() as f64 / ticks as f64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_the_time_that_has_passed() {
        let scale = Scale::begin();
        std::thread::sleep(Duration::from_millis(20));
        let (before, start) = (ticks(), Instant::now());
        std::thread::sleep(Duration::from_millis(20));
        let ns = (ticks() - before) as f64 * scale.tick_ns();
        // Whenever this thread loses its processor in between, both have gone on.
        let elapsed = start.elapsed().as_nanos() as f64;
        assert!(ns > 0.0 && ns < elapsed * 10.0 && elapsed < ns * 10.0, "{ns} is not {elapsed}");
    }
}
