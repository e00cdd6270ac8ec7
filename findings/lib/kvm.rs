//! What programs share that run as the first process of an emulated machine. Copied by kvm.bash into findings' crates.

#![allow(dead_code)]

use std::alloc::{alloc_zeroed, Layout};
use std::fs::{read_dir, read_to_string, File};
use std::os::fd::AsRawFd;

use kvm_bindings::{kvm_regs, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// Where a guest's code begins.
pub const CODE: usize = 0x1000;

fn load(module: &str) {
    let file = File::open(module).expect("the module opens");
    // SAFETY: the call reads an open file and an empty string.
    let answer = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if answer != 0 {
        println!("{module}: {}", std::io::Error::last_os_error());
    }
}

/// Loads the modules, prints the kernel's version and opens `/dev/kvm`.
pub fn start() -> Kvm {
    // SAFETY: a call with strings that end in NUL.
    unsafe { libc::mount(c"dev".as_ptr(), c"/dev".as_ptr(), c"devtmpfs".as_ptr(), 0, std::ptr::null()) };
    unsafe { libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null()) };
    let mut modules: Vec<_> = read_dir("/modules").expect("modules").map(|it| it.expect("a name").path()).collect();
    modules.sort();
    modules.iter().for_each(|module| load(module.to_str().expect("a plain name")));
    println!("Linux {}", read_to_string("/proc/sys/kernel/osrelease").expect("a version").trim());
    Kvm::new().expect("/dev/kvm opens")
}

/// Says that all has been tried, and ends the machine.
pub fn end() -> ! {
    println!("done");
    loop {
        // SAFETY: ends the machine, which has nothing to lose.
        unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    }
}

/// A vCPU with the CPUID that KVM supports.
pub fn vcpu(kvm: &Kvm, vm: &VmFd, id: u64) -> VcpuFd {
    let vcpu = vm.create_vcpu(id).expect("a vCPU");
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(256).expect("what KVM supports")).expect("KVM takes what it supports");
    vcpu
}

/// A machine of one vCPU in real mode, whose segments begin at 0, with 512 KiB of memory.
pub struct Guest {
    pub vm: VmFd,
    pub vcpu: VcpuFd,
    pub memory: &'static mut [u8],
}

impl Guest {
    /// A guest that begins with `code`. Slot 0 has its memory, with these flags.
    pub fn new(kvm: &Kvm, code: &[u8], flags: u32) -> Self {
        let layout = Layout::from_size_align(0x8_0000, 0x1000).expect("whole pages");
        // SAFETY: memory of that size that is never given back.
        let memory = unsafe { std::slice::from_raw_parts_mut(alloc_zeroed(layout), layout.size()) };
        memory[CODE..][..code.len()].copy_from_slice(code);
        let vm = kvm.create_vm().expect("KVM makes a machine");
        let region = kvm_userspace_memory_region {
            flags,
            memory_size: memory.len() as u64,
            userspace_addr: memory.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the memory lives as long as the process.
        unsafe { vm.set_user_memory_region(region) }.expect("a slot");
        let guest = Self { vcpu: vcpu(kvm, &vm, 0), vm, memory };
        let mut special = guest.vcpu.get_sregs().expect("KVM_GET_SREGS");
        special.cs.base = 0;
        special.cs.selector = 0;
        guest.vcpu.set_sregs(&special).expect("KVM_SET_SREGS");
        guest.begin();
        guest
    }

    /// Goes to the code's beginning.
    pub fn begin(&self) {
        let registers = kvm_regs { rip: CODE as u64, rflags: 2, rsp: CODE as u64, ..Default::default() };
        self.vcpu.set_regs(&registers).expect("KVM_SET_REGS");
    }
}
