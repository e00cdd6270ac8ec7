//! CPUID (Intel SDM volume 2A, "CPUID"; AMD APM volume 3, appendix E): what KVM supports, made to describe
//! one socket of single-threaded cores.
//!
//! What KVM reports is the host's: its caches' sharing, its core count, and the APIC id of whichever CPU
//! asked. Linux compares all of these with the MADT and with each CPU's own APIC.
//!
//! Two things are left out on purpose. The timing leaf 0x4000_0010 (TSC and APIC bus frequency) is VMware's:
//! Linux 6.1 and 6.12 do not read it on KVM, where kvm-clock tells them the TSC's frequency and the TSC
//! deadline timer leaves nothing of the APIC's to calibrate. And the KVM feature bit for 15-bit MSI
//! destinations, without which Linux uses no CPU whose APIC id is over 254: KVM's own I/O APIC does not
//! implement them.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// What KVM reports cannot be made a guest's CPUID.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A leaf without which there is no CPU.
    #[error("KVM reports no CPUID leaf {0:#x}")]
    Missing(u32),
    /// More entries than KVM takes.
    #[error("{0} CPUID entries are more than KVM takes")]
    TooMany(usize),
}

/// Leaf 1 ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the local APIC, and that the logical CPU count in EBX is valid.
const APIC: u32 = 1 << 9;
const HTT: u32 = 1 << 28;
/// Leaf 6 EAX: the APIC timer always runs. Without it Linux wants a PIT beside it.
const ARAT: u32 = 1 << 2;
/// Leaf 7 ECX.
const OSPKE: u32 = 1 << 4;
/// Leaf 0x8000_0001 ECX: HTT means cores rather than threads; leaves 0x8000_001d and 0x8000_001e exist.
const CMP_LEGACY: u32 = 1 << 1;
const TOPOEXT: u32 = 1 << 22;

/// The extended topology leaf: guests look for it up to the maximum that leaf 0 gives.
const EXTENDED_TOPOLOGY: u32 = 0xb;
/// Its successor, with level types that this board has no use for.
const EXTENDED_TOPOLOGY_V2: u32 = 0x1f;
/// AMD's APIC, core and node ids of the asking CPU.
const AMD_IDS: u32 = 0x8000_001e;
/// AMD's successor of leaf 0xb: left out, guests then take that.
const AMD_EXTENDED_TOPOLOGY: u32 = 0x8000_0026;

/// The leaves of every vCPU of one machine, but for what tells one vCPU from another.
pub struct Leaves(CpuId);

impl Leaves {
    /// Makes of what `KVM_GET_SUPPORTED_CPUID` reports what a guest with `cpus` vCPUs sees. `tsc_deadline` is
    /// `KVM_CAP_TSC_DEADLINE_TIMER`, which older KVMs do not report as a CPUID bit.
    ///
    /// # Errors
    /// [`Error::Missing`] without leaf 0 or 1, [`Error::TooMany`] past KVM's limit.
    pub fn new(supported: &[kvm_cpuid_entry2], cpus: u32, tsc_deadline: bool) -> Result<Self, Error> {
        let find = |function| supported.iter().find(|entry| entry.function == function);
        let vendor = find(0).ok_or(Error::Missing(0))?;
        find(1).ok_or(Error::Missing(1))?;
        let topology = Topology::new(cpus, is_amd(vendor));
        let made = |function| {
            matches!(function, 6 | EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2 | AMD_IDS | AMD_EXTENDED_TOPOLOGY)
        };

        let mut entries: Vec<_> = supported.iter().filter(|entry| !made(entry.function)).copied().collect();
        for entry in &mut entries {
            topology.adjust(entry);
            match (entry.function, entry.index) {
                (0, _) => entry.eax = entry.eax.max(EXTENDED_TOPOLOGY),
                (1, _) => {
                    // KVM itself shows OSXSAVE and OSPKE when the guest has set their bits in CR4.
                    entry.ecx = entry.ecx & !(OSXSAVE | TSC_DEADLINE) | X2APIC | HYPERVISOR;
                    entry.ecx |= if tsc_deadline { TSC_DEADLINE } else { 0 };
                    entry.edx |= APIC;
                }
                (7, 0) => entry.ecx &= !OSPKE,
                _ => {}
            }
        }
        // Power management: nothing to manage.
        entries.push(kvm_cpuid_entry2 { function: 6, eax: ARAT, ..Default::default() });
        entries.extend(topology.extended(EXTENDED_TOPOLOGY));
        if vendor.eax >= EXTENDED_TOPOLOGY_V2 {
            entries.extend(topology.extended(EXTENDED_TOPOLOGY_V2));
        }
        if topology.amd && find(0x8000_0001).is_some_and(|leaf| leaf.ecx & TOPOEXT != 0) {
            entries.push(kvm_cpuid_entry2 { function: AMD_IDS, ..Default::default() });
        }
        CpuId::from_entries(&entries).map(Self).map_err(|_| Error::TooMany(entries.len()))
    }

    /// The leaves of the vCPU with this index, which is its APIC id, for `KVM_SET_CPUID2`.
    pub fn for_vcpu(&self, index: u32) -> CpuId {
        let mut leaves = self.0.clone();
        for entry in leaves.as_mut_slice() {
            match entry.function {
                // Eight bits, of which a guest with more CPUs than that takes no notice.
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | index << 24,
                EXTENDED_TOPOLOGY | EXTENDED_TOPOLOGY_V2 => entry.edx = index,
                // One thread a core, one node a socket; the core id is eight bits.
                AMD_IDS => (entry.eax, entry.ebx) = (index, index & 0xff),
                _ => {}
            }
        }
        leaves
    }
}

fn is_amd(vendor: &kvm_cpuid_entry2) -> bool {
    let name = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes);
    matches!(name.as_flattened(), b"AuthenticAMD" | b"HygonGenuine")
}

/// One socket of `cpus` cores of one thread each.
struct Topology {
    cpus: u32,
    /// How many low bits of an APIC id tell the cores of the socket apart.
    id_bits: u32,
    amd: bool,
}

impl Topology {
    fn new(cpus: u32, amd: bool) -> Self {
        // More than the 16 bits of leaf 0xb can count is out of KVM's reach by far.
        let cpus = cpus.clamp(1, 1 << 15);
        Self { cpus, id_bits: cpus.next_power_of_two().trailing_zeros(), amd }
    }

    /// Puts this topology into a leaf that also says something else.
    fn adjust(&self, entry: &mut kvm_cpuid_entry2) {
        let several = self.cpus > 1;
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ff00 | self.cpus.min(0xff) << 16;
                entry.edx = with(entry.edx, HTT, several);
            }
            4 | 0x8000_001d => self.share_cache(entry),
            0x8000_0001 if self.amd => entry.ecx = with(entry.ecx, CMP_LEGACY, several),
            // The cores of the socket less one, and the bits of an APIC id that tell them apart.
            0x8000_0008 if self.amd => {
                entry.ecx = entry.ecx & !0xf0ff | (self.cpus - 1).min(0xff) | self.id_bits << 12;
            }
            _ => {}
        }
    }

    /// Leaves 4 and 0x8000_001d, one cache an index: from the third level on all cores share it.
    fn share_cache(&self, entry: &mut kvm_cpuid_entry2) {
        const TYPE: u32 = 0x1f;
        if entry.eax & TYPE == 0 {
            return; // not a cache, but the end of the list
        }
        let level = entry.eax >> 5 & 7;
        let last_id = (1 << self.id_bits) - 1;
        let sharing = if level >= 3 { u32::min(last_id, 0xfff) } else { 0 };
        entry.eax = entry.eax & 0x3fff | sharing << 14;
        if entry.function == 4 {
            entry.eax |= last_id.min(0x3f) << 26;
        }
    }

    /// The threads of a core, the cores of the socket, and the end: `leaf` is [`EXTENDED_TOPOLOGY`] or its
    /// successor. A level gives the bits to shift an APIC id by for the next level's, and its count of CPUs.
    fn extended(&self, leaf: u32) -> [kvm_cpuid_entry2; 3] {
        const THREAD: u32 = 1 << 8;
        const CORE: u32 = 2 << 8;
        let level = |index, kind, eax, ebx| kvm_cpuid_entry2 {
            function: leaf,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax,
            ebx,
            ecx: kind | index,
            ..Default::default()
        };
        [level(0, THREAD, 0, 1), level(1, CORE, self.id_bits, self.cpus), level(2, 0, 0, 0)]
    }
}

fn with(register: u32, bit: u32, set: bool) -> u32 {
    if set { register | bit } else { register & !bit }
}

#[cfg(test)]
mod tests;
