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
# shellcheck source=findings/lib/debian.bash
. "$(dirname "$0")/lib/debian.bash"
# shellcheck source=findings/lib/crate.bash
. "$(dirname "$0")/lib/crate.bash"
debian "$root" trixie qemu-system-x86=1:10.0.13+ds-0+deb13u1 linux-image-6.12.117+deb13-amd64=6.12.117-1
dependencies 'kvm-ioctls = "=0.25.1"' 'kvm-bindings = { version = "=0.14.2", features = ["fam-wrappers"] }' 'libc = "=0.2.177"'
# The emulated machine's first process.
cat >"$folder/src/main.rs" <<'RUST'
use std::fs::{read_dir, read_to_string, File};
use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_msr_entry, Msrs};
use kvm_ioctls::{Kvm, VcpuFd};

const ADDRESS: u64 = 0xffff_8000_1234_5678;

fn load(module: &str) {
    let file = File::open(module).expect("the module opens");
    // SAFETY: the call reads an open file and an empty string.
    let answer = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if answer != 0 {
        println!("{module}: {}", std::io::Error::last_os_error());
    }
}

fn set_and_get(vcpu: &VcpuFd, index: u32) -> (usize, u64) {
    let entry = |data| Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]).expect("one entry");
    let set = vcpu.set_msrs(&entry(ADDRESS)).expect("KVM_SET_MSRS");
    let mut read = entry(0);
    vcpu.get_msrs(&mut read).expect("KVM_GET_MSRS");
    (set, read.as_slice()[0].data)
}

fn main() {
    // SAFETY: a call with strings that end in NUL.
    unsafe { libc::mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null()) };
    unsafe { libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null()) };
    let mut modules: Vec<_> = read_dir("/modules").expect("modules").map(|it| it.expect("a name").path()).collect();
    modules.sort();
    modules.iter().for_each(|module| load(module.to_str().expect("a plain name")));
    println!("Linux {}", read_to_string("/proc/sys/kernel/osrelease").expect("a version").trim());
    let kvm = Kvm::new().expect("/dev/kvm opens");
    let vm = kvm.create_vm().expect("KVM makes a machine");
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let cpuid = kvm.get_supported_cpuid(256).expect("what KVM supports");
    vcpu.set_cpuid2(&cpuid).expect("KVM takes what it supports");
    for (name, index) in [("IA32_SYSENTER_ESP", 0x175), ("IA32_SYSENTER_EIP", 0x176), ("IA32_LSTAR", 0xc000_0082)] {
        let (set, read) = set_and_get(&vcpu, index);
        println!("{name}: set {ADDRESS:#x}, {set} taken, get {read:#x}");
    }
    println!("done");
    loop {
        // SAFETY: ends the machine, which has nothing to lose.
        unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    }
}
RUST
(cd "$folder" && RUSTFLAGS='-C target-feature=+crt-static' cargo build --quiet --release --target x86_64-unknown-linux-gnu)
python3 - "$root" "$folder/target/x86_64-unknown-linux-gnu/release/finding" <<'PY'
import glob
import gzip
import lzma
import os
import re
import sys

root, program = sys.argv[1:]
files = {os.path.basename(path).split(".")[0].replace("-", "_"): path
         for path in glob.glob(f"{root}/usr/lib/modules/*/kernel/**/*.ko.xz", recursive=True)}
order = []


def add(name):
    """The module's content, behind those that it needs."""
    content = lzma.open(files[name]).read()
    for needed in re.search(rb"\0depends=([^\0]*)", content).group(1).decode().split(","):
        if needed and needed.replace("-", "_") not in [done for done, _ in order]:
            add(needed.replace("-", "_"))
    order.append((name, content))


def entry(name, mode, content=b""):
    """One of a newc archive."""
    numbers = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % number for number in numbers) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


add("kvm_amd")
archive = b"".join(entry(name, 0o40755) for name in ("dev", "proc", "modules"))
archive += entry("init", 0o100755, open(program, "rb").read())
archive += b"".join(entry(f"modules/{index}-{name}", 0o100644, content) for index, (name, content) in enumerate(order))
with gzip.open(f"{root}/data/initrd", "wb", compresslevel=1) as file:
    file.write(archive + entry("TRAILER!!!", 0))
PY
cp "$root"/boot/vmlinuz-* "$root/data/vmlinuz"
inside "$root" qemu-system-x86_64 -version | sed 1q
inside "$root" qemu-system-x86_64 -M q35 -accel tcg -cpu max -m 512 -display none -serial stdio -monitor none -no-reboot \
  -kernel /data/vmlinuz -initrd /data/initrd -append 'console=ttyS0 quiet panic=-1' </dev/null | tr -d '\r' >"$folder/output" || exit 2
grep -E '^(Linux|IA32)|: .*rror' "$folder/output" || cat "$folder/output"
grep -qx done "$folder/output" || exit 2
lost='set 0xffff800012345678, 1 taken, get 0x12345678'
grep -qx "IA32_SYSENTER_ESP: $lost" "$folder/output" && grep -qx "IA32_SYSENTER_EIP: $lost" "$folder/output" &&
  grep -qx 'IA32_LSTAR: set 0xffff800012345678, 1 taken, get 0xffff800012345678' "$folder/output"
