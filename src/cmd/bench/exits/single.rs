//! Operations of one vCPU, timed by the guest.

use std::any::Any;
use std::time::{Duration, Instant};

use anyhow::Context;
use boot::testing::Code;
use kvm_bindings::{
    KVM_CAP_HALT_POLL, KVM_CAP_X86_USER_SPACE_MSR, KVM_MSR_EXIT_REASON_INVAL, KVM_MSR_EXIT_REASON_UNKNOWN,
    kvm_enable_cap,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch};

use super::code;
use super::protocol::{Budget, Measure};
use super::rig::{Ends, Host, Rig, Setup};
use super::sample::{Leg, Path};
use crate::host::event::kvm_event;

/// One window of the warm-up, in operations.
const WINDOW: u64 = 500;
/// It has at least so many windows, and lasts so long.
const LEAST_WINDOWS: usize = 2;
const LEAST_WARMTH: Duration = Duration::from_millis(100);
/// It ends when so many windows' medians agree, or after so long.
const AGREEING: usize = 3;
const MOST_WARMTH: Duration = Duration::from_secs(1);
/// How long a batch takes, about.
const BATCH: Duration = Duration::from_millis(20);
/// What a guest is given beyond ten times what it should take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a machine needs beside its payload; it lives as long as the machine.
pub type Prepare = fn(&mut Rig) -> anyhow::Result<Box<dyn Any>>;

/// A guest that executes one operation over and over.
pub struct Single {
    /// The code.
    pub blob: &'static Code,
    /// How the vCPU is set up.
    pub setup: Setup,
    /// Who answers the operation.
    pub ends: Ends,
    /// What else there is.
    pub prepare: Prepare,
    /// The loops that can answer it, whose times are compared.
    pub paths: &'static [Path],
    /// Whether operations can be timed together.
    pub batch: bool,
    /// What an operation takes with all around it, on each path, once that is known.
    pub each: [Option<Duration>; 2],
}

/// Nothing.
pub fn nothing(_: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    Ok(Box::new(()))
}

impl Measure for Single {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        let mut rig = Rig::new(host, self.blob, self.setup)?;
        let _kept = (self.prepare)(&mut rig)?;
        let paths = self.paths;
        for path in paths {
            self.warm(&mut rig, *path)?;
        }
        let mut legs = Vec::new();
        // There and back, so that drift hits both alike.
        for path in paths.iter().chain(paths.iter().rev()) {
            let each = self.each(*path);
            let time = budget.time / (2 * paths.len() as u32);
            let count = (time.as_nanos() / each.as_nanos().max(1)) as u64;
            let count = count.clamp(budget.least / 2, code::RING_MAX);
            legs.push(rig.leg((*path, self.ends), count, false, limit(each, count))?);
        }
        if self.batch {
            for path in paths {
                let each = self.each(*path);
                let count = (BATCH.as_nanos() / each.as_nanos().max(1)).clamp(10, 100_000_000) as u64;
                legs.push(rig.leg((*path, self.ends), count, true, limit(each, count))?);
            }
        }
        Ok(legs)
    }
}

fn limit(each: Duration, count: u64) -> Duration {
    PATIENCE + each.saturating_mul(count.min(u32::MAX.into()) as u32).saturating_mul(10)
}

impl Single {
    fn each(&self, path: Path) -> Duration {
        self.each[path as usize].unwrap_or(Duration::from_micros(10))
    }

    /// Runs the guest until it is as quick as it gets: at length the first time, then only until pages and caches know it.
    fn warm(&mut self, rig: &mut Rig, path: Path) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut medians: Vec<u32> = Vec::new();
        let known = self.each[path as usize].is_some();
        loop {
            let began = Instant::now();
            let mut leg = rig.leg((path, self.ends), WINDOW, false, PATIENCE)?;
            self.each[path as usize] = Some(began.elapsed() / WINDOW as u32);
            leg.times.sort_unstable();
            medians.push(leg.times[leg.times.len() / 2]);
            let long_enough = medians.len() >= LEAST_WINDOWS && start.elapsed() >= LEAST_WARMTH;
            if known || long_enough && (agree(&medians) || start.elapsed() >= MOST_WARMTH) {
                return Ok(());
            }
        }
    }
}

/// Whether the last medians are within 2 % of each other.
fn agree(medians: &[u32]) -> bool {
    let Some(last) = medians.len().checked_sub(AGREEING).map(|first| &medians[first..]) else { return false };
    let (least, most) = (last.iter().min(), last.iter().max());
    least.zip(most).is_some_and(|(least, most)| (most - least) * 50 <= *most)
}

/// An eventfd without a reader, at the port.
pub fn notified_at_port(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    doorbell(rig, &IoEventAddress::Pio(code::PORT.into()), None)
}

/// One in memory, for writes of any length and value.
pub fn notified_by_any(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    doorbell(rig, &IoEventAddress::Mmio(code::MMIO), None)
}

/// One in memory, for 32 bits that are 0, as virtio's.
pub fn notified_by_match(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    doorbell(rig, &IoEventAddress::Mmio(code::MMIO), Some(0))
}

fn doorbell(rig: &Rig, address: &IoEventAddress, value: Option<u32>) -> anyhow::Result<Box<dyn Any>> {
    let event = kvm_event()?;
    let registered = match value {
        Some(value) => rig.vm.fd().register_ioevent(&event, address, value),
        None => rig.vm.fd().register_ioevent(&event, address, NoDatamatch),
    };
    registered.context("this KVM has no such eventfd")?;
    Ok(Box::new(event))
}

/// MSRs that KVM does not know are user space's.
pub fn msrs_to_user_space(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    let reasons = KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_INVAL;
    let cap = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons.into(), 0, 0, 0],
        ..Default::default()
    };
    rig.vm.fd().enable_cap(&cap).context("this KVM does not give MSRs to user space")?;
    Ok(Box::new(()))
}

/// The timer's deadlines are 50 us away.
pub fn deadlines(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    let khz = rig.vcpu.fd().get_tsc_khz().context("this KVM does not tell the guest's clock rate")?;
    rig.set(code::PARAMETER, u64::from(khz) / 20)?;
    Ok(Box::new(()))
}

/// The same, and KVM does not wait busily when the guest has halted (KVM API, KVM_CAP_HALT_POLL).
pub fn deadlines_without_polling(rig: &mut Rig) -> anyhow::Result<Box<dyn Any>> {
    let cap = kvm_enable_cap { cap: KVM_CAP_HALT_POLL, ..Default::default() };
    rig.vm.fd().enable_cap(&cap).context("this KVM cannot be told not to poll")?;
    deadlines(rig)
}

#[cfg(test)]
mod tests {
    use super::agree;

    #[test]
    fn a_guest_is_warm_when_three_windows_agree() {
        assert!(!agree(&[100, 100]));
        assert!(!agree(&[100, 100, 103]));
        assert!(agree(&[500, 100, 101, 102]));
        assert!(agree(&[0, 0, 0]));
    }
}
