//! Rules that a run need not make use of, and why they are there.

/// See [`RARE`].
const FAULT: &str = "the standard library's handler of a memory fault: tests/sandbox";

/// An older kernel's.
const OLD: &str = "a host kernel before Linux 6.3, which knows no memory that is no program";

/// The rule, as reports name it, and when it is made use of.
const RARE: [(&str, &str); 15] = [
    ("every: prctl 1=0x10", "the handler of a refused call asks for the thread's name: tests/sandbox"),
    ("every: rt_sigaction 1=0xb", FAULT),
    ("every: rt_sigaction 1=0x7", FAULT),
    ("every: sched_yield", "the standard library, where two threads come for one thing at the same moment"),
    (
        "rebuild of main: geteuid",
        "a kernel whose owner is another user is loaded for a machine that starts again",
    ),
    ("share of share: dup", "a share on a file system of another machine, such as NFS: tests/sandbox"),
    ("share of share: faccessat2", "an ordinary user's kite, of a file whose group the host does not tell"),
    (
        "writable-share of share: ioctl 2=0x40086602",
        "flags are set on a file system that has them, which the lab's /tmp has not: tests of virtio::fs",
    ),
    ("disk of io: clock_nanosleep", "the kernel has no memory for what a disk is to do"),
    ("disk-reset of vcpu: clock_nanosleep", "the kernel has no memory for what a disk is to do"),
    ("files of io: memfd_create 2=0x1", OLD),
    ("files of main: memfd_create 2=0x1", OLD),
    ("control of main: memfd_create 2=0x1", OLD),
    (
        "supervisor-groups of supervisor: kill 2=0x9",
        "a process that is left in the group when the machine has ended",
    ),
    ("supervisor-groups of supervisor: clock_nanosleep", "the same takes a moment to end"),
];

/// When a rule is made use of, if that is seldom.
pub fn why(rule: &str) -> Option<&'static str> {
    RARE.iter().find(|(name, _)| *name == rule).map(|(_, why)| *why)
}

/// All of them.
pub fn rules() -> impl Iterator<Item = &'static str> {
    RARE.iter().map(|(name, _)| *name)
}
