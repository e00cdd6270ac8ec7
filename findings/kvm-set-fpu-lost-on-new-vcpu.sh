#!/usr/bin/env bash
# One would guess that KVM_SET_FPU sets the x87 and SSE registers of a vCPU, above all as KVM_GET_FPU then gives them back.
# On a vCPU that has not run yet, the guest sees none of them: the numbers go into the vCPU's XSAVE area, but the area's
# header goes on to say that x87 and SSE are in their initial state, and so the processor loads that. KVM_GET_XSAVE beside
# it gives the initial state, too. Once this vCPU has run, all arrive but MXCSR, which this ioctl never takes and
# KVM_GET_FPU never gives.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: those who give a new vCPU registers to begin with, from a snapshot or for a test. A VMM that sets the initial values
# at boot does not see it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_bindings::kvm_fpu;
use kvm_ioctls::VcpuExit;
use machine::Guest;

// movups [0x2000], xmm0; fnstcw [0x2010]; stmxcsr [0x2014]; hlt
const CODE: [u8; 15] = [0x0f, 0x11, 0x06, 0, 0x20, 0xd9, 0x3e, 0x10, 0x20, 0x0f, 0xae, 0x1e, 0x14, 0x20, 0xf4];

fn print(who: &str, xmm0: &[u8], fcw: &[u8], mxcsr: &[u8]) {
    let number = |bytes: &[u8]| bytes.iter().rev().map(|byte| format!("{byte:02x}")).collect::<String>();
    println!("{who}: XMM0 {}, control word {}, MXCSR {}", number(xmm0), number(fcw), number(mxcsr));
}

fn main() {
    let kvm = machine::start();
    let mut guest = Guest::new(&kvm, &CODE, 0);
    let mut special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
    special.cr4 |= 0x600; // OSFXSR and OSXMMEXCPT: SSE is on.
    guest.vcpu.set_sregs(&special).expect("KVM_SET_SREGS");
    for vcpu in ["new vCPU", "vCPU that has run"] {
        let mut registers = kvm_fpu { fcw: 0x27f, mxcsr: 0x1fa0, ..Default::default() };
        registers.xmm[0] = [0xaa; 16];
        guest.vcpu.set_fpu(&registers).expect("KVM_SET_FPU");
        let read = guest.vcpu.get_fpu().expect("KVM_GET_FPU");
        guest.begin();
        assert!(matches!(guest.vcpu.run(), Ok(VcpuExit::Hlt)), "the guest runs to its end");
        println!("{vcpu}:");
        for (who, from) in [("KVM_SET_FPU", registers), ("KVM_GET_FPU", read)] {
            print(who, &from.xmm[0], &from.fcw.to_le_bytes(), &from.mxcsr.to_le_bytes());
        }
        let seen = &mut guest.memory[0x2000..0x2018];
        print("the guest", &seen[..16], &seen[16..18], &seen[20..24]);
    }
    machine::end()
}
RUST
emulate
full=$(printf 'aa%.0s' {1..16})
none=${full//a/0}
diff - "$folder/output" <<END
$(sed 1q "$folder/output")
new vCPU:
KVM_SET_FPU: XMM0 $full, control word 027f, MXCSR 00001fa0
KVM_GET_FPU: XMM0 $full, control word 027f, MXCSR 00000000
the guest: XMM0 $none, control word 037f, MXCSR 00001f80
vCPU that has run:
KVM_SET_FPU: XMM0 $full, control word 027f, MXCSR 00001fa0
KVM_GET_FPU: XMM0 $full, control word 027f, MXCSR 00000000
the guest: XMM0 $full, control word 027f, MXCSR 00001f80
END
