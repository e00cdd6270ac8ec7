//! What is counted of a guest's exits, by kite and by KVM.

use kite::kvm_stats::KvmStats;
use kite::memory::GuestRam;
use kite::vm::{self, Vm};

use crate::guest::no_kvm;

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
