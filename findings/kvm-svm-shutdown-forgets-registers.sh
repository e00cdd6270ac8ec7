#!/usr/bin/env bash
# One would guess that after KVM_EXIT_SHUTDOWN, which ends a guest's triple fault, KVM_GET_REGS and KVM_GET_SREGS say where
# it happened and with what registers, as they do after every other exit.
# With kvm_amd they give a processor at its reset: every such guest has failed at F000:FFF0 with RAX 0. AMD's manual leaves
# open what the saved state is after this intercept, so KVM resets the vCPU before it tells the VMM. Nothing in the exit has
# the state from before.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: VMMs and kernel developers that print the registers of a crash: on these processors they print the firmware's start.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_ioctls::VcpuExit;
use machine::Guest;

fn print(when: &str, guest: &Guest) {
    let registers = guest.vcpu.get_regs().expect("KVM_GET_REGS");
    let special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
    let code = special.cs.base + registers.rip;
    println!("{when}: at {code:#x}, RAX {:#x}, IDT limit {:#x}", registers.rax, special.idt.limit);
}

fn main() {
    let kvm = machine::start();
    // mov ax, 0x5678; out 0x10, al; ud2
    let mut guest = Guest::new(&kvm, &[0xb8, 0x78, 0x56, 0xe6, 0x10, 0x0f, 0x0b], 0);
    // Without a table of interrupts, an invalid instruction becomes a triple fault.
    let mut special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
    special.idt.limit = 0;
    guest.vcpu.set_sregs(&special).expect("KVM_SET_SREGS");
    assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _))), "the guest comes to its output");
    print("KVM_EXIT_IO", &guest);
    assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::Shutdown)), "the guest comes to its triple fault");
    print("KVM_EXIT_SHUTDOWN", &guest);
    machine::end()
}
RUST
emulate
grep -Eqx 'KVM_EXIT_IO: at 0x100[35], RAX 0x5678, IDT limit 0x0' "$folder/output" &&
  grep -qx 'KVM_EXIT_SHUTDOWN: at 0xfffffff0, RAX 0x0, IDT limit 0xffff' "$folder/output"
