//! The nodes that the guest knows: what it has looked up and not forgotten.
//!
//! A node is about 100 bytes and no descriptor: which file it is, and under which name in which other node it was seen
//! last. From that it is opened again when something is to be done with it, and found to be the same file or stale
//! (ESTALE, upon which a Linux guest looks its path up anew). Descriptors of directories, and of files without a name,
//! are in a cache of limited size (`fd_cache`); an open file has its own while it is used (`handle_table`).

use std::collections::hash_map::RandomState;
use std::ffi::CStr;
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::fd_cache::FdCache;
use super::handle_table::HandleTable;
use super::host::Identity;
use super::mounts::Mounts;

/// No node, no descriptor, no handle.
pub const NONE: u32 = u32::MAX;
/// The index of the root.
pub(super) const ROOT: u32 = 0;
/// How deep a node may be: a path of Linux's longest has not more names.
pub(super) const DEEPEST: usize = 2048;

/// How much a share may use of the host.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors, of open files and of cached directories. More files may be open, if their names lead to them.
    pub descriptors: usize,
    /// Nodes that the guest may know, at about 100 bytes each.
    pub nodes: usize,
}

/// One node.
pub(super) struct Node {
    pub(super) ino: u64,
    /// How often the guest has looked it up and not forgotten it.
    pub(super) lookups: u64,
    pub(super) name: Box<CStr>,
    pub(super) parent: u32,
    /// The next of the same hash.
    pub(super) next: u32,
    /// Nodes whose parent it is.
    children: u32,
    /// Its first open handle.
    pub(super) handles: u32,
    /// Its cached descriptor.
    pub(super) cached: u32,
    generation: u32,
    pub(super) mount: u16,
    /// The type, `S_IFMT` shifted right by 12.
    pub(super) kind: u8,
    /// It is not in use: `next` is the next such.
    pub(super) free: bool,
}

/// The nodes.
pub struct InodeTable {
    pub(super) nodes: Vec<Node>,
    /// The first node of each hash.
    buckets: Vec<u32>,
    pub(super) free: u32,
    used: usize,
    limits: Limits,
    /// The generation of a node whose index is new.
    pub(super) first: u32,
    /// The largest generation so far.
    pub(super) newest: u32,
    hasher: RandomState,
    /// The mounts that nodes are in.
    pub mounts: Mounts,
    pub(super) fd_cache: FdCache,
    pub(super) handles: HandleTable,
}

/// The number by which the guest knows the node at `index`: one that is used again is another.
fn id(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | (u64::from(index) + 1)
}

/// The index and the generation of a node's number.
pub(super) fn parts(node: u64) -> (u32, u32) {
    ((node as u32).wrapping_sub(1), (node >> 32) as u32)
}

impl Node {
    pub(super) fn free(generation: u32) -> Self {
        Self {
            ino: 0,
            lookups: 0,
            name: Box::default(),
            parent: NONE,
            next: NONE,
            children: 0,
            handles: NONE,
            cached: NONE,
            generation,
            mount: 0,
            kind: 0,
            free: true,
        }
    }
}

impl InodeTable {
    /// A table with the root alone, which is `identity` and open as `fd`.
    pub fn new(identity: Identity, fd: Arc<OwnedFd>, limits: Limits) -> Self {
        Self::with(identity, fd, limits, 0, HandleTable::new)
    }

    /// Whether there has been nothing but the root, nor a handle.
    pub fn is_new(&self) -> bool {
        self.nodes.len() == 1 && self.handles.is_new()
    }

    /// The next session's table, whose numbers of nodes and handles differ from all of this one, but for the root's.
    pub fn successor(&self, identity: Identity, fd: Arc<OwnedFd>) -> Self {
        let first = self.newest.wrapping_add(1);
        Self::with(identity, fd, self.limits, first, |_| self.handles.successor())
    }

    fn with(
        identity: Identity,
        fd: Arc<OwnedFd>,
        limits: Limits,
        first: u32,
        handles: impl FnOnce(usize) -> HandleTable,
    ) -> Self {
        let cached = limits.descriptors / 3;
        let mut it = Self {
            nodes: Vec::new(),
            buckets: vec![NONE; 64],
            free: NONE,
            used: 0,
            limits,
            first: 0,
            newest: first,
            hasher: RandomState::new(),
            mounts: Mounts::default(),
            fd_cache: FdCache::new(fd, cached),
            handles: handles(limits.descriptors - cached),
        };
        let mount = it.mounts.number(identity).expect("the first mount has a number");
        let root = it.insert(identity, mount, NONE, c"").expect("a new table has room for the root");
        it.nodes[root as usize].lookups = 1;
        it.first = first;
        it
    }

    fn bucket(&self, mount: u16, ino: u64) -> usize {
        self.hasher.hash_one((mount, ino)) as usize & (self.buckets.len() - 1)
    }

    /// The node that is this file, if the guest knows it.
    pub(super) fn find(&self, identity: Identity) -> Option<u32> {
        let mount = self.mounts.known(identity)?;
        let mut at = self.buckets[self.bucket(mount, identity.ino)];
        while let Some(node) = self.nodes.get(at as usize) {
            if (node.mount, node.ino, node.kind) == (mount, identity.ino, (identity.kind >> 12) as u8) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    fn insert(&mut self, identity: Identity, mount: u16, parent: u32, name: &CStr) -> Result<u32, Errno> {
        if self.used >= self.most() {
            return Err(Errno::ENFILE);
        }
        let (index, generation) = match self.nodes.get(self.free as usize) {
            Some(old) => {
                let generation = old.generation.wrapping_add(1);
                self.newest = self.newest.max(generation);
                (std::mem::replace(&mut self.free, old.next), generation)
            }
            None => {
                self.nodes.push(Node::free(self.first));
                (self.nodes.len() as u32 - 1, self.first)
            }
        };
        self.put(id(index, generation), identity, mount, parent, name);
        Ok(index)
    }

    /// How many nodes there may be.
    pub(super) fn most(&self) -> usize {
        self.limits.nodes.clamp(1, NONE as usize - 1)
    }

    /// Puts a node where its number says, which is free.
    pub(super) fn put(&mut self, node: u64, identity: Identity, mount: u16, parent: u32, name: &CStr) {
        if self.used >= self.buckets.len() {
            self.grow();
        }
        let (index, generation) = parts(node);
        let bucket = self.bucket(mount, identity.ino);
        self.nodes[index as usize] = Node {
            ino: identity.ino,
            name: name.into(),
            parent,
            next: std::mem::replace(&mut self.buckets[bucket], index),
            mount,
            kind: (identity.kind >> 12) as u8,
            free: false,
            ..Node::free(generation)
        };
        self.used += 1;
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.children += 1;
        }
    }

    /// Makes as many more buckets as there are.
    fn grow(&mut self) {
        self.buckets = vec![NONE; self.buckets.len() * 2];
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if !node.free {
                let bucket = self.bucket(node.mount, node.ino);
                self.nodes[index].next = std::mem::replace(&mut self.buckets[bucket], index as u32);
            }
        }
    }

    /// The index of a node that the guest names.
    pub(super) fn index(&self, node: u64) -> Result<u32, Errno> {
        let (index, generation) = parts(node);
        match self.nodes.get(index as usize) {
            Some(it) if !it.free && it.generation == generation => Ok(index),
            _ => Err(Errno::ESTALE),
        }
    }

    pub(super) fn id(&self, index: u32) -> u64 {
        id(index, self.nodes[index as usize].generation)
    }

    /// Counts one more lookup of a file, seen in `parent` as `name`; returns its node, and its inode number for the guest.
    ///
    /// # Errors
    /// `parent` is no node (ESTALE); there are too many (ENFILE).
    pub fn found(&mut self, parent: u64, name: &CStr, identity: Identity) -> Result<(u64, u64), Errno> {
        let parent = self.index(parent)?;
        let mount = self.mounts.number(identity).ok_or(Errno::ENFILE)?;
        let index = match self.find(identity) {
            Some(index) => {
                self.moved(index, parent, name);
                index
            }
            None => self.insert(identity, mount, parent, name)?,
        };
        let node = &mut self.nodes[index as usize];
        node.lookups = node.lookups.saturating_add(1);
        Ok((self.id(index), self.mounts.visible(mount, identity.ino)))
    }

    /// The guest forgets `count` lookups of a node.
    pub fn forget(&mut self, node: u64, count: u64) {
        if let Ok(index) = self.index(node)
            && index != ROOT
        {
            let node = &mut self.nodes[index as usize];
            node.lookups = node.lookups.saturating_sub(count);
            self.sweep(index);
        }
    }

    /// Frees a node that is not used any more, and then, if that was the last that used it, its parent.
    pub(super) fn sweep(&mut self, mut index: u32) {
        while let Some(node) = self.nodes.get(index as usize) {
            if index == ROOT || node.lookups > 0 || node.children > 0 || node.handles != NONE || node.free {
                return;
            }
            self.unchain(index);
            self.drop_cached(index);
            let node = &mut self.nodes[index as usize];
            node.free = true;
            node.name = Box::default();
            node.next = std::mem::replace(&mut self.free, index);
            self.used -= 1;
            index = std::mem::replace(&mut node.parent, NONE);
            if let Some(parent) = self.nodes.get_mut(index as usize) {
                parent.children -= 1;
            }
        }
    }

    /// Takes a node out of its bucket.
    fn unchain(&mut self, index: u32) {
        let node = &self.nodes[index as usize];
        let (bucket, next) = (self.bucket(node.mount, node.ino), node.next);
        let mut at = self.buckets[bucket];
        if at == index {
            self.buckets[bucket] = next;
            return;
        }
        while let Some(node) = self.nodes.get_mut(at as usize) {
            if node.next == index {
                node.next = next;
                return;
            }
            at = node.next;
        }
    }

    /// A file that was moved, or seen under a new name.
    fn moved(&mut self, index: u32, parent: u32, name: &CStr) {
        let node = &self.nodes[index as usize];
        if index == ROOT || index == parent || (node.parent == parent && *node.name == *name) {
            return;
        }
        if node.parent != parent {
            if node.children > 0 && self.is_within(parent, index) {
                // The host moves directories meanwhile. Where that one is now is seen at its next lookup.
                self.set_parent(parent, NONE);
            }
            self.set_parent(index, parent);
        }
        self.nodes[index as usize].name = name.into();
    }

    fn set_parent(&mut self, index: u32, parent: u32) {
        let old = std::mem::replace(&mut self.nodes[index as usize].parent, parent);
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.children += 1;
        }
        if let Some(node) = self.nodes.get_mut(old as usize) {
            node.children -= 1;
            self.sweep(old);
        }
    }

    /// Whether the way up from `index` leads to `above`, or is too long to know.
    fn is_within(&self, mut index: u32, above: u32) -> bool {
        for _ in 0..DEEPEST {
            if index == above {
                return true;
            }
            match self.nodes.get(index as usize) {
                Some(node) => index = node.parent,
                None => return false,
            }
        }
        true
    }

    /// A file was moved to `name` in `parent`: what the guest knows below it moves along.
    pub fn renamed(&mut self, parent: u64, name: &CStr, identity: Identity) {
        if let (Ok(parent), Some(index)) = (self.index(parent), self.find(identity)) {
            self.moved(index, parent, name);
        }
    }
}
