//! The guest's address space as its page tables have it (Intel SDM vol. 3 §4.5, "4-level paging and 5-level paging").

use boot::GuestMemory;
use boot::kallsyms::Physical;
use boot::registers::{CR0_PG, EFER_LMA};
use kvm_bindings::kvm_sregs;
use vm_memory::{Bytes, GuestAddress};

/// CR4.LA57.
const FIVE_LEVELS: u64 = 1 << 12;
/// An entry's bits: present, maps a large page, no execution; and those of an address.
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// The address space that a vCPU has before it.
#[derive(Clone, Copy)]
pub struct AddressSpace<'a> {
    memory: &'a GuestMemory,
    /// The top table and how many levels there are; nothing without paging.
    tables: Option<(u64, u32)>,
}

/// Where a virtual address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The physical address.
    pub address: u64,
    /// Whether code may run there.
    pub executable: bool,
}

impl<'a> AddressSpace<'a> {
    /// The space of a vCPU with these registers; nothing if it is one of 32-bit paging.
    pub fn of(memory: &'a GuestMemory, sregs: &kvm_sregs) -> Option<Self> {
        let levels = if sregs.cr4 & FIVE_LEVELS != 0 { 5 } else { 4 };
        let tables = match (sregs.cr0 & CR0_PG != 0, sregs.efer & EFER_LMA != 0) {
            (false, _) => None,
            (true, true) => Some((sregs.cr3 & ADDRESS, levels)),
            (true, false) => return None,
        };
        Some(Self { memory, tables })
    }

    /// Where `address` is, if anywhere: at most five entries are looked at.
    pub fn find(&self, address: u64) -> Option<Place> {
        let Some((mut table, levels)) = self.tables else {
            return Some(Place { address, executable: true });
        };
        let unused = 64 - (12 + 9 * levels);
        if (address as i64) << unused >> unused != address as i64 {
            return None;
        }
        let mut executable = true;
        for level in (0..levels).rev() {
            let shift = 12 + 9 * level;
            let entry = table.checked_add((address >> shift & 0x1ff) * 8)?;
            let entry = u64::from_le(self.memory.read_obj(GuestAddress(entry)).ok()?);
            if entry & PRESENT == 0 {
                return None;
            }
            executable &= entry & NO_EXECUTE == 0;
            table = entry & ADDRESS;
            if level == 0 || (level < 3 && entry & LARGE != 0) {
                let within = (1 << shift) - 1;
                return Some(Place { address: table & !within | address & within, executable });
            }
        }
        None
    }

    /// Fills `into` from `address` on as far as there is memory; returns how many bytes that are.
    pub fn read(&self, address: u64, into: &mut [u8]) -> usize {
        const PAGE: u64 = 4096;
        let mut done = 0;
        while done < into.len() {
            let Some(at) = address.checked_add(done as u64) else { break };
            let len = (into.len() - done).min((PAGE - at % PAGE) as usize);
            let Some(place) = self.find(at) else { break };
            let got = Physical::read(self.memory, place.address, &mut into[done..done + len]);
            done += got;
            if got < len {
                break;
            }
        }
        done
    }

    /// The word at `address`.
    pub fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == 8).then_some(u64::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PML5: u64 = 0x1000;
    const PML4: u64 = 0x2000;

    fn memory(entries: &[(u64, u64, u64)]) -> GuestMemory {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
        for (table, index, entry) in entries {
            memory.write_obj(*entry, GuestAddress(table + index * 8)).unwrap();
        }
        memory
    }

    fn sregs(cr3: u64, cr4: u64) -> kvm_sregs {
        kvm_sregs { cr0: CR0_PG | 1, cr3, cr4, efer: EFER_LMA, ..Default::default() }
    }

    /// The top of the kernel's half by a small page, one of 2 MiB and one of 1 GiB.
    fn tables() -> GuestMemory {
        memory(&[
            (PML5, 511, PML4 | 3),
            (PML4, 511, 0x3003),
            (0x3000, 510, 0x4003),
            (0x3000, 509, 0x83),
            (0x4000, 0, 0x5003),
            (0x4000, 1, 0x80_0083 | NO_EXECUTE),
            (0x5000, 5, 0x6003),
        ])
    }

    #[test]
    fn pages_of_every_size_are_found_in_either_depth() {
        let memory = tables();
        for sregs in [sregs(PML4, 0), sregs(PML5 | 0xfff, FIVE_LEVELS)] {
            let space = AddressSpace::of(&memory, &sregs).unwrap();
            let found = |address, executable| Some(Place { address, executable });
            assert_eq!(space.find(0xffff_ffff_8000_5123), found(0x6123, true));
            assert_eq!(space.find(0xffff_ffff_8020_4567), found(0x80_4567, false));
            assert_eq!(space.find(0xffff_ffff_4012_3456), found(0x12_3456, true));
            for nowhere in [0, 0xffff_ffff_8000_6000, 0xffff_ffff_0000_0000, 0x7fff_ffff_8000_5000, 1 << 56] {
                assert_eq!(space.find(nowhere), None, "{nowhere:#x}");
            }
        }
    }

    #[test]
    fn reading_ends_where_pages_do() {
        let memory = tables();
        memory.write_slice(&[7; 4096], GuestAddress(0x6000)).unwrap();
        let space = AddressSpace::of(&memory, &sregs(PML4, 0)).unwrap();
        let mut bytes = [0; 200];
        assert_eq!(space.read(0xffff_ffff_8000_5fc0, &mut bytes), 64);
        assert!(bytes[..64] == [7; 64] && bytes[64..] == [0; 136]);
        assert_eq!(space.word(0xffff_ffff_8000_5ff8), Some(0x0707_0707_0707_0707));
        assert_eq!(space.word(0xffff_ffff_8000_5ff9), None);
        assert_eq!(space.read(u64::MAX - 3, &mut bytes), 0);
    }

    #[test]
    fn tables_that_lead_to_themselves_or_nowhere_end() {
        let memory = memory(&[(PML4, 511, PML4 | 3), (PML4, 0, ADDRESS | 3), (PML4, 256, 0x83)]);
        let space = AddressSpace::of(&memory, &sregs(PML4, 0)).unwrap();
        assert_eq!(space.find(u64::MAX), Some(Place { address: PML4 | 0xfff, executable: true }));
        assert_eq!(space.find(0x1234), None);
        assert_eq!(space.word(0), None);
        let nowhere = AddressSpace::of(&memory, &sregs(ADDRESS, 0)).unwrap();
        assert_eq!(nowhere.word(0), None);
    }

    #[test]
    fn without_paging_addresses_are_physical_and_32_bit_paging_is_not_walked() {
        let memory = memory(&[(0, 0, 0x55)]);
        assert_eq!(AddressSpace::of(&memory, &kvm_sregs::default()).unwrap().word(0), Some(0x55));
        let paged = kvm_sregs { cr0: CR0_PG | 1, ..Default::default() };
        assert!(AddressSpace::of(&memory, &paged).is_none());
    }
}
