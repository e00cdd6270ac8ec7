#!/usr/bin/env bash
# One would guess that KVM_SET_REGS with what KVM_GET_REGS has just given changes nothing.
# It throws away an exception that waits to be delivered. A guest that steps through its own program (its trap flag is set)
# and writes to a device has one: the exit for the device comes before the debug exception, which KVM_GET_VCPU_EVENTS shows
# once the exit is completed. With KVM_SET_REGS in between, the guest never gets it and runs on. So what sets registers has
# to come before what sets events.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: debuggers that write registers at a stop, and those who restore a vCPU's events first and its registers last.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_ioctls::VcpuExit;
use machine::Guest;

const HANDLER: usize = 0x1100;

fn main() {
    let kvm = machine::start();
    for sets in [false, true] {
        // out 0x10, al; hlt
        let mut guest = Guest::new(&kvm, &[0xe6, 0x10, 0xf4], 0);
        guest.memory[4..6].copy_from_slice(&(HANDLER as u16).to_le_bytes()); // the vector of debug exceptions
        guest.memory[HANDLER] = 0xf4; // hlt
        let mut registers = guest.vcpu.get_regs().expect("KVM_GET_REGS");
        registers.rflags |= 0x100; // the trap flag
        guest.vcpu.set_regs(&registers).expect("KVM_SET_REGS");
        assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::IoOut(0x10, _))), "the guest comes to its output");
        // Completes the output, and goes no further.
        guest.vcpu.set_kvm_immediate_exit(1);
        assert!(guest.vcpu.run().is_err_and(|error| error.errno() == libc::EINTR), "the output is completed");
        guest.vcpu.set_kvm_immediate_exit(0);
        let waits = |guest: &Guest| {
            let exception = guest.vcpu.get_vcpu_events().expect("KVM_GET_VCPU_EVENTS").exception;
            exception.injected | exception.pending
        };
        print!("exceptions that wait: {}", waits(&guest));
        if sets {
            let registers = guest.vcpu.get_regs().expect("KVM_GET_REGS");
            guest.vcpu.set_regs(&registers).expect("KVM_SET_REGS");
            print!(", after KVM_SET_REGS with KVM_GET_REGS: {}", waits(&guest));
        }
        assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::Hlt)), "the guest halts");
        let at = guest.vcpu.get_regs().expect("KVM_GET_REGS").rip as usize;
        println!("; the guest halts in its {}", if at == HANDLER + 1 { "handler" } else { "program" });
    }
    machine::end()
}
RUST
emulate
diff - "$folder/output" <<END
$(sed 1q "$folder/output")
exceptions that wait: 1; the guest halts in its handler
exceptions that wait: 1, after KVM_SET_REGS with KVM_GET_REGS: 0; the guest halts in its program
END
