//! From the host's write to an irqfd to the guest's handler, and a virtio queue's whole way: doorbell, the thread that
//! serves it, interrupt.

use crate::host::event::kvm_event;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::IoEventAddress;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::beside::beside;
use super::code;
use super::protocol::{Budget, Measure};
use super::raw;
use super::rig::{Host, Rig, Setup};
use super::sample::{Leg, Path};

/// A pin of the I/O APIC that nothing else uses.
const PIN: u32 = 10;
/// The first line that is no pin.
const MSI_GSI: u32 = 24;
/// The address of an MSI to local APIC 0 (Intel SDM vol. 3 §11.11.1).
const MSI_ADDRESS: u32 = 0xfee0_0000;
/// An interrupt that takes longer does not come.
const LOST: Duration = Duration::from_secs(10);
/// How long a vCPU is left alone before it is interrupted, in microseconds.
const REST: f64 = 30.0;
/// The open loop's interval in microseconds: 10,000 a second.
const INTERVAL: f64 = 100.0;
/// Round trips before those that count.
const WARMTH: u64 = 200;

/// How interrupts are sent.
#[derive(Clone, Copy)]
pub enum Pace {
    /// When the last one has come.
    Closed,
    /// At a fixed rate, each timed from when it was due.
    Open,
}

/// An irqfd.
pub struct Irqfd {
    /// The vCPU has halted, or else it runs.
    pub halted: bool,
    /// By MSI, or else through the I/O APIC.
    pub msi: bool,
    /// When.
    pub pace: Pace,
}

fn interrupting(rig: &Rig, msi: bool) -> anyhow::Result<EventFd> {
    let event = kvm_event()?;
    let gsi = if msi { route_msi(rig)? } else { route_pin(rig)? };
    rig.vm.fd().register_irqfd(&event, gsi).context("this KVM has no irqfd")?;
    Ok(event)
}

fn route_msi(rig: &Rig) -> anyhow::Result<u32> {
    let mut entry = kvm_irq_routing_entry { gsi: MSI_GSI, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = MSI_ADDRESS;
    entry.u.msi.data = code::VECTOR.into();
    let routing = KvmIrqRouting::from_entries(&[entry]).context("a route does not fit")?;
    rig.vm.fd().set_gsi_routing(&routing).context("this KVM routes no MSI")?;
    Ok(MSI_GSI)
}

fn route_pin(rig: &Rig) -> anyhow::Result<u32> {
    raw::unmask_pin(rig.vm.fd(), PIN, code::VECTOR).context("cannot set the I/O APIC")?;
    Ok(PIN)
}

/// How many interrupts the guest has taken.
fn taken(memory: &boot::GuestMemory) -> u64 {
    memory.load(GuestAddress(code::INTERRUPTS), Ordering::Acquire).unwrap_or(0)
}

/// Waits until the guest has taken another one than `before`; when that was.
fn wait(memory: &boot::GuestMemory, before: u64) -> anyhow::Result<u64> {
    let start = Instant::now();
    while taken(memory) == before {
        ensure!(start.elapsed() < LOST, "an interrupt did not reach the guest");
        std::hint::spin_loop();
    }
    Ok(memory.load(GuestAddress(code::INTERRUPTED), Ordering::Acquire)?)
}

impl Measure for Irqfd {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        ensure!(budget.cpus[0] != budget.cpus[1], "it needs two CPUs");
        let blob = if self.halted { &code::HALT } else { &code::SPIN };
        let mut rig = Rig::new(host, blob, Setup { interrupts: true, ..Setup::default() })?;
        ensure!(rig.shares_clock, "this KVM does not give a guest the host's clock");
        let event = interrupting(&rig, self.msi)?;
        let before = rig.meanwhile();
        let memory = rig.vm.ram().memory().clone();
        let switch = rig.switches[0].clone();
        let [a, b] = budget.cpus;
        let measured = beside(&mut rig.vcpu, &switch, (a, b), || {
            // The guest has to get to where it is interrupted.
            std::thread::sleep(Duration::from_millis(2));
            match self.pace {
                Pace::Closed => closed(&event, &memory, budget),
                Pace::Open => open(&event, &memory, budget),
            }
        });
        // Why the guest ended says more than that it does not answer.
        rig.check()?;
        let times = measured?;
        let meanwhile = rig.meanwhile().since(&before);
        Ok(vec![Leg { path: Path::Raw, stage: "total", times, batch: None, meanwhile }])
    }
}

fn closed(event: &EventFd, memory: &boot::GuestMemory, budget: &Budget) -> anyhow::Result<Vec<u32>> {
    let start = Instant::now();
    let mut times = Vec::new();
    while start.elapsed() < budget.time || times.len() < budget.least as usize {
        raw::spin(budget.ticks(REST));
        let before = taken(memory);
        let sent = raw::ticks();
        event.write(1)?;
        times.push(clamp(wait(memory, before)?.wrapping_sub(sent)));
    }
    Ok(times)
}

fn open(event: &EventFd, memory: &boot::GuestMemory, budget: &Budget) -> anyhow::Result<Vec<u32>> {
    let (start, interval) = (Instant::now(), budget.ticks(INTERVAL));
    let mut times = Vec::new();
    let mut due = raw::ticks() + interval;
    while start.elapsed() < budget.time || times.len() < budget.least as usize {
        while raw::ticks() < due {
            std::hint::spin_loop();
        }
        let before = taken(memory);
        event.write(1)?;
        times.push(clamp(wait(memory, before)?.saturating_sub(due)));
        due += interval;
    }
    Ok(times)
}

fn clamp(ticks: u64) -> u32 {
    u32::try_from(ticks).unwrap_or(u32::MAX)
}

/// A doorbell, a thread, and an interrupt.
pub struct RoundTrip {
    /// The thread sleeps until the doorbell rings, or else it looks all the time.
    pub sleeps: bool,
}

impl Measure for RoundTrip {
    fn block(&mut self, host: &Host, budget: &Budget) -> anyhow::Result<Vec<Leg>> {
        ensure!(budget.cpus[0] != budget.cpus[1], "it needs two CPUs");
        let mut rig = Rig::new(host, &code::ROUND_TRIP, Setup { interrupts: true, ..Setup::default() })?;
        ensure!(rig.shares_clock, "this KVM does not give a guest the host's clock");
        let interrupt = interrupting(&rig, true)?;
        let bell = kvm_event()?;
        let address = IoEventAddress::Mmio(code::MMIO);
        rig.vm.fd().register_ioevent(&bell, &address, 0u32).context("this KVM has no such eventfd")?;
        let began = Instant::now();
        self.serve(&mut rig, (&bell, &interrupt), WARMTH, budget)?;
        let each = (began.elapsed().as_nanos() / u128::from(WARMTH)).max(1);
        let count = ((budget.time.as_nanos() / each) as u64).clamp(budget.least, code::RING_MAX);
        let before = rig.meanwhile();
        let seen = self.serve(&mut rig, (&bell, &interrupt), count, budget)?;
        let meanwhile = rig.meanwhile().since(&before);
        let (totals, begins) = (rig.ring(code::RING, count)?, rig.ring(code::SECOND_RING, count)?);
        let leg =
            |stage, times| Leg { path: Path::Raw, stage, times, batch: None, meanwhile: meanwhile.clone() };
        // The lower halves of the clocks do: no stage takes a second.
        let rung = seen.iter().zip(&begins).map(|((woken, _), begin)| (*woken as u32).wrapping_sub(*begin));
        let served = seen.iter().map(|(woken, done)| clamp(done - woken));
        let ends = totals.iter().zip(&begins).map(|(total, begin)| begin.wrapping_add(*total));
        let taken = ends.zip(&seen).map(|(end, (_, done))| end.wrapping_sub(*done as u32));
        Ok(vec![
            leg("kick_to_thread", rung.collect()),
            leg("thread_to_irqfd", served.collect()),
            leg("irqfd_to_isr", taken.collect()),
            leg("total", totals),
        ])
    }
}

impl RoundTrip {
    /// Serves `count` rings of the bell; when each was heard, and when the interrupt was about to be sent.
    fn serve(
        &self,
        rig: &mut Rig,
        (bell, interrupt): (&EventFd, &EventFd),
        count: u64,
        budget: &Budget,
    ) -> anyhow::Result<Vec<(u64, u64)>> {
        rig.set(code::COUNT, count)?;
        let switch = rig.switches[0].clone();
        let [a, b] = budget.cpus;
        let mut seen = Vec::with_capacity(count as usize);
        let memory = rig.vm.ram().memory().clone();
        let first = taken(&memory);
        let epoll = Epoll::new().context("cannot make an epoll")?;
        let event = EpollEvent::new(EventSet::IN, 0);
        epoll.ctl(ControlOperation::Add, bell.as_raw_fd(), event).context("cannot wait for an eventfd")?;
        let served = beside(&mut rig.vcpu, &switch, (a, b), || {
            for _ in 0..count {
                let heard = if self.sleeps { sleep(&epoll, bell)? } else { look(bell)? };
                let sent = raw::ticks();
                interrupt.write(1)?;
                seen.push((heard, sent));
            }
            // It ends by itself; being stopped before would leave it in the middle of a round.
            let start = Instant::now();
            while taken(&memory) < first + count && start.elapsed() < LOST {
                std::hint::spin_loop();
            }
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        });
        rig.check()?;
        served.map(|()| seen)
    }
}

/// Waits for the bell as an event loop does.
fn sleep(epoll: &Epoll, bell: &EventFd) -> anyhow::Result<u64> {
    let mut events = [EpollEvent::default()];
    let ready = epoll.wait(LOST.as_millis() as i32, &mut events)?;
    ensure!(ready > 0, "the guest did not ring");
    let heard = raw::ticks();
    bell.read()?;
    Ok(heard)
}

/// Waits for the bell without a pause.
fn look(bell: &EventFd) -> anyhow::Result<u64> {
    let start = Instant::now();
    loop {
        if bell.read().is_ok() {
            return Ok(raw::ticks());
        }
        ensure!(start.elapsed() < LOST, "the guest did not ring");
    }
}
