//! How the nodes of a [`Table`] are reached: by descriptors that are kept or open, or by the way to them.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::handle_table::Open;
use super::host::Identity;
use super::inode_table::{DEEPEST, NONE, ROOT, Table};

/// A descriptor of a node: one that is kept, with `O_PATH`, or that of an open file.
pub type Held = Arc<OwnedFd>;

/// A step from a directory to a node in it.
pub struct Step {
    /// The node.
    pub node: u64,
    /// Its name.
    pub name: CString,
    /// What it must be.
    pub identity: Identity,
}

impl Table {
    pub(super) fn identity_at(&self, index: u32) -> Identity {
        let node = &self.nodes[index as usize];
        self.places.identity(node.place, node.ino, u32::from(node.kind) << 12)
    }

    /// Which file a node is.
    ///
    /// # Errors
    /// It is no node.
    pub fn identity(&self, node: u64) -> Result<Identity, Errno> {
        Ok(self.identity_at(self.index(node)?))
    }

    /// The number of the place a node is in, and its inode number for the guest.
    ///
    /// # Errors
    /// It is no node.
    pub fn place(&self, node: u64) -> Result<(u16, u64), Errno> {
        let it = &self.nodes[self.index(node)? as usize];
        Ok((it.place, self.places.visible(it.place, it.ino)))
    }

    /// A descriptor of the node itself, if there is one.
    fn descriptor(&mut self, index: u32) -> Option<Held> {
        let node = &self.nodes[index as usize];
        if index == ROOT || node.kept != NONE {
            return Some(self.kept.get(node.kept));
        }
        self.opened.descriptor(node.opened)
    }

    /// The nearest descriptor on the way up from a node, and the steps from there down to it: none if it is the node's
    /// own.
    ///
    /// # Errors
    /// It is no node, or nobody knows where it is (ESTALE); it is too deep (ENAMETOOLONG).
    pub fn route(&mut self, node: u64) -> Result<(Held, Vec<Step>), Errno> {
        let index = self.index(node)?;
        match self.descriptor(index) {
            Some(held) => Ok((held, Vec::new())),
            None => self.way(node),
        }
    }

    /// As [`Self::route`], but by the node's name, whatever descriptors it has itself; the root has no name.
    ///
    /// # Errors
    /// As [`Self::route`].
    pub fn way(&mut self, node: u64) -> Result<(Held, Vec<Step>), Errno> {
        let mut at = self.index(node)?;
        let mut steps = Vec::new();
        loop {
            if (at == ROOT || !steps.is_empty())
                && let Some(held) = self.descriptor(at)
            {
                steps.reverse();
                return Ok((held, steps));
            }
            if steps.len() >= DEEPEST {
                return Err(Errno::ENAMETOOLONG);
            }
            let it = &self.nodes[at as usize];
            if it.parent == NONE {
                return Err(Errno::ESTALE);
            }
            steps.push(Step { node: self.id(at), name: (*it.name).into(), identity: self.identity_at(at) });
            at = it.parent;
        }
    }

    /// Keeps a descriptor of a node, if that still is this file; `gone` if no name leads to it any more, so that it is
    /// kept longest.
    pub fn keep(&mut self, node: u64, identity: Identity, fd: Arc<OwnedFd>, gone: bool) {
        let Ok(index) = self.index(node) else { return };
        let known = index == ROOT || self.nodes[index as usize].kept != NONE;
        if known || self.identity_at(index) != identity {
            return;
        }
        let (slot, evicted) = self.kept.keep(index, fd, gone);
        if let Some(node) = self.nodes.get_mut(evicted as usize) {
            node.kept = NONE;
        }
        self.nodes[index as usize].kept = slot;
    }

    /// Keeps a descriptor of a file that loses a name, if the guest knows it.
    pub fn keep_gone(&mut self, identity: Identity, fd: Held) {
        if let Some(index) = self.find(identity) {
            self.keep(self.id(index), identity, fd, true);
        }
    }

    pub(super) fn drop_kept(&mut self, index: u32) {
        let slot = std::mem::replace(&mut self.nodes[index as usize].kept, NONE);
        if slot != NONE
            && let Some(moved) = self.kept.drop(slot)
        {
            self.nodes[moved as usize].kept = slot;
        }
    }

    /// Opens a handle of a node.
    ///
    /// # Errors
    /// It is no node (ESTALE), or too much is open (ENFILE).
    pub fn open(&mut self, node: u64, open: Arc<Open>) -> Result<u64, Errno> {
        let index = self.index(node)?;
        self.opened.open(index, &mut self.nodes[index as usize].opened, open)
    }

    /// Gives an open file of a node its descriptor; answers the one that is used.
    pub fn give(&mut self, node: u64, open: &Arc<Open>, file: Held) -> Held {
        match self.index(node) {
            Ok(index) => self.opened.give(index, open, file),
            Err(_) => file,
        }
    }

    /// What a node has open without a descriptor.
    pub fn without_descriptor(&self, node: u64) -> Vec<Arc<Open>> {
        self.index(node)
            .map_or(Vec::new(), |index| self.opened.without_descriptor(self.nodes[index as usize].opened))
    }

    /// An open file that is idle, and its node.
    pub fn idle(&mut self) -> Option<(u64, Arc<Open>)> {
        self.opened.idle().map(|(index, open)| (self.id(index), open))
    }

    /// The node of a file, if the guest knows it.
    pub fn node(&self, identity: Identity) -> Option<u64> {
        self.find(identity).map(|index| self.id(index))
    }

    /// Opens a handle of a node, to be read, that shares the file of another; none if there is no such.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_shared(&mut self, node: u64) -> Result<Option<u64>, Errno> {
        let index = self.index(node)?;
        let first = &mut self.nodes[index as usize].opened;
        let Some(open) = self.opened.shared(*first) else { return Ok(None) };
        self.opened.open(index, first, open).map(Some)
    }

    /// What handle `number` of a node has open. A handle of another node, or of another session, is none of this one's.
    ///
    /// # Errors
    /// There is none (EBADF).
    pub fn handle(&self, node: u64, number: u64) -> Result<Arc<Open>, Errno> {
        let index = self.index(node).map_err(|_| Errno::EBADF)?;
        self.opened.get(index, number)
    }

    /// Closes handle `number` of a node; returns the descriptor that nobody needs then, as closing that may take its time.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn release(&mut self, node: u64, number: u64) -> Result<Option<Held>, Errno> {
        self.handle(node, number)?;
        let index = self.index(node)?;
        let file = self.opened.close(number, &mut self.nodes[index as usize].opened);
        self.sweep(index);
        Ok(file)
    }
}
