//! Which system calls a process may make: its seccomp filters are read (ptrace(2), `PTRACE_SECCOMP_GET_FILTER`) and
//! followed for each number, whatever the arguments (seccomp(2), the kernel's networking/filter for the instructions).

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// Numbers beyond this one no kernel has yet.
const LAST: u32 = 600;
/// `AUDIT_ARCH_X86_64`.
const ARCH: u32 = 0xc000_003e;
/// `PTRACE_SECCOMP_GET_FILTER`.
const GET_FILTER: libc::c_uint = 0x420c;
/// How many instructions a filter's paths may have together: what is longer is taken to allow.
const STEPS: u32 = 200_000;

/// An instruction (`struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    code: u16,
    jt: u8,
    jf: u8,
    k: u32,
}

/// How many system calls this kernel has.
///
/// # Errors
/// It does not tell its symbols' names.
pub fn all_calls() -> Result<usize> {
    let symbols = fs::read_to_string("/proc/kallsyms").context("reading /proc/kallsyms")?;
    let names = symbols.lines().filter_map(|line| line.split(' ').nth(2)?.strip_prefix("__x64_sys_"));
    let count = names.collect::<BTreeSet<_>>().len();
    ensure!(count > 0, "the kernel tells no names of its system calls");
    Ok(count)
}

/// How many system calls one or another of these threads of a process may make. All are stopped for it, which a filter may
/// take amiss: the process is good for nothing else afterwards.
///
/// # Errors
/// The filters may not be read: it takes root.
pub fn calls_of(threads: &[i32]) -> Result<usize> {
    let threads: Vec<Pid> = threads.iter().map(|thread| Pid::from_raw(*thread)).collect();
    for thread in &threads {
        ptrace::seize(*thread, ptrace::Options::empty()).context("attaching to a thread")?;
        ptrace::interrupt(*thread).context("stopping a thread")?;
        waitpid(*thread, Some(WaitPidFlag::__WALL)).context("waiting for a thread")?;
    }
    let read: Result<Vec<_>> = threads.iter().map(|thread| filters(*thread)).collect();
    for thread in &threads {
        // It may have ended of it.
        let _ = ptrace::detach(*thread, None);
    }
    let mut allowed = BTreeSet::new();
    for filters in read? {
        if filters.is_empty() {
            return all_calls();
        }
        allowed.extend((0..LAST).filter(|nr| filters.iter().all(|filter| may_allow(filter, *nr))));
    }
    Ok(allowed.len())
}

/// The filters of a thread that is stopped.
fn filters(thread: Pid) -> Result<Vec<Vec<Instruction>>> {
    let mut filters = Vec::new();
    loop {
        match filter(thread, filters.len()) {
            Ok(filter) => filters.push(filter),
            Err(Errno::ENOENT) => return Ok(filters),
            // There is none at all.
            Err(Errno::EINVAL) if filters.is_empty() => return Ok(filters),
            Err(errno) => bail!("reading a thread's filters: {}", errno.desc()),
        }
    }
}

#[expect(unsafe_code, reason = "nix does not read filters")]
fn filter(thread: Pid, index: usize) -> Result<Vec<Instruction>, Errno> {
    let ask = |into: *mut Instruction| {
        // SAFETY: the kernel writes as many instructions as it has told with a null pointer; a filter never changes, and
        // the thread is stopped.
        Errno::result(unsafe { libc::ptrace(GET_FILTER, thread.as_raw(), index, into) })
    };
    let len = usize::try_from(ask(std::ptr::null_mut())?).map_err(|_| Errno::EINVAL)?;
    let mut filter = vec![Instruction::default(); len];
    ask(filter.as_mut_ptr())?;
    Ok(filter)
}

/// Whether some arguments make the filter allow a system call.
fn may_allow(filter: &[Instruction], nr: u32) -> bool {
    let mut steps = STEPS;
    follow(filter, nr, State { pc: 0, a: Some(0), x: Some(0), memory: [Some(0); 16] }, &mut steps)
}

/// A filter half-way. What depends on arguments is not known.
#[derive(Clone, Copy)]
struct State {
    pc: usize,
    a: Option<u32>,
    x: Option<u32>,
    memory: [Option<u32>; 16],
}

fn follow(filter: &[Instruction], nr: u32, mut state: State, steps: &mut u32) -> bool {
    while let Some(at) = filter.get(state.pc) {
        *steps = steps.saturating_sub(1);
        if *steps == 0 {
            return true;
        }
        state.pc += 1;
        let place = at.k as usize & 15;
        match at.code & 7 {
            0 => state.a = load(at, nr, &state.memory),
            1 => state.x = load(at, nr, &state.memory),
            2 => state.memory[place] = state.a,
            3 => state.memory[place] = state.x,
            4 => state.a = calculated(at, state.a, state.x),
            5 if at.code & 0xf0 == 0 => state.pc += at.k as usize,
            5 => match is_true(at, state.a, state.x) {
                Some(true) => state.pc += usize::from(at.jt),
                Some(false) => state.pc += usize::from(at.jf),
                None => {
                    let other = State { pc: state.pc + usize::from(at.jt), ..state };
                    if follow(filter, nr, other, steps) {
                        return true;
                    }
                    state.pc += usize::from(at.jf);
                }
            },
            6 => {
                let answer = if at.code & 0x18 == 0x10 { state.a } else { Some(at.k) };
                return answer.is_none_or(allows);
            }
            _ if at.code & 0xf8 == 0 => state.x = state.a,
            _ => state.a = state.x,
        }
    }
    true
}

/// `SECCOMP_RET_ALLOW`, `LOG`, `TRACE` and `USER_NOTIF`; the others refuse.
fn allows(answer: u32) -> bool {
    matches!(answer & 0xffff_0000, 0x7fff_0000 | 0x7ffc_0000 | 0x7ff0_0000 | 0x7fc0_0000)
}

/// A constant, a cell, or a word of `struct seccomp_data`: the number and the architecture are known.
fn load(at: &Instruction, nr: u32, memory: &[Option<u32>; 16]) -> Option<u32> {
    match (at.code & 0xe0, at.k) {
        (0x00, constant) => Some(constant),
        (0x60, place) => memory[place as usize & 15],
        (0x20, 0) => Some(nr),
        (0x20, 4) => Some(ARCH),
        (0x80, _) => Some(64),
        _ => None,
    }
}

fn operand(at: &Instruction, x: Option<u32>) -> Option<u32> {
    if at.code & 8 == 0 { Some(at.k) } else { x }
}

fn calculated(at: &Instruction, a: Option<u32>, x: Option<u32>) -> Option<u32> {
    let (a, b) = (a?, operand(at, x)?);
    match at.code & 0xf0 {
        0x00 => Some(a.wrapping_add(b)),
        0x10 => Some(a.wrapping_sub(b)),
        0x20 => Some(a.wrapping_mul(b)),
        0x30 => a.checked_div(b),
        0x40 => Some(a | b),
        0x50 => Some(a & b),
        0x60 => a.checked_shl(b),
        0x70 => a.checked_shr(b),
        0x80 => Some(a.wrapping_neg()),
        0xa0 => Some(a ^ b),
        _ => None,
    }
}

fn is_true(at: &Instruction, a: Option<u32>, x: Option<u32>) -> Option<bool> {
    let (a, b) = (a?, operand(at, x)?);
    match at.code & 0xf0 {
        0x10 => Some(a == b),
        0x20 => Some(a > b),
        0x30 => Some(a >= b),
        0x40 => Some(a & b != 0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;

    fn at(code: u16, jt: u8, jf: u8, k: u32) -> Instruction {
        Instruction { code, jt, jf, k }
    }

    #[test]
    fn a_call_is_allowed_if_some_arguments_are() {
        let filter = [
            at(0x20, 0, 0, 4),
            at(0x15, 1, 0, ARCH),
            at(0x06, 0, 0, KILL),
            at(0x20, 0, 0, 0),
            at(0x15, 3, 0, 1),
            at(0x15, 0, 1, 16),
            at(0x20, 0, 0, 24),
            at(0x15, 0, 1, 0xae80),
            at(0x06, 0, 0, ALLOW),
            at(0x06, 0, 0, KILL),
        ];
        let allowed: Vec<u32> = (0..LAST).filter(|nr| may_allow(&filter, *nr)).collect();
        assert_eq!(allowed, [1, 16]);
    }

    #[test]
    fn a_filter_without_an_end_is_taken_to_allow() {
        assert!(may_allow(&[], 0));
        assert!(may_allow(&[at(0x05, 0, 0, u32::MAX)], 0));
        assert!(!may_allow(&[at(0x06, 0, 0, 0)], 0));
        // As many paths as there are unknown words to look at.
        let mut filter = vec![at(0x20, 0, 0, 16); 1];
        filter.extend([at(0x15, 0, 0, 1); 64]);
        filter.push(at(0x06, 0, 0, KILL));
        assert!(may_allow(&filter, 0));
    }

    #[test]
    fn refusals_by_errno_or_signal_are_refusals() {
        for (answer, expected) in
            [(ALLOW, true), (0x7ffc_0000, true), (0x5_0001, false), (0x3_0000, false), (KILL, false)]
        {
            assert_eq!(allows(answer), expected, "{answer:#x}");
        }
    }

    #[test]
    fn numbers_are_calculated_as_the_kernel_does() {
        let twice = [
            at(0x20, 0, 0, 0),
            at(0x24, 0, 0, 2),
            at(0x15, 0, 1, 20),
            at(0x06, 0, 0, ALLOW),
            at(0x06, 0, 0, KILL),
        ];
        assert_eq!((0..LAST).filter(|nr| may_allow(&twice, *nr)).collect::<Vec<_>>(), [10]);
    }
}
