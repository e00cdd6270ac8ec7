//! Long mode for a guest that finds everything set up: tables, segments, and a gate for interrupts.

use kvm_bindings::{kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::code;
use super::rig::Setup;

const GDT: u64 = 0x500;
const IDT: u64 = 0x2000;
const PAGE_TABLES: u64 = 0x9000;
const HANDLER: u64 = 0x12_0000;
const CODE_SEGMENT: u16 = 0x10;
const DATA_SEGMENT: u16 = 0x18;

/// The processor's tables: the first 4 GiB mapped to themselves in large pages (AMD64 APM vol. 2 §5.3), flat segments, and
/// one gate for the interrupts' vector.
///
/// # Errors
/// The guest has too little memory.
pub fn tables(memory: &boot::GuestMemory, setup: Setup) -> anyhow::Result<()> {
    const TABLE: u64 = 0b11;
    const LARGE_PAGE: u64 = 0b1000_0011;
    let directories = PAGE_TABLES + 0x2000;
    let write = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at));
    write(PAGE_TABLES, (PAGE_TABLES + 0x1000) | TABLE)?;
    for gib in 0..4 {
        write(PAGE_TABLES + 0x1000 + gib * 8, (directories + gib * 0x1000) | TABLE)?;
    }
    for page in 0..4 * 512 {
        write(directories + page * 8, page << 21 | LARGE_PAGE)?;
    }
    for (index, descriptor) in [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate() {
        write(GDT + index as u64 * 8, descriptor)?;
    }
    if setup.interrupts {
        let handler = if setup.x2apic { &code::HANDLER_X2APIC } else { &code::HANDLER_XAPIC };
        memory.write_slice(handler.code(), GuestAddress(HANDLER))?;
        // An interrupt gate, present (AMD64 APM vol. 2 §4.8.4).
        let gate =
            HANDLER & 0xffff | u64::from(CODE_SEGMENT) << 16 | 0x8e << 40 | (HANDLER >> 16 & 0xffff) << 48;
        write(IDT + u64::from(code::VECTOR) * 16, gate)?;
    }
    Ok(())
}

/// Sets a vCPU into it, with the tables that [`tables`] writes.
pub fn long_mode(sregs: &mut kvm_sregs, setup: Setup) {
    if setup.interrupts {
        (sregs.idt.base, sregs.idt.limit) = (IDT, 256 * 16 - 1);
    }
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 4 * 8 - 1);
    let flat = |selector, type_, l: u8| kvm_segment {
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        l,
        db: 1 - l,
        ..Default::default()
    };
    sregs.cs = flat(CODE_SEGMENT, 0xb, 1);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = flat(DATA_SEGMENT, 0x3, 0);
    }
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 1 << 5;
    sregs.cr0 = 1 << 31 | 1 << 4 | 1;
    sregs.efer |= 1 << 8 | 1 << 10;
}
