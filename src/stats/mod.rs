//! What a guest's exits cost: counted and timed by each vCPU's thread for itself, read by others at any time without
//! stopping it.
//!
//! The time is that which kite takes from KVM_RUN's return until the access has been carried out; KVM's own part of an
//! exit, and the processor's, are not in it.

pub mod clock;
mod json;
pub mod meter;
mod report;
mod table;
pub mod tally;
mod words;

use std::sync::Arc;
use std::time::Duration;

use devices::bus::Bus;
use kvm_ioctls::{VcpuFd, VmFd};

use crate::kvm_stats::KvmStats;
use clock::Scale;
use meter::{Access, Meter, Space};

pub use report::{Cost, Report, Row};

/// The meters of a machine, and who is who on its board.
pub struct Stats {
    scale: Scale,
    vcpus: Vec<Vcpu>,
    ring: Arc<Meter>,
    ports: Arc<Bus>,
    mmio: Arc<Bus>,
    /// [`KvmStats`] must not outlive it.
    _vm: Arc<VmFd>,
}

struct Vcpu {
    meter: Arc<Meter>,
    kvm: Option<KvmStats>,
}

impl Stats {
    /// For a machine with these vCPUs and buses that has not started.
    pub fn new(vm: Arc<VmFd>, vcpus: &[VcpuFd], ports: Arc<Bus>, mmio: Arc<Bus>) -> Self {
        let vcpus = vcpus.iter().map(|fd| Vcpu { meter: Arc::default(), kvm: KvmStats::of_vcpu(fd) });
        Self { scale: Scale::begin(), vcpus: vcpus.collect(), ring: Arc::default(), ports, mmio, _vm: vm }
    }

    /// What vCPU `index` counts with; nothing if there is no such vCPU.
    pub fn meter(&self, index: usize) -> Option<Arc<Meter>> {
        self.vcpus.get(index).map(|vcpu| vcpu.meter.clone())
    }

    /// What counts the writes that come through KVM's ring (see [`crate::coalesced`]).
    pub fn ring(&self) -> &Arc<Meter> {
        &self.ring
    }

    /// How long ago the meters were made.
    pub fn elapsed(&self) -> Duration {
        self.scale.elapsed()
    }

    /// When each vCPU that has run was entered for the first time.
    pub fn entered(&self) -> impl Iterator<Item = Option<std::time::Instant>> {
        self.vcpus.iter().map(|vcpu| vcpu.meter.entered().map(|ticks| self.scale.instant(ticks)))
    }

    /// What people call the device that this access goes to.
    fn device(&self, access: Access) -> Option<&str> {
        match access.space {
            Space::Port => self.ports.name(access.address),
            Space::Memory => self.mmio.name(access.address),
        }
    }

    /// All that is known now.
    pub fn report(&self) -> Report {
        Report::of(self)
    }
}
