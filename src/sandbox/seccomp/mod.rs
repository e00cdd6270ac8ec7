//! Filters of system calls, one for each kind of thread (seccomp(2)).

mod groups;
mod listing;
mod program;
mod refused;
mod rules;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use nix::unistd::Pid;
use seccompiler::BpfProgram;

use crate::backend::Calls;
use crate::host::thread::ThreadKind as Thread;
use crate::vcpu::exit::KVM_RUN;
pub use listing::listing;
use program::{AUDIT_ARCH_X86_64, Condition, Verdict};
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
    // A process is locked once.
    let _ = FILTERS.set(of_threads(needs));
    Ok(())
}

/// The filters of all threads that a machine may have.
fn of_threads(needs: Needs) -> Vec<(Thread, BpfProgram)> {
    let compile = |thread| {
        let program = compile(&groups::of_machine(thread, &needs), None);
        // Every exit pays for the way to what a vCPU's thread does all the time.
        let quick = || program::with_quick_entry(&program, libc::SYS_ioctl as u32, KVM_RUN as u32);
        (thread, if thread == Thread::Vcpu { quick() } else { program })
    };
    let mut threads = vec![Thread::Vcpu, Thread::Io, Thread::Main];
    threads.extend(needs.shares.iter().flat_map(|_| [Thread::Share, Thread::ReadOnlyShare]));
    threads.extend(needs.vnc.then_some(Thread::Vnc));
    threads.into_iter().map(compile).collect()
}

/// As [`prepare`], for the supervisor.
///
/// # Errors
/// The kernel has no such filters.
pub(super) fn prepare_supervisor(needs: SupervisorNeeds) -> anyhow::Result<()> {
    refused::report("the supervisor's thread ")?;
    // A process is locked once.
    let filter = compile(&groups::of_supervisor(&needs), Some(needs.vm));
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
fn compile(groups: &[&[Rule]], vm: Option<Pid>) -> BpfProgram {
    let mut calls = BTreeMap::new();
    for (call, check) in groups.iter().copied().flatten() {
        let verdict = calls.entry(*call as u32).or_insert_with(|| Verdict::AllowIf(Vec::new()));
        match (condition(*check, vm), verdict) {
            (None, verdict) => *verdict = Verdict::Allow,
            (Some(condition), Verdict::AllowIf(ways)) => ways.push(condition),
            // It may be made in any way.
            (Some(_), _) => {}
        }
    }
    // Its arguments lie in memory that may change after they were looked at.
    calls.insert(libc::SYS_clone3 as u32, Verdict::Missing);
    program::of(calls)
}

/// What the arguments must be, if they are looked at.
fn condition(check: Check, vm: Option<Pid>) -> Option<Condition> {
    let equal = |argument, value| Some(Condition { argument, mask: u32::MAX, value });
    match check {
        Check::Any => None,
        Check::Request(request) => equal(1, request as u32),
        Check::NoExec => Some(Condition { argument: 2, mask: libc::PROT_EXEC as u32, value: 0 }),
        Check::Is(at, value) => equal(at, value as u32),
        Check::IsVm => equal(0, vm.expect("the supervisor has a VM process").as_raw() as u32),
        Check::IsThis => equal(0, std::process::id()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: i32 = 0x1_2345;

    /// What the rules say of a call.
    fn is_allowed(groups: &[&[Rule]], number: i64, arguments: [u64; 6]) -> bool {
        let low = |index: usize| arguments[index] & 0xffff_ffff;
        groups.iter().copied().flatten().filter(|rule| rule.0 == number).any(|(_, check)| match *check {
            Check::Any => true,
            Check::Request(request) => low(1) == request,
            Check::NoExec => arguments[2] & libc::PROT_EXEC as u64 == 0,
            Check::Is(index, value) => low(index.into()) == value,
            Check::IsVm => low(0) == VM as u64,
            Check::IsThis => low(0) == u64::from(std::process::id()),
        })
    }

    /// Arguments that rules look at, and others that are nearly those.
    fn arguments(groups: &[&[Rule]]) -> Vec<[u64; 6]> {
        let mut all = vec![[0; 6], [u64::MAX; 6]];
        for (_, check) in groups.iter().copied().flatten() {
            let (index, value) = match *check {
                Check::Any => continue,
                Check::Request(request) => (1, request),
                Check::NoExec => (2, libc::PROT_EXEC as u64),
                Check::Is(index, value) => (index.into(), value),
                Check::IsVm => (0, VM as u64),
                Check::IsThis => (0, std::process::id().into()),
            };
            for value in [value, value + 1, value ^ 2, value | 1 << 32, value | 1 << 63] {
                let mut arguments = [0; 6];
                arguments[index] = value;
                all.push(arguments);
            }
        }
        all
    }

    fn lets_through_what_rules_say(program: &BpfProgram, groups: &[&[Rule]]) {
        let run = program::tests::run;
        let arguments = arguments(groups);
        for number in (0..600).chain([1 << 30, 1 << 30 | 1, i64::from(u32::MAX)]) {
            for arguments in &arguments {
                let expected = match number {
                    libc::SYS_clone3 => libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
                    _ if is_allowed(groups, number, *arguments) => libc::SECCOMP_RET_ALLOW,
                    _ => libc::SECCOMP_RET_TRAP,
                };
                let answer = |architecture| run(program, architecture, number as u32, *arguments);
                assert_eq!(answer(AUDIT_ARCH_X86_64), expected, "{number} {arguments:x?}");
                assert_eq!(answer(0x4000_0003), libc::SECCOMP_RET_TRAP, "{number} {arguments:x?}");
            }
        }
    }

    #[test]
    fn a_machine_s_filters_let_through_what_its_rules_say_and_nothing_more() {
        let all = Needs {
            disks: true,
            networks: true,
            ports: true,
            shares: Some(true),
            vnc: true,
            streams: true,
            test_devices: true,
            stats: true,
            files: true,
            threads: 1,
            restart: true,
            control: true,
            pci: true,
        };
        for needs in [Needs::default(), Needs { restart: false, ..all }, all] {
            for (thread, program) in of_threads(needs) {
                lets_through_what_rules_say(&program, &groups::of_machine(thread, &needs));
            }
        }
    }

    #[test]
    fn a_supervisor_s_filter_lets_through_what_its_rules_say_and_nothing_more() {
        let vm = Pid::from_raw(VM);
        for needed in [false, true] {
            let needs = SupervisorNeeds { vm, files: needed, names: needed, groups: needed, control: needed };
            let groups = groups::of_supervisor(&needs);
            lets_through_what_rules_say(&compile(&groups, Some(vm)), &groups);
        }
    }
}
