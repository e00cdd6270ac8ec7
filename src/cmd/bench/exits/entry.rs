//! What KVM_RUN itself takes: in and out again without the guest, and out for a signal.

use std::time::{Duration, Instant};

use anyhow::{bail, ensure};

use super::code;
use super::protocol::{Budget, Measure};
use super::raw::{self, Returns, Thread};
use super::rig::{Host, Rig, Setup};
use super::sample::{Leg, Path};
use super::threads::on_cpu;
use std::sync::atomic::Ordering;

/// Calls at once.
const WINDOW: usize = 1000;

/// KVM_RUN that does not enter the guest.
pub struct Immediate;

impl Measure for Immediate {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        let mut rig = Rig::new(host, &code::NULL, Setup::default())?;
        rig.immediate_exits(WINDOW);
        let start = Instant::now();
        let mut legs = Vec::new();
        while legs.is_empty() || start.elapsed() < budget.time {
            legs.push(rig.immediate_exits(WINDOW));
        }
        Ok(legs)
    }
}

/// A signal to a vCPU's thread that runs the guest, until KVM_RUN has returned.
pub struct Kick;

/// How long the guest runs undisturbed before each signal, in microseconds.
const RUN: f64 = 30.0;
/// When a signal has been lost, which hit the thread just outside KVM_RUN.
const LOST: Duration = Duration::from_millis(5);

impl Measure for Kick {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        ensure!(budget.cpus[0] != budget.cpus[1], "it needs two CPUs");
        let mut rig = Rig::new(host, &code::SPIN, Setup::default())?;
        let before = rig.meanwhile();
        let returns = Returns::default();
        let fd = rig.vcpu.fd();
        let times = std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let returns = &returns;
            scope.spawn(move || {
                // Whoever waits for it is there.
                let _ = sender.send(Thread::this());
                raw::note_returns(fd, returns);
            });
            let thread = receiver.recv();
            let times = on_cpu(budget.cpus[1], || match thread {
                Ok(thread) => Ok(kicks(thread, returns, budget)),
                Err(_) => bail!("the vCPU's thread did not start"),
            });
            returns.stop.store(true, Ordering::Release);
            if let Ok(thread) = thread {
                let count = returns.count.load(Ordering::Acquire);
                while returns.count.load(Ordering::Acquire) == count && !returns.other.load(Ordering::Acquire)
                {
                    // The scope waits for the thread, so it is still there.
                    thread.interrupt();
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
            times
        })??;
        ensure!(!returns.other.load(Ordering::Acquire), "the guest does not run");
        let meanwhile = rig.meanwhile().since(&before);
        Ok(vec![Leg { path: Path::Raw, stage: "total", times, batch: None, meanwhile }])
    }
}

fn kicks(thread: Thread, returns: &Returns, budget: &Budget) -> Vec<u32> {
    let start = Instant::now();
    let mut times = Vec::new();
    while (start.elapsed() < budget.time || times.len() < budget.least as usize)
        && !returns.other.load(Ordering::Acquire)
    {
        raw::spin(budget.ticks(RUN));
        let count = returns.count.load(Ordering::Acquire);
        let (sent, begun) = (raw::ticks(), Instant::now());
        thread.interrupt();
        while returns.count.load(Ordering::Acquire) == count && begun.elapsed() < LOST {
            std::hint::spin_loop();
        }
        if returns.count.load(Ordering::Acquire) != count {
            let time = returns.when.load(Ordering::Acquire).wrapping_sub(sent);
            times.push(u32::try_from(time).unwrap_or(u32::MAX));
        } else if start.elapsed() > budget.time * 4 {
            break;
        }
    }
    times
}
