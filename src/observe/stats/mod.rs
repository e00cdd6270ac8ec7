//! What a guest's exits cost: counted and timed by each vCPU's thread for itself, read by others at any time without
//! stopping it.
//!
//! The time is that which kite takes from KVM_RUN's return until the access has been carried out; KVM's own part of an
//! exit, and the processor's, are not in it.

mod counts;
mod json;
mod report;
mod summary;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use devices::bus::Bus;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::observe::kvm_stats::KvmStats;
use crate::vcpu::Shared;
use crate::vcpu::counters::clock::Scale;
use crate::vcpu::counters::{Access, Counters, Space};
use crate::vm::machine::Machine;

pub use counts::{Count, Counts, Subject};
pub use report::{Cost, Report, Row};

/// Who answers where there is no device.
const NOBODY: &str = "nobody";

/// The counters of a machine, and who is who on its board.
pub struct Stats {
    scale: Scale,
    vcpus: Vec<Vcpu>,
    ring: Arc<Counters>,
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    /// [`KvmStats`] must not outlive it.
    _vm: Option<Arc<VmFd>>,
}

#[derive(Default)]
struct Vcpu {
    counters: Arc<Counters>,
    kvm: Option<KvmStats>,
}

impl Stats {
    /// Has the exits of `machine` counted and timed.
    pub fn measure(machine: &mut Machine) -> Arc<Self> {
        let Shared { ports, mmio, .. } = machine.shared();
        let stats = Self::new(machine.vm().fd().clone(), machine.vcpus(), ports.clone(), mmio.clone());
        let vcpus = stats.vcpus.iter().map(|vcpu| vcpu.counters.clone()).collect();
        machine.count(vcpus, stats.ring.clone());
        Arc::new(stats)
    }

    /// For a machine with these vCPUs and buses that has not started.
    pub fn new(vm: Arc<VmFd>, vcpus: &[VcpuFd], ports: Arc<Bus>, mmio: Arc<Bus>) -> Self {
        let mut stats = Self::without_kvm(vcpus.len(), ports, mmio);
        for (vcpu, fd) in stats.vcpus.iter_mut().zip(vcpus) {
            vcpu.kvm = KvmStats::of_vcpu(fd);
        }
        stats._vm = Some(vm);
        stats
    }

    /// The same for `count` vCPUs that no other counter has.
    pub fn without_kvm(count: usize, ports: Arc<Bus>, mmio: Arc<Bus>) -> Self {
        let vcpus = std::iter::repeat_with(Vcpu::default).take(count).collect();
        Self { scale: Scale::begin(), vcpus, ring: Arc::default(), ports, mmio, _vm: None }
    }

    /// What vCPU `index` counts with; nothing if there is no such vCPU.
    pub fn counters(&self, index: usize) -> Option<Arc<Counters>> {
        self.vcpus.get(index).map(|vcpu| vcpu.counters.clone())
    }

    /// What counts the writes that come through KVM's ring (see [`crate::vcpu::coalesced`]).
    pub fn ring(&self) -> &Arc<Counters> {
        &self.ring
    }

    /// How long ago the counters were made.
    pub fn elapsed(&self) -> Duration {
        self.scale.elapsed()
    }

    /// When each vCPU that has run was entered for the first time.
    pub fn entered(&self) -> impl Iterator<Item = Option<Instant>> {
        self.vcpus.iter().map(|vcpu| vcpu.counters.entered())
    }

    /// What people call the device that this access goes to.
    fn device(&self, access: Access) -> Option<&str> {
        match access.space {
            Space::Port => self.ports.name(access.address),
            Space::Memory => self.mmio.name(access.address),
        }
    }

    /// Nanoseconds a tick.
    pub fn tick_ns(&self) -> f64 {
        self.scale.tick_ns()
    }

    /// What was accessed, how, and who answers: `0x3f8 write 1 (serial)`.
    pub fn place(&self, (kind, access): Subject) -> String {
        let Some(it) = access else { return format!("all other {}s", kind.name()) };
        let device = self.device(it).unwrap_or(NOBODY);
        format!("{it} ({device})")
    }

    /// How the counts stand now.
    pub fn counts(&self) -> Counts {
        Counts::of(self)
    }

    /// How many exits there were for each device, those without a device together.
    pub fn exits_by_device(&self) -> BTreeMap<String, u64> {
        let mut exits = BTreeMap::new();
        for (_, access, histogram) in self.vcpus.iter().flat_map(|vcpu| vcpu.counters.accesses()) {
            let device = access.and_then(|access| self.device(access)).unwrap_or(NOBODY);
            match exits.get_mut(device) {
                Some(count) => *count += histogram.totals().0,
                None => _ = exits.insert(device.to_owned(), histogram.totals().0),
            }
        }
        exits
    }

    /// All that is known now.
    pub fn report(&self) -> Report {
        Report::of(self)
    }
}
