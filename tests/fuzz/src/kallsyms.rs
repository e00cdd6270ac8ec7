//! Tables of kernel symbols that say anything, in guest memory and in a `System.map`: what they name is printable.

use arbitrary::{Arbitrary, Unstructured};
use boot::kallsyms::{KERNEL_HALF, Physical, Place, Symbols};

use crate::bytes;

/// Where memory begins.
const START: u64 = 0x100_0000;
/// How many symbols the proper tables have.
const COUNT: u32 = 600;
/// As much memory is in front of the tables as is read in front of what they are found by.
const BEFORE: usize = 64 << 10;
/// What the tables measure at most.
const MOST: usize = 1 << 20;

struct Memory(Vec<u8>);

impl Physical for Memory {
    fn read(&self, address: u64, into: &mut [u8]) -> usize {
        let rest = address.checked_sub(START).and_then(|at| self.0.get(at as usize..)).unwrap_or_default();
        let len = rest.len().min(into.len());
        into[..len].copy_from_slice(&rest[..len]);
        len
    }
}

/// A change to tables.
#[derive(Arbitrary, Debug)]
enum Change<'a> {
    Write(u16, #[arbitrary(with = bytes)] &'a [u8]),
    Word(u16, u64),
    Cut(u16),
    Shift(u8),
}

/// Orders of tables, and what they are aligned to.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Up to Linux 6.3.
    Old,
    /// Up to Linux 6.19.
    New,
    /// From Linux 7.0 on.
    Now,
}

#[derive(Arbitrary, Debug)]
struct Input<'a> {
    layout: Layout,
    changes: [Option<Change<'a>>; 4],
    near: u32,
    asked: [u64; 4],
    #[arbitrary(with = bytes)]
    map: &'a [u8],
}

/// Proper tables.
fn tables(layout: Layout) -> Vec<u8> {
    let (mut table, mut index, mut names, mut markers) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for code in 0..=255u8 {
        index.extend((table.len() as u16).to_le_bytes());
        table.extend(Some(code).filter(u8::is_ascii_alphanumeric));
        table.push(0);
    }
    for symbol in 0..COUNT {
        if symbol % 256 == 0 {
            markers.extend((names.len() as u32).to_le_bytes());
        }
        let name = format!("t{symbol}");
        names.push(name.len() as u8);
        names.extend(name.bytes());
    }
    let offsets = (0..COUNT).flat_map(|symbol| (16 * symbol).to_le_bytes()).collect();
    let base = (KERNEL_HALF + START).to_le_bytes().to_vec();
    let count = COUNT.to_le_bytes().to_vec();
    let parts = match layout {
        Layout::Old => vec![offsets, base, count, names, markers, table, index],
        Layout::New => vec![count, names, markers, table, index, offsets, base],
        Layout::Now => vec![count, names, markers, table, index, offsets],
    };
    let (align, len) = if layout == Layout::Now { (4, parts.len()) } else { (8, 0) };
    // The newest begin at an odd multiple of four.
    let mut bytes = vec![0; if layout == Layout::Now { BEFORE + 4 } else { BEFORE }];
    for (part, index) in parts.into_iter().zip(1..) {
        let place = bytes.len() as u32;
        bytes.extend(part);
        if index == len {
            // Each symbol's address from where it is said.
            for (offset, index) in bytes[place as usize..].as_chunks_mut().0.iter_mut().zip(0u32..) {
                *offset = (16 * index).wrapping_sub(place + 4 * index).to_le_bytes();
            }
        }
        bytes.resize(bytes.len().next_multiple_of(align), 0);
    }
    bytes.resize(bytes.len() + (16 << 10), 0);
    bytes
}

fn change(memory: &mut Vec<u8>, change: &Change<'_>) {
    let place = |at: u16| BEFORE + usize::from(at) % (16 << 10);
    let mut put = |at: u16, bytes: &[u8]| {
        for (to, from) in memory.iter_mut().skip(place(at)).zip(bytes) {
            *to = *from;
        }
    };
    match change {
        Change::Write(at, bytes) => put(*at, bytes),
        Change::Word(at, word) => put(*at & !7, &word.to_le_bytes()),
        Change::Cut(at) => memory.truncate(place(*at)),
        Change::Shift(by) => drop(memory.splice(0..0, std::iter::repeat_n(0, (*by).into()))),
    }
}

fn look(symbols: &Symbols, asked: &[u64]) {
    let near = (0..64).map(|index| KERNEL_HALF + START + 100 * index);
    for address in asked.iter().copied().chain(near) {
        let Some(symbol) = symbols.at(address) else { continue };
        assert!(symbol.to_string().chars().all(|char| char.is_ascii_graphic()), "{symbol}");
        assert!(symbol.name.len() <= 512 && symbol.offset <= address, "{symbol}");
    }
}

pub fn run(data: &[u8]) {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let mut memory = tables(input.layout);
    input.changes.iter().flatten().for_each(|it| change(&mut memory, it));
    assert!(memory.len() < MOST);
    let physical = START + u64::from(input.near) % (1 << 20);
    let address = if input.asked[3] % 2 == 0 { KERNEL_HALF + physical } else { input.asked[3] };
    let found = Symbols::find(&Memory(memory), Place { address, physical });
    // Addresses relative to their own places say nothing where the image is said to be somewhere else.
    let proper = input.layout != Layout::Now || address == KERNEL_HALF + physical;
    let changed = input.changes.iter().any(Option::is_some);
    assert!(found.is_some() || changed || !proper, "proper tables are not found");
    if let Some(symbols) = found {
        look(&symbols, &input.asked);
    }
    let line = [b"ffff888000000010 t name\n".as_slice(), input.map, b"\n"].concat();
    if let Some(symbols) = Symbols::from_system_map(line.repeat(150)) {
        look(&symbols, &input.asked);
        look(&symbols.moved("name", input.asked[0]), &input.asked);
    }
}
