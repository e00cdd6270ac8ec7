//! Reports of made guests: memory with page tables, a kernel's symbols, code and stacks.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress};

use super::*;

/// Where the made kernel's code, stacks and table of gates are, by two pages of 2 MiB from these addresses.
const CODE: u64 = 0xffff_ffff_8100_0000;
pub(super) const DATA: u64 = 0xffff_c900_0000_0000;
const CODE_AT: u64 = 0x20_0000;
const DATA_AT: u64 = 0x40_0000;
/// A function's length in the made kernel.
const FUNCTION: u64 = 0x100;
/// What an interrupt enters.
const ENTRY: u64 = 31;

pub(super) fn memory() -> GuestMemory {
    let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 16 << 20)]).unwrap();
    let entries = [
        (0x1000 + 511 * 8, 0x2003),
        (0x2000 + 510 * 8, 0x3003),
        (0x3000 + 8 * 8, CODE_AT | 0x83),
        (0x1000 + 0x192 * 8, 0x4003),
        (0x4000, 0x5003),
        (0x5000, DATA_AT | 0x83 | 1 << 63),
    ];
    for (at, entry) in entries {
        memory.write_obj(entry, GuestAddress(at)).unwrap();
    }
    memory
}

pub(super) fn state(rip: u64, rsp: u64) -> VcpuRegisters {
    VcpuRegisters {
        regs: kvm_regs { rip, rsp, rflags: 0x202, rax: 0xabc, ..Default::default() },
        sregs: kvm_sregs {
            cr0: 1 << 31 | 1,
            cr2: 0xdead,
            cr3: 0x1000,
            efer: 1 << 10,
            cs: kvm_segment { selector: 0x10, ..Default::default() },
            ..Default::default()
        },
        activity: Activity::Runs,
        can_be_woken: false,
    }
}

/// `function_N` at every 256 bytes of the code, but for [`ENTRY`].
fn symbols() -> Symbols {
    let name = |index| if index == ENTRY { "asm_interrupt".to_owned() } else { format!("function_{index}") };
    let line = |index: u64| format!("{:016x} T {}\n", CODE + index * FUNCTION, name(index));
    Symbols::from_system_map((0..200).map(line).collect::<String>().into_bytes()).unwrap()
}

pub(super) fn code(index: u64, offset: u64) -> u64 {
    CODE + index * FUNCTION + offset
}

/// Puts a call of `function_callee` in front of an address of `function_caller`, and returns that.
pub(super) fn call(memory: &GuestMemory, caller: u64, offset: u64, callee: u64) -> u64 {
    let address = code(caller, offset);
    let target = code(callee, 0).wrapping_sub(address) as u32;
    let bytes = [&[0xe8][..], &target.to_le_bytes()].concat();
    memory.write_slice(&bytes, GuestAddress(address - CODE - 5 + CODE_AT)).unwrap();
    address
}

/// Puts another instruction in front of an address.
fn instruction(memory: &GuestMemory, function: u64, offset: u64, bytes: &[u8]) -> u64 {
    let address = code(function, offset);
    memory.write_slice(bytes, GuestAddress(address - bytes.len() as u64 - CODE + CODE_AT)).unwrap();
    address
}

pub(super) fn stack(memory: &GuestMemory, at: u64, words: &[u64]) {
    for (index, word) in (0..).zip(words) {
        memory.write_obj(*word, GuestAddress(at - DATA + DATA_AT + index * 8)).unwrap();
    }
}

fn printed(memory: &GuestMemory, state: &VcpuRegisters, symbols: Option<&Symbols>) -> String {
    let mut out = Vec::new();
    Vcpu { index: 3, state, memory, symbols }.print(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// The lines of a report behind `Call trace:`.
fn trace(report: &str) -> Vec<&str> {
    report.lines().skip_while(|line| line.trim() != "Call trace:").skip(1).map(str::trim).collect()
}

#[test]
fn a_report_has_registers_code_and_callers_by_name() {
    let memory = memory();
    memory.write_slice(&[0x0f, 0x0b], GuestAddress(CODE_AT + 5 * FUNCTION + 0x10)).unwrap();
    let first = call(&memory, 6, 0x20, 5);
    let stale = call(&memory, 9, 0x33, 77);
    let second = call(&memory, 7, 0x40, 6);
    stack(&memory, DATA + 0x1000, &[0, 17, first, stale, u64::MAX, DATA, code(50, 3), second]);
    let symbols = symbols();
    let report = printed(&memory, &state(code(5, 0x10), DATA + 0x1000), Some(&symbols));
    assert!(report.starts_with("vCPU 3: RIP function_5+0x10/0x100\n"), "{report}");
    assert!(report.contains("RAX: 0000000000000abc"), "{report}");
    assert!(report.contains("CR2: 000000000000dead CR3: 0000000000001000"), "{report}");
    assert!(report.contains(" 00 <0f> 0b 00 "), "{report}");
    assert_eq!(
        trace(&report),
        ["function_6+0x20/0x100", "? function_9+0x33/0x100", "function_7+0x40/0x100"],
        "{report}"
    );
}

#[test]
fn a_call_by_a_pointer_is_followed_by_what_bears_it_out() {
    let memory = memory();
    let pointer = instruction(&memory, 10, 0x20, &[0xff, 0xd0]);
    let caller = call(&memory, 11, 0x30, 10);
    stack(&memory, DATA, &[pointer, caller]);
    let report = printed(&memory, &state(code(5, 0), DATA), Some(&symbols()));
    assert_eq!(trace(&report), ["function_10+0x20/0x100", "function_11+0x30/0x100"]);
}

#[test]
fn calls_of_every_form_are_told_from_other_instructions() {
    let memory = memory();
    let calls: [&[u8]; 10] = [
        &[0xff, 0xd0],
        &[0x41, 0xff, 0xd3],
        &[0xff, 0x10],
        &[0xff, 0x50, 0x18],
        &[0xff, 0x90, 1, 2, 3, 4],
        &[0xff, 0x15, 1, 2, 3, 4],
        &[0xff, 0x14, 0x24],
        &[0xff, 0x14, 0xc5, 1, 2, 3, 0x81],
        &[0xff, 0x54, 0x24, 8],
        &[0xff, 0x94, 0x24, 1, 2, 3, 4],
    ];
    let others: [&[u8]; 5] = [&[0xff, 0xe0], &[0xff, 0xc0], &[0x90, 0x90], &[0xc3], &[0xe8, 0, 0, 0, 0x7f]];
    let symbols = symbols();
    for (bytes, is_call) in
        calls.into_iter().map(|it| (it, true)).chain(others.into_iter().map(|it| (it, false)))
    {
        let memory = memory.clone();
        let address = instruction(&memory, 20, 0x50, bytes);
        stack(&memory, DATA, &[address]);
        let report = printed(&memory, &state(code(5, 0), DATA), Some(&symbols));
        assert_eq!(trace(&report).len(), usize::from(is_call), "{bytes:02x?} {report}");
        instruction(&memory, 20, 0x50, &[0; 8]);
    }
}

#[test]
fn the_stack_below_an_interrupt_is_followed() {
    let memory = memory();
    let handler = call(&memory, ENTRY, 0x11, 30);
    let (stale, interrupted) = (code(77, 0x33), code(40, 0x22));
    let below = call(&memory, 41, 0x44, 40);
    // At the very top of the mapped data, and below it another stack.
    let top = DATA + (2 << 20);
    let frame = |rip| [rip, 0x10, 0x246, DATA + 0x9000, 0x18];
    stack(&memory, top - 0x100, &frame(stale));
    stack(&memory, top - 0x80, &[handler]);
    stack(&memory, DATA + 0x8000, &frame(interrupted));
    stack(&memory, DATA + 0x9000, &[below]);
    let expected = [
        "? interrupted at function_77+0x33/0x100",
        "asm_interrupt+0x11/0x100",
        "interrupted at function_40+0x22/0x100",
        "function_41+0x44/0x100",
    ];
    // The way to it is a word by itself, or the processor's frame.
    for last in [&[DATA + 0x8000][..], &[0, 0x10, 2, DATA + 0x8000, 0][..]] {
        stack(&memory, top - 8 * last.len() as u64, last);
        let report = printed(&memory, &state(code(30, 1), top - 0x100), Some(&symbols()));
        assert_eq!(trace(&report), expected);
    }
}

#[test]
fn stacks_that_lead_to_each_other_and_full_ones_end() {
    let memory = memory();
    let address = call(&memory, 6, 0x20, 5);
    let top = DATA + (2 << 20);
    for page in 0..512 {
        stack(&memory, DATA + page * 4096, &[address; 512]);
    }
    stack(&memory, top - 16, &[address, top - 16]);
    let report = printed(&memory, &state(code(5, 0), top - 16), Some(&symbols()));
    assert_eq!(trace(&report).len(), 1);
    let report = printed(&memory, &state(code(5, 0), DATA), Some(&symbols()));
    assert_eq!(trace(&report).len(), 48);
}

#[test]
fn user_mode_is_told_and_shows_no_stack() {
    let memory = memory();
    let mut state = state(0x40_1000, 0x7fff_0000);
    state.sregs.ss.dpl = 3;
    let report = printed(&memory, &state, None);
    assert!(report.starts_with("vCPU 3: in user mode at 0x401000\n"), "{report}");
    assert!(report.contains("Code: cannot be read at RIP") && trace(&report).is_empty(), "{report}");
}

#[test]
fn what_a_vcpu_waits_for_is_told() {
    let memory = memory();
    let mut halted = state(code(1, 0), DATA);
    halted.activity = Activity::Halted;
    assert!(printed(&memory, &halted, None).contains(", halted\n"));
    assert!(!halted.is_dead());
    halted.regs.rflags = 2;
    assert!(printed(&memory, &halted, None).contains(", halted with interrupts off\n"));
    assert!(halted.is_dead());
    halted.can_be_woken = true;
    assert!(!halted.is_dead());
    halted.activity = Activity::NotStarted;
    assert_eq!(printed(&memory, &halted, None), "vCPU 3: not started\n");
    assert!(halted.is_dead());
}

#[test]
fn any_registers_give_a_report_of_plain_text() {
    let memory = memory();
    let symbols = symbols();
    let values =
        [0, 1, 7, u64::MAX, u64::MAX - 7, CODE, DATA, DATA + (2 << 20) - 1, 1 << 63, 0x7fff_ffff_f000];
    for rip in values {
        for rsp in values {
            for mode in 0..8 {
                let mut state = state(rip, rsp);
                state.sregs.cr0 = u64::from(mode & 1 != 0) << 31;
                state.sregs.efer = u64::from(mode & 2 != 0) << 10;
                state.sregs.cr4 = u64::from(mode & 4 != 0) << 12;
                (state.sregs.cr3, state.sregs.idt.base) = (rsp, rip);
                let report = printed(&memory, &state, Some(&symbols));
                assert!(report.bytes().all(|byte| byte == b'\n' || (b' '..=b'~').contains(&byte)));
                assert!(report.len() < 10_000);
                let _any = page_fault_code(&memory, &state);
            }
        }
    }
}

#[test]
fn a_report_without_names_says_why_it_has_none() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, map) = (folder.path().join("vmlinuz"), folder.path().join("System.map"));
    let says = || nameless(&Files::of(&kernel, None, None));
    assert!(says().starts_with("no names: no table of symbols is found in the guest's memory"), "{}", says());
    assert!(says().contains("no System.map or vmlinux of it"), "{}", says());
    let stub = "ffffffffffffffff B The real System.map is in the linux-image-7.3.4-dbg package\n";
    std::fs::write(&map, stub).unwrap();
    assert!(
        says().ends_with("System.map says that the package linux-image-7.3.4-dbg has them"),
        "{}",
        says()
    );
}
