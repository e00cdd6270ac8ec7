//! How the nodes of an [`InodeTable`] are found: by descriptors that are cached or open, or by the names that lead to them.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::handle_table::Open;
use super::host::Identity;
use super::inode_table::{DEEPEST, InodeTable, NONE, ROOT};

/// A descriptor of a node: a cached one, with `O_PATH`, or that of an open file.
pub type NodeFd = Arc<OwnedFd>;

/// A step from a directory to a node in it.
pub struct Step {
    /// The node.
    pub node: u64,
    /// Its name.
    pub name: CString,
    /// What it must be.
    pub identity: Identity,
}

impl InodeTable {
    pub(super) fn identity_at(&self, index: u32) -> Identity {
        let node = &self.nodes[index as usize];
        self.mounts.identity(node.mount, node.ino, u32::from(node.kind) << 12)
    }

    /// Which file a node is.
    ///
    /// # Errors
    /// It is no node.
    pub fn identity(&self, node: u64) -> Result<Identity, Errno> {
        Ok(self.identity_at(self.index(node)?))
    }

    /// The mount that a node is in, and its inode number for the guest.
    ///
    /// # Errors
    /// It is no node.
    pub fn mount(&self, node: u64) -> Result<(u16, u64), Errno> {
        let it = &self.nodes[self.index(node)? as usize];
        Ok((it.mount, self.mounts.visible(it.mount, it.ino)))
    }

    /// A descriptor of the node itself, if there is one.
    fn descriptor(&mut self, index: u32) -> Option<NodeFd> {
        let node = &self.nodes[index as usize];
        if index == ROOT || node.cached != NONE {
            return Some(self.fd_cache.get(node.cached));
        }
        self.handles.descriptor(node.handles)
    }

    /// The nearest descriptor on the way up from a node, and the steps from there down to it: none if it is the node's
    /// own.
    ///
    /// # Errors
    /// It is no node, or one without a known name (ESTALE); it is too deep (ENAMETOOLONG).
    pub fn route(&mut self, node: u64) -> Result<(NodeFd, Vec<Step>), Errno> {
        let index = self.index(node)?;
        match self.descriptor(index) {
            Some(held) => Ok((held, Vec::new())),
            None => self.route_by_name(node),
        }
    }

    /// As [`Self::route`], but by the node's name, whatever descriptors it has itself; the root has no name.
    ///
    /// # Errors
    /// As [`Self::route`].
    pub fn route_by_name(&mut self, node: u64) -> Result<(NodeFd, Vec<Step>), Errno> {
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

    /// Caches a descriptor of a node, if that is this file; longest if it is `unlinked`, so that no name leads to it any
    /// more.
    pub fn cache_fd(&mut self, node: u64, identity: Identity, fd: Arc<OwnedFd>, unlinked: bool) {
        let Ok(index) = self.index(node) else { return };
        let known = index == ROOT || self.nodes[index as usize].cached != NONE;
        if known || self.identity_at(index) != identity {
            return;
        }
        let (slot, evicted) = self.fd_cache.insert(index, fd, unlinked);
        if let Some(node) = self.nodes.get_mut(evicted as usize) {
            node.cached = NONE;
        }
        self.nodes[index as usize].cached = slot;
    }

    /// Caches a descriptor of a file that loses a name, if the guest knows it.
    pub fn cache_unlinked(&mut self, identity: Identity, fd: NodeFd) {
        if let Some(index) = self.find(identity) {
            self.cache_fd(self.id(index), identity, fd, true);
        }
    }

    pub(super) fn drop_cached(&mut self, index: u32) {
        let slot = std::mem::replace(&mut self.nodes[index as usize].cached, NONE);
        if slot != NONE
            && let Some(moved) = self.fd_cache.drop(slot)
        {
            self.nodes[moved as usize].cached = slot;
        }
    }

    /// Opens a handle of a node.
    ///
    /// # Errors
    /// It is no node (ESTALE), or too much is open (ENFILE).
    pub fn open(&mut self, node: u64, open: Arc<Open>) -> Result<u64, Errno> {
        let index = self.index(node)?;
        self.handles.open(index, &mut self.nodes[index as usize].handles, open)
    }

    /// Gives an open file of a node its descriptor; answers the one that is used.
    pub fn give(&mut self, node: u64, open: &Arc<Open>, file: NodeFd) -> NodeFd {
        match self.index(node) {
            Ok(index) => self.handles.give(index, open, file),
            Err(_) => file,
        }
    }

    /// What a node has open without a descriptor.
    pub fn without_descriptor(&self, node: u64) -> Vec<Arc<Open>> {
        self.index(node)
            .map_or(Vec::new(), |index| self.handles.without_descriptor(self.nodes[index as usize].handles))
    }

    /// An open file that is idle, and its node.
    pub fn idle(&mut self) -> Option<(u64, Arc<Open>)> {
        self.handles.idle().map(|(index, open)| (self.id(index), open))
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
        let first = &mut self.nodes[index as usize].handles;
        let Some(open) = self.handles.shared(*first) else { return Ok(None) };
        self.handles.open(index, first, open).map(Some)
    }

    /// What handle `number` of a node has open. A handle of another node, or of another session, is none of this one's.
    ///
    /// # Errors
    /// There is none (EBADF).
    pub fn handle(&self, node: u64, number: u64) -> Result<Arc<Open>, Errno> {
        let index = self.index(node).map_err(|_| Errno::EBADF)?;
        self.handles.get(index, number)
    }

    /// Closes handle `number` of a node; returns the descriptor that is not used any more, as closing that may take its time.
    ///
    /// # Errors
    /// As [`Self::handle`].
    pub fn release(&mut self, node: u64, number: u64) -> Result<Option<NodeFd>, Errno> {
        self.handle(node, number)?;
        let index = self.index(node)?;
        let file = self.handles.close(number, &mut self.nodes[index as usize].handles);
        self.sweep(index);
        Ok(file)
    }
}
