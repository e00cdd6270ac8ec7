//! Whether vCPUs stand as a kernel's panic leaves them (Linux `kernel/panic.c`): one spins in the kernel, and the others
//! have halted for ever.

use boot::GuestMemory;
use boot::kallsyms::Files;

use super::paging::AddressSpace;
use super::trace::Tracer;
use super::{VCPUS, symbols};
use crate::vcpu::registers::{Activity, VcpuRegisters};

/// The functions that a panicked kernel does not leave.
const PANIC: [&str; 3] = ["panic", "vpanic", "nmi_panic"];

/// How vCPUs stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stand {
    /// Not as after a panic.
    Otherwise,
    /// As after a panic, for all that can be seen without symbols.
    Alike,
    /// One is in the kernel's function for that.
    Panicked,
}

/// How vCPUs stand that are paused.
pub fn stand(memory: &GuestMemory, states: &[Option<VcpuRegisters>]) -> Stand {
    if !is_alike(states) {
        return Stand::Otherwise;
    }
    let Some(symbols) = symbols(memory, states, &Files::default()) else { return Stand::Alike };
    let panicked = states.iter().flatten().take(VCPUS).any(|state| {
        let space = AddressSpace::of(memory, &state.sregs).filter(|_| !state.is_user());
        space.is_some_and(|space| is_panicked(&Tracer { space, symbols: Some(&symbols) }, state))
    });
    if panicked { Stand::Panicked } else { Stand::Otherwise }
}

/// Whether the vCPU is in a panic's function, or in one that it has called.
fn is_panicked(tracer: &Tracer<'_>, state: &VcpuRegisters) -> bool {
    let entries = tracer.trace(state.regs.rip, state.regs.rsp);
    let names = entries.iter().filter(|it| it.certain).map(|it| tracer.name(it.address, !it.interrupted));
    let names = std::iter::once(tracer.name(state.regs.rip, false)).chain(names);
    let mut functions = names.filter_map(|name| name.split_once('+').map(|(name, _)| name.to_owned()));
    functions.any(|name| PANIC.contains(&name.as_str()))
}

/// Whether all vCPUs but one are dead, and that one, if there is one, runs in the kernel.
fn is_alike(states: &[Option<VcpuRegisters>]) -> bool {
    let mut alive = states.iter().filter(|it| !it.as_ref().is_some_and(VcpuRegisters::is_dead));
    match (alive.next(), alive.next()) {
        (None, _) => true,
        (Some(Some(one)), None) => !one.is_user() && one.activity == Activity::Runs,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{DATA, call, code, memory, stack, state};
    use super::*;

    fn dead() -> Option<VcpuRegisters> {
        let mut dead = state(code(1, 0), DATA);
        dead.activity = Activity::Halted;
        dead.regs.rflags = 2;
        Some(dead)
    }

    #[test]
    fn one_vcpu_that_runs_in_the_kernel_beside_dead_ones_is_alike() {
        let spins = || Some(state(code(1, 0), DATA));
        let (mut user, mut waits) = (spins(), dead());
        user.as_mut().unwrap().sregs.ss.dpl = 3;
        waits.as_mut().unwrap().regs.rflags = 0x202;
        for states in [vec![spins()], vec![dead(), spins(), dead()], vec![dead(), dead()]] {
            assert_eq!(stand(&memory(), &states), Stand::Alike);
        }
        for states in
            [vec![user], vec![waits.clone()], vec![spins(), waits], vec![spins(), spins()], vec![None, None]]
        {
            assert_eq!(stand(&memory(), &states), Stand::Otherwise);
        }
    }

    #[test]
    fn with_symbols_only_the_function_of_a_panic_counts() {
        let memory = memory();
        let map = |name: &str| {
            let line = |index| {
                format!(
                    "{:016x} T {}\n",
                    code(index, 0),
                    if index == 6 { name.to_owned() } else { format!("other_{index}") }
                )
            };
            (0..200).map(line).collect::<String>()
        };
        // What calls `panic` bears it out.
        let called = [call(&memory, 6, 0x20, 5), call(&memory, 7, 0x20, 6)];
        stack(&memory, DATA, &called);
        let state = state(code(5, 0), DATA);
        let space = AddressSpace::of(&memory, &state.sregs).unwrap();
        for (name, panics) in [("panic", true), ("vpanic", true), ("panic_print", false)] {
            let symbols = boot::kallsyms::Symbols::from_system_map(map(name).into_bytes()).unwrap();
            let tracer = Tracer { space, symbols: Some(&symbols) };
            assert_eq!(is_panicked(&tracer, &state), panics, "{name}");
        }
    }
}
