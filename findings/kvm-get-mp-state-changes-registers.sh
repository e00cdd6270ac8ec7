#!/usr/bin/env bash
# One would guess that the ioctls that get a vCPU's state may be called in any order while it does not run: getting changes
# nothing.
# KVM_GET_MP_STATE first does what waits at the vCPU's APIC: an INIT from another vCPU resets this one on the way. Registers
# that were got before are those of a running processor, and the state beside them says that it waits for a SIPI, which
# changes no more than CS and RIP. Getting the MP state first gives a whole that is right.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: those who write snapshots and get registers first: where one is made while a guest restarts a processor, that one
# comes up with control registers from before, now and then.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_bindings::{kvm_mp_state, kvm_msi, kvm_regs, KVM_MP_STATE_RUNNABLE};

fn main() {
    let kvm = machine::start();
    let vm = kvm.create_vm().expect("KVM makes a machine");
    vm.create_irq_chip().expect("APICs");
    let _first = machine::vcpu(&kvm, &vm, 0);
    let second = machine::vcpu(&kvm, &vm, 1);
    second.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE }).expect("KVM_SET_MP_STATE");
    let running = kvm_regs { rip: 0x1234, rax: 0x1111, rflags: 2, ..Default::default() };
    second.set_regs(&running).expect("KVM_SET_REGS");
    // KVM finds APICs by a table, which it makes when one of them is set.
    second.set_lapic(&second.get_lapic().expect("KVM_GET_LAPIC")).expect("KVM_SET_LAPIC");
    let print = |after: &str| {
        let registers = second.get_regs().expect("KVM_GET_REGS");
        println!("after {after}: RIP {:#x}, RAX {:#x}", registers.rip, registers.rax);
    };
    let init = kvm_msi { address_lo: 0xfee0_0000 | 1 << 12, data: 5 << 8, ..Default::default() };
    assert_eq!(vm.signal_msi(init).expect("KVM_SIGNAL_MSI"), 1, "the second vCPU takes the INIT");
    print("INIT for the vCPU");
    second.get_sregs().expect("KVM_GET_SREGS");
    second.get_lapic().expect("KVM_GET_LAPIC");
    second.get_vcpu_events().expect("KVM_GET_VCPU_EVENTS");
    print("KVM_GET_SREGS, KVM_GET_LAPIC, KVM_GET_VCPU_EVENTS");
    let state = second.get_mp_state().expect("KVM_GET_MP_STATE").mp_state;
    print(&format!("KVM_GET_MP_STATE, which is {state}"));
    machine::end()
}
RUST
emulate
grep -qx 'after INIT for the vCPU: RIP 0x1234, RAX 0x1111' "$folder/output" &&
  grep -qx 'after KVM_GET_SREGS.*: RIP 0x1234, RAX 0x1111' "$folder/output" &&
  grep -qx 'after KVM_GET_MP_STATE, which is 2: RIP 0xfff0, RAX 0x0' "$folder/output"
