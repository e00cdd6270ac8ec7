//! What the boot vCPU's registers hold at the kernel's first instruction, and the tables they point at.
//!
//! Linux `Documentation/arch/x86/boot.rst`, "64-bit boot protocol"; Xen `docs/misc/pvh.pandoc`; Multiboot 0.6.96 §3.2;
//! AMD64 APM vol. 2 §5, §14.

use kvm_bindings::{kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestMemory;
use crate::kernel::{Image, Protocol};
use crate::layout::{GDT, PAGE_TABLES};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
/// Paging is on.
pub const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
/// Long mode is active.
pub const EFER_LMA: u64 = 1 << 10;

/// __BOOT_CS and __BOOT_DS of the 64-bit protocol; PVH does not care.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Sets `sregs` and `regs`, which hold their reset values, for the image's protocol, and writes the descriptor and
/// page tables. `info` is where the boot parameters are.
///
/// # Errors
/// Guest memory ends below 1 MiB.
pub fn set(
    memory: &GuestMemory,
    image: &Image,
    info: u64,
    sregs: &mut kvm_sregs,
    regs: &mut kvm_regs,
) -> Result<(), GuestMemoryError> {
    let long = image.protocol == Protocol::Linux64;
    let code = segment(CODE, 0xb, long);
    let data = segment(DATA, 0x3, false);
    let task = kvm_segment { limit: 0x67, g: 0, ..segment(TASK, 0xb, false) };
    let task = kvm_segment { s: 0, db: 0, ..task };
    let gdt = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)];
    write_words(memory, GDT, &gdt)?;
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, size_of_val(&gdt) as u16 - 1);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    (sregs.cs, sregs.tr) = (code, task);
    for each in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *each = data;
    }
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    *regs = kvm_regs { rip: image.entry, rflags: 2, ..Default::default() };
    match image.protocol {
        Protocol::Pvh => regs.rbx = info,
        // What says that a Multiboot loader was here.
        Protocol::Multiboot => (regs.rax, regs.rbx) = (0x2bad_b002, info),
        Protocol::Linux64 => {
            regs.rsi = info;
            write_page_tables(memory)?;
            sregs.cr3 = PAGE_TABLES;
            sregs.cr4 = CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
        }
    }
    Ok(())
}

/// Wires a local APIC as firmware leaves it for a kernel that finds no ACPI (MP 1.4 §3.6.2.2, "virtual wire mode"): the
/// legacy controllers interrupt the boot CPU through LINT0, and LINT1 is NMI everywhere.
pub fn set_virtual_wire(lapic: &mut kvm_lapic_state, boot_cpu: bool) {
    // Local APIC registers and their values (AMD64 APM vol. 2 §16.4.1).
    const LVT_LINT0: usize = 0x350;
    const LVT_LINT1: usize = 0x360;
    const LVT_MASKED: u32 = 1 << 16;
    const EXT_INT: u32 = 7 << 8;
    const NMI: u32 = 4 << 8;
    let mut set = |register: usize, value: u32| {
        for (byte, value) in lapic.regs[register..].iter_mut().zip(value.to_le_bytes()) {
            *byte = value as _;
        }
    };
    set(LVT_LINT0, if boot_cpu { EXT_INT } else { EXT_INT | LVT_MASKED });
    set(LVT_LINT1, NMI);
}

/// A flat segment of `kind` (APM vol. 2 §4.7-4.8).
fn segment(selector: u16, kind: u8, long: bool) -> kvm_segment {
    // A limit of 4 GiB.
    const FLAT: u32 = u32::MAX;
    kvm_segment {
        base: 0,
        limit: FLAT,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        l: long.into(),
        db: (!long).into(),
        ..Default::default()
    }
}

/// The descriptor that loads as `segment` (APM vol. 2 §4.7).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = segment.type_ | segment.s << 4 | segment.dpl << 5 | segment.present << 7;
    let flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | u64::from(access) << 40
        | (limit >> 16 & 0xf) << 48
        | u64::from(flags) << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// Maps the first GiB to itself in large pages: the protocol asks for the kernel, the zero page and the command
/// line, and everything we load below that is within it or mapped by the kernel itself.
fn write_page_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    // Present, writable.
    const TABLE: u64 = 0b11;
    // Present, writable, a page of 2 MiB.
    const LARGE_PAGE: u64 = 0b1000_0011;
    let (pdpt, directory) = (PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000);
    write_words(memory, PAGE_TABLES, &[pdpt | TABLE])?;
    write_words(memory, pdpt, &[directory | TABLE])?;
    let pages: [u64; 512] = std::array::from_fn(|page| (page as u64) << 21 | LARGE_PAGE);
    write_words(memory, directory, &pages)
}

fn write_words(memory: &GuestMemory, at: u64, words: &[u64]) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_every_flat_kernel_uses() {
        assert_eq!(descriptor(&segment(CODE, 0xb, true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(CODE, 0xb, false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&segment(DATA, 0x3, false)), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn only_the_boot_cpu_takes_legacy_interrupts_and_every_cpu_nmis() {
        let word = |lapic: &kvm_lapic_state, at: usize| -> u32 {
            (0..4).fold(0, |word, byte| word | u32::from(lapic.regs[at + byte] as u8) << (8 * byte))
        };
        for (boot_cpu, lint0) in [(true, 0x700), (false, 0x1_0700)] {
            let mut lapic = kvm_lapic_state { regs: [-1; 1024] };
            set_virtual_wire(&mut lapic, boot_cpu);
            assert_eq!((word(&lapic, 0x350), word(&lapic, 0x360)), (lint0, 0x400));
            assert_eq!((word(&lapic, 0x34c), word(&lapic, 0x354)), (u32::MAX, u32::MAX));
        }
    }

    #[test]
    fn the_first_gib_maps_to_itself() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |at: u64| memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let pdpt = entry(PAGE_TABLES) & !0xfff;
        let directory = entry(pdpt) & !0xfff;
        for page in [0u64, 1, 511] {
            assert_eq!(entry(directory + page * 8), page * (2 << 20) + 0x83);
        }
    }

    fn at_entry(image: &Image) -> (GuestMemory, kvm_sregs, kvm_regs) {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let (mut sregs, mut regs) = (kvm_sregs::default(), kvm_regs::default());
        set(&memory, image, 0x7000, &mut sregs, &mut regs).unwrap();
        (memory, sregs, regs)
    }

    #[test]
    fn the_64_bit_protocol_begins_in_long_mode_with_the_zero_page_in_rsi() {
        let [bzimage, elf, _] = crate::kernel::tests::images();
        for image in [bzimage, elf] {
            let (_, sregs, regs) = at_entry(&image);
            assert_eq!((regs.rip, regs.rsi, regs.rflags), (image.entry, 0x7000, 2));
            assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x8000_0011, 0x20, 0x500));
            assert_eq!((sregs.cr3, sregs.cs.l, sregs.cs.db), (PAGE_TABLES, 1, 0));
        }
    }

    #[test]
    fn pvh_begins_in_protected_mode_without_paging_and_with_its_information_in_ebx() {
        let [.., pvh] = crate::kernel::tests::images();
        let (_, sregs, regs) = at_entry(&pvh);
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (pvh.entry, 0x7000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.limit), (0, 1, u32::MAX));
        assert_eq!((sregs.tr.limit, sregs.tr.type_, sregs.tr.s), (0x67, 0xb, 0));
    }

    #[test]
    fn a_multiboot_image_begins_in_protected_mode_without_paging_and_with_its_information_in_ebx() {
        let image = crate::kernel::tests::multiboot_image();
        let (_, sregs, regs) = at_entry(&image);
        assert_eq!((regs.rip, regs.rax, regs.rbx, regs.rflags), (image.entry, 0x2bad_b002, 0x7000, 2));
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.type_, sregs.cs.db, sregs.cs.base, sregs.cs.limit), (0xb, 1, 0, u32::MAX));
        for segment in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
            assert_eq!((segment.type_, segment.db, segment.base, segment.limit), (3, 1, 0, u32::MAX));
        }
    }

    #[test]
    fn every_selector_loads_what_its_register_holds() {
        for image in crate::kernel::tests::images() {
            let (memory, sregs, _) = at_entry(&image);
            for segment in [sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss, sregs.tr] {
                assert!(segment.selector + 7 <= sregs.gdt.limit);
                let at = GuestAddress(sregs.gdt.base + u64::from(segment.selector));
                assert_eq!(memory.read_obj::<u64>(at).unwrap(), descriptor(&segment));
            }
        }
    }

    #[test]
    fn memory_that_is_too_small_for_the_tables_is_an_error() {
        for image in crate::kernel::tests::images() {
            let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 10)]).unwrap();
            let (mut sregs, mut regs) = (kvm_sregs::default(), kvm_regs::default());
            assert!(set(&memory, &image, 0x7000, &mut sregs, &mut regs).is_err());
        }
    }
}
