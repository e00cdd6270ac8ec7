//! Filters of system calls, one for each kind of thread (seccomp(2)).

mod groups;
mod listing;
mod refused;
mod rules;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{Context, anyhow};
use nix::unistd::Pid;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use crate::backend::Calls;
use crate::host::thread::ThreadKind as Thread;
use crate::vcpu::exit::KVM_RUN;
pub use listing::listing;
use rules::{Check, Rule};

/// What the machine has that system calls are made for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Needs {
    /// Disks.
    pub disks: bool,
    /// Networks.
    pub networks: bool,
    /// Named ports.
    pub ports: bool,
    /// Shares, and whether the guest may change one.
    pub shares: Option<bool>,
    /// Viewers of the screen.
    pub vnc: bool,
    /// Streams of a command.
    pub streams: bool,
    /// What KVM's unit tests expect.
    pub test_devices: bool,
    /// A PCI bus.
    pub pci: bool,
    /// Statistics.
    pub stats: bool,
    /// Files that the supervisor writes.
    pub files: bool,
    /// Commands that ask for the machine.
    pub control: bool,
    /// The most threads.
    pub threads: u64,
    /// Another machine after this one.
    pub restart: bool,
}

impl Needs {
    /// Adds the system calls of a device's threads.
    pub fn add(&mut self, calls: Calls) {
        match calls {
            Calls::None => {}
            Calls::Disk => self.disks = true,
            Calls::Net => self.networks = true,
            Calls::Sockets => self.ports = true,
            Calls::Share { writable } => self.shares = Some(writable || self.shares == Some(true)),
        }
    }
}

/// What the supervisor makes system calls for.
#[derive(Clone, Copy, Debug)]
pub(super) struct SupervisorNeeds {
    /// The VM process.
    pub vm: Pid,
    /// There are files to be written.
    pub files: bool,
    /// There are names to be removed.
    pub names: bool,
    /// Commands ask for the machine.
    pub control: bool,
    /// There are groups to be ended and removed.
    pub groups: bool,
}

/// Those of this process's threads.
static FILTERS: OnceLock<Vec<(Thread, BpfProgram)>> = OnceLock::new();

thread_local! {
    /// This thread has confined itself.
    static CONFINED: Cell<bool> = const { Cell::new(false) };
}

/// Makes the filters for threads to confine themselves with.
///
/// # Errors
/// The kernel has no such filters.
pub(super) fn prepare(needs: Needs) -> anyhow::Result<()> {
    refused::report("thread ")?;
    let compile = |thread| compile(&groups::of_machine(thread, &needs), None);
    // A process is locked once.
    let _ = FILTERS.set(vec![
        (Thread::Vcpu, with_quick_entry(compile(Thread::Vcpu)?)),
        (Thread::Io, compile(Thread::Io)?),
        (Thread::Share, compile(Thread::Share)?),
        (Thread::ReadOnlyShare, compile(Thread::ReadOnlyShare)?),
        (Thread::Vnc, compile(Thread::Vnc)?),
        (Thread::Main, compile(Thread::Main)?),
    ]);
    Ok(())
}

/// As [`prepare`], for the supervisor.
///
/// # Errors
/// The kernel has no such filters.
pub(super) fn prepare_supervisor(needs: SupervisorNeeds) -> anyhow::Result<()> {
    refused::report("the supervisor's thread ")?;
    // A process is locked once.
    let filter = compile(&groups::of_supervisor(&needs), Some(needs.vm))?;
    let _ = FILTERS.set(vec![(Thread::Supervisor, filter)]);
    Ok(())
}

/// Confines the calling thread, if there are filters: it makes no other system calls from now on than one of its kind does.
pub fn confine(thread: Thread) {
    let Some(filters) = FILTERS.get().filter(|_| !CONFINED.replace(true)) else { return };
    let filter = filters.iter().find_map(|(kind, filter)| (*kind == thread).then_some(filter));
    let filter = filter.expect("this process has threads of this kind");
    seccompiler::apply_filter(filter).expect("the kernel has filters, and this one is well formed");
}

/// The program of these groups, for the supervisor of the process `vm` if there is one.
fn compile(groups: &[&[Rule]], vm: Option<Pid>) -> anyhow::Result<BpfProgram> {
    let mut calls: BTreeMap<i64, Option<Vec<SeccompRule>>> = BTreeMap::new();
    for (call, check) in groups.iter().copied().flatten() {
        let ways = calls.entry(*call).or_insert_with(|| Some(Vec::new()));
        match (condition(*check, vm)?, ways) {
            (None, ways) => *ways = None,
            (Some(condition), Some(ways)) => ways.push(SeccompRule::new(vec![condition])?),
            (Some(_), None) => {}
        }
    }
    // A call without rules is one that may be made in any way.
    let calls = calls.into_iter().map(|(call, ways)| (call, ways.unwrap_or_default())).collect();
    let filter = SeccompFilter::new(calls, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(|error| anyhow!("cannot make a filter: {error}"))?;
    Ok([&first()[..], &filter].concat())
}

fn condition(check: Check, vm: Option<Pid>) -> anyhow::Result<Option<SeccompCondition>> {
    let vm = || vm.context("there is no VM process").map(|it| it.as_raw() as u64);
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    Ok(Some(match check {
        Check::Any => return Ok(None),
        Check::Request(request) => SeccompCondition::new(1, Dword, Eq, request)?,
        Check::NoExec => SeccompCondition::new(2, Qword, MaskedEq(libc::PROT_EXEC as u64), 0)?,
        Check::Is(at, value) => SeccompCondition::new(at, Dword, Eq, value)?,
        Check::IsVm => SeccompCondition::new(0, Dword, Eq, vm()?)?,
        Check::IsThis => SeccompCondition::new(0, Dword, Eq, std::process::id().into())?,
    }))
}

/// What goes first: a call by another architecture's numbers is reported like any
/// that is refused, and clone3(2) is no such call, as its arguments lie in memory that may change after they were looked
/// at.
fn first() -> [sock_filter; 6] {
    let no_such_call = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    [
        load(ARCHITECTURE),
        skip(AUDIT_ARCH_X86_64, 1, 0),
        end(libc::SECCOMP_RET_TRAP),
        load(NUMBER),
        skip(libc::SYS_clone3 as u32, 0, 1),
        end(no_such_call),
    ]
}

/// The program of a vCPU's thread, with what it does all the time in front: KVM_RUN is let through before the list is gone
/// through, for every exit pays for the way.
fn with_quick_entry(program: BpfProgram) -> BpfProgram {
    let quick = [
        load(ARCHITECTURE),
        skip(AUDIT_ARCH_X86_64, 0, 5),
        load(NUMBER),
        skip(libc::SYS_ioctl as u32, 0, 3),
        load(REQUEST),
        skip(KVM_RUN as u32, 0, 1),
        end(libc::SECCOMP_RET_ALLOW),
    ];
    [&quick[..], &program].concat()
}

/// Where there is in `struct seccomp_data` the call's number.
const NUMBER: u32 = 0;
/// The architecture.
const ARCHITECTURE: u32 = 4;
/// The lower half of the second argument, which is all that ioctl(2) looks at.
const REQUEST: u32 = 24;

/// Looks at the 32 bits there (Linux `include/uapi/linux/bpf_common.h`, as all instructions here).
fn load(k: u32) -> sock_filter {
    sock_filter { code: 0x20, jt: 0, jf: 0, k }
}

/// Skips `jt` instructions if what was looked at is `k`, and `jf` if not.
fn skip(k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: 0x15, jt, jf, k }
}

/// Answers.
fn end(k: u32) -> sock_filter {
    sock_filter { code: 0x06, jt: 0, jf: 0, k }
}

/// Linux `include/uapi/linux/audit.h`.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
