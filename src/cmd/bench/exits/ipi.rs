//! From one vCPU to another: an interprocessor interrupt.

use std::time::Duration;

use anyhow::{Context, ensure};

use super::beside::beside;
use super::code;
use super::protocol::{Budget, Measure};
use super::rig::{Ends, Host, Rig, Setup};
use super::sample::{Leg, Path};

/// How long the receiver is left alone before the next, in microseconds.
const REST: f64 = 30.0;
/// Interrupts before those that count.
const WARMTH: u64 = 200;
/// No interrupt takes so long.
const EACH: Duration = Duration::from_millis(50);

/// An interrupt to another vCPU.
pub struct Ipi {
    /// The receiver has halted, or else it runs.
    pub halted: bool,
    /// Through MSRs, or else through memory.
    pub x2apic: bool,
}

impl Measure for Ipi {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        ensure!(budget.cpus[0] != budget.cpus[1], "it needs two CPUs");
        let second = if self.halted { &code::HALT } else { &code::SPIN };
        let setup = Setup { second: Some(second), x2apic: self.x2apic, interrupts: true };
        let code = if self.x2apic { &code::IPI_X2APIC } else { &code::IPI_XAPIC };
        let mut rig = Rig::new(host, code, setup)?;
        rig.set(code::PARAMETER, budget.ticks(REST))?;
        let mut second = rig.second.take().context("a machine without its second vCPU")?;
        let switch = rig.switches[1].clone();
        let [a, b] = budget.cpus;
        beside(&mut second, &switch, (b, a), || {
            std::thread::sleep(Duration::from_millis(2));
            send(&mut rig, WARMTH)?;
            let begun = std::time::Instant::now();
            send(&mut rig, WARMTH)?;
            let each = (begun.elapsed().as_nanos() / u128::from(WARMTH)).max(1);
            let count = ((budget.time.as_nanos() / each) as u64).clamp(budget.least, code::RING_MAX);
            let before = rig.meanwhile();
            send(&mut rig, count)?;
            let meanwhile = rig.meanwhile().since(&before);
            let leg = |stage, times| Leg {
                path: Path::Raw,
                stage,
                times,
                batch: None,
                meanwhile: meanwhile.clone(),
            };
            let sent = rig.ring(code::SECOND_RING, count)?;
            Ok(vec![leg("total", rig.ring(code::RING, count)?), leg("send", sent)])
        })
    }
}

fn send(rig: &mut Rig, count: u64) -> anyhow::Result<()> {
    rig.set(code::COUNT, count)?;
    rig.run((Path::Raw, Ends::Kernel), EACH * count as u32)
}
