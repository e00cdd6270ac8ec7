//! A machine's state, and what KVM has of it beside the vCPUs: interrupt controllers, interval timer, clock.

use std::collections::BTreeMap;

use anyhow::Context;
use devices::device::State;
use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::vcpu::state::VcpuState;
use crate::vm::pit;

/// The interrupt controllers: two 8259As, and the I/O APIC.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// A machine's state without its memory.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MachineState {
    /// The vCPUs, in the order of their indices.
    pub vcpus: Vec<VcpuState>,
    /// What KVM has beside them.
    pub vm: VmState,
    /// The devices, by name.
    pub devices: BTreeMap<String, State>,
}

/// A virtual machine's state without its memory and vCPUs.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmState {
    /// The interrupt controllers, in the order of [`CHIPS`].
    irqchips: [kvm_irqchip; CHIPS.len()],
    /// The interval timer, if the guest has reached for it.
    pit: Option<kvm_pit_state2>,
    /// The clock that kvmclock shows.
    pub clock: kvm_clock_data,
}

impl VmState {
    /// Reads the state of a machine whose vCPUs are paused.
    ///
    /// # Errors
    /// The host's KVM refuses a part.
    pub fn read(vm: &VmFd) -> anyhow::Result<Self> {
        let mut irqchips = [kvm_irqchip::default(); CHIPS.len()];
        for (chip, chip_id) in irqchips.iter_mut().zip(CHIPS) {
            chip.chip_id = chip_id;
            vm.get_irqchip(chip).context("cannot read an interrupt controller")?;
        }
        let pit = match vm.get_pit2() {
            Ok(pit) => Some(pit),
            Err(error) if error.errno() == libc::ENXIO => None,
            Err(error) => return Err(error).context("cannot read the interval timer"),
        };
        Ok(Self { irqchips, pit, clock: vm.get_clock().context("cannot read KVM's clock")? })
    }

    /// Sets the interrupt controllers and the interval timer of a machine whose vCPUs have their CPUID.
    ///
    /// # Errors
    /// The host's KVM refuses a part.
    pub fn set(&self, vm: &VmFd) -> anyhow::Result<()> {
        for (chip, chip_id) in self.irqchips.iter().zip(CHIPS) {
            // Whatever a file says: each chip is set once.
            let chip = kvm_irqchip { chip_id, ..*chip };
            vm.set_irqchip(&chip).context("cannot set an interrupt controller")?;
        }
        let Some(state) = &self.pit else { return Ok(()) };
        pit::make(vm).context("cannot create the interval timer")?;
        vm.set_pit2(state).context("cannot set the interval timer")
    }

    /// Has KVM's clock go on from where it was read. To be called when the vCPUs are set, and before one runs.
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn set_clock(&self, vm: &VmFd) -> anyhow::Result<()> {
        // Without flags: the guest does not see the time between saving and loading.
        let clock = kvm_clock_data { clock: self.clock.clock, ..Default::default() };
        vm.set_clock(&clock).context("cannot set KVM's clock")
    }
}
