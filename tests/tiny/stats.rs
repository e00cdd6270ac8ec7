//! What is counted of a guest's exits, by kite and by KVM.

use std::path::Path;

use kite::kvm_stats::KvmStats;
use kite::memory::GuestRam;
use kite::stats::Cost;
use kite::vm::{self, Vm};

use crate::guest::no_kvm;
use crate::process::guarded;
use crate::rig::record;

#[test]
fn kvms_own_counters_of_a_vcpu_have_its_exits() {
    if no_kvm("kvms_own_counters_of_a_vcpu_have_its_exits") {
        return;
    }
    let kvm = vm::open_kvm().unwrap();
    let vm = Vm::new(&kvm, std::sync::Arc::new(GuestRam::new(64 << 20).unwrap()), 1).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let stats = KvmStats::of_vcpu(&vcpu).expect("Linux has them since 5.14");
    let exits = |name: &str| stats.read().into_iter().find(|(it, _)| it == name).map(|(_, value)| value);
    assert_eq!([exits("exits"), exits("io_exits"), exits("mmio_exits")], [Some(0); 3]);
    // At the reset vector, where nothing is mapped, the first fetch is an exit of some kind.
    let _ = vcpu.run();
    assert!(exits("exits") > Some(0));
}

guest!(
    COUNTED,
    "mov dx, 0xc00
     mov ecx, 1000
     2: in al, dx
     loop 2b
     mov dx, 0x1234
     mov ecx, 300
     3: out dx, ax
     loop 3b
     mov ebx, 0x10000000
     mov ecx, 200
     4: mov [rbx + 8], rax
     loop 4b
     mov eax, [rbx + 4]",
    power_off!()
);

#[test]
fn every_access_is_counted_once_at_its_address() {
    if no_kvm("every_access_is_counted_once_at_its_address") {
        return;
    }
    guarded(|| {
        let (_, _, rig) = record(&COUNTED);
        let report = rig.stats.report();
        let mut found: Vec<_> = report
            .rows
            .iter()
            .map(|row| {
                let access = row.access.unwrap();
                (access.address, access.write, access.width, row.device.as_deref(), row.cost.count)
            })
            .collect();
        found.sort_unstable();
        let expected = [
            (0x600, true, 1, Some("power"), 1),
            (0xc00, false, 1, Some("recorder"), 1000),
            (0x1234, true, 2, None, 300),
            (0x1000_0004, false, 4, Some("recorder"), 1),
            (0x1000_0008, true, 8, Some("recorder"), 200),
        ];
        assert_eq!(found, expected);
        assert_eq!(report.exits(), 1502);
        for cost in report.rows.iter().map(|row| row.cost) {
            let Cost { p50_ns, p90_ns, p99_ns, max_ns, .. } = cost;
            assert!(0 < p50_ns && p50_ns <= p90_ns && p90_ns <= p99_ns && p99_ns <= max_ns, "{cost:?}");
            assert!(max_ns <= cost.total_ns && cost.total_ns <= max_ns * cost.count, "{cost:?}");
        }
    });
}

#[test]
fn kites_totals_are_those_that_kvm_has_counted() {
    if no_kvm("kites_totals_are_those_that_kvm_has_counted") {
        return;
    }
    guarded(|| {
        let (_, _, rig) = record(&COUNTED);
        let report = rig.stats.report();
        assert_eq!((report.memory.exits, report.memory.kvm), (201, Some(201)));
        assert_eq!(report.ports.exits, 1301);
        // Where KVM emulates every instruction, an access to a port is no exit of the processor's for it.
        match report.ports.kvm {
            Some(0) if Path::new("/sys/module/kvm_pvm").exists() => {
                eprintln!("not compared: PVM does not count exits for ports");
            }
            counted => assert_eq!(counted, Some(1301)),
        }
        assert!(report.kvm("exits") >= Some(report.exits()));
    });
}
