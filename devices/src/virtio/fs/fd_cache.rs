//! A cache of descriptors of nodes, as many as there may be, for their next use.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::inode_table::NONE;

struct Slot {
    /// The index of the node.
    node: u32,
    fd: Arc<OwnedFd>,
    /// It was used since the hand last passed.
    recent: bool,
    /// No name leads to it: what is closed is lost.
    unlinked: bool,
}

/// The descriptors, and the hand of a clock that goes round among them (the second-chance algorithm).
pub struct FdCache {
    /// The first is the root's, which stays.
    slots: Vec<Slot>,
    hand: usize,
    most: usize,
}

impl FdCache {
    /// The root's alone; there will be at most `most`.
    pub fn new(root: Arc<OwnedFd>, most: usize) -> Self {
        let root = Slot { node: 0, fd: root, recent: true, unlinked: true };
        Self { slots: vec![root], hand: 1, most: most.max(8) }
    }

    /// The descriptor in `slot`; the root's if there is none such.
    pub fn get(&mut self, slot: u32) -> Arc<OwnedFd> {
        let at = if (slot as usize) < self.slots.len() { slot as usize } else { 0 };
        self.slots[at].recent = true;
        self.slots[at].fd.clone()
    }

    /// Takes one more; returns its slot, and the node whose descriptor makes room for it, if one has to.
    pub fn insert(&mut self, node: u32, fd: Arc<OwnedFd>, unlinked: bool) -> (u32, u32) {
        let new = Slot { node, fd, recent: true, unlinked };
        if self.slots.len() < self.most {
            self.slots.push(new);
            return (self.slots.len() as u32 - 1, NONE);
        }
        let at = self.advance();
        let old = std::mem::replace(&mut self.slots[at], new);
        (at as u32, old.node)
    }

    /// The next that was not used for a round; what no name leads to gets two rounds more.
    fn advance(&mut self) -> usize {
        let rounds = 3 * self.slots.len();
        for passed in 0..=rounds {
            self.hand = if self.hand + 1 < self.slots.len() { self.hand + 1 } else { 1 };
            let slot = &mut self.slots[self.hand];
            let spared = std::mem::take(&mut slot.recent) || (slot.unlinked && passed < 2 * self.most);
            if !spared {
                break;
            }
        }
        self.hand
    }

    /// Closes that in `slot`; the last one takes its place: returns the node that has it.
    pub fn drop(&mut self, slot: u32) -> Option<u32> {
        let slot = slot as usize;
        if slot == 0 || slot >= self.slots.len() {
            return None;
        }
        self.slots.swap_remove(slot);
        self.slots.get(slot).map(|moved| moved.node)
    }
}
