//! What the guest has open: a handle is one open file or directory of the host's.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use nix::errno::Errno;

use super::directory::Listing;
use super::table::NONE;

/// An open file or directory.
pub struct Open {
    /// The host's.
    pub file: OwnedFd,
    /// Of a directory: how far it is listed.
    pub listing: Option<Mutex<Listing>>,
    /// It is a regular file that can only be read: as every read says where, all handles of a file may have the same.
    pub shareable: bool,
    /// How many handles have it.
    handles: AtomicU32,
}

impl Open {
    /// A regular file, that can be written to or not.
    pub fn file(file: OwnedFd, writable: bool) -> Self {
        Self { file, listing: None, shareable: !writable, handles: AtomicU32::new(0) }
    }

    /// A directory, at its beginning.
    pub fn directory(file: OwnedFd) -> Self {
        Self { file, listing: Some(Mutex::default()), shareable: false, handles: AtomicU32::new(0) }
    }
}

/// The most handles, as long as they are of few files: 8 MiB.
const MOST_HANDLES: usize = 1 << 18;
/// How many handles of a file are looked at for one to share.
const MOST_LOOKED_AT: usize = 4;

struct Slot {
    open: Option<Arc<Open>>,
    node: u32,
    /// The node's next handle; of a free slot, the next free one.
    next: u32,
    generation: u32,
}

/// All handles.
pub struct Opened {
    slots: Vec<Slot>,
    free: u32,
    /// How many files are open.
    files: usize,
    most: usize,
    /// The largest generation so far; a slot that is new begins there.
    newest: u32,
    first: u32,
}

fn number(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

impl Opened {
    /// None, and at most `most` files.
    pub fn new(most: usize) -> Self {
        Self { slots: Vec::new(), free: NONE, files: 0, most: most.max(8), newest: 0, first: 0 }
    }

    /// None, for another session: its numbers are none of these.
    pub fn successor(&self) -> Self {
        Self { newest: self.newest, first: self.newest, ..Self::new(self.most) }
    }

    fn slot(&self, handle: u64) -> Option<(u32, &Slot)> {
        let index = handle as u32;
        let slot = self.slots.get(index as usize)?;
        (slot.open.is_some() && number(index, slot.generation) == handle).then_some((index, slot))
    }

    /// What another handle of a node whose first is `first` has open to be read, if one has.
    pub fn shared(&self, first: u32) -> Option<Arc<Open>> {
        let mut at = first;
        for _ in 0..MOST_LOOKED_AT {
            let slot = self.slots.get(at as usize)?;
            match &slot.open {
                Some(open) if open.shareable => return Some(open.clone()),
                _ => at = slot.next,
            }
        }
        None
    }

    /// Opens one more handle of `node`, whose first is `first`.
    ///
    /// # Errors
    /// There are too many (ENFILE).
    pub fn open(&mut self, node: u32, first: &mut u32, open: Arc<Open>) -> Result<u64, Errno> {
        let new = open.handles.load(Ordering::Relaxed) == 0;
        if new && self.files >= self.most {
            return Err(Errno::ENFILE);
        }
        let index = match self.slots.get_mut(self.free as usize) {
            Some(slot) => std::mem::replace(&mut self.free, slot.next),
            None => {
                if self.slots.len() >= MOST_HANDLES {
                    return Err(Errno::ENFILE);
                }
                self.slots.push(Slot { open: None, node, next: NONE, generation: self.first });
                self.slots.len() as u32 - 1
            }
        };
        self.files += usize::from(new);
        open.handles.fetch_add(1, Ordering::Relaxed);
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.newest = self.newest.max(slot.generation);
        slot.node = node;
        slot.open = Some(open);
        slot.next = std::mem::replace(first, index);
        Ok(number(index, slot.generation))
    }

    /// What a handle of a node has open.
    ///
    /// # Errors
    /// The node has no such handle (EBADF).
    pub fn get(&self, node: u32, handle: u64) -> Result<Arc<Open>, Errno> {
        let slot = self.slot(handle).filter(|(_, slot)| slot.node == node);
        slot.and_then(|(_, slot)| slot.open.clone()).ok_or(Errno::EBADF)
    }

    /// What a node whose first handle is `first` has open, last opened.
    pub fn first(&self, first: u32) -> Option<Arc<Open>> {
        self.slots.get(first as usize).and_then(|slot| slot.open.clone())
    }

    /// Closes a handle of the node whose first is `first`.
    pub fn close(&mut self, handle: u64, first: &mut u32) -> Option<Arc<Open>> {
        let index = self.slot(handle)?.0;
        let next = self.slots[index as usize].next;
        if *first == index {
            *first = next;
        } else {
            let mut at = *first;
            while let Some(slot) = self.slots.get_mut(at as usize) {
                if slot.next == index {
                    slot.next = next;
                    break;
                }
                at = slot.next;
            }
        }
        let slot = &mut self.slots[index as usize];
        slot.next = std::mem::replace(&mut self.free, index);
        let open = slot.open.take()?;
        if open.handles.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.files -= 1;
        }
        Some(open)
    }
}
