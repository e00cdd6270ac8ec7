//! One entry into the guest by KVM_RUN, and what came of it (KVM API §5, "The kvm_run structure").
//!
//! kvm-ioctls can do this, too. Here the two exits that a guest makes all the time are recognised first, and
//! what they are about is not copied.
#![expect(unsafe_code, reason = "KVM_RUN's answer is in a union, and the data of ports behind it")]

use std::os::fd::AsRawFd;

use kvm_bindings::{
    KVM_EXIT_FAIL_ENTRY, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuFd;
use nix::errno::Errno;

/// `_IO(KVMIO, 0x80)` (Linux `include/uapi/linux/kvm.h`).
pub const KVM_RUN: libc::c_ulong = 0xae80;

/// An address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// I/O ports.
    Port,
    /// Memory that is not RAM.
    Memory,
}

/// Why KVM_RUN came back.
#[derive(Debug)]
pub enum VcpuExit<'a> {
    /// For an access, which is completed at the next entry.
    Access {
        /// Where.
        space: Space,
        /// The first address.
        address: u64,
        /// Whether the guest writes.
        write: bool,
        /// What it writes, or what it is to read. A string instruction's elements come together.
        data: &'a mut [u8],
    },
    /// For a signal, or because of immediate_exit.
    Interrupted,
    /// For good.
    Ended(Ending),
}

/// Why the guest does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// A triple fault.
    Shutdown,
    /// KVM does not know further; the number is its suberror.
    InternalError(u32),
    /// The processor refused the vCPU's state: its reason, and which CPU it was.
    FailEntry(u64, u32),
    /// The host cannot give the memory at this address.
    MemoryFault(u64),
    /// An exit that kite has not asked for.
    Other(u32),
    /// It did not enter the guest, for this error.
    Failed(i32),
}

/// What [`enter`] came back with; [`left`] says what that means.
#[derive(Clone, Copy, Debug)]
pub struct Reason(u32);

/// A signal or immediate_exit; an error: no reasons of KVM's.
const INTERRUPTED: u32 = u32::MAX;
const FAILED: u32 = u32::MAX - 1;

/// Runs the guest until its next exit.
#[inline]
pub fn enter(vcpu: &mut VcpuFd) -> Reason {
    // SAFETY: the descriptor is a vCPU's, and this request has no argument.
    if unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_RUN, 0) } < 0 {
        return failed(vcpu.get_kvm_run());
    }
    Reason(vcpu.get_kvm_run().exit_reason)
}

/// Why the guest was left. Nothing else has been done with the vCPU since.
#[inline(always)]
pub fn left(vcpu: &mut VcpuFd, reason: Reason) -> VcpuExit<'_> {
    let run = vcpu.get_kvm_run();
    match reason.0 {
        KVM_EXIT_IO => {
            // SAFETY: the exit's reason says that this is the member in use; all of it is plain numbers.
            let io = unsafe { run.__bindgen_anon_1.io };
            let len = usize::from(io.size) * io.count as usize;
            let start = (&raw mut *run).cast::<u8>();
            // SAFETY: KVM has put so many bytes there, in the mapping that `run` is the beginning of, behind `run` itself;
            // nothing else refers to them while `vcpu` is borrowed.
            let data = unsafe { std::slice::from_raw_parts_mut(start.add(io.data_offset as usize), len) };
            let write = u32::from(io.direction) == KVM_EXIT_IO_OUT;
            VcpuExit::Access { space: Space::Port, address: io.port.into(), write, data }
        }
        KVM_EXIT_MMIO => {
            // SAFETY: as above.
            let mmio = unsafe { &mut run.__bindgen_anon_1.mmio };
            let len = mmio.data.len().min(mmio.len as usize);
            let (address, write) = (mmio.phys_addr, mmio.is_write != 0);
            VcpuExit::Access { space: Space::Memory, address, write, data: &mut mmio.data[..len] }
        }
        INTERRUPTED => VcpuExit::Interrupted,
        reason => VcpuExit::Ended(ending(run, reason)),
    }
}

#[cold]
fn failed(run: &kvm_run) -> Reason {
    Reason(match Errno::last() {
        Errno::EINTR | Errno::EAGAIN => INTERRUPTED,
        // The answer is there all the same (KVM API, KVM_EXIT_MEMORY_FAULT).
        Errno::EFAULT if run.exit_reason == KVM_EXIT_MEMORY_FAULT => KVM_EXIT_MEMORY_FAULT,
        _ => FAILED,
    })
}

#[cold]
fn ending(run: &kvm_run, reason: u32) -> Ending {
    let union = &run.__bindgen_anon_1;
    // SAFETY: the exit's reason says which member is in use; each is plain numbers.
    unsafe {
        match reason {
            KVM_EXIT_SHUTDOWN => Ending::Shutdown,
            KVM_EXIT_INTERNAL_ERROR => Ending::InternalError(union.internal.suberror),
            KVM_EXIT_FAIL_ENTRY => {
                let refusal = union.fail_entry;
                Ending::FailEntry(refusal.hardware_entry_failure_reason, refusal.cpu)
            }
            KVM_EXIT_MEMORY_FAULT => Ending::MemoryFault(union.memory_fault.gpa),
            FAILED => Ending::Failed(Errno::last_raw()),
            other => Ending::Other(other),
        }
    }
}
