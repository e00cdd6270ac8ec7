#!/usr/bin/env bash
# One would guess that a register which KVM_SET_MSRS says it has set reads back as that: it answers how many it took, and stops
# at one that it refuses. With kvm_amd, once the vCPU has an AMD processor's CPUID, IA32_SYSENTER_ESP and IA32_SYSENTER_EIP take
# a 64-bit address, count as taken, and read back with the upper 32 bits gone; IA32_LSTAR beside them has all 64. Linux gives
# both a 64-bit address of the kernel's at boot, if it runs 32-bit programs. So a check that what was set is there fails.
# Versions: Linux 6.12.117 of Debian 13 with SVM as QEMU 10.0.13 emulates it; 6.1 of Debian 12 does the same.
# Hurt: those who write snapshots and live migration, and compare states to test them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_bindings::{kvm_msr_entry, Msrs};
use kvm_ioctls::VcpuFd;

const ADDRESS: u64 = 0xffff_8000_1234_5678;

fn set_and_get(vcpu: &VcpuFd, index: u32) -> (usize, u64) {
    let entry = |data| Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).expect("one entry");
    let set = vcpu.set_msrs(&entry(ADDRESS)).expect("KVM_SET_MSRS");
    let mut read = entry(0);
    vcpu.get_msrs(&mut read).expect("KVM_GET_MSRS");
    (set, read.as_slice()[0].data)
}

fn main() {
    let kvm = machine::start();
    let vm = kvm.create_vm().expect("KVM makes a machine");
    let vcpu = machine::vcpu(&kvm, &vm, 0);
    for (name, index) in [("IA32_SYSENTER_ESP", 0x175), ("IA32_SYSENTER_EIP", 0x176), ("IA32_LSTAR", 0xc000_0082)] {
        let (set, read) = set_and_get(&vcpu, index);
        println!("{name}: set {ADDRESS:#x}, {set} taken, get {read:#x}");
    }
    machine::end()
}
RUST
emulate
lost='set 0xffff800012345678, 1 taken, get 0x12345678'
grep -qx "IA32_SYSENTER_ESP: $lost" "$folder/output" && grep -qx "IA32_SYSENTER_EIP: $lost" "$folder/output" &&
  grep -qx 'IA32_LSTAR: set 0xffff800012345678, 1 taken, get 0xffff800012345678' "$folder/output"
