#!/usr/bin/env bash
# One would guess that KVM_TRANSLATE, which says where a virtual address is in a guest's memory, looks at the guest's page
# tables and changes nothing, and that `writeable` and `usermode` in its answer say what these tables allow.
# It walks the tables as the processor does: it sets the accessed bits in them, and the dirty log has each table as written.
# `writeable` is always 1 and `usermode` always 0: for a read-only page, for a user's page and for no page at all.
# Versions: Linux 6.12.117 of Debian 13, SVM as QEMU 10.0.13 emulates it; 7.3.4 does the same.
# Hurt: debuggers and introspection, which change what they look at: how old the guest finds its pages, a checksum of its
# memory, the pages that a snapshot has to save; and those who ask `writeable` before they set a breakpoint.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# shellcheck source=findings/lib/kvm.bash
. "$(dirname "$0")/lib/kvm.bash"
cat >"$folder/src/main.rs" <<'RUST'
mod machine;

use kvm_bindings::KVM_MEM_LOG_DIRTY_PAGES;
use machine::Guest;

const TOP: usize = 0x10000;
const LAST: usize = 0x13000;

fn main() {
    let kvm = machine::start();
    let guest = Guest::new(&kvm, &[], KVM_MEM_LOG_DIRTY_PAGES);
    let mut set = |at: usize, entry: u64| guest.memory[at..][..8].copy_from_slice(&entry.to_le_bytes());
    for table in (TOP..LAST).step_by(0x1000) {
        set(table, table as u64 + 0x1000 | 7);
    }
    set(LAST + 0x20 * 8, 0x20000 | 1); // present
    set(LAST + 0x21 * 8, 0x21000 | 7); // present, writeable, user
    let mut special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
    special.cr3 = TOP as u64;
    special.cr4 |= 0x20; // PAE
    special.cr0 |= 0x8001_0001; // paging, write protection, protected mode
    special.efer |= 0x500; // long mode, active
    (special.cs.l, special.cs.db) = (1, 0);
    guest.vcpu.set_sregs(&special).expect("KVM_SET_SREGS");
    let size = guest.memory.len();
    let dirty = || guest.vm.get_dirty_log(0, size).expect("KVM_GET_DIRTY_LOG")[0];
    let entries = || {
        let at = [TOP, TOP + 0x1000, TOP + 0x2000, LAST + 0x20 * 8, LAST + 0x21 * 8];
        at.map(|at| format!("{:x}", u64::from_le_bytes(guest.memory[at..][..8].try_into().expect("8 bytes")))).join(" ")
    };
    println!("before: dirty log {:#x}, entries {}", dirty(), entries());
    for (name, address) in [("read-only page", 0x20000), ("user's page", 0x21000), ("no page", 0x22000)] {
        let answer = guest.vcpu.translate_gva(address).expect("KVM_TRANSLATE");
        println!("{name}: valid {}, writeable {}, usermode {}", answer.valid, answer.writeable, answer.usermode);
    }
    println!("after: dirty log {:#x}, entries {}", dirty(), entries());
    machine::end()
}
RUST
emulate
diff - "$folder/output" <<END
$(sed 1q "$folder/output")
before: dirty log 0x0, entries 11007 12007 13007 20001 21007
read-only page: valid 1, writeable 1, usermode 0
user's page: valid 1, writeable 1, usermode 0
no page: valid 0, writeable 1, usermode 0
after: dirty log 0xf0000, entries 11027 12027 13027 20021 21027
END
