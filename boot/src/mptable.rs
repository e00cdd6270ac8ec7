//! The MP table (MultiProcessor Specification 1.4 §4): CPUs and interrupt lines, for a guest without ACPI.
//!
//! The floating pointer is where the specification has it searched for, in the last KiB of conventional
//! memory. The configuration table would outgrow that KiB from 41 CPUs on, so it is always at
//! [`layout::RSDP`], which is free without ACPI.

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::{GuestMemory, layout};

/// The table could not be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More CPUs than the table's 8-bit APIC ids can name.
    #[error("an MP table describes at most {MAX_CPUS} CPUs, not {0}")]
    TooManyCpus(u32),
    /// There is no RAM where the table goes.
    #[error("cannot write the MP table")]
    Memory(#[from] GuestMemoryError),
}

/// APIC ids are 8 bits, 255 is the broadcast address, and the I/O APIC needs an id of its own: CPUs are
/// 0 to 253 at most.
pub const MAX_CPUS: u32 = 254;

const CONFIG: u64 = layout::RSDP;
/// Specification revision 1.4, as both structures encode it.
const REVISION: u8 = 4;
/// The version register of integrated local APICs, and of KVM's I/O APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IO_APIC_VERSION: u8 = 0x11;

/// Entry types (§4.3).
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// Interrupt types (table 4-11).
const INT: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Every local APIC, as a local interrupt's destination.
const ALL: u8 = 0xff;
/// The only bus.
const ISA: u8 = 0;

/// Writes the table of a board with `cpus` CPUs, whose APIC ids are their indices.
///
/// # Errors
/// [`Error::TooManyCpus`] from [`MAX_CPUS`] + 1 on; [`Error::Memory`] if there is no RAM at
/// [`layout::MP_TABLE`] or [`layout::RSDP`].
pub fn write(memory: &GuestMemory, cpus: u32) -> Result<(), Error> {
    let cpus = u8::try_from(cpus).ok().filter(|_| cpus <= MAX_CPUS).ok_or(Error::TooManyCpus(cpus))?;
    memory.write_slice(&configuration(cpus), GuestAddress(CONFIG))?;
    memory.write_slice(&floating_pointer(), GuestAddress(layout::MP_TABLE))?;
    Ok(())
}

/// §4.1. All five feature bytes are 0: a configuration table is present, and interrupts start in virtual wire
/// mode (there is no IMCR).
fn floating_pointer() -> [u8; 16] {
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(CONFIG as u32).to_le_bytes());
    pointer[8] = 1; // its length in units of 16 bytes
    pointer[9] = REVISION;
    pointer[10] = complement(&pointer);
    pointer
}

/// §4.2 and §4.3: the header and the entries, ordered by type.
fn configuration(cpus: u8) -> Vec<u8> {
    let mut entries = Vec::with_capacity(20 * usize::from(cpus) + 152);
    for id in 0..cpus {
        let flags = if id == 0 { 0b11 } else { 0b01 }; // enabled, bootstrap processor
        entries.extend_from_slice(&[PROCESSOR, id, LOCAL_APIC_VERSION, flags, 0, 0, 0, 0]);
        // Features: FPU and APIC; a guest has CPUID for the rest. Then eight reserved bytes.
        entries.extend_from_slice(&[0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    entries.extend_from_slice(&[BUS, ISA]);
    entries.extend_from_slice(b"ISA   ");
    let io_apic = cpus;
    entries.extend_from_slice(&[IO_APIC, io_apic, IO_APIC_VERSION, 1]); // enabled
    entries.extend_from_slice(&layout::IO_APIC.to_le_bytes());
    // KVM routes GSI n to pin n by default, the timer's 0 too. Line 2 is the cascade between the two 8259s.
    for line in (0..16).filter(|line| *line != 2) {
        entries.extend_from_slice(&[IO_INTERRUPT, INT, 0, 0, ISA, line, io_apic, line]);
    }
    // The 8259s reach the boot CPU's LINT0, as KVM wires them; NMI is LINT1 everywhere.
    entries.extend_from_slice(&[LOCAL_INTERRUPT, EXT_INT, 0, 0, ISA, 0, 0, 0]);
    entries.extend_from_slice(&[LOCAL_INTERRUPT, NMI, 0, 0, ISA, 0, ALL, 1]);

    let count = u16::from(cpus) + 2 + 15 + 2;
    let mut table = Vec::with_capacity(44 + entries.len());
    table.extend_from_slice(b"PCMP");
    table.extend_from_slice(&(44 + entries.len() as u16).to_le_bytes());
    table.extend_from_slice(&[REVISION, 0]); // the checksum comes last
    table.extend_from_slice(b"KITE    KITE        ");
    table.extend_from_slice(&[0; 6]); // no OEM table
    table.extend_from_slice(&count.to_le_bytes());
    table.extend_from_slice(&layout::LOCAL_APIC.to_le_bytes());
    table.extend_from_slice(&[0; 4]); // no extended entries
    table.extend_from_slice(&entries);
    table[7] = complement(&table);
    table
}

/// What makes `bytes` sum to zero.
fn complement(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    /// The entries, found as a guest finds them, checksums verified.
    fn entries(memory: &GuestMemory) -> Vec<Vec<u8>> {
        let mut pointer = [0; 16];
        memory.read_slice(&mut pointer, GuestAddress(layout::MP_TABLE)).unwrap();
        assert_eq!((&pointer[..4], pointer[8], complement(&pointer)), (&b"_MP_"[..], 1, 0));
        let at = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        let len: u16 = memory.read_obj(GuestAddress(u64::from(at) + 4)).unwrap();
        let mut table = vec![0; len.into()];
        memory.read_slice(&mut table, GuestAddress(at.into())).unwrap();
        assert_eq!((&table[..4], complement(&table)), (&b"PCMP"[..], 0));
        let mut rest = &table[44..];
        let mut entries = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, after) = rest.split_at(if *kind == PROCESSOR { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = after;
        }
        assert_eq!(usize::from(u16::from_le_bytes([table[34], table[35]])), entries.len());
        assert!(entries.is_sorted_by_key(|entry| entry[0]));
        entries
    }

    fn of_type(entries: &[Vec<u8>], kind: u8) -> Vec<&[u8]> {
        entries.iter().filter(|entry| entry[0] == kind).map(Vec::as_slice).collect()
    }

    #[test]
    fn every_cpu_is_listed_and_only_the_first_boots() {
        for count in [1, 2, 41, MAX_CPUS] {
            let memory = memory();
            write(&memory, count).unwrap();
            let entries = entries(&memory);
            let cpus: Vec<_> =
                of_type(&entries, PROCESSOR).iter().map(|cpu| (cpu[1].into(), cpu[3])).collect();
            let expected: Vec<_> = (0..count).map(|id| (id, if id == 0 { 3 } else { 1 })).collect();
            assert_eq!(cpus, expected);
        }
    }

    #[test]
    fn isa_lines_reach_the_io_apic_pin_of_the_same_number() {
        let memory = memory();
        write(&memory, 3).unwrap();
        let entries = entries(&memory);
        let io_apics = of_type(&entries, IO_APIC);
        assert_eq!((io_apics.len(), io_apics[0][1]), (1, 3), "an id no CPU has");
        assert_eq!(io_apics[0][4..], layout::IO_APIC.to_le_bytes());
        let lines = of_type(&entries, IO_INTERRUPT);
        assert!(lines.iter().all(|line| line[5] == line[7] && line[6] == 3));
        let numbers: Vec<_> = lines.iter().map(|line| line[5]).collect();
        assert_eq!(numbers, [0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]);
    }

    #[test]
    fn ids_that_do_not_fit_are_refused() {
        for cpus in [MAX_CPUS + 1, 256, u32::MAX] {
            assert!(matches!(write(&memory(), cpus), Err(Error::TooManyCpus(_))));
        }
    }
}
