//! What a descriptor chain names: pieces of guest memory, in order.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::GuestMemory;

/// Pieces of guest memory, in order. Every byte of them is RAM: that was checked when the chain was read, and a guest's
/// RAM stays where it is as long as the machine lives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffers {
    /// Each within one region, none empty.
    parts: Vec<(GuestAddress, usize)>,
    len: usize,
}

impl Buffers {
    /// Appends a piece; answers whether all of it is RAM and the length does not overflow.
    pub(super) fn push(&mut self, memory: &GuestMemory, address: GuestAddress, len: usize) -> bool {
        let Some(total) = self.len.checked_add(len) else { return false };
        let mut at = address;
        for slice in memory.get_slices(address, len) {
            let Ok(slice) = slice else { return false };
            if !slice.is_empty() {
                self.parts.push((at, slice.len()));
            }
            at = at.unchecked_add(slice.len() as u64);
        }
        self.len = total;
        true
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// How many pieces there are.
    pub fn pieces(&self) -> usize {
        self.parts.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Cuts off and returns what lies from `at` on; nothing if that is past the end.
    #[must_use]
    pub fn split_off(&mut self, at: usize) -> Self {
        let mut rest = at;
        for index in 0..self.parts.len() {
            let (address, len) = self.parts[index];
            if rest < len {
                let mut parts = self.parts.split_off(index);
                if rest > 0 {
                    self.parts.push((address, rest));
                    parts[0] = (address.unchecked_add(rest as u64), len - rest);
                }
                let cut = Self { parts, len: self.len - at };
                self.len = at;
                return cut;
            }
            rest -= len;
        }
        Self::default()
    }

    /// Whether each piece begins, in guest memory, and ends at a multiple of `align`, a power of two up to a page.
    pub fn is_aligned(&self, align: usize) -> bool {
        self.parts.iter().all(|(at, len)| (at.0 | *len as u64) & (align as u64 - 1) == 0)
    }

    /// Cuts off what is beyond `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        let _cut = self.split_off(len);
    }

    /// Appends what `other` has.
    pub fn append(&mut self, other: Self) {
        self.len = self.len.saturating_add(other.len);
        self.parts.extend(other.parts);
    }

    /// The pieces of `memory`, the guest's.
    pub fn slices<'m>(&self, memory: &'m GuestMemory) -> impl Iterator<Item = VolatileSlice<'m, ()>> {
        self.parts.iter().map(|(address, len)| {
            memory.get_slice(*address, *len).expect("a chain's pieces were checked, and RAM does not move")
        })
    }

    /// Copies from `offset` on into `data`; returns how many bytes there were.
    pub fn read(&self, memory: &GuestMemory, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        self.walk(memory, offset, data.len(), |slice| {
            let copied = slice.read(&mut data[done..], 0).unwrap_or(0);
            done += copied;
        });
        done
    }

    /// Copies `data` to `offset` and on; returns how many bytes had room.
    pub fn write(&self, memory: &GuestMemory, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        self.walk(memory, offset, data.len(), |slice| {
            let copied = slice.write(&data[done..], 0).unwrap_or(0);
            done += copied;
        });
        done
    }

    /// Visits the `len` bytes from `offset` on, as far as there are.
    pub(super) fn walk<'m>(
        &self,
        memory: &'m GuestMemory,
        offset: usize,
        len: usize,
        mut visit: impl FnMut(VolatileSlice<'m, ()>),
    ) {
        let (mut skip, mut rest) = (offset, len);
        for slice in self.slices(memory) {
            if rest == 0 {
                return;
            }
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let part = slice.offset(skip).expect("less than the slice is skipped");
            skip = 0;
            rest -= part.len().min(rest);
            visit(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemory {
        let regions =
            [(GuestAddress(0), 0x1000), (GuestAddress(0x1000), 0x1000), (GuestAddress(0x4000), 0x1000)];
        GuestMemory::from_ranges(&regions).unwrap()
    }

    fn buffers(memory: &GuestMemory, parts: &[(u64, usize)]) -> Buffers {
        let mut buffers = Buffers::default();
        for (address, len) in parts {
            assert!(buffers.push(memory, GuestAddress(*address), *len));
        }
        buffers
    }

    #[test]
    fn bytes_go_through_pieces_and_regions_in_order() {
        let memory = memory();
        let pieces = buffers(&memory, &[(0xffe, 4), (0x4000, 0), (0x10, 3)]);
        assert_eq!(pieces.len(), 7);
        assert_eq!(pieces.write(&memory, 0, b"abcdefgh"), 7);
        let mut read = [0; 5];
        assert_eq!(pieces.read(&memory, 1, &mut read), 5);
        assert_eq!(&read, b"bcdef");
        assert_eq!(pieces.read(&memory, 7, &mut read), 0);
        assert_eq!(memory.read_obj::<[u8; 2]>(GuestAddress(0x1000)).unwrap(), *b"cd");
    }

    #[test]
    fn what_is_not_all_ram_is_refused() {
        let memory = memory();
        for (address, len) in
            [(0x1fff, 2), (0x2000, 1), (0x3fff, 2), (0x4fff, 2), (u64::MAX, 2), (0, usize::MAX)]
        {
            assert!(!Buffers::default().push(&memory, GuestAddress(address), len), "{address:#x}+{len:#x}");
        }
    }

    #[test]
    fn a_split_cuts_within_and_between_pieces() {
        let memory = memory();
        for at in 0..=9 {
            let mut front = buffers(&memory, &[(0, 3), (0x100, 4), (0x200, 1)]);
            let whole = front.clone();
            let back = front.split_off(at);
            assert_eq!((front.len(), back.len()), (at.min(8), 8usize.saturating_sub(at)));
            let mut joined = front.clone();
            joined.append(back);
            assert_eq!(joined.len(), whole.len());
            let bytes: Vec<_> = joined
                .slices(&memory)
                .flat_map(|it| (0..it.len()).map(move |n| it.ptr_guard().as_ptr() as usize + n))
                .collect();
            let expected: Vec<_> = whole
                .slices(&memory)
                .flat_map(|it| (0..it.len()).map(move |n| it.ptr_guard().as_ptr() as usize + n))
                .collect();
            assert_eq!(bytes, expected);
        }
    }
}
