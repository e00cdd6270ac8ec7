#!/usr/bin/env bash
# One would guess that KVM_EXIT_MMIO has a length of 1, 2, 4 or 8, as instructions have them and a device's registers are.
# KVM cuts an access at the end of a page, and each piece is an exit of its own: a guest's write of 4 bytes, 3 before such
# an end, is a write of 3 bytes and one of 1. Where the piece before is memory, it is written already when the device sees
# the rest.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: device models that match on 1, 2, 4 and 8 and take anything else as impossible: it is the guest that chooses.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_ioctls::VcpuExit;
use machine::Guest;

// mov [0x0ffd], eax; mov eax, [0x0fff]; mov es:[0x0ffe], eax; hlt
const CODE: [u8; 14] = [0x66, 0xa3, 0xfd, 0x0f, 0x66, 0xa1, 0xff, 0x0f, 0x26, 0x66, 0xa3, 0xfe, 0x0f, 0xf4];

fn main() {
    let kvm = machine::start();
    let mut guest = Guest::new(&kvm, &CODE, 0);
    let end = guest.memory.len() as u64;
    let mut special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
    special.ds.base = end + 0x10000; // no memory
    special.es.base = end - 0x1000; // the last page of memory, and none behind it
    guest.vcpu.set_sregs(&special).expect("KVM_SET_SREGS");
    println!("write of 4 bytes at 0x90ffd, read of 4 at 0x90fff, write of 4 at 0x7fffe:");
    loop {
        match guest.vcpu.run().expect("the guest runs") {
            VcpuExit::MmioWrite(at, data) => println!("write at {at:#x}, length {}", data.len()),
            VcpuExit::MmioRead(at, data) => {
                println!("read at {at:#x}, length {}", data.len());
                data.fill(0x11);
            }
            VcpuExit::Hlt => break,
            other => panic!("{other:?}"),
        }
    }
    println!("memory before the end: {:x?}", &guest.memory[end as usize - 2..]);
    machine::end()
}
RUST
emulate
diff - "$folder/output" <<END
$(sed 2q "$folder/output")
write at 0x90ffd, length 3
write at 0x91000, length 1
read at 0x90fff, length 1
read at 0x91000, length 3
write at 0x80000, length 2
memory before the end: [11, 11]
END
