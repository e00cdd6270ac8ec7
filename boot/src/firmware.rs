//! What a PC's firmware leaves in memory for programs that enter real mode: vectors that point at code.
//!
//! Each stub ends its interrupt, as the timer's handler of a BIOS does once it has counted the tick (8259A data sheet,
//! "End of Interrupt").

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::GuestMemory;
use crate::layout::{INTERRUPT_STUBS, INTERRUPT_VECTORS, PIC_VECTORS};

/// How many vectors there are.
const VECTORS: usize = 256;
/// The lines of an interrupt controller.
const LINES: u8 = 8;
/// The segment of the stubs.
const SEGMENT: u16 = 0xf000;

/// `iret`.
const NOTHING: [u8; 1] = [0xcf];
/// `push ax; mov al, 0x20; out 0x20, al; pop ax; iret`.
const END_FIRST: [u8; 7] = [0x50, 0xb0, 0x20, 0xe6, 0x20, 0x58, 0xcf];
/// The same, at the second controller first: `out 0xa0, al`.
const END_BOTH: [u8; 9] = [0x50, 0xb0, 0x20, 0xe6, 0xa0, 0xe6, 0x20, 0x58, 0xcf];

/// Writes real mode's vectors and what they point at.
///
/// # Errors
/// Guest memory ends below 1 MiB.
pub fn write(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    let mut offset = (INTERRUPT_STUBS - u64::from(SEGMENT) * 16) as u16;
    let mut place = |code: &[u8]| {
        let at = offset;
        offset += code.len() as u16;
        memory.write_slice(code, GuestAddress(u64::from(SEGMENT) * 16 + u64::from(at))).map(|()| at)
    };
    let (nothing, first, both) = (place(&NOTHING)?, place(&END_FIRST)?, place(&END_BOTH)?);
    let [first_lines, second_lines] = PIC_VECTORS.map(|vector| vector..vector + LINES);
    let mut vectors = Vec::with_capacity(VECTORS * 4);
    for vector in 0..=u8::MAX {
        let stub = match vector {
            vector if first_lines.contains(&vector) => first,
            vector if second_lines.contains(&vector) => both,
            _ => nothing,
        };
        vectors.extend(stub.to_le_bytes());
        vectors.extend(SEGMENT.to_le_bytes());
    }
    memory.write_slice(&vectors, GuestAddress(INTERRUPT_VECTORS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{ACPI_END, GDT, RESET_WORD};

    #[test]
    fn every_vector_points_at_a_stub_that_ends_its_interrupt() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write(&memory).unwrap();
        for vector in 0..=u8::MAX {
            let [offset, segment]: [u16; 2] = memory.read_obj(GuestAddress(u64::from(vector) * 4)).unwrap();
            let mut code = [0; 9];
            let at = u64::from(segment) * 16 + u64::from(offset);
            memory.read_slice(&mut code, GuestAddress(at)).unwrap();
            let expected: &[u8] = match vector {
                0x08..=0x0f => &END_FIRST,
                0x70..=0x77 => &END_BOTH,
                _ => &NOTHING,
            };
            assert!(code.starts_with(expected), "{vector:#x}");
            assert!((INTERRUPT_STUBS..ACPI_END - 16 - 9).contains(&at), "{vector:#x}: {at:#x}");
        }
        assert!(VECTORS as u64 * 4 <= RESET_WORD.min(GDT));
        assert_eq!(memory.read_obj::<u32>(GuestAddress(VECTORS as u64 * 4)).unwrap(), 0);
    }
}
