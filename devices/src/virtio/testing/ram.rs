//! Guest RAM between guard pages, and an account of it: what the driver wrote, and what the device may write.
#![expect(unsafe_code, reason = "maps guest memory with guard pages around it")]

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap};

use crate::GuestMemory;

/// The regions of guest RAM: start and length.
pub const RAM: [(u64, usize); 2] = [(0, 1 << 20), (2 << 20, 1 << 20)];
/// Every byte of RAM that nobody has written.
pub const CANARY: u8 = 0xa5;

const PAGE: usize = 4096;

/// RAM that is mapped. It is never unmapped, and is used again when nothing has it any more: many drivers, one after another,
/// take the memory of one.
static MAPPED: Mutex<Vec<Regions>> = Mutex::new(Vec::new());

type Regions = [Arc<GuestRegionMmap>; RAM.len()];

/// RAM between guard pages, filled with [`CANARY`].
pub fn memory() -> GuestMemory {
    let regions = {
        let mut mapped = MAPPED.lock().unwrap_or_else(PoisonError::into_inner);
        let is_free = |regions: &mut Regions| regions.iter_mut().all(|it| Arc::get_mut(it).is_some());
        let free = mapped.iter_mut().position(is_free);
        let at = free.unwrap_or_else(|| {
            mapped.push(RAM.map(|(start, len)| Arc::new(map(start, len))));
            mapped.len() - 1
        });
        mapped[at].clone()
    };
    let memory = GuestMemory::from_arc_regions(regions.into()).expect("the regions are in order");
    fill(&memory);
    memory
}

/// Maps a region between guard pages.
fn map(start: u64, len: usize) -> GuestRegionMmap {
    let (access, flags) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let guard = unsafe { libc::mmap(std::ptr::null_mut(), len + 2 * PAGE, access, flags, -1, 0) };
    assert_ne!(guard, libc::MAP_FAILED, "the host has no memory");
    let ram = guard.wrapping_byte_add(PAGE).cast::<u8>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: within the mapping that was just made.
    assert_eq!(unsafe { libc::mprotect(ram.cast(), len, access) }, 0, "the host has no memory");
    // SAFETY: `len` bytes from `ram` on are mapped, readable and writable, for good.
    let builder = unsafe {
        MmapRegionBuilder::new(len).with_mmap_prot(access).with_mmap_flags(flags).with_raw_mmap_pointer(ram)
    };
    let region = builder.build().expect("the region is whole pages");
    GuestRegionMmap::new(region, GuestAddress(start)).expect("the region fits the address space")
}

/// Fills all RAM with [`CANARY`].
fn fill(memory: &GuestMemory) {
    for (start, len) in RAM {
        let mut at = start;
        while at < start + len as u64 {
            memory.write_slice(&[CANARY; PAGE], GuestAddress(at)).expect("it is RAM");
            at += PAGE as u64;
        }
    }
}

/// What RAM holds if the device keeps to what it was given.
pub(super) struct Account {
    /// Each region's bytes, but for what the device writes.
    expected: [Vec<u8>; RAM.len()],
    /// What the device may write.
    writable: Vec<Range<u64>>,
    /// The device gives memory back to the host: any byte may turn into zero.
    pub fades: bool,
}

impl Account {
    /// Of RAM that nobody has written.
    pub fn new() -> Self {
        Self { expected: RAM.map(|(_, len)| vec![CANARY; len]), writable: Vec::new(), fades: false }
    }

    /// The driver writes `bytes`, which are in one region.
    pub fn wrote(&mut self, address: u64, bytes: &[u8]) {
        for ((start, len), expected) in RAM.iter().zip(&mut self.expected) {
            let at = address.wrapping_sub(*start) as usize;
            if at < *len {
                expected[at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }

    /// From here on the device may write these bytes.
    pub fn allow(&mut self, address: u64, len: u64) {
        let range = address..address.saturating_add(len);
        if !self.writable.contains(&range) {
            self.writable.push(range);
        }
    }

    /// The device was reset: what it has written where it might is right, and from here on it may write nothing.
    pub fn settle(&mut self, memory: &GuestMemory) {
        for range in self.writable.drain(..) {
            for ((start, len), expected) in RAM.iter().zip(&mut self.expected) {
                let (from, to) = (range.start.max(*start), range.end.min(start + *len as u64));
                if from < to {
                    let expected = &mut expected[(from - start) as usize..(to - start) as usize];
                    memory.read_slice(expected, GuestAddress(from)).expect("it is RAM");
                }
            }
        }
    }

    /// The first byte of `memory` that is not what it should be, once.
    pub fn take_stray(&mut self, memory: &GuestMemory) -> Option<u64> {
        let mut stray = None;
        let mut page = [0; PAGE];
        for ((start, _), expected) in RAM.iter().zip(&mut self.expected) {
            for (at, expected) in (*start..).step_by(PAGE).zip(expected.chunks_mut(PAGE)) {
                memory.read_slice(&mut page, GuestAddress(at)).expect("it is RAM");
                if *expected == page {
                    continue;
                }
                let fades = self.fades;
                let differs = (at..)
                    .zip(expected.iter().zip(page))
                    .filter(|(_, (was, is))| **was != *is && !(fades && *is == 0));
                let mut strays = differs.map(|(at, _)| at).filter(|at| !is_within(&self.writable, *at));
                stray = stray.or(strays.next());
                expected.copy_from_slice(&page);
            }
        }
        stray
    }
}

fn is_within(ranges: &[Range<u64>], address: u64) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryBackend;

    use super::super::alone;
    use super::*;

    #[test]
    fn memory_that_nothing_has_any_more_is_blank_and_used_again() {
        alone(
            "virtio::testing::ram::tests::memory_that_nothing_has_any_more_is_blank_and_used_again",
            || {
                let place = |memory: &GuestMemory| memory.get_host_address(GuestAddress(0)).unwrap();
                let first = memory();
                let copy = first.clone();
                let at = place(&first);
                drop(first);
                assert_ne!(place(&memory()), at, "the copy has it");
                copy.write_slice(b"written", GuestAddress(9)).unwrap();
                drop(copy);
                let again = memory();
                assert_eq!(place(&again), at);
                let mut bytes = [0; PAGE];
                again.read_slice(&mut bytes, GuestAddress(0)).unwrap();
                assert_eq!(bytes, [CANARY; PAGE]);
            },
        );
    }
}
