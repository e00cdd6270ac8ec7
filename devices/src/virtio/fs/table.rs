//! The nodes that the guest knows: what it has looked up and not forgotten.
//!
//! A node is about 100 bytes and no descriptor: which file it is, and under which name in which other node it was seen
//! last. From that it is opened again when something is to be done with it, and found to be the same file or stale
//! (ESTALE, upon which a Linux guest looks its path up anew). Descriptors of directories, and of files whose name is gone,
//! are kept in a cache of limited size ([`super::kept`]); an open file keeps its own ([`super::opened`]).

use std::collections::hash_map::RandomState;
use std::ffi::{CStr, CString};
use std::hash::BuildHasher;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::host::Identity;
use super::kept::Kept;
use super::opened::{Open, Opened};
use super::places::Places;

/// No node, no descriptor, no handle.
pub const NONE: u32 = u32::MAX;
/// The index of the root.
const ROOT: u32 = 0;
/// How deep a node may be: a path of Linux's longest has not more names.
const DEEPEST: usize = 2048;

/// How much a share may use of the host.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Descriptors, of open files and of kept directories.
    pub descriptors: usize,
    /// Nodes that the guest may know, at about 100 bytes each.
    pub nodes: usize,
}

/// One node.
struct Node {
    ino: u64,
    /// How often the guest was told of it and has not forgotten.
    lookups: u64,
    name: Box<CStr>,
    parent: u32,
    /// The next of the same hash.
    next: u32,
    /// Nodes whose parent it is.
    children: u32,
    /// Its first open handle.
    opened: u32,
    /// Its kept descriptor.
    kept: u32,
    generation: u32,
    place: u16,
    /// The type, `S_IFMT` shifted right by 12.
    kind: u8,
    /// Nobody uses it: `next` is the next such.
    free: bool,
}

/// A step from a directory to a node in it.
pub struct Step {
    /// The node.
    pub node: u64,
    /// Its name.
    pub name: CString,
    /// What it must be.
    pub identity: Identity,
}

/// The nodes.
pub struct Table {
    nodes: Vec<Node>,
    /// The first node of each hash.
    buckets: Vec<u32>,
    free: u32,
    used: usize,
    most: usize,
    hasher: RandomState,
    /// Where nodes are.
    pub places: Places,
    kept: Kept,
    opened: Opened,
}

/// The number by which the guest knows the node at `index`: one that is used again is another.
fn id(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | (u64::from(index) + 1)
}

impl Table {
    /// A table with the root alone, which is `identity` and open as `fd`.
    pub fn new(identity: Identity, fd: Arc<OwnedFd>, limits: Limits) -> Self {
        let kept = limits.descriptors / 2;
        let mut it = Self {
            nodes: Vec::new(),
            buckets: vec![NONE; 64],
            free: NONE,
            used: 0,
            most: limits.nodes.clamp(1, NONE as usize - 1),
            hasher: RandomState::new(),
            places: Places::default(),
            kept: Kept::new(fd, kept),
            opened: Opened::new(limits.descriptors - kept),
        };
        let place = it.places.number(identity).expect("the first place has a number");
        let root = it.insert(identity, place, NONE, c"").expect("a new table has room for the root");
        it.nodes[root as usize].lookups = 1;
        it
    }

    fn bucket(&self, place: u16, ino: u64) -> usize {
        self.hasher.hash_one((place, ino)) as usize & (self.buckets.len() - 1)
    }

    /// The node that is this file, if the guest knows it.
    fn find(&self, identity: Identity) -> Option<u32> {
        let place = self.places.known(identity)?;
        let mut at = self.buckets[self.bucket(place, identity.ino)];
        while let Some(node) = self.nodes.get(at as usize) {
            if (node.place, node.ino, node.kind) == (place, identity.ino, (identity.kind >> 12) as u8) {
                return Some(at);
            }
            at = node.next;
        }
        None
    }

    fn insert(&mut self, identity: Identity, place: u16, parent: u32, name: &CStr) -> Result<u32, Errno> {
        if self.used >= self.most {
            return Err(Errno::ENFILE);
        }
        if self.used >= self.buckets.len() {
            self.grow();
        }
        let bucket = self.bucket(place, identity.ino);
        let mut node = Node {
            ino: identity.ino,
            lookups: 0,
            name: name.into(),
            parent,
            next: self.buckets[bucket],
            children: 0,
            opened: NONE,
            kept: NONE,
            generation: 0,
            place,
            kind: (identity.kind >> 12) as u8,
            free: false,
        };
        let index = match self.nodes.get_mut(self.free as usize) {
            Some(old) => {
                node.generation = old.generation.wrapping_add(1);
                let next = old.next;
                *old = node;
                std::mem::replace(&mut self.free, next)
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as u32 - 1
            }
        };
        self.buckets[bucket] = index;
        self.used += 1;
        if let Some(parent) = self.nodes.get_mut(parent as usize) {
            parent.children += 1;
        }
        Ok(index)
    }

    /// Makes as many more buckets as there are.
    fn grow(&mut self) {
        self.buckets = vec![NONE; self.buckets.len() * 2];
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            if !node.free {
                let bucket = self.bucket(node.place, node.ino);
                self.nodes[index].next = std::mem::replace(&mut self.buckets[bucket], index as u32);
            }
        }
    }

    /// The index of a node that the guest names.
    fn index(&self, node: u64) -> Result<u32, Errno> {
        let index = (node as u32).wrapping_sub(1);
        match self.nodes.get(index as usize) {
            Some(it) if !it.free && id(index, it.generation) == node => Ok(index),
            _ => Err(Errno::ESTALE),
        }
    }

    fn id(&self, index: u32) -> u64 {
        id(index, self.nodes[index as usize].generation)
    }

    /// Counts one more lookup of a file, seen in `parent` as `name`; returns its node, and its inode number for the guest.
    ///
    /// # Errors
    /// `parent` is no node (ESTALE); there are too many (ENFILE).
    pub fn found(&mut self, parent: u64, name: &CStr, identity: Identity) -> Result<(u64, u64), Errno> {
        let parent = self.index(parent)?;
        let place = self.places.number(identity).ok_or(Errno::ENFILE)?;
        let index = match self.find(identity) {
            Some(index) => {
                self.moved(index, parent, name);
                index
            }
            None => self.insert(identity, place, parent, name)?,
        };
        let node = &mut self.nodes[index as usize];
        node.lookups = node.lookups.saturating_add(1);
        Ok((self.id(index), self.places.visible(place, identity.ino)))
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

    /// Frees a node that nobody uses any more, and then, if that was the last that used it, its parent.
    fn sweep(&mut self, mut index: u32) {
        while let Some(node) = self.nodes.get(index as usize) {
            if index == ROOT || node.lookups > 0 || node.children > 0 || node.opened != NONE || node.free {
                return;
            }
            self.unchain(index);
            self.drop_kept(index);
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
        let (bucket, next) = (self.bucket(node.place, node.ino), node.next);
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

    /// Whether the way up from `index` leads to `above`, or is too long to tell.
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

    fn identity_at(&self, index: u32) -> Identity {
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
            return Some(Held::Kept(self.kept.get(node.kept)));
        }
        self.opened.first(node.opened).map(Held::Open)
    }

    /// The nearest descriptor on the way up from a node, and the steps from there down to it: none if it is the node's
    /// own.
    ///
    /// # Errors
    /// It is no node, or nobody knows where it is (ESTALE); it is too deep (ENAMETOOLONG).
    pub fn route(&mut self, node: u64) -> Result<(Held, Vec<Step>), Errno> {
        let mut at = self.index(node)?;
        let mut steps = Vec::new();
        loop {
            if let Some(held) = self.descriptor(at) {
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
    pub fn keep_gone(&mut self, identity: Identity, fd: OwnedFd) {
        if let Some(index) = self.find(identity) {
            self.keep(self.id(index), identity, Arc::new(fd), true);
        }
    }

    fn drop_kept(&mut self, index: u32) {
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
    pub fn open(&mut self, node: u64, open: Open) -> Result<u64, Errno> {
        let index = self.index(node)?;
        self.opened.open(index, &mut self.nodes[index as usize].opened, Arc::new(open))
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

    /// What handle `number` has open.
    ///
    /// # Errors
    /// There is none (EBADF).
    pub fn handle(&self, number: u64) -> Result<Arc<Open>, Errno> {
        self.opened.get(number)
    }

    /// Closes handle `number`; returns what it had open, as closing that may take its time.
    pub fn release(&mut self, number: u64) -> Option<Arc<Open>> {
        let index = self.opened.node(number)?;
        let open = self.opened.close(number, &mut self.nodes[index as usize].opened);
        self.sweep(index);
        open
    }
}

/// A descriptor that a node has.
#[derive(Clone)]
pub enum Held {
    /// One that is kept, with `O_PATH`.
    Kept(Arc<OwnedFd>),
    /// That of an open file.
    Open(Arc<Open>),
}

impl std::os::fd::AsFd for Held {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        match self {
            Self::Kept(fd) => fd.as_fd(),
            Self::Open(open) => open.file.as_fd(),
        }
    }
}
