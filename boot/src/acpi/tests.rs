//! The tables as a guest finds them: by the addresses in them, and by the offsets of the specification.

use super::*;

fn written(cpus: u32) -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert_eq!(write(&memory, cpus, Virtio::Mmio(3), None).unwrap(), layout::RSDP);
    memory
}

/// The table at `at`, its checksum verified.
fn table(memory: &GuestMemory, at: u64) -> Vec<u8> {
    let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
    let mut table = vec![0; len as usize];
    memory.read_slice(&mut table, GuestAddress(at)).unwrap();
    assert_eq!(sum(&table), 0, "{}", String::from_utf8_lossy(&table[..4]));
    assert!(at.is_multiple_of(8) && at + u64::from(len) <= layout::ACPI_END);
    table
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn u64_at(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

fn u32_at(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
}

/// FADT, MADT and DSDT, found as a guest finds them.
fn walk(memory: &GuestMemory) -> [Vec<u8>; 3] {
    let mut rsdp = [0; 36];
    memory.read_slice(&mut rsdp, GuestAddress(layout::RSDP)).unwrap();
    assert_eq!((&rsdp[..8], sum(&rsdp[..20]), sum(&rsdp)), (&b"RSD PTR "[..], 0, 0));
    let xsdt = table(memory, u64_at(&rsdp, 24));
    assert_eq!((&xsdt[..4], xsdt.len()), (&b"XSDT"[..], 52));
    let fadt = table(memory, u64_at(&xsdt, 36));
    let madt = table(memory, u64_at(&xsdt, 44));
    let dsdt = table(memory, u64_at(&fadt, 140));
    assert_eq!((&fadt[..4], &madt[..4], &dsdt[..4]), (&b"FACP"[..], &b"APIC"[..], &b"DSDT"[..]));
    [fadt, madt, dsdt]
}

/// (APIC id, enabled, is an x2APIC structure) of each CPU.
fn cpus(madt: &[u8]) -> Vec<(u32, bool, bool)> {
    let (mut cpus, mut at) = (Vec::new(), MADT_HEADER);
    while at < madt.len() {
        match (madt[at], madt[at + 1]) {
            (0, 8) => cpus.push((madt[at + 3].into(), madt[at + 4] == 1, false)),
            (9, 16) => cpus.push((u32_at(madt, at + 4), madt[at + 8] == 1, true)),
            (1, 12) => assert_eq!((u32_at(madt, at + 4), u32_at(madt, at + 8)), (layout::IO_APIC, 0)),
            unknown => panic!("structure {unknown:?}"),
        }
        at += usize::from(madt[at + 1]);
    }
    cpus
}

#[test]
fn every_cpu_is_listed_by_its_index_and_large_ids_are_x2apic() {
    for count in [1, 2, 255, 256, 300, 4096] {
        let [_, madt, _] = walk(&written(count));
        let expected: Vec<_> = (0..count).map(|id| (id, true, id >= 255)).collect();
        assert_eq!(cpus(&madt), expected);
        assert_eq!(u32_at(&madt, 36), layout::LOCAL_APIC);
        assert_eq!(madt.len() as u64, madt_len(count));
    }
}

#[test]
fn the_fadt_is_hardware_reduced_and_names_the_power_ports() {
    let [fadt, ..] = walk(&written(1));
    assert_eq!(fadt.len(), 276);
    assert_eq!((fadt[8], fadt[131]), (6, 5), "revision");
    assert_eq!(u32_at(&fadt, 112), 1 << 20 | 1 << 10, "flags");
    assert_eq!(u32_at(&fadt, 40), 0, "only the 64-bit DSDT address is set");
    let port = |at: usize| {
        assert_eq!(fadt[at..at + 4], [1, 8, 0, 1]);
        u64_at(&fadt, at + 4) as u16
    };
    assert_eq!([port(244), port(256), port(116)], [0, 1, 2].map(|offset| layout::POWER_PORT + offset));
    assert_eq!(fadt[128], layout::RESET_VALUE);
}

#[test]
fn a_pm_timer_is_found_through_either_table_of_tables() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    write(&memory, 2, Virtio::Mmio(0), Some(0x608)).unwrap();
    let [fadt, madt, _] = walk(&memory);
    assert_eq!((u32_at(&fadt, 76), fadt[91]), (0x608, 4));
    assert_eq!((fadt[208..212].to_vec(), u64_at(&fadt, 212)), (vec![1, 32, 0, 3], 0x608));
    assert_eq!(u32_at(&fadt, 112), 1 << 20 | 1 << 10 | 1 << 8, "flags");
    let rsdt: u32 = memory.read_obj(GuestAddress(layout::RSDP + 16)).unwrap();
    let rsdt = table(&memory, rsdt.into());
    assert_eq!((&rsdt[..4], rsdt.len()), (&b"RSDT"[..], 44));
    assert_eq!(table(&memory, u32_at(&rsdt, 36).into()), fadt);
    assert_eq!(table(&memory, u32_at(&rsdt, 40).into()), madt);
}

#[test]
fn without_a_pm_timer_nothing_tells_of_one() {
    let memory = written(1);
    let [fadt, ..] = walk(&memory);
    assert_eq!((u32_at(&fadt, 76), fadt[91], u64_at(&fadt, 212)), (0, 0, 0));
    assert_eq!(memory.read_obj::<u32>(GuestAddress(layout::RSDP + 16)).unwrap(), 0);
}

#[test]
fn the_reset_vector_writes_the_reset_register() {
    let mut code = [0; 8];
    written(1).read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
    assert_eq!(code, [0xba, 0x02, 0x06, 0xb0, 0x01, 0xee, 0xf4, 0]);
}

#[test]
fn the_dsdt_describes_com1_the_clock_pvpanic_and_soft_off() {
    let [.., dsdt] = walk(&written(1));
    let holds = |bytes: &[u8]| dsdt.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(b"COM1\x08_HID\x0c\x41\xd0\x05\x01"), "PNP0501");
    assert!(holds(&[0x47, 1, 0xf8, 3, 0xf8, 3, 1, 8]), "eight ports at 0x3f8");
    assert!(holds(&[0x89, 6, 0, 0b0011, 1, 4, 0, 0, 0, 0x79]), "GSI 4: edge, high, exclusive");
    assert!(holds(b"RTC_\x08_HID\x0c\x41\xd0\x0b\x00"), "PNP0B00");
    assert!(holds(&[0x47, 1, 0x70, 0, 0x70, 0, 1, 2, 0x79]), "two ports at 0x70 and no interrupt");
    assert!(holds(b"PEVT\x08_HID\x0dQEMU0001\0"));
    assert!(holds(&[0x47, 1, 5, 5, 5, 5, 1, 1, 0x79]), "one port at 0x505");
    assert!(holds(b"_S5_\x12\x07\x04\x0a\x05\0\0\0"));
}

#[test]
fn the_dsdt_describes_each_virtio_device() {
    let [.., dsdt] = walk(&written(1));
    let count = |bytes: &[u8]| dsdt.windows(bytes.len()).filter(|window| *window == bytes).count();
    assert_eq!(count(b"\x08_HID\x0dLNRO0005\0"), 3);
    assert_eq!(count(&[0x86, 9, 0, 1, 0, 0x20, 0, 0xd0, 0, 0x10, 0, 0]), 1, "the third window");
    assert_eq!(count(&[0x89, 6, 0, 0b0011, 1, 7, 0, 0, 0, 0x79]), 1, "its line: edge, high, exclusive");
}

#[test]
fn a_pci_bus_is_described_and_its_configuration_space_is_no_device_s() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    write(&memory, 2, Virtio::Pci, None).unwrap();
    let xsdt = table(&memory, XSDT_ADDRESS);
    assert_eq!(xsdt.len(), 60);
    let mcfg = table(&memory, u64_at(&xsdt, 52));
    assert_eq!((&mcfg[..4], mcfg.len()), (&b"MCFG"[..], 60));
    assert_eq!((u64_at(&mcfg, 44), u64_at(&mcfg, 52)), (layout::PCI_CONFIG, 0), "bus 0 alone");
    let dsdt = table(&memory, u64_at(&table(&memory, u64_at(&xsdt, 36)), 140));
    let count = |bytes: &[u8]| dsdt.windows(bytes.len()).filter(|window| *window == bytes).count();
    assert_eq!(count(b"PCI0\x08_HID\x0c\x41\xd0\x0a\x08"), 1, "PNP0A08");
    assert_eq!(count(b"ECAM\x08_HID\x0c\x41\xd0\x0c\x02"), 1, "PNP0C02");
    assert_eq!(count(&[0x86, 9, 0, 1, 0, 0, 0, 0xd8, 0, 0, 0x10, 0]), 1, "its configuration space");
    let window = [0, 0, 0, 0xd9, 0xff, 0xff, 0xff, 0xd9, 0, 0, 0, 0, 0, 0, 0, 1];
    assert_eq!(count(&window), 1, "where functions have memory");
    assert_eq!((count(b"_OSC\x04"), count(b"LNRO0005")), (1, 0));
    let (window, config) = (layout::PCI_MEMORY, layout::PCI_CONFIG);
    assert!(
        config + layout::PCI_CONFIG_LEN <= window && window + layout::PCI_MEMORY_LEN <= layout::FRAME_BUFFER
    );
}

#[test]
fn more_cpus_than_fit_are_refused_before_any_work() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    assert!(write(&memory, 8000, Virtio::Mmio(layout::VIRTIO_MAX), None).is_ok());
    for cpus in [8400, u32::MAX] {
        assert!(matches!(write(&memory, cpus, Virtio::Mmio(3), None), Err(Error::TooLong { .. })));
    }
    assert_eq!(memory.read_obj::<u64>(GuestAddress(layout::ACPI_END)).unwrap(), 0);
}

#[test]
fn memory_that_ends_below_the_tables_is_an_error() {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x8_0000)]).unwrap();
    assert!(matches!(write(&memory, 1, Virtio::Mmio(0), None), Err(Error::Memory(_))));
}
