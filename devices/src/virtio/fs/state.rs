//! What the guest knows of a share, saved and loaded: the nodes that it has looked up, and what it has open.
//!
//! A node is saved by its name in its parent, as names are what files can be found by in another process: in the loaded
//! device it is the file that has this name then, or stale (ESTALE) if there is none of its type. A handle is opened again
//! when it is used, like one whose descriptor was given back (`fd_budget`). So a file that is open and has no name cannot
//! be saved, and neither can a request that waits for a lease.

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString};
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::fd_lookup::NodeFd;
use super::handle_table::Open;
use super::host::{self, Identity};
use super::inode_table::{InodeTable, NONE, Node, ROOT, parts};
use super::server::Server;
use super::wire::Args;
use crate::device::{Error, State, base64_bytes, check};

/// The guest-visible state of a share.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    /// Whether both sides have agreed (`FUSE_INIT`).
    session: bool,
    long_xattr: bool,
    /// The largest generation of a node's number so far, and of a handle's.
    node_generation: u32,
    handle_generation: u32,
    nodes: Vec<SavedNode>,
    handles: Vec<SavedHandle>,
}

/// A node other than the root.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedNode {
    pub id: u64,
    /// The node of the directory that it is in; 0 if that is not known.
    pub parent: u64,
    /// The name there; empty if it has none.
    #[serde(with = "base64_bytes")]
    pub name: Vec<u8>,
    /// The type, `S_IFMT` shifted right by 12.
    pub kind: u8,
    pub lookups: u64,
}

/// An open file or directory.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedHandle {
    pub number: u64,
    /// The node's index.
    pub node: u32,
    pub directory: bool,
    /// What it may be used for (`O_ACCMODE`).
    pub access: i32,
}

impl SavedNode {
    /// The name with its zero byte, if it is one name in a directory.
    fn name(&self) -> Option<CString> {
        let name = CString::new(self.name.as_slice()).ok()?;
        Args(name.as_bytes_with_nul()).name().is_ok().then_some(name)
    }
}

impl Server {
    /// What the guest knows. No request is being served.
    ///
    /// # Errors
    /// A file is open that has no name.
    pub fn save(&self) -> Result<State, Error> {
        let (handles, handle_generation) = self.table().handles.save();
        for (handle, open) in &handles {
            let node = self.table().id(handle.node);
            // Others were looked at when they gave their descriptors back.
            if open.descriptor().is_some() && self.can_reopen(node, open).is_err() {
                return Err(Error::Unsaveable(self.nameless(node).into()));
            }
        }
        let (nodes, node_generation) = self.table().save();
        Ok(State::of(&Saved {
            session: self.session.load(Ordering::SeqCst),
            long_xattr: self.long_xattr.load(Ordering::SeqCst),
            node_generation,
            handle_generation,
            nodes,
            handles: handles.into_iter().map(|(handle, _)| handle).collect(),
        }))
    }

    fn nameless(&self, node: u64) -> String {
        let name = self.table().name(node);
        format!(
            "the guest has {name:?} of share {:?} open, and no name leads to it any more; have the guest close it first",
            self.share.tag
        )
    }

    /// Takes over a state that is not checked yet: no name in it leads out of the share.
    ///
    /// # Errors
    /// It is no state that such a share can have.
    pub fn load(&self, state: State) -> Result<(), Error> {
        let saved: Saved = state.take()?;
        self.clear();
        let mut children: HashMap<u64, Vec<SavedNode>> = HashMap::new();
        let ids = saved.nodes.iter().map(|node| node.id);
        check(self.table().begin_restore(ids, saved.node_generation), "node")?;
        self.table().handles.begin_restore(saved.handle_generation);
        for node in saved.nodes {
            check(u32::from(node.kind) <= libc::S_IFMT >> 12, "type of a node")?;
            children.entry(node.parent).or_default().push(node);
        }
        self.find_again(children);
        for handle in &saved.handles {
            self.open_again(handle)?;
        }
        self.table().end_restore();
        self.long_xattr.store(saved.long_xattr, Ordering::SeqCst);
        self.session.store(saved.session, Ordering::SeqCst);
        Ok(())
    }

    /// Finds nodes, from the root down, by their parents and names. Those that are not found are none.
    fn find_again(&self, mut children: HashMap<u64, Vec<SavedNode>>) {
        let mut folders = vec![self.table().id(ROOT)];
        while let Some(parent) = folders.pop() {
            let Some(nodes) = children.remove(&parent) else { continue };
            let Ok(folder) = self.folder(parent) else { continue };
            for node in nodes {
                if self.find_one(&folder, &node).is_some() {
                    folders.push(node.id);
                }
            }
        }
    }

    fn find_one(&self, folder: &NodeFd, node: &SavedNode) -> Option<()> {
        let name = node.name()?;
        let stat = host::stat_at(folder, &name).ok()?;
        let same = stat.identity.kind == u32::from(node.kind) << 12;
        same.then(|| self.table().restore(node, &name, stat.identity).ok()).flatten()
    }

    /// Opens a handle, of a node that was found; one of any other node is none.
    fn open_again(&self, handle: &SavedHandle) -> Result<(), Error> {
        let access = [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR].contains(&handle.access);
        check(access && (self.share.writable || handle.access == libc::O_RDONLY), "access of a handle")?;
        let open = if handle.directory { Open::directory() } else { Open::file(handle.access) };
        check(!handle.directory || handle.access == libc::O_RDONLY, "access of a handle")?;
        let kind = if handle.directory { libc::S_IFDIR } else { libc::S_IFREG };
        check(self.table().restore_handle(handle, open, kind), "handle")
    }
}

impl InodeTable {
    /// The name that a node was seen by last.
    fn name(&self, node: u64) -> CString {
        self.index(node).map_or(CString::default(), |index| (*self.nodes[index as usize].name).into())
    }

    /// All nodes but the root, and the largest generation so far.
    fn save(&self) -> (Vec<SavedNode>, u32) {
        let used = (0..).zip(&self.nodes).filter(|(index, node)| *index != ROOT && !node.free);
        let saved = used.map(|(index, node)| SavedNode {
            id: self.id(index),
            parent: if node.parent == NONE { 0 } else { self.id(node.parent) },
            name: node.name.to_bytes().into(),
            kind: node.kind,
            lookups: node.lookups,
        });
        (saved.collect(), self.newest)
    }

    /// Begins to restore nodes of these numbers, of which none had a larger generation, in a table that has the root alone;
    /// answers whether they can be the nodes of one table.
    fn begin_restore(&mut self, ids: impl Iterator<Item = u64>, newest: u32) -> bool {
        let mut seen = HashSet::from([ROOT]);
        for (index, _) in ids.map(parts) {
            if index as usize >= self.most() || !seen.insert(index) {
                return false;
            }
        }
        (self.first, self.newest) = (newest, newest);
        let end = seen.into_iter().max().unwrap_or(ROOT) as usize + 1;
        self.nodes.resize_with(end, || Node::free(newest));
        true
    }

    /// Puts a node where its number says: it is `identity`.
    ///
    /// # Errors
    /// Its parent is no node (ESTALE); there are too many mounts (ENFILE).
    fn restore(&mut self, saved: &SavedNode, name: &CStr, identity: Identity) -> Result<(), Errno> {
        let parent = self.index(saved.parent)?;
        let mount = self.mounts.number(identity).ok_or(Errno::ENFILE)?;
        self.put(saved.id, identity, mount, parent, name);
        self.nodes[parts(saved.id).0 as usize].lookups = saved.lookups;
        Ok(())
    }

    /// Opens a handle of a node; nothing happens if there is no such node. Answers whether there can be such a handle.
    fn restore_handle(&mut self, saved: &SavedHandle, open: Open, kind: u32) -> bool {
        match self.nodes.get_mut(saved.node as usize) {
            Some(node) if !node.free && u32::from(node.kind) << 12 == kind => {
                self.handles.restore(saved, &mut node.handles, open)
            }
            _ => true,
        }
    }

    /// All nodes and handles are restored: what is between them is free.
    fn end_restore(&mut self) {
        for (index, node) in (0..).zip(&mut self.nodes).filter(|(_, node)| node.free) {
            node.next = std::mem::replace(&mut self.free, index);
        }
        self.handles.end_restore();
    }
}
