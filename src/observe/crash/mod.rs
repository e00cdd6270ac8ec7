//! Why a guest crashed, as the host sees it: what each vCPU was at, in the form of a kernel's oops (Linux
//! `Documentation/admin-guide/bug-hunting.rst`), and whether the guest still lives.
//!
//! A crashed guest may have anything in its registers and memory: whatever is followed has an end, and what is printed is
//! numbers and printable names.

pub mod paging;
pub mod panic;
pub mod text;
mod trace;
pub mod watchdog;

use std::io::{self, Write};

use boot::GuestMemory;
use boot::kallsyms::{Files, KERNEL_HALF, Place, Symbols};

use crate::vcpu::registers::{Activity, INTERRUPTS_ON, VcpuRegisters};
use crate::vm::machine::Running;
use paging::AddressSpace;

use trace::Tracer;

/// How many vCPUs are shown in full.
const VCPUS: usize = 64;
/// How much code is shown in front of RIP, and from there on, in bytes.
const CODE_BEFORE: u64 = 24;
const CODE: usize = 44;
/// The interrupt gate of page faults, whose code is the kernel's (Intel SDM vol. 3 table 6-1).
const PAGE_FAULT: u64 = 14;
/// The code that the gate leads to.
const PAGE_FAULT_CODE: &str = "asm_exc_page_fault";
/// Where a kernel is that has not been moved.
const UNMOVED: Place = Place { address: 0xffff_ffff_8100_0000, physical: 16 << 20 };

/// Prints how each vCPU of a guest stands that is paused, or has been stopped for a reason of its own; `files` are where
/// symbols are looked for that the guest's memory does not have.
///
/// # Errors
/// `out` cannot be written.
pub fn report(running: &Running, files: &Files, out: &mut dyn Write) -> io::Result<()> {
    let states = running.states();
    let memory = running.ram().memory();
    let in_kernel =
        |it: &VcpuRegisters| it.activity != Activity::NotStarted && !it.is_reset() && !it.is_user();
    let symbols = if states.iter().flatten().any(in_kernel) { symbols(memory, &states, files) } else { None };
    for (index, state) in states.iter().enumerate().take(VCPUS) {
        match state {
            Some(state) => Vcpu { index, state, memory, symbols: symbols.as_ref() }.print(out)?,
            None => writeln!(out, "vCPU {index}: its state cannot be read")?,
        }
    }
    match states.len().saturating_sub(VCPUS) {
        0 => {}
        more => writeln!(out, "and {more} more vCPUs")?,
    }
    let is_linux = |it: &VcpuRegisters| in_kernel(it) && it.regs.rip >= KERNEL_HALF;
    match symbols {
        None if states.iter().flatten().any(is_linux) => writeln!(out, "{}", nameless(files)),
        _ => Ok(()),
    }
}

/// Why addresses have no names.
fn nameless(files: &Files) -> String {
    let lack = files.lack();
    format!(
        "no names: no table of symbols is found in the guest's memory (CONFIG_KALLSYMS makes one), and {lack}"
    )
}

/// The symbols of the kernel that the vCPUs run.
fn symbols(memory: &GuestMemory, states: &[Option<VcpuRegisters>], files: &Files) -> Option<Symbols> {
    let states = || states.iter().flatten().take(VCPUS);
    let fault = states().find_map(|state| page_fault_code(memory, state));
    let code = |state: &VcpuRegisters| {
        let address = Some(state.regs.rip).filter(|rip| *rip >= KERNEL_HALF)?;
        let physical = AddressSpace::of(memory, &state.sregs)?.find(address)?.address;
        Some(Place { address, physical })
    };
    let near = fault.or_else(|| states().find_map(code)).unwrap_or(UNMOVED);
    Symbols::find(memory, near).or_else(|| {
        let symbols = files.symbols()?;
        Some(match fault {
            Some(fault) => symbols.moved(PAGE_FAULT_CODE, fault.address),
            None => symbols,
        })
    })
}

/// Where the code is that a page fault leads to.
fn page_fault_code(memory: &GuestMemory, state: &VcpuRegisters) -> Option<Place> {
    let space = AddressSpace::of(memory, &state.sregs)?;
    let gate = state.sregs.idt.base.checked_add(PAGE_FAULT * 16)?;
    let (low, high) = (space.word(gate)?, space.word(gate.checked_add(8)?)?);
    let address = low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    let physical = space.find(address).filter(|_| address >= KERNEL_HALF)?.address;
    Some(Place { address, physical })
}

/// A vCPU to be printed.
struct Vcpu<'a> {
    index: usize,
    state: &'a VcpuRegisters,
    memory: &'a GuestMemory,
    symbols: Option<&'a Symbols>,
}

impl Vcpu<'_> {
    fn print(&self, out: &mut dyn Write) -> io::Result<()> {
        let VcpuRegisters { regs, sregs, .. } = self.state;
        let (index, space) = (self.index, AddressSpace::of(self.memory, sregs));
        if self.state.activity == Activity::NotStarted {
            return writeln!(out, "vCPU {index}: not started");
        }
        if self.state.is_reset() {
            return writeln!(
                out,
                "vCPU {index}: as after reset; AMD processors keep nothing of a triple fault"
            );
        }
        let tracer = space.map(|space| Tracer { space, symbols: self.symbols });
        let place = match &tracer {
            _ if self.state.is_user() => format!("in user mode at {:#x}", regs.rip),
            Some(tracer) => format!("RIP {}", tracer.name(regs.rip, false)),
            None => format!("RIP {:#x}", regs.rip),
        };
        writeln!(out, "vCPU {index}: {place}{}", self.activity())?;
        self.print_registers(out)?;
        let Some(tracer) = tracer else { return writeln!(out, "  (32-bit paging: no trace)") };
        self.print_code(&tracer.space, out)?;
        if self.state.is_user() {
            return Ok(());
        }
        self.print_trace(&tracer, out)
    }

    fn activity(&self) -> &'static str {
        let on = self.state.regs.rflags & INTERRUPTS_ON != 0;
        match (self.state.activity, on) {
            (Activity::Halted, true) => ", halted",
            (Activity::Halted, false) => ", halted with interrupts off",
            _ => "",
        }
    }

    fn print_registers(&self, out: &mut dyn Write) -> io::Result<()> {
        let VcpuRegisters { regs, sregs, .. } = self.state;
        let (cs, ss) = (sregs.cs.selector, sregs.ss.selector);
        writeln!(
            out,
            "  RIP: {cs:04x}:{:016x} RSP: {ss:04x}:{:016x} RFLAGS: {:08x}",
            regs.rip, regs.rsp, regs.rflags
        )?;
        let rows = [
            [("RAX", regs.rax), ("RBX", regs.rbx), ("RCX", regs.rcx)],
            [("RDX", regs.rdx), ("RSI", regs.rsi), ("RDI", regs.rdi)],
            [("RBP", regs.rbp), ("R08", regs.r8), ("R09", regs.r9)],
            [("R10", regs.r10), ("R11", regs.r11), ("R12", regs.r12)],
            [("R13", regs.r13), ("R14", regs.r14), ("R15", regs.r15)],
            [("CR0", sregs.cr0), ("CR2", sregs.cr2), ("CR3", sregs.cr3)],
            [("CR4", sregs.cr4), ("FS ", sregs.fs.base), ("GS ", sregs.gs.base)],
        ];
        for row in rows {
            let row = row.map(|(name, value)| format!("{name}: {value:016x}"));
            writeln!(out, "  {}", row.join(" "))?;
        }
        Ok(())
    }

    fn print_code(&self, space: &AddressSpace<'_>, out: &mut dyn Write) -> io::Result<()> {
        let rip = self.state.regs.rip;
        // Without paging, in real mode say, code is where its segment is.
        let base = if self.state.sregs.cr0 & 1 == 0 { self.state.sregs.cs.base } else { 0 };
        let at = rip.wrapping_add(base);
        let (mut before, mut code) = ([0; CODE_BEFORE as usize], [0; CODE - CODE_BEFORE as usize]);
        let shown = space.read(at.wrapping_sub(CODE_BEFORE), &mut before) == before.len();
        let len = space.read(at, &mut code);
        if len == 0 {
            return writeln!(out, "  Code: cannot be read at RIP");
        }
        write!(out, "  Code:")?;
        for byte in before.iter().filter(|_| shown) {
            write!(out, " {byte:02x}")?;
        }
        write!(out, " <{:02x}>", code[0])?;
        for byte in &code[1..len] {
            write!(out, " {byte:02x}")?;
        }
        writeln!(out)
    }

    fn print_trace(&self, tracer: &Tracer<'_>, out: &mut dyn Write) -> io::Result<()> {
        let regs = &self.state.regs;
        let entries = tracer.trace(regs.rip, regs.rsp);
        if entries.is_empty() {
            return Ok(());
        }
        writeln!(out, "  Call trace:")?;
        for entry in entries {
            let name = tracer.name(entry.address, !entry.interrupted);
            let doubt = if entry.certain || self.symbols.is_none() { "" } else { "? " };
            let how = if entry.interrupted { "interrupted at " } else { "" };
            writeln!(out, "    {doubt}{how}{name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
