//! What the guest has open: a handle is one open file or directory of the host's.
//!
//! A file that is open takes a descriptor of the host's only while it is used: one that was idle gives it back when others
//! need it, and is opened again, by its name, when it is used again (`fd_budget`).

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;

use super::inode_table::NONE;
use super::ops::directory::Listing;
use super::state::SavedHandle;

/// An open file or directory.
pub struct Open {
    /// The host's; none if it was given back.
    file: Mutex<Option<Arc<OwnedFd>>>,
    /// When the file was born whose descriptor was given back, if the host knows: the number of a removed file may be
    /// another's by then.
    born: Mutex<Option<(i64, u32)>>,
    /// What it may be used for (`O_ACCMODE`).
    pub access: i32,
    /// Of a directory: how far it is listed.
    pub listing: Option<Mutex<Listing>>,
    /// How many handles have it.
    handles: AtomicU32,
    /// It was used since the hand last passed.
    recent: AtomicBool,
    /// It could not be opened again when that was last tried.
    fixed: AtomicBool,
    /// Its position among those that have a descriptor.
    position: AtomicU32,
}

impl Open {
    fn new(access: i32, listing: Option<Mutex<Listing>>) -> Self {
        let (handles, recent, position) = (AtomicU32::new(0), AtomicBool::new(true), AtomicU32::new(NONE));
        let (file, born) = (Mutex::new(None), Mutex::new(None));
        let fixed = AtomicBool::new(false);
        Self { file, born, access, listing, handles, recent, fixed, position }
    }

    /// A regular file, opened for `access`.
    pub fn file(access: i32) -> Self {
        Self::new(access, None)
    }

    /// A directory, at its beginning.
    pub fn directory() -> Self {
        Self::new(libc::O_RDONLY, Some(Mutex::default()))
    }

    /// It is a regular file that can only be read: as every read says where, all handles of a file may have the same.
    fn is_shareable(&self) -> bool {
        self.access == libc::O_RDONLY && self.listing.is_none()
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its descriptor, unless that was given back.
    pub fn descriptor(&self) -> Option<Arc<OwnedFd>> {
        self.recent.store(true, Ordering::Relaxed);
        self.slot().clone()
    }

    /// It cannot be opened again: it is not the next one to be idle.
    pub fn fix(&self) {
        self.fixed.store(true, Ordering::Relaxed);
    }

    /// Whether this is the file whose descriptor was given back, as far as the host knows.
    pub fn is(&self, born: Option<(i64, u32)>) -> bool {
        let known = *self.born.lock().unwrap_or_else(PoisonError::into_inner);
        known.is_none() || known == born
    }

    /// Its descriptor is not in use at this moment.
    fn is_idle(&self) -> bool {
        self.slot().as_ref().is_some_and(|file| Arc::strong_count(file) == 1)
    }
}

/// The most handles, as long as they are of few files: 8 MiB.
pub(super) const MOST_HANDLES: usize = 1 << 18;
/// How many handles of a file are looked at for one to share, or one that has a descriptor.
const MOST_LOOKED_AT: usize = 4;

struct Slot {
    open: Option<Arc<Open>>,
    node: u32,
    /// The node's next handle; of a free slot, the next free one.
    next: u32,
    generation: u32,
}

/// All handles.
pub struct HandleTable {
    slots: Vec<Slot>,
    free: u32,
    /// What has a descriptor, with its node, and the hand of a clock that goes round among them.
    present: Vec<(u32, Arc<Open>)>,
    hand: usize,
    most: usize,
    /// The largest generation so far; a slot that is new begins there.
    newest: u32,
    first: u32,
}

fn number(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

impl HandleTable {
    /// None, and at most `most` descriptors.
    pub fn new(most: usize) -> Self {
        let most = most.max(8);
        Self { slots: Vec::new(), free: NONE, present: Vec::new(), hand: 0, most, newest: 0, first: 0 }
    }

    /// Whether there has been none.
    pub fn is_new(&self) -> bool {
        self.slots.is_empty()
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

    /// The files that a node has open whose first handle is `first`, from the last opened on.
    fn of_node(&self, first: u32) -> impl Iterator<Item = &Arc<Open>> {
        let slots =
            std::iter::successors(self.slots.get(first as usize), |slot| self.slots.get(slot.next as usize));
        slots.filter_map(|slot| slot.open.as_ref())
    }

    /// What another handle of a node whose first is `first` has open to be read, if one has.
    pub fn shared(&self, first: u32) -> Option<Arc<Open>> {
        self.of_node(first).take(MOST_LOOKED_AT).find(|open| open.is_shareable()).cloned()
    }

    /// A descriptor that a node whose first handle is `first` has.
    pub fn descriptor(&self, first: u32) -> Option<Arc<OwnedFd>> {
        self.of_node(first).take(MOST_LOOKED_AT).find_map(|open| open.descriptor())
    }

    /// What a node whose first handle is `first` has open without a descriptor.
    pub fn without_descriptor(&self, first: u32) -> Vec<Arc<Open>> {
        self.of_node(first).filter(|open| open.slot().is_none()).cloned().collect()
    }

    /// Opens one more handle of `node`, whose first is `first`.
    ///
    /// # Errors
    /// There are too many (ENFILE).
    pub fn open(&mut self, node: u32, first: &mut u32, open: Arc<Open>) -> Result<u64, Errno> {
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
        open.handles.fetch_add(1, Ordering::Relaxed);
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        self.newest = self.newest.max(slot.generation);
        slot.node = node;
        slot.open = Some(open);
        slot.next = std::mem::replace(first, index);
        Ok(number(index, slot.generation))
    }

    /// All handles, and the largest generation so far.
    pub fn save(&self) -> (Vec<(SavedHandle, Arc<Open>)>, u32) {
        let saved = (0..).zip(&self.slots).filter_map(|(index, slot)| {
            let open = slot.open.clone()?;
            let number = number(index, slot.generation);
            let directory = open.listing.is_some();
            Some((SavedHandle { number, node: slot.node, directory, access: open.access }, open))
        });
        (saved.collect(), self.newest)
    }

    /// Opens the handle of a node, whose first is `first`, that `saved` says; answers whether there can be such a one.
    pub fn restore(&mut self, saved: &SavedHandle, first: &mut u32, open: Open) -> bool {
        let (index, generation) = (saved.number as u32, (saved.number >> 32) as u32);
        if index as usize >= MOST_HANDLES {
            return false;
        }
        while self.slots.len() <= index as usize {
            self.slots.push(Slot { open: None, node: 0, next: NONE, generation: self.first });
        }
        let slot = &mut self.slots[index as usize];
        if slot.open.is_some() {
            return false;
        }
        open.handles.store(1, Ordering::Relaxed);
        let next = std::mem::replace(first, index);
        *slot = Slot { open: Some(Arc::new(open)), node: saved.node, next, generation };
        true
    }

    /// Begins to restore handles of which none had a larger generation, in a table without any.
    pub fn begin_restore(&mut self, newest: u32) {
        (self.first, self.newest) = (newest, newest);
    }

    /// All handles are restored: what is between them is free.
    pub fn end_restore(&mut self) {
        for (index, slot) in (0..).zip(&mut self.slots).filter(|(_, slot)| slot.open.is_none()) {
            slot.next = std::mem::replace(&mut self.free, index);
        }
    }

    /// What a handle of a node has open.
    ///
    /// # Errors
    /// The node has no such handle (EBADF).
    pub fn get(&self, node: u32, handle: u64) -> Result<Arc<Open>, Errno> {
        let slot = self.slot(handle).filter(|(_, slot)| slot.node == node);
        slot.and_then(|(_, slot)| slot.open.clone()).ok_or(Errno::EBADF)
    }

    /// Closes a handle of the node whose first is `first`; answers the descriptor that is not used any more.
    pub fn close(&mut self, handle: u64, first: &mut u32) -> Option<Arc<OwnedFd>> {
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
        if open.handles.fetch_sub(1, Ordering::Relaxed) == 1 { self.take(&open) } else { None }
    }

    /// Whether there are as many descriptors as there may be.
    pub fn is_full(&self) -> bool {
        self.present.len() >= self.most
    }

    /// Gives a file of `node` its descriptor, unless it has one, or no handle has it any more; answers the one that is used.
    pub fn give(&mut self, node: u32, open: &Arc<Open>, file: Arc<OwnedFd>) -> Arc<OwnedFd> {
        let mut slot = open.slot();
        if let Some(known) = &*slot {
            return known.clone();
        }
        if open.handles.load(Ordering::Relaxed) > 0 {
            *slot = Some(file.clone());
            open.recent.store(true, Ordering::Relaxed);
            open.position.store(self.present.len() as u32, Ordering::Relaxed);
            self.present.push((node, open.clone()));
        }
        file
    }

    /// Takes a file's descriptor, if it has one.
    fn take(&mut self, open: &Open) -> Option<Arc<OwnedFd>> {
        let file = open.slot().take()?;
        let position = open.position.swap(NONE, Ordering::Relaxed);
        if (position as usize) < self.present.len() {
            self.present.swap_remove(position as usize);
            if let Some((_, moved)) = self.present.get(position as usize) {
                moved.position.store(position, Ordering::Relaxed);
            }
        }
        Some(file)
    }

    /// As [`Self::take`], if it is idle. What is listed of a directory goes along. The file was `born` then, if the
    /// host knows.
    pub fn take_idle(&mut self, open: &Open, born: Option<(i64, u32)>) -> Option<Arc<OwnedFd>> {
        if !open.is_idle() {
            return None;
        }
        *open.born.lock().unwrap_or_else(PoisonError::into_inner) = born;
        if let Some(listing) = &open.listing {
            // A thread that lists it uses it.
            listing.try_lock().ok()?.forget();
        }
        self.take(open)
    }

    /// The next that was not used for a round, with its node, but none that could not be opened again before; once there is
    /// no other, those are tried again.
    pub fn idle(&mut self) -> Option<(u32, Arc<Open>)> {
        for _ in 0..2 * self.present.len() {
            self.hand = if self.hand + 1 < self.present.len() { self.hand + 1 } else { 0 };
            let (node, open) = &self.present[self.hand];
            let passed = open.recent.swap(false, Ordering::Relaxed) || open.fixed.load(Ordering::Relaxed);
            if !passed && open.is_idle() {
                return Some((*node, open.clone()));
            }
        }
        self.present.iter().for_each(|(_, open)| open.fixed.store(false, Ordering::Relaxed));
        None
    }
}
