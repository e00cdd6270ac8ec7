//! Which system calls each kind of thread may make: data, a group for each reason.
//!
//! What a thread may do is the union of its groups. Descriptors are not checked: what is open is what the sandbox
//! leaves open. Where glibc has a choice of two calls, by its version or the kernel's, there are both.

use libc::*;

use crate::vcpu::exit::KVM_RUN;

/// What a call's arguments must be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Check {
    /// Anything.
    Any,
    /// The second argument, a request, is this one.
    Request(u64),
    /// The third argument, a protection, does not make memory executable.
    NoExec,
    /// The argument at this place, as 32 bits, is this.
    Is(u8, u64),
    /// The first argument is the VM process.
    IsVm,
    /// The first argument is this process.
    IsThis,
}

use Check::{Any, Is, IsThis, IsVm, NoExec, Request};

/// A call, and one way in which its arguments may be.
pub(super) type Rule = (c_long, Check);

/// What any thread does: memory, locks, telling others and the user, its own end.
pub(super) const EVERY: &[Rule] = &[
    (SYS_brk, Any),
    (SYS_mmap, NoExec),
    (SYS_mprotect, NoExec),
    (SYS_munmap, Any),
    (SYS_mremap, Any),
    // What is freed goes back to the host.
    (SYS_madvise, Is(2, MADV_DONTNEED as u64)),
    (SYS_futex, Any),
    (SYS_sched_yield, Any),
    // An eventfd, or standard error.
    (SYS_write, Any),
    (SYS_close, Any),
    // The standard library looks whether what it closes is open, in a build that looks.
    #[cfg(debug_assertions)]
    (SYS_fcntl, Is(1, F_GETFD as u64)),
    // Where the kernel maps no code that tells the time.
    (SYS_clock_gettime, Any),
    // A hash table's seed.
    (SYS_getrandom, Any),
    (SYS_rt_sigprocmask, Any),
    (SYS_rt_sigreturn, Any),
    // A wait with an end goes on after a stop.
    (SYS_restart_syscall, Any),
    (SYS_sigaltstack, Any),
    // The standard library's handler of memory faults, which has the kernel end the process at the next one.
    (SYS_rt_sigaction, Is(0, SIGSEGV as u64)),
    (SYS_rt_sigaction, Is(0, SIGBUS as u64)),
    // The thread's name, for who refuses one of its calls.
    (SYS_prctl, Is(0, PR_GET_NAME as u64)),
    (SYS_gettid, Any),
    (SYS_exit, Any),
    (SYS_exit_group, Any),
];

/// Starts a thread: what the new one does, too, before it gets to its work. clone3(2), whose arguments no filter sees, is
/// answered as by a kernel that has none, and clone(2) makes threads of this process and nothing else.
pub(super) const STARTS_THREADS: &[Rule] = &[
    (SYS_clone, Is(0, THREAD)),
    (SYS_rseq, Any),
    (SYS_set_robust_list, Any),
    (SYS_sched_getaffinity, Any),
    (SYS_prctl, Is(0, PR_SET_NAME as u64)),
];

/// clone(2)'s flags for a thread, as glibc has them.
const THREAD: u64 = (CLONE_VM
    | CLONE_FS
    | CLONE_FILES
    | CLONE_SYSVSEM
    | CLONE_SIGHAND
    | CLONE_THREAD
    | CLONE_SETTLS
    | CLONE_PARENT_SETTID
    | CLONE_CHILD_CLEARTID) as u64;

/// KVM API requests, `_IO`, `_IOR` and `_IOW` of type 0xae (Linux `include/uapi/linux/kvm.h`).
mod kvm {
    pub const GET_DIRTY_LOG: u64 = 0x4010_ae42;
    pub const GET_REGS: u64 = 0x8090_ae81;
    pub const GET_SREGS: u64 = 0x8138_ae83;
    pub const GET_LAPIC: u64 = 0x8400_ae8e;
    pub const GET_MP_STATE: u64 = 0x8004_ae98;
    pub const GET_VCPU_EVENTS: u64 = 0x8040_ae9f;
    pub const CREATE_PIT2: u64 = 0x4040_ae77;
    pub const GET_PIT2: u64 = 0x8070_ae9f;
    pub const SET_PIT2: u64 = 0x4070_aea0;
    pub const IRQ_LINE: u64 = 0x4008_ae61;
    pub const IOEVENTFD: u64 = 0x4040_ae79;
    pub const REGISTER_COALESCED_MMIO: u64 = 0x4010_ae67;
    pub const UNREGISTER_COALESCED_MMIO: u64 = 0x4010_ae68;
    pub const CHECK_EXTENSION: u64 = 0xae03;
    pub const GET_VCPU_MMAP_SIZE: u64 = 0xae04;
    pub const CREATE_VM: u64 = 0xae01;
    pub const CREATE_VCPU: u64 = 0xae41;
    pub const SET_USER_MEMORY_REGION: u64 = 0x4020_ae46;
    pub const SET_TSS_ADDR: u64 = 0xae47;
    pub const SET_IDENTITY_MAP_ADDR: u64 = 0x4008_ae48;
    pub const CREATE_IRQCHIP: u64 = 0xae60;
    pub const SET_IRQCHIP: u64 = 0x8208_ae63;
    pub const IRQFD: u64 = 0x4020_ae76;
    pub const SET_GSI_ROUTING: u64 = 0x4008_ae6a;
    pub const ENABLE_CAP: u64 = 0x4068_aea3;
    pub const SET_REGS: u64 = 0x4090_ae82;
    pub const SET_SREGS: u64 = 0x4138_ae84;
    pub const SET_MSRS: u64 = 0x4008_ae89;
    pub const SET_LAPIC: u64 = 0x4400_ae8f;
    pub const SET_CPUID2: u64 = 0x4008_ae90;
    pub const GET_STATS_FD: u64 = 0xaece;
    pub const KVMCLOCK_CTRL: u64 = 0xaead;
}

/// Runs a vCPU, tells how it stands, and carries out what devices at ports do on its thread.
pub(super) const VCPU: &[Rule] = &[
    (SYS_ioctl, Request(KVM_RUN)),
    // How it stands, of a guest that has crashed or may have.
    (SYS_ioctl, Request(kvm::GET_REGS)),
    (SYS_ioctl, Request(kvm::GET_SREGS)),
    (SYS_ioctl, Request(kvm::GET_LAPIC)),
    (SYS_ioctl, Request(kvm::GET_MP_STATE)),
    (SYS_ioctl, Request(kvm::GET_VCPU_EVENTS)),
    // The interval timer is made when first used.
    (SYS_ioctl, Request(kvm::CREATE_PIT2)),
    (SYS_ioctl, Request(kvm::GET_PIT2)),
    (SYS_ioctl, Request(kvm::SET_PIT2)),
    // The serial port's ring is made when first waited for.
    (SYS_ioctl, Request(kvm::REGISTER_COALESCED_MMIO)),
    // A console's input, taken up again when the driver resets.
    (SYS_read, Any),
];

/// linux/if_tun.h.
const TUNSETOFFLOAD: u64 = 0x4004_54d0;
/// See [`TUNSETOFFLOAD`].
const TUNSETQUEUE: u64 = 0x4004_54d9;

/// A tap's offloads and queues, when its driver has agreed on them or has gone.
pub(super) const TAP: &[Rule] = &[(SYS_ioctl, Request(TUNSETOFFLOAD)), (SYS_ioctl, Request(TUNSETQUEUE))];

/// What a vCPU's thread does for the devices of `--test-devices`.
pub(super) const TEST_DEVICES: &[Rule] =
    &[(SYS_ioctl, Request(kvm::IRQ_LINE)), (SYS_ioctl, Request(kvm::IOEVENTFD))];

/// What a vCPU's thread does for PCI: messages get their routes when the guest unmasks them, and where a function was
/// kicked is disconnected when the guest moves it.
pub(super) const PCI: &[Rule] = &[
    (SYS_ioctl, Request(kvm::SET_GSI_ROUTING)),
    (SYS_ioctl, Request(kvm::IOEVENTFD)),
    (SYS_ioctl, Request(kvm::UNREGISTER_COALESCED_MMIO)),
];

/// Waits for a device's driver.
pub(super) const DEVICE: &[Rule] = &[
    (SYS_epoll_wait, Any),
    (SYS_ioctl, Request(kvm::IOEVENTFD)),
    (SYS_ioctl, Request(kvm::REGISTER_COALESCED_MMIO)),
];

/// Waits for the host, too, and carries bytes between it and a device.
pub(super) const IO: &[Rule] = &[(SYS_poll, Any), (SYS_read, Any)];

/// A disk, by io_uring or by threads.
pub(super) const DISK: &[Rule] = &[
    (SYS_io_uring_enter, Any),
    (SYS_preadv, Any),
    (SYS_pwritev, Any),
    (SYS_pwrite64, Any),
    (SYS_fdatasync, Any),
    (SYS_fallocate, Any),
    // Requests gather, or not.
    (SYS_sched_getscheduler, Any),
    (SYS_sched_setscheduler, Is(1, SCHED_BATCH as u64)),
    (SYS_sched_setscheduler, Is(1, SCHED_OTHER as u64)),
    // Until the kernel has memory for more.
    (SYS_clock_nanosleep, Any),
];

/// A vCPU's thread waits for what is in flight when it resets a disk.
pub(super) const DISK_RESET: &[Rule] = &[(SYS_io_uring_enter, Any), (SYS_clock_nanosleep, Any)];

/// A tap or passt.
pub(super) const NETWORK: &[Rule] = &[
    // The driver asks for more or fewer queues.
    (SYS_ioctl, Request(TUNSETQUEUE)),
    (SYS_readv, Any),
    (SYS_writev, Any),
    (SYS_recvfrom, Any),
    (SYS_sendto, Any),
    (SYS_sendmsg, Any),
];

/// The sockets of `--port`.
pub(super) const PORTS: &[Rule] =
    &[(SYS_accept4, Any), (SYS_ioctl, Request(FIONBIO)), (SYS_recvfrom, Any), (SYS_sendto, Any)];

/// Viewers of the screen, whom it neither looks for nor opens anything for.
pub(super) const VNC: &[Rule] = &[
    (SYS_poll, Any),
    (SYS_read, Any),
    (SYS_accept4, Any),
    (SYS_recvfrom, Any),
    (SYS_sendto, Any),
    // What wakes a viewer.
    (SYS_eventfd2, Any),
    // Which rows the guest has drawn.
    (SYS_ioctl, Request(kvm::GET_DIRTY_LOG)),
];

/// linux/fs.h, which libc does not name.
const FS_IOC_FSGETXATTR: u64 = 0x801c_581f;

/// A folder shared with the guest. What names it is a descriptor and one name; where that leads is for the root and for
/// Landlock to limit.
pub(super) const SHARE: &[Rule] = &[
    (SYS_openat2, Any),
    (SYS_openat, Any),
    (SYS_statx, Any),
    (SYS_fstatfs, Any),
    (SYS_getdents64, Any),
    (SYS_lseek, Any),
    (SYS_preadv2, Any),
    (SYS_pwritev2, Any),
    (SYS_readlinkat, Any),
    (SYS_fsync, Any),
    (SYS_fdatasync, Any),
    (SYS_syncfs, Any),
    (SYS_getxattr, Any),
    (SYS_listxattr, Any),
    (SYS_geteuid, Any),
    // Whether a file is of a group of this user's, which the host does not tell a user namespace.
    (SYS_faccessat2, Any),
    // A file's flags: append-only and the like.
    (SYS_ioctl, Request(FS_IOC_GETFLAGS)),
    (SYS_ioctl, Request(FS_IOC_FSGETXATTR)),
    // To have another machine's file system hear that a file is closed.
    (SYS_dup, Any),
    // For a thread's own working folder and mask.
    (SYS_unshare, Is(0, CLONE_FS as u64)),
    (SYS_fchdir, Any),
    (SYS_umask, Any),
];

/// What a vCPU's thread does for a share, when the driver resets it.
pub(super) const SHARE_RESET: &[Rule] = &[(SYS_statx, Any)];

/// A share that the guest may change.
pub(super) const WRITABLE_SHARE: &[Rule] = &[
    (SYS_mkdirat, Any),
    (SYS_mknodat, Any),
    (SYS_symlinkat, Any),
    (SYS_linkat, Any),
    (SYS_unlinkat, Any),
    (SYS_renameat2, Any),
    (SYS_fchmodat, Any),
    (SYS_fchownat, Any),
    (SYS_utimensat, Any),
    (SYS_ftruncate, Any),
    (SYS_fallocate, Any),
    (SYS_copy_file_range, Any),
    (SYS_setxattr, Any),
    (SYS_removexattr, Any),
    (SYS_ioctl, Request(FS_IOC_SETFLAGS)),
    // As root, for the one who asks.
    (SYS_setfsuid, Any),
    (SYS_setfsgid, Any),
    (SYS_capget, Any),
    (SYS_capset, Any),
];

/// Attends the machine: input, signals, the terminal, the vCPUs' pauses, the end.
pub(super) const MAIN: &[Rule] = &[
    (SYS_poll, Any),
    (SYS_read, Any),
    (SYS_ioctl, Request(TCGETS)),
    (SYS_ioctl, Request(TCSETS)),
    (SYS_ioctl, Request(TIOCGWINSZ)),
    (SYS_ioctl, Request(TIOCGPGRP)),
    (SYS_getpid, Any),
    (SYS_getpgrp, Any),
    // A vCPU is made to leave the guest.
    (SYS_tgkill, IsThis),
    // A file that the guest was loaded from is about to change: its lease is given back.
    (SYS_fcntl, Is(1, F_SETLEASE as u64)),
    (SYS_fcntl, Is(1, F_SETOWN as u64)),
    // A kernel's symbols, of a file beside it.
    (SYS_pread64, Any),
    (SYS_statx, Any),
    (SYS_lseek, Any),
];

/// Builds another machine, with `--on-reboot restart`, and loads it.
pub(super) const REBUILD: &[Rule] = &[
    (SYS_ioctl, Request(kvm::CHECK_EXTENSION)),
    (SYS_ioctl, Request(kvm::CREATE_VM)),
    (SYS_ioctl, Request(kvm::GET_VCPU_MMAP_SIZE)),
    (SYS_ioctl, Request(kvm::CREATE_VCPU)),
    (SYS_ioctl, Request(kvm::SET_USER_MEMORY_REGION)),
    (SYS_ioctl, Request(kvm::SET_TSS_ADDR)),
    (SYS_ioctl, Request(kvm::SET_IDENTITY_MAP_ADDR)),
    (SYS_ioctl, Request(kvm::CREATE_IRQCHIP)),
    (SYS_ioctl, Request(kvm::SET_IRQCHIP)),
    (SYS_ioctl, Request(kvm::IRQFD)),
    (SYS_ioctl, Request(kvm::ENABLE_CAP)),
    (SYS_ioctl, Request(kvm::SET_REGS)),
    (SYS_ioctl, Request(kvm::SET_SREGS)),
    (SYS_ioctl, Request(kvm::SET_MSRS)),
    (SYS_ioctl, Request(kvm::SET_LAPIC)),
    (SYS_ioctl, Request(kvm::SET_CPUID2)),
    (SYS_ioctl, Request(kvm::GET_STATS_FD)),
    (SYS_madvise, Is(2, MADV_NOHUGEPAGE as u64)),
    (SYS_eventfd2, Any),
    (SYS_epoll_create1, Any),
    (SYS_epoll_ctl, Any),
    (SYS_rt_sigaction, Any),
    (SYS_fcntl, Is(1, F_DUPFD_CLOEXEC as u64)),
    (SYS_geteuid, Any),
    // Its threads confine themselves further.
    (SYS_prctl, Is(0, PR_SET_NO_NEW_PRIVS as u64)),
    (SYS_seccomp, Is(0, SECCOMP_SET_MODE_FILTER as u64)),
];

/// Statistics: KVM's own counters.
pub(super) const STATS: &[Rule] = &[(SYS_pread64, Any)];

/// A file that the supervisor writes: memory with its content, which is sent.
pub(super) const FILES: &[Rule] = &[
    (SYS_memfd_create, Is(1, (MFD_CLOEXEC | MFD_NOEXEC_SEAL) as u64)),
    // Where the kernel knows no memory that is no program.
    (SYS_memfd_create, Is(1, MFD_CLOEXEC as u64)),
    (SYS_sendmsg, Any),
];

/// What commands ask of the machine: questions that the supervisor passes on, and a picture as memory.
pub(super) const CONTROL: &[Rule] = &[
    (SYS_recvmsg, Any),
    (SYS_memfd_create, Is(1, (MFD_CLOEXEC | MFD_NOEXEC_SEAL) as u64)),
    (SYS_memfd_create, Is(1, MFD_CLOEXEC as u64)),
    (SYS_sendmsg, Any),
];

/// A vCPU's clock knows of the pauses that commands ask for.
pub(super) const PAUSES: &[Rule] = &[(SYS_ioctl, Request(kvm::KVMCLOCK_CTRL))];

/// A command's streams: nothing takes the place of one that the command has closed.
pub(super) const STREAMS: &[Rule] = &[(SYS_dup2, Any)];

/// The supervisor: attends the VM process, hands on signals, restores the terminal, and ends as that has.
pub(super) const SUPERVISOR: &[Rule] = &[
    (SYS_poll, Any),
    (SYS_read, Any),
    (SYS_recvmsg, Any),
    (SYS_wait4, Any),
    (SYS_kill, IsVm),
    (SYS_ioctl, Request(TCGETS)),
    (SYS_ioctl, Request(TCSETS)),
    // Its own stop and end.
    (SYS_getpid, Any),
    (SYS_tgkill, IsThis),
];

/// Files that the VM process has sent: each is a new one, which then takes the name.
pub(super) const SUPERVISOR_FILES: &[Rule] = &[
    // Whether it is memory.
    (SYS_fcntl, Is(1, F_GET_SEALS as u64)),
    (SYS_pread64, Any),
    (SYS_newfstatat, Any),
    (SYS_openat, Is(2, (O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC) as u64)),
    (SYS_renameat, Any),
    (SYS_unlinkat, Any),
];

/// The control socket: takes connections, asks, and answers, with what is memory if it has a descriptor.
pub(super) const SUPERVISOR_CONTROL: &[Rule] =
    &[(SYS_accept4, Any), (SYS_sendmsg, Any), (SYS_fcntl, Is(1, F_GET_SEALS as u64))];

/// Sockets' names, which are removed.
pub(super) const SUPERVISOR_NAMES: &[Rule] = &[(SYS_newfstatat, Any), (SYS_unlinkat, Any)];

/// The machine's group: whether it has run out of memory, and its end.
pub(super) const SUPERVISOR_GROUPS: &[Rule] = &[
    (SYS_openat2, Any),
    (SYS_unlinkat, Any),
    (SYS_clock_nanosleep, Any),
    // Whatever is left in it.
    (SYS_kill, Is(1, SIGKILL as u64)),
];
