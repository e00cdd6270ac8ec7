//! The linear frame buffer: memory that the guest writes without an exit, and KVM's record of what it has written.
//!
//! The record is read by viewers only. Without one, a page costs the guest nothing after its first write.

use std::ops::Range;
use std::sync::{Arc, Mutex, Weak};

use boot::GuestMemory;
use boot::layout::FRAME_BUFFER;
use devices::screen::{Pixels, Size, Surface};
use kvm_ioctls::VmFd;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend};

use crate::host::lock::lock;
use crate::vm::Vm;

/// Bytes of a pixel.
const PIXEL: usize = 4;
/// Pixels of a page, which is what KVM's record has a bit for.
const PAGE: usize = 4096 / PIXEL;
/// Pixels that are read at once.
const PIECE: usize = 256;

/// The frame buffer of one machine, which need not be there any more.
struct FrameBuffer {
    memory: GuestMemory,
    /// In bytes, whole pages.
    len: usize,
    vm: Weak<VmFd>,
    slot: u32,
    /// Who reads the record clears it: one at a time.
    turn: Mutex<()>,
}

/// The picture in the frame buffer of `vm`, if that has one of this size.
pub fn surface(vm: &Vm, size: Size) -> Option<Arc<Surface>> {
    let memory = vm.ram().frame_buffer()?.clone();
    let len = memory.last_addr().unchecked_offset_from(GuestAddress(FRAME_BUFFER)) as usize + 1;
    let (slot, turn) = (vm.frame_buffer_slot(), Mutex::default());
    let buffer = FrameBuffer { memory, len, vm: Arc::downgrade(vm.fd()), slot, turn };
    Some(Arc::new(Surface::new(size, 0, size.width as usize, Arc::new(buffer))))
}

impl Pixels for FrameBuffer {
    fn read(&self, at: usize, into: &mut [u32]) {
        let mut bytes = [[0; PIXEL]; PIECE];
        for (number, piece) in into.chunks_mut(PIECE).enumerate() {
            let bytes = &mut bytes[..piece.len()];
            let offset = (at + number * PIECE) * PIXEL;
            let address = GuestAddress(FRAME_BUFFER + offset as u64);
            if self.memory.read_slice(bytes.as_flattened_mut(), address).is_err() {
                bytes.fill([0; PIXEL]);
            }
            piece.iter_mut().zip(bytes).for_each(|(pixel, bytes)| *pixel = u32::from_le_bytes(*bytes));
        }
    }

    fn is_silent(&self) -> bool {
        true
    }

    fn changed(&self, report: &mut dyn FnMut(Range<usize>)) {
        let Some(vm) = self.vm.upgrade() else { return };
        let _turn = lock(&self.turn);
        match vm.get_dirty_log(self.slot, self.len) {
            Ok(record) => pages(&record).for_each(|run| report(run.start * PAGE..run.end * PAGE)),
            Err(error) => {
                log::debug!("KVM does not say what was written to the frame buffer: {error}");
                report(0..self.len / PIXEL);
            }
        }
    }
}

/// The runs of bits that are set in `record`.
fn pages(record: &[u64]) -> impl Iterator<Item = Range<usize>> {
    let is_set = |page: usize| record.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 == 1);
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = (next..record.len() * 64).find(|page| is_set(*page))?;
        next = (start..).find(|page| !is_set(*page))?;
        Some(start..next)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_are_set_become_runs_of_pages() {
        let runs = |record: &[u64]| pages(record).collect::<Vec<_>>();
        assert_eq!(runs(&[]), []);
        assert_eq!(runs(&[0, 0]), []);
        assert_eq!(runs(&[0b1101, 0]), [0..1, 2..4]);
        assert_eq!(runs(&[1 << 63, 1]), [63..65]);
        assert_eq!(runs(&[u64::MAX, u64::MAX]), [0..128]);
        assert_eq!(runs(&[0, 1 << 63]), [127..128]);
    }
}
