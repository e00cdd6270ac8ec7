//! The least there is: a loop around KVM_RUN that carries out nothing, the host's own clock, and a signal to a thread.
#![expect(unsafe_code, reason = "KVM_RUN, RDTSC and a signal to one thread have no safe interface")]

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use kvm_bindings::{
    KVM_EXIT_INTR, KVM_IRQCHIP_IOAPIC, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr, kvm_irqchip,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::signal::SIGRTMIN;

use crate::vcpu::exit::KVM_RUN;

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)` (KVM API, KVM_SET_DEVICE_ATTR).
const KVM_SET_DEVICE_ATTR: u64 = 0x4018_aee1;

/// The time-stamp counter, after everything before it has been executed.
pub fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has both instructions, and Linux lets processes use them.
    unsafe {
        _mm_lfence();
        let ticks = _rdtsc();
        _mm_lfence();
        ticks
    }
}

/// Waits for `ticks`, in user space.
pub fn spin(ticks_to_wait: u64) {
    let start = ticks();
    while ticks().wrapping_sub(start) < ticks_to_wait {
        std::hint::spin_loop();
    }
}

/// Runs the guest for as long as it exits with `reason`, without answering; the reason of the exit that ended it, which
/// is KVM_EXIT_INTR after a signal.
///
/// # Errors
/// KVM refuses to run it.
pub fn run_while(vcpu: &mut VcpuFd, reason: u32) -> io::Result<u32> {
    let fd = vcpu.as_raw_fd();
    let found = &raw const vcpu.get_kvm_run().exit_reason;
    loop {
        // SAFETY: the descriptor is a vCPU's, and this request has no argument.
        let result = unsafe { libc::ioctl(fd, KVM_RUN, 0) };
        if result < 0 {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN) => Ok(KVM_EXIT_INTR),
                _ => Err(error),
            };
        }
        // SAFETY: it points into the run structure, which stays mapped as long as `vcpu` is borrowed.
        let found = unsafe { found.read_volatile() };
        if found != reason {
            return Ok(found);
        }
    }
}

/// Calls KVM_RUN once for each of `times`, and writes down how long each took. The vCPU's `immediate_exit` is set.
pub fn time_runs(vcpu: &mut VcpuFd, times: &mut [u32]) {
    let fd = vcpu.as_raw_fd();
    for time in times {
        let start = ticks();
        // SAFETY: as above. It fails with EINTR, as asked.
        unsafe { libc::ioctl(fd, KVM_RUN, 0) };
        *time = u32::try_from(ticks() - start).unwrap_or(u32::MAX);
    }
}

/// When KVM_RUN last came back for a signal, and how often it has.
#[derive(Default)]
pub struct Returns {
    /// In ticks.
    pub when: AtomicU64,
    /// How often.
    pub count: AtomicU64,
    /// Told to stop.
    pub stop: AtomicBool,
    /// It came back for another reason, which ended it.
    pub other: AtomicBool,
}

/// Runs the guest, which has no exits, and notes when a signal has brought KVM_RUN back.
pub fn note_returns(vcpu: &mut VcpuFd, returns: &Returns) {
    while !returns.stop.load(Ordering::Acquire) {
        let result = run_while(vcpu, u32::MAX);
        let now = ticks();
        if !matches!(result, Ok(KVM_EXIT_INTR)) {
            return returns.other.store(true, Ordering::Release);
        }
        returns.when.store(now, Ordering::Release);
        returns.count.fetch_add(1, Ordering::AcqRel);
    }
}

/// One thread, to be signalled.
#[derive(Clone, Copy)]
pub struct Thread(libc::pthread_t);

impl Thread {
    /// The calling one.
    pub fn this() -> Self {
        // SAFETY: it has no preconditions.
        Self(unsafe { libc::pthread_self() })
    }

    /// Interrupts its system call. The thread is still there: its caller sees to that.
    pub fn interrupt(self) {
        // SAFETY: the C library looks the thread up, which has not been joined or detached.
        unsafe { libc::pthread_kill(self.0, SIGRTMIN()) };
    }
}

/// Makes the guest's time-stamp counter the host's; answers whether KVM does so (KVM API, KVM_VCPU_TSC_CTRL).
pub fn share_clock(vcpu: &VcpuFd) -> bool {
    let offset = 0u64;
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
        flags: 0,
    };
    // SAFETY: the request reads the structure and, behind its address, 64 bits; both live until it returns.
    unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_SET_DEVICE_ATTR as _, &raw const attribute) == 0 }
}

/// Lets an edge on an I/O APIC's pin raise `vector` on local APIC 0 (KVM API, KVM_SET_IRQCHIP; 82093AA §3.2.4).
///
/// # Errors
/// KVM refuses.
pub fn unmask_pin(vm: &VmFd, pin: u32, vector: u8) -> Result<(), kvm_ioctls::Error> {
    let mut chip = kvm_irqchip { chip_id: KVM_IRQCHIP_IOAPIC, ..Default::default() };
    vm.get_irqchip(&mut chip)?;
    // SAFETY: this chip is an I/O APIC, so that is the member in use; it is plain data.
    if let Some(entry) = unsafe { &mut chip.chip.ioapic }.redirtbl.get_mut(pin as usize) {
        entry.bits = vector.into();
    }
    vm.set_irqchip(&chip)
}
