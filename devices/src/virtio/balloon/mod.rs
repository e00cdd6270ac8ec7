//! The memory balloon (virtio 1.2 §5.5): memory that the guest does not use goes back to the host.
//!
//! It goes by itself, as the guest reports what it has freed, and takes back by touching it; and it goes for as long as
//! the host wants, when it sets a [`Target`].

mod advise;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::{Buffers, Chain, Error, Kind, Queues, Served, Source, Thread, VirtioDevice};
use crate::GuestMemory;
use crate::device::{self, State};
use advise::PAGE;

/// What all balloons have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_BALLOON, module: "virtio_balloon" };
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM: a guest that runs out of memory takes pages back unasked.
const DEFLATE_ON_OOM: u64 = 1 << 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING: the guest reports pages that it has freed.
const REPORTING: u64 = 1 << 5;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
/// The specification leaves room for the queues that are not offered, and has reporting at 4; most drivers, Linux's
/// among them, count only queues that are there, and have it at 2. So it is at every place that nothing else takes.
const QUEUES: [u16; 5] = [64; 5];

/// Where the configuration space has `actual`.
const ACTUAL: usize = 4;
/// Pages taken from one request. Linux sends 256 at most, Windows 1024.
const MOST_PAGES: usize = 1024;

/// What the host wants of a balloon, and what it got. It outlives the machines that have the balloon.
#[derive(Debug)]
pub struct Target {
    pages: AtomicU32,
    given_back: AtomicU64,
    changed: EventFd,
}

impl Target {
    /// A balloon that is empty.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let changed = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { pages: AtomicU32::new(0), given_back: AtomicU64::new(0), changed })
    }

    /// Asks the guest to do without so many pages of 4096 bytes, beside those that are free anyway.
    pub fn set(&self, pages: u32) {
        self.pages.store(pages, Ordering::SeqCst);
        // The counter cannot get full, and the edge is what counts.
        let _ = self.changed.write(1);
    }

    /// How many bytes the host has got back in all; what the guest took again is not taken off.
    pub fn given_back(&self) -> u64 {
        self.given_back.load(Ordering::Relaxed)
    }
}

/// The balloon.
pub struct Balloon {
    target: Arc<Target>,
    /// `num_pages` and `actual`, le32 each.
    config: [u8; 8],
    /// The log has it that the host refuses.
    warned: bool,
}

impl Balloon {
    /// A balloon that grows to what `target` says.
    pub fn new(target: Arc<Target>) -> Self {
        let mut this = Self { target, config: [0; 8], warned: false };
        this.follow();
        this
    }

    /// Shows the driver what the host wants; answers whether that has changed.
    fn follow(&mut self) -> bool {
        let wanted = self.target.pages.load(Ordering::SeqCst).to_le_bytes();
        let shown = &mut self.config[..ACTUAL];
        let changed = *shown != wanted;
        shown.copy_from_slice(&wanted);
        changed
    }

    /// Gives back the pages that a request on the inflate queue lists: numbers of 4096-byte pages, le32 each.
    fn inflate(&mut self, memory: &GuestMemory, chain: &Chain) {
        let mut bytes = [0; 4 * MOST_PAGES];
        let len = chain.readable.read(memory, 0, &mut bytes);
        let (numbers, _) = bytes[..len].as_chunks();
        let mut pages: Vec<u64> = numbers.iter().map(|it| u32::from_le_bytes(*it).into()).collect();
        pages.sort_unstable();
        pages.dedup();
        // What is not RAM is the guest's mistake, and costs it nothing.
        pages.retain(|page| memory.check_range(GuestAddress(page * PAGE as u64), PAGE));
        for run in pages.chunk_by(|a, b| a + 1 == *b) {
            let mut buffers = Buffers::default();
            if buffers.push(memory, GuestAddress(run[0] * PAGE as u64), run.len() * PAGE) {
                self.give_back(memory, &buffers);
            }
        }
    }

    fn give_back(&mut self, memory: &GuestMemory, buffers: &Buffers) {
        for slice in buffers.slices(memory) {
            match advise::give_back(&slice) {
                Ok(len) => {
                    self.target.given_back.fetch_add(len as u64, Ordering::Relaxed);
                }
                Err(error) if !self.warned => {
                    self.warned = true;
                    log::warn!(target: "balloon", "memory that the guest does not need stays with it: {error}");
                }
                Err(_) => {}
            }
        }
    }
}

/// The guest-visible state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    num_pages: u32,
    actual: u32,
}

impl VirtioDevice for Balloon {
    fn name(&self) -> &str {
        "balloon"
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn thread(&self) -> Thread {
        Thread::Shared
    }

    fn features(&self) -> u64 {
        DEFLATE_ON_OOM | REPORTING
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Only `actual` is the driver's, and it writes it whole.
        if let (Ok(ACTUAL), [_, _, _, _]) = (usize::try_from(offset), data) {
            self.config[ACTUAL..].copy_from_slice(data);
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.target.changed.as_fd())]
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        queues.each(index, |memory, chain| {
            match index {
                INFLATE => self.inflate(memory, &chain),
                // The guest takes pages back by touching them.
                DEFLATE => {}
                _ => self.give_back(memory, &chain.writable),
            }
            Served::Used(0)
        })
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let _ = self.target.changed.read();
        if self.follow() {
            queues.config_changed();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.config[ACTUAL..].fill(0);
        self.follow();
        self.warned = false;
    }

    fn save(&self) -> Result<State, device::Error> {
        let [a, b, c, d, rest @ ..] = self.config;
        let (num_pages, actual) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes(rest));
        Ok(State::of(&Saved { num_pages, actual }))
    }

    /// The balloon goes on to what the host wanted of the saved one.
    fn load(&mut self, state: State) -> Result<(), device::Error> {
        let Saved { num_pages, actual } = state.take()?;
        self.config[ACTUAL..].copy_from_slice(&actual.to_le_bytes());
        self.target.pages.store(num_pages, Ordering::SeqCst);
        self.follow();
        Ok(())
    }
}
