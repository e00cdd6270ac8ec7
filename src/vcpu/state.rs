//! The whole state of a vCPU: read from one that is paused, and set in a new one.
//!
//! What depends on what decides the order (Linux `arch/x86/kvm/x86.c`): reading the activity lets pending INITs and SIPIs
//! take effect, events come last as the others may still change them; a TSC deadline is armed by a TSC that is set.
#![expect(unsafe_code, reason = "the size of XSAVE's area is KVM's to say")]

use anyhow::{Context, ensure};
use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state,
    kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};

/// The time-stamp counter.
pub const IA32_TSC: u32 = 0x10;
/// When the local APIC's timer fires, in ticks of the TSC.
const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// How many banks of machine-check registers there are, in the lowest eight bits.
const IA32_MCG_CAP: u32 = 0x179;
/// The first bank's registers: four a bank.
const IA32_MC0_CTL: u32 = 0x400;
/// Memory types (Intel SDM vol. 3 §13.11.2), which older kernels do not list.
const MTRRS: [u32; 12] = [0x2ff, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
/// The first of the eight variable ranges' pairs.
const IA32_MTRR_PHYSBASE0: u32 = 0x200;
const VARIABLE_RANGES: u32 = 8;
/// How many MSRs KVM takes at once.
const MOST_MSRS: usize = 256;
/// The words of XSAVE's area that every KVM has.
const XSAVE_WORDS: usize = 1024;

/// A vCPU's state.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VcpuState {
    /// What the guest sees of the processor.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// Whether it runs, has halted, or waits to be started.
    pub mp_state: kvm_mp_state,
    /// General registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// Segments, control registers and tables.
    pub sregs: kvm_sregs,
    /// Registers of the FPU and of vectors: the XSAVE area, in words.
    pub xsave: Vec<u32>,
    /// Which of those registers are in use.
    pub xcrs: kvm_xcrs,
    /// Debug registers.
    pub debugregs: kvm_debugregs,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers, as pairs of index and value.
    pub msrs: Vec<(u32, u64)>,
    /// Exceptions, interrupts and NMIs that wait to be delivered.
    pub events: kvm_vcpu_events,
}

/// The MSRs that belong to a vCPU's state, in KVM's order, and those that older kernels do not list.
///
/// # Errors
/// The host's KVM does not list them.
pub fn msr_indices(kvm: &Kvm) -> anyhow::Result<Vec<u32>> {
    let list = kvm.get_msr_index_list().context("cannot list KVM's MSRs")?;
    let mut indices = list.as_slice().to_vec();
    let ranges = (0..2 * VARIABLE_RANGES).map(|index| IA32_MTRR_PHYSBASE0 + index);
    let more: Vec<_> = MTRRS.into_iter().chain(ranges).filter(|it| !indices.contains(it)).collect();
    indices.extend(more);
    Ok(indices)
}

impl VcpuState {
    /// Reads the state of a vCPU of `vm` whose last exit is completed; of the MSRs in `indices`, those that it has.
    ///
    /// # Errors
    /// The host's KVM refuses a part.
    pub fn read(vm: &VmFd, vcpu: &VcpuFd, indices: &[u32]) -> anyhow::Result<Self> {
        let mp_state = vcpu.get_mp_state().context("cannot read a vCPU's activity")?;
        Ok(Self {
            mp_state,
            regs: vcpu.get_regs().context("cannot read a vCPU's registers")?,
            sregs: vcpu.get_sregs().context("cannot read a vCPU's system registers")?,
            xsave: read_xsave(vm, vcpu).context("cannot read a vCPU's FPU")?,
            xcrs: vcpu.get_xcrs().context("cannot read a vCPU's XCRs")?,
            debugregs: vcpu.get_debug_regs().context("cannot read a vCPU's debug registers")?,
            lapic: vcpu.get_lapic().context("cannot read a vCPU's local APIC")?,
            msrs: read_all_msrs(vcpu, indices).context("cannot read a vCPU's MSRs")?,
            cpuid: vcpu
                .get_cpuid2(KVM_MAX_CPUID_ENTRIES)
                .context("cannot read a vCPU's CPUID")?
                .as_slice()
                .to_vec(),
            events: vcpu.get_vcpu_events().context("cannot read a vCPU's events")?,
        })
    }

    /// Sets what the guest sees of the processor. The interrupt controllers of the machine are set after this, and then
    /// the [rest](Self::set).
    ///
    /// # Errors
    /// The host's KVM refuses it.
    pub fn set_cpuid(&self, vcpu: &VcpuFd) -> anyhow::Result<()> {
        let cpuid = CpuId::from_entries(&self.cpuid).ok().context("a vCPU's state has too much of CPUID")?;
        vcpu.set_cpuid2(&cpuid).context("cannot set a vCPU's CPUID")
    }

    /// Sets the state of a vCPU of `vm` that has not run.
    ///
    /// # Errors
    /// The host's KVM refuses a part, or has more or less of the FPU.
    pub fn set(&self, vm: &VmFd, vcpu: &VcpuFd) -> anyhow::Result<()> {
        vcpu.set_mp_state(self.mp_state).context("cannot set a vCPU's activity")?;
        vcpu.set_regs(&self.regs).context("cannot set a vCPU's registers")?;
        vcpu.set_sregs(&self.sregs).context("cannot set a vCPU's system registers")?;
        set_xsave(vm, vcpu, &self.xsave).context("cannot set a vCPU's FPU")?;
        vcpu.set_xcrs(&self.xcrs).context("cannot set a vCPU's XCRs")?;
        vcpu.set_debug_regs(&self.debugregs).context("cannot set a vCPU's debug registers")?;
        vcpu.set_lapic(&self.lapic).context("cannot set a vCPU's local APIC")?;
        set_msrs(vcpu, &in_order(&self.msrs)).context("cannot set a vCPU's MSRs")?;
        vcpu.set_vcpu_events(&self.events).context("cannot set a vCPU's events")?;
        match vcpu.kvmclock_ctrl() {
            // The guest has no kvmclock, or none yet.
            Err(error) if error.errno() == libc::EINVAL => Ok(()),
            told => told.context("cannot tell a vCPU's clock of the pause"),
        }
    }
}

/// How many words of XSAVE's area this KVM reads and writes.
fn xsave_words(vm: &VmFd) -> usize {
    // Before Linux 5.17 there is no such capability, and the area has one size.
    let bytes = usize::try_from(vm.check_extension_int(Cap::Xsave2)).unwrap_or_default();
    bytes.div_ceil(size_of::<u32>()).max(XSAVE_WORDS)
}

fn read_xsave(vm: &VmFd, vcpu: &VcpuFd) -> anyhow::Result<Vec<u32>> {
    let words = xsave_words(vm);
    if words == XSAVE_WORDS {
        return Ok(vcpu.get_xsave()?.region.to_vec());
    }
    let mut area = Xsave::new(words - XSAVE_WORDS).ok().context("its area is too large")?;
    // SAFETY: the area has the size that KVM says it writes.
    unsafe { vcpu.get_xsave2(&mut area) }?;
    Ok([&area.as_fam_struct_ref().xsave.region[..], area.as_slice()].concat())
}

fn set_xsave(vm: &VmFd, vcpu: &VcpuFd, words: &[u32]) -> anyhow::Result<()> {
    let expected = xsave_words(vm);
    ensure!(words.len() == expected, "its area has {} words, and this host's {expected}", words.len());
    let (region, extra) = words.split_at(XSAVE_WORDS);
    let mut area = Xsave::new(extra.len()).ok().context("its area is too large")?;
    area.as_mut_slice().copy_from_slice(extra);
    // SAFETY: the number of words behind the region does not change.
    unsafe { area.as_mut_fam_struct() }.xsave.region.copy_from_slice(region);
    // SAFETY: the area has the size that KVM says it reads.
    unsafe { vcpu.set_xsave2(&area) }.map_err(Into::into)
}

/// The MSRs of `indices` that the vCPU has, and those of its machine-check banks.
fn read_all_msrs(vcpu: &VcpuFd, indices: &[u32]) -> anyhow::Result<Vec<(u32, u64)>> {
    let mut msrs = read_msrs(vcpu, indices)?;
    let banks =
        msrs.iter().find(|(index, _)| *index == IA32_MCG_CAP).map_or(0, |(_, cap)| *cap as u32 & 0xff);
    let of_banks = (0..banks.min(32) * 4).map(|register| IA32_MC0_CTL + register);
    let of_banks: Vec<_> = of_banks.filter(|index| !indices.contains(index)).collect();
    msrs.extend(read_msrs(vcpu, &of_banks)?);
    Ok(msrs)
}

fn read_msrs(vcpu: &VcpuFd, mut indices: &[u32]) -> anyhow::Result<Vec<(u32, u64)>> {
    let mut values = Vec::with_capacity(indices.len());
    while !indices.is_empty() {
        let entries: Vec<_> = indices.iter().take(MOST_MSRS).map(|index| entry((*index, 0))).collect();
        let mut msrs = Msrs::from_entries(&entries).ok().context("they do not fit in a list")?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend(msrs.as_slice().iter().take(read).map(|msr| (msr.index, msr.data)));
        // KVM stops at the first that this vCPU does not have.
        let passed = if read < entries.len() { read + 1 } else { read };
        indices = &indices[passed..];
    }
    Ok(values)
}

fn set_msrs(vcpu: &VcpuFd, mut msrs: &[(u32, u64)]) -> anyhow::Result<()> {
    while !msrs.is_empty() {
        let entries: Vec<_> = msrs.iter().take(MOST_MSRS).copied().map(entry).collect();
        let list = Msrs::from_entries(&entries).ok().context("they do not fit in a list")?;
        let set = vcpu.set_msrs(&list)?;
        // KVM stops at the first that it refuses. It has none that it can do without if that is zero.
        let passed = match entries.get(set) {
            Some(refused) => {
                let (index, data) = (refused.index, refused.data);
                ensure!(data == 0, "this KVM refuses MSR {index:#x} the value {data:#x}");
                set + 1
            }
            None => set,
        };
        msrs = &msrs[passed..];
    }
    Ok(())
}

fn entry((index, data): (u32, u64)) -> kvm_msr_entry {
    kvm_msr_entry { index, data, reserved: 0 }
}

/// The TSC first, as others are relative to it; its deadline last, which arms a timer.
fn in_order(msrs: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let mut msrs = msrs.to_vec();
    msrs.sort_by_key(|(index, _)| match *index {
        IA32_TSC => 0,
        IA32_TSC_DEADLINE => 2,
        _ => 1,
    });
    msrs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tsc_is_set_first_and_its_deadline_last() {
        let msrs = [(IA32_TSC_DEADLINE, 9), (0x277, 1), (IA32_TSC, 8), (0x10a, 2)];
        assert_eq!(in_order(&msrs), [(IA32_TSC, 8), (0x277, 1), (0x10a, 2), (IA32_TSC_DEADLINE, 9)]);
    }
}
