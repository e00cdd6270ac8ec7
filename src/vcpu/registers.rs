//! How a vCPU stands while it is still: what KVM has of its registers.

use anyhow::Context;
use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_UNINITIALIZED, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;

/// RFLAGS.IF: interrupts are taken.
pub const INTERRUPTS_ON: u64 = 1 << 9;
/// LVT LINT0's offset among the local APIC's registers.
const LINT0: usize = 0x350;
/// What it holds of the delivery mode and the mask, and both of these as an NMI that is not masked.
const MODE_AND_MASK: u32 = 7 << 8 | 1 << 16;
const NMI: u32 = 4 << 8;

/// A vCPU's registers, and what it does.
#[derive(Clone, Debug)]
pub struct VcpuRegisters {
    /// General registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// Segments, control registers and tables.
    pub sregs: kvm_sregs,
    /// What it does.
    pub activity: Activity,
    /// Whether something is pending, or connected, that wakes it though its interrupts are off.
    pub can_be_woken: bool,
}

/// What a vCPU does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It runs.
    Runs,
    /// It waits for an interrupt.
    Halted,
    /// It has never been started by another, or waits for that again.
    NotStarted,
}

impl VcpuRegisters {
    /// Reads the state.
    ///
    /// # Errors
    /// The host's KVM refuses to tell.
    pub fn read(vcpu: &VcpuFd) -> anyhow::Result<Self> {
        let activity = match vcpu.get_mp_state().context("cannot read a vCPU's activity")?.mp_state {
            KVM_MP_STATE_HALTED => Activity::Halted,
            KVM_MP_STATE_UNINITIALIZED | KVM_MP_STATE_INIT_RECEIVED => Activity::NotStarted,
            _ => Activity::Runs,
        };
        let events = vcpu.get_vcpu_events().context("cannot read a vCPU's events")?;
        let lapic = vcpu.get_lapic().context("cannot read a vCPU's local APIC")?;
        let lint0: [u8; 4] = std::array::from_fn(|index| lapic.regs[LINT0 + index] as u8);
        let watched = u32::from_le_bytes(lint0) & MODE_AND_MASK == NMI;
        Ok(Self {
            regs: vcpu.get_regs().context("cannot read a vCPU's registers")?,
            sregs: vcpu.get_sregs().context("cannot read a vCPU's system registers")?,
            activity,
            can_be_woken: watched || events.nmi.pending != 0 || events.smi.pending != 0,
        })
    }

    /// Whether nothing but another vCPU can make it run on.
    pub fn is_dead(&self) -> bool {
        let off = self.regs.rflags & INTERRUPTS_ON == 0;
        self.activity == Activity::NotStarted
            || (self.activity == Activity::Halted && off && !self.can_be_woken)
    }

    /// Whether it is as after reset (Intel SDM vol. 3 table 10-1), in which a guest never finds it that runs it on.
    pub fn is_reset(&self) -> bool {
        self.regs.rip == 0xfff0 && self.sregs.cs.base == 0xffff_0000 && self.sregs.cr0 & 1 == 0
    }

    /// Whether it was in user mode, by its privilege level.
    pub fn is_user(&self) -> bool {
        self.sregs.ss.dpl == 3
    }
}
