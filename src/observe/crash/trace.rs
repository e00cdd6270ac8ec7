//! Who called whom, by the stack: without frame pointers or unwind tables all there is to go by is that a return address
//! is that of an instruction behind a call.
//!
//! What a finished call has left looks the same. An address whose call leads to the function of the one before is borne
//! out; others have a `?`, as the kernel does.

use boot::kallsyms::{Symbol, Symbols};

use super::paging::AddressSpace;

/// Where the kernel's code and its modules are (Linux `Documentation/arch/x86/x86_64/mm.rst`).
const CODE: u64 = 0xffff_ffff_8000_0000;
/// How many entries a trace has.
const MOST: usize = 48;
/// The kernel's code and stack segments, as an interrupt pushes them.
const KERNEL_CS: u64 = 0x10;
const KERNEL_SS: u64 = 0x18;

/// One entry of a trace.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The address: what is returned to, or what an interrupt interrupted.
    pub address: u64,
    /// Whether an interrupt, and not a call, was there.
    pub interrupted: bool,
    /// Whether the entries before bear it out.
    pub certain: bool,
    called: Called,
}

/// What the call in front of an address calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    This(u64),
    /// What a register or memory says, or nothing that is known.
    Unknown,
}

/// Finds a trace.
pub struct Tracer<'a> {
    /// The memory of the vCPU.
    pub space: AddressSpace<'a>,
    /// The kernel's symbols, if they are known.
    pub symbols: Option<&'a Symbols>,
}

impl Tracer<'_> {
    /// What the code at `rip` returns to, nearest first, as the stack at `rsp` and those that it stands on have it.
    pub fn trace(&self, rip: u64, rsp: u64) -> Vec<Entry> {
        // What is read of a stack in bytes: the largest that Linux makes.
        const STACK: usize = 32 << 10;
        // How many stacks are followed: a task's, and those of interrupts and exceptions on top of it.
        const STACKS: usize = 4;
        let mut entries = Vec::new();
        let mut seen = Vec::new();
        let mut next = Some(rsp & !7);
        while let Some(start) = next.filter(|_| seen.len() < STACKS) {
            let mut stack = vec![0; STACK];
            let len = self.space.read(start, &mut stack);
            let words: Vec<u64> =
                stack[..len].as_chunks().0.iter().map(|it| u64::from_le_bytes(*it)).collect();
            seen.push(start..start.saturating_add(len as u64));
            self.scan(&words, &mut entries);
            next = below(&words).filter(|_| len < STACK && entries.len() < MOST);
            next =
                next.filter(|&at| !seen.iter().any(|it| it.contains(&at)) && self.space.word(at).is_some());
        }
        self.mark(rip, &mut entries);
        entries
    }

    fn scan(&self, words: &[u64], entries: &mut Vec<Entry>) {
        for (index, &address) in words.iter().enumerate() {
            if entries.len() == MOST {
                return;
            }
            if address < CODE {
                continue;
            }
            // RIP, CS, RFLAGS, RSP, SS (Intel SDM vol. 3 §6.14.2).
            let frame = words.get(index + 1..index + 5);
            let interrupted = frame.is_some_and(|it| it[0] == KERNEL_CS && matches!(it[3], KERNEL_SS | 0));
            if interrupted && self.is_code(address) {
                entries.push(Entry { address, interrupted, certain: false, called: Called::Unknown });
            } else if let Some(called) = self.call_before(address).filter(|_| self.is_code(address - 1)) {
                entries.push(Entry { address, interrupted: false, certain: false, called });
            }
        }
    }

    /// Whether there may be code at `address`: by symbols where there are any, for modules by the page tables.
    fn is_code(&self, address: u64) -> bool {
        match self.symbols.and_then(|symbols| symbols.at(address)) {
            Some(symbol) => symbol.is_code,
            None => self.space.find(address).is_some_and(|place| place.executable),
        }
    }

    /// What the instruction that ends at `address` calls, if it calls (Intel SDM vol. 2, CALL: E8 and FF /2).
    fn call_before(&self, address: u64) -> Option<Called> {
        // What an instruction that calls measures at most, in bytes.
        const CALL_MAX: usize = 7;
        let mut bytes = [0; CALL_MAX];
        let from = address.checked_sub(CALL_MAX as u64)?;
        if self.space.read(from, &mut bytes) < CALL_MAX {
            return None;
        }
        if let [_, _, 0xe8, offset @ ..] = bytes {
            let target = address.wrapping_add_signed(i32::from_le_bytes(offset).into());
            if target >= CODE {
                return Some(Called::This(target));
            }
        }
        let indirect = (2..=CALL_MAX).any(|len| {
            let (opcode, modrm) = (bytes[CALL_MAX - len], bytes[CALL_MAX + 1 - len]);
            let sib = bytes.get(CALL_MAX + 2 - len).copied().unwrap_or(0);
            opcode == 0xff && modrm >> 3 & 7 == 2 && indirect_len(modrm, sib) == len
        });
        indirect.then_some(Called::Unknown)
    }

    /// Marks the entries that are borne out: those that call the function that the one before is in, from RIP on; and where
    /// that was called by a pointer, from the next that some entry behind it calls.
    fn mark(&self, rip: u64, entries: &mut [Entry]) {
        let Some(symbols) = self.symbols else { return };
        let function = |address: u64| symbols.at(address).map(|symbol| base(symbol.name));
        let own = |it: &Entry| function(if it.interrupted { it.address } else { it.address - 1 });
        let called = |it: &Entry| match it.called {
            Called::This(target) => function(target),
            Called::Unknown => None,
        };
        let names: Vec<_> = entries.iter().map(|it| (own(it), called(it))).collect();
        let calls = |index: usize, name: &Option<String>| name.is_some() && names[index].1 == *name;
        let (mut current, mut index) = (function(rip), 0);
        while index < entries.len() {
            let entered = current.as_deref().is_some_and(is_entry);
            let rest = || index..entries.len();
            let caller = rest().find(|&it| calls(it, &current) || entered && entries[it].interrupted);
            let is_called = |it: usize| (it + 1..entries.len()).any(|caller| calls(caller, &names[it].0));
            let resumed = || rest().find(|&it| !entries[it].interrupted && is_called(it));
            let Some(next) = caller.or_else(resumed) else { return };
            entries[next].certain = true;
            current.clone_from(&names[next].0);
            index = next + 1;
        }
    }

    /// An address by its symbol.
    pub fn name(&self, address: u64, is_return: bool) -> String {
        let symbol = self.symbols.and_then(|symbols| symbols.at(address - u64::from(is_return)));
        match symbol {
            // What follows a call that does not return is another function.
            Some(symbol) if is_return => Symbol { offset: symbol.offset + 1, ..symbol }.to_string(),
            Some(symbol) => symbol.to_string(),
            None => format!("{address:#x}"),
        }
    }
}

/// Where the stack is that this one stands on, if it is one of interrupts or exceptions: Linux keeps that at the very top,
/// by itself or in the frame that the processor pushed.
fn below(words: &[u64]) -> Option<u64> {
    let at = match *words {
        [.., _, KERNEL_CS, _, rsp, KERNEL_SS | 0] => rsp,
        [.., last] => last,
        [] => return None,
    };
    // Stacks are in the kernel's half, which begins here with 5-level paging.
    (at >= 0xff00 << 48 && at.is_multiple_of(8)).then_some(at)
}

/// Whether a function of this name is what an interrupt enters (Linux `arch/x86/include/asm/idtentry.h`).
fn is_entry(name: &str) -> bool {
    name.starts_with("asm_") || name.ends_with("_nmi")
}

/// A function's name without what compilers call parts of it that they have moved: `.cold`, `.part.0`.
fn base(mut name: String) -> String {
    let end = name.find('.').filter(|&at| at > 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

/// How long an instruction of these opcode, ModR/M and SIB bytes is, without prefixes (Intel SDM vol. 2 tables 2-2, 2-3).
fn indirect_len(modrm: u8, sib: u8) -> usize {
    let (mode, register) = (modrm >> 6, modrm & 7);
    let scaled = mode < 3 && register == 4;
    let displacement = match mode {
        0 if register == 5 || (scaled && sib & 7 == 5) => 4,
        1 => 1,
        2 => 4,
        _ => 0,
    };
    2 + usize::from(scaled) + displacement
}
