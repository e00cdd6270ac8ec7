//! Checked the way a guest reads them: as KVM answers, level by level.

use super::*;

type Registers = (u32, u32, u32, u32);
/// Function, index, index is significant, EAX, EBX, ECX, EDX.
type Row = (u32, u32, bool, u32, u32, u32, u32);

/// What KVM reports on an EPYC (Zen 4, two CPUs asked for from the second).
const EPYC: &[Row] = &[
    (0x0, 0, false, 0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x1, 0, false, 0xa1_0f11, 0x0102_0800, 0xfeda_3203, 0x178b_fbff),
    (0x4, 0, true, 0, 0, 0, 0),
    (0x6, 0, false, 0x4, 0, 0, 0),
    (0x7, 0, true, 0x1, 0x219c_07a9, 0x41_0314, 0x2000_0000),
    (0xb, 0, true, 0, 0, 0, 1),
    (0xd, 0, true, 0xe7, 0x980, 0x980, 0),
    (0xd, 1, true, 0x1, 0, 0, 0),
    (0x8000_0000, 0, false, 0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65),
    (0x8000_0001, 0, false, 0xa1_0f11, 0x4000_0000, 0x40_0391, 0x23d3_fbff),
    (0x8000_0008, 0, false, 0x3030, 0x5002_0005, 0x7001, 0),
    (0x8000_001d, 0, true, 0x121, 0x01c0_003f, 0x3f, 0),
    (0x8000_001d, 1, true, 0x122, 0x01c0_003f, 0x3f, 0),
    (0x8000_001d, 2, true, 0x4143, 0x01c0_003f, 0x7ff, 2),
    (0x8000_001d, 3, true, 0x3_c163, 0x03c0_003f, 0x7fff, 1),
    (0x8000_001d, 4, true, 0, 0, 0, 0),
    (0x8000_001e, 0, false, 0, 0, 0, 0),
    (0x8000_0026, 0, true, 0x8001, 2, 0x100, 7),
    (0x4000_0000, 0, false, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
    (0x4000_0001, 0, false, 0x0100_7efb, 0, 0, 0),
];

/// What an older KVM reports on a Xeon (Sapphire Rapids): the host's 64 threads shine through.
const XEON: &[Row] = &[
    (0x0, 0, false, 0x1f, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
    (0x1, 0, false, 0x8_06f8, 0x2d40_0800, 0xf6fa_3203, 0x0f8b_fbff),
    (0x4, 0, true, 0x7c00_4121, 0x02c0_003f, 0x3f, 0),
    (0x4, 1, true, 0x7c00_4122, 0x01c0_003f, 0x3f, 0),
    (0x4, 2, true, 0x7c00_4143, 0x03c0_003f, 0x7ff, 0),
    (0x4, 3, true, 0x7c0f_c163, 0x0380_003f, 0xffff, 4),
    (0x4, 4, true, 0, 0, 0, 0),
    (0x6, 0, false, 0x4, 0, 0x9, 0),
    (0x7, 0, true, 0x2, 0xf1bf_27eb, 0x1b41_5f6e, 0xbc81_4410),
    (0xa, 0, false, 0x0830_0802, 0, 0, 0x603),
    (0xb, 0, true, 1, 2, 0x100, 0x2d),
    (0xb, 1, true, 6, 64, 0x201, 0x2d),
    (0xb, 2, true, 0, 0, 2, 0x2d),
    (0x1f, 0, true, 1, 2, 0x100, 0x2d),
    (0x1f, 1, true, 6, 64, 0x201, 0x2d),
    (0x1f, 2, true, 7, 128, 0x502, 0x2d),
    (0x8000_0000, 0, false, 0x8000_0008, 0, 0, 0),
    (0x8000_0001, 0, false, 0, 0, 0x121, 0x2c10_0800),
    (0x8000_0008, 0, false, 0x3934, 0x0100_d000, 0, 0),
    (0x4000_0000, 0, false, 0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d),
];

const COUNTS: [u32; 5] = [1, 2, 4, 6, 300];

fn entries(rows: &[Row]) -> Vec<kvm_cpuid_entry2> {
    let entry = |&(function, index, significant, eax, ebx, ecx, edx): &Row| {
        let flags = if significant { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    };
    rows.iter().map(entry).collect()
}

fn leaves(rows: &[Row], cpus: u32) -> Leaves {
    Leaves::new(&entries(rows), cpus, true).unwrap()
}

/// What the guest's CPUID instruction gives: the first entry that matches, or zeros.
fn cpuid(leaves: &CpuId, function: u32, index: u32) -> Registers {
    let matches = |entry: &&kvm_cpuid_entry2| {
        let any_index = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0;
        entry.function == function && (any_index || entry.index == index)
    };
    let entry = leaves.as_slice().iter().find(matches).copied().unwrap_or_default();
    (entry.eax, entry.ebx, entry.ecx, entry.edx)
}

/// The smallest number of bits that tell `count` ids apart.
fn bits(count: u32) -> u32 {
    (0..).find(|bits| 1u64 << bits >= u64::from(count)).unwrap()
}

#[test]
fn extended_topology_is_one_socket_of_single_threaded_cores() {
    for (rows, leaf) in [(EPYC, 0xb), (XEON, 0xb), (XEON, 0x1f)] {
        for count in COUNTS {
            let all = leaves(rows, count);
            for index in 0..count {
                let leaves = all.for_vcpu(index);
                assert_eq!(cpuid(&leaves, leaf, 0), (0, 1, 0x100, index));
                assert_eq!(cpuid(&leaves, leaf, 1), (bits(count), count, 0x201, index));
                assert_eq!(cpuid(&leaves, leaf, 2), (0, 0, 2, index));
                assert_eq!(cpuid(&leaves, leaf, 3), (0, 0, 0, 0));
                assert_eq!(index >> bits(count), 0, "all in package 0");
            }
        }
    }
    assert_eq!(cpuid(&leaves(EPYC, 2).for_vcpu(0), 0x1f, 0), (0, 0, 0, 0), "past the maximum leaf");
}

#[test]
fn leaf_1_gives_the_asking_cpus_apic_id_and_the_count() {
    for rows in [EPYC, XEON] {
        for count in COUNTS {
            for index in [0, count - 1] {
                let (eax, ebx, ecx, edx) = cpuid(&leaves(rows, count).for_vcpu(index), 1, 0);
                assert_eq!(eax, rows[1].3, "family, model and stepping are the host's");
                assert_eq!(ebx.to_le_bytes(), [0, 8, count.min(255) as u8, index as u8]);
                assert_eq!(edx & HTT != 0, count > 1);
                assert_eq!(edx & APIC, APIC);
                assert_eq!(
                    ecx & (X2APIC | HYPERVISOR | TSC_DEADLINE | OSXSAVE),
                    X2APIC | HYPERVISOR | TSC_DEADLINE
                );
            }
        }
    }
}

#[test]
fn the_deadline_timer_shows_only_where_kvm_has_it() {
    for (has, expected) in [(true, TSC_DEADLINE), (false, 0)] {
        let leaves = Leaves::new(&entries(EPYC), 1, has).unwrap().for_vcpu(0);
        assert_eq!(cpuid(&leaves, 1, 0).2 & TSC_DEADLINE, expected);
    }
}

#[test]
fn bits_that_mirror_cr4_are_not_preset() {
    let leaves = leaves(EPYC, 1).for_vcpu(0);
    assert_eq!(cpuid(&leaves, 1, 0).2 & OSXSAVE, 0);
    assert_eq!(cpuid(&leaves, 7, 0).2, 0x41_0304, "all of leaf 7 but OSPKE");
}

#[test]
fn only_the_last_cache_level_is_shared_and_by_all() {
    for (rows, leaf) in [(EPYC, 0x8000_001d), (XEON, 4)] {
        for count in COUNTS {
            let leaves = leaves(rows, count).for_vcpu(0);
            for index in 0..4 {
                let (eax, ..) = cpuid(&leaves, leaf, index);
                let sharing = (eax >> 14 & 0xfff) + 1;
                assert_eq!(sharing, if index == 3 { 1 << bits(count) } else { 1 });
                let cores = (eax >> 26) + 1;
                assert_eq!(cores, if leaf == 4 { 64.min(1 << bits(count)) } else { 1 });
                let host = rows.iter().find(|row| (row.0, row.1) == (leaf, index)).unwrap();
                assert_eq!(eax & 0x3fff, host.3 & 0x3fff, "type, level and associativity are the host's");
            }
            assert_eq!(cpuid(&leaves, leaf, 4), (0, 0, 0, 0), "the end of the list");
        }
    }
}

#[test]
fn amd_leaves_agree_with_the_extended_topology() {
    for count in COUNTS {
        let all = leaves(EPYC, count);
        for index in [0, count / 2, count - 1] {
            let leaves = all.for_vcpu(index);
            assert_eq!(cpuid(&leaves, 0x8000_001e, 0), (index, index & 0xff, 0, 0));
            let (eax, ebx, ecx, _) = cpuid(&leaves, 0x8000_0008, 0);
            assert_eq!((eax, ebx), (0x3030, 0x5002_0005), "address widths are the host's");
            assert_eq!((ecx & 0xff, ecx >> 12 & 0xf), ((count - 1).min(255), bits(count)));
            assert_eq!(cpuid(&leaves, 0x8000_0001, 0).2 & CMP_LEGACY != 0, count > 1);
            assert_eq!(cpuid(&leaves, 0x8000_0026, 0), (0, 0, 0, 0));
        }
    }
}

#[test]
fn amd_without_topology_extensions_gets_none() {
    let mut rows = EPYC.to_vec();
    rows.retain(|row| row.0 != AMD_IDS);
    for row in rows.iter_mut().filter(|row| row.0 == 0x8000_0001) {
        row.5 &= !TOPOEXT;
    }
    assert_eq!(cpuid(&leaves(&rows, 4).for_vcpu(3), AMD_IDS, 0), (0, 0, 0, 0));
}

#[test]
fn intel_reserved_fields_stay_clear() {
    let leaves = leaves(XEON, 4).for_vcpu(3);
    assert_eq!(cpuid(&leaves, 0x8000_0008, 0), (0x3934, 0x0100_d000, 0, 0));
    assert_eq!(cpuid(&leaves, 0x8000_0001, 0).2, 0x121);
    assert_eq!(cpuid(&leaves, AMD_IDS, 0), (0, 0, 0, 0));
}

#[test]
fn power_management_is_only_an_apic_timer_that_always_runs() {
    for rows in [EPYC, XEON, &[EPYC[0], EPYC[1]]] {
        assert_eq!(cpuid(&leaves(rows, 1).for_vcpu(0), 6, 0), (ARAT, 0, 0, 0));
    }
}

#[test]
fn a_low_maximum_leaf_is_raised_to_the_topology_and_a_high_one_kept() {
    let mut old = EPYC.to_vec();
    old[0].3 = 1;
    assert_eq!(cpuid(&leaves(&old, 1).for_vcpu(0), 0, 0).0, 0xb);
    assert_eq!(cpuid(&leaves(XEON, 1).for_vcpu(0), 0, 0).0, 0x1f);
}

#[test]
fn what_this_machine_does_not_change_passes_through() {
    for (rows, untouched) in [(EPYC, &[0xd, 0x4000_0000, 0x4000_0001][..]), (XEON, &[0xa, 0x4000_0000])] {
        let leaves = leaves(rows, 6).for_vcpu(5);
        for row in rows.iter().filter(|row| untouched.contains(&row.0)) {
            assert_eq!(cpuid(&leaves, row.0, row.1), (row.3, row.4, row.5, row.6));
        }
    }
}

#[test]
fn incomplete_tables_are_refused() {
    for (rows, leaf) in [(&[][..], 0), (&EPYC[1..], 0), (&EPYC[..1], 1)] {
        assert!(
            matches!(Leaves::new(&entries(rows), 1, true), Err(Error::Missing(missing)) if missing == leaf)
        );
    }
}

#[test]
fn repeated_and_garbage_entries_neither_panic_nor_leak_the_host() {
    let mut table = entries(EPYC);
    table.extend(entries(EPYC));
    for function in [0, 1, 4, 6, 7, 0xb, 0x1f, 0x8000_0001, 0x8000_0008, 0x8000_001d, 0x8000_001e, u32::MAX] {
        let all = u32::MAX;
        table.push(kvm_cpuid_entry2 {
            function,
            index: all,
            flags: all,
            eax: all,
            ebx: all,
            ecx: all,
            edx: all,
            ..Default::default()
        });
    }
    for (count, index) in [(0, 0), (1, u32::MAX), (u32::MAX, 0), (u32::MAX, u32::MAX)] {
        let leaves = Leaves::new(&table, count, false).unwrap().for_vcpu(index);
        for entry in leaves.as_slice().iter().filter(|entry| entry.function == 0xb) {
            assert_eq!(entry.edx, index);
        }
    }
}

#[test]
fn a_table_that_kvm_would_not_take_is_refused() {
    let mut table = entries(EPYC);
    table.resize(256, Default::default());
    assert!(matches!(Leaves::new(&table, 1, true), Err(Error::TooMany(257..))));
}
