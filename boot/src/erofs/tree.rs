//! The tree of files of an image: inodes, and directories that name them.

use std::mem;

use super::directory::Directory;
use super::inode::Inode;
use super::{Content, Error, Extent, Kind, Metadata, NAME_MAX};

/// What an entry takes in memory besides its name: its place in a sorted map, and the name's own allocation.
const ENTRY_COST: u64 = 64;
/// What a directory's first entry takes in addition, as maps allocate for several.
const DIRECTORY_COST: u64 = 256;
/// What an inode takes.
const INODE_COST: u64 = mem::size_of::<Option<Inode>>() as u64;

/// The number of an inode in its tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct InodeId(u32);

impl InodeId {
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// What a directory has under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The inode.
    pub inode: InodeId,
    /// What the tree's maker marks the name with; the image does not have it.
    pub mark: u32,
}

/// A tree of files, with a bound on the memory that it takes.
#[derive(Debug)]
pub struct Tree {
    inodes: Vec<Option<Inode>>,
    free: Vec<InodeId>,
    memory: u64,
    most_memory: u64,
}

impl Tree {
    /// The root directory.
    pub const ROOT: InodeId = InodeId(0);

    /// A root directory without entries. What the tree takes in memory stays below about `most_memory` bytes.
    pub fn new(root: Metadata, most_memory: u64) -> Self {
        let root = Inode { metadata: root, kind: Kind::directory(), links: 1 };
        Self { inodes: vec![Some(root)], free: Vec::new(), memory: INODE_COST, most_memory }
    }

    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.inodes.len() - self.free.len()
    }

    /// Whether there is nothing but the root directory.
    pub fn is_empty(&self) -> bool {
        self.len() == 1
    }

    pub(super) fn inode(&self, id: InodeId) -> &Inode {
        self.inodes[id.index()].as_ref().expect("who has a number removes no inode before using it")
    }

    fn inode_mut(&mut self, id: InodeId) -> &mut Inode {
        self.inodes[id.index()].as_mut().expect("who has a number removes no inode before using it")
    }

    /// The bound on inodes' numbers.
    pub(super) fn end(&self) -> usize {
        self.inodes.len()
    }

    /// What an inode is.
    pub fn kind(&self, id: InodeId) -> &Kind {
        &self.inode(id).kind
    }

    /// Owner, mode, time and attributes of an inode.
    pub fn metadata(&self, id: InodeId) -> &Metadata {
        &self.inode(id).metadata
    }

    /// Whether an inode is a directory.
    pub fn is_directory(&self, id: InodeId) -> bool {
        self.directory(id).is_some()
    }

    /// The directory that this inode is, if it is one.
    pub fn directory(&self, id: InodeId) -> Option<&Directory> {
        match self.kind(id) {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    fn directory_mut(&mut self, id: InodeId) -> Option<&mut Directory> {
        match &mut self.inode_mut(id).kind {
            Kind::Directory(directory) => Some(directory),
            _ => None,
        }
    }

    /// The directory that a directory is in; of the root, itself; of no directory, the root.
    pub fn parent(&self, id: InodeId) -> InodeId {
        self.directory(id).map_or(Self::ROOT, |directory| directory.parent)
    }

    /// What a directory has under a name; nothing in what is no directory.
    pub fn entry(&self, directory: InodeId, name: &[u8]) -> Option<Entry> {
        self.directory(directory)?.entries.get(name).copied()
    }

    /// Marks a name, if the directory has it.
    pub fn mark(&mut self, directory: InodeId, name: &[u8], mark: u32) {
        let entries = self.directory_mut(directory).map(|directory| &mut directory.entries);
        if let Some(entry) = entries.and_then(|entries| entries.get_mut(name)) {
            entry.mark = mark;
        }
    }

    /// Gives an inode another owner, mode, time and attributes.
    ///
    /// # Errors
    /// [`Error::Memory`]
    pub fn set_metadata(&mut self, id: InodeId, metadata: Metadata) -> Result<(), Error> {
        let before = self.metadata(id).xattrs.bytes().len() as u64;
        self.take(metadata.xattrs.bytes().len() as u64)?;
        self.give_back(before);
        self.inode_mut(id).metadata = metadata;
        Ok(())
    }

    /// Adds a file under a name that is not there yet.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Twice`], [`Error::Link`], [`Error::Memory`]
    pub fn add(
        &mut self,
        directory: InodeId,
        name: &[u8],
        mark: u32,
        metadata: Metadata,
        mut kind: Kind,
    ) -> Result<InodeId, Error> {
        if let Kind::Directory(new) = &mut kind {
            new.parent = directory;
        }
        let inode = Inode { metadata, kind, links: 0 };
        self.take(inode_cost(&inode))?;
        let id = match self.free.pop() {
            Some(id) => id,
            None => {
                self.inodes.push(None);
                let last = u32::try_from(self.inodes.len() - 1);
                InodeId(last.map_err(|_| Error::Memory(self.most_memory))?)
            }
        };
        self.inodes[id.index()] = Some(inode);
        if let Err(error) = self.name(directory, name, Entry { inode: id, mark }) {
            self.drop_inode(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Gives a file that is no directory another name, which is not there yet.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Twice`], [`Error::Link`], [`Error::Memory`]
    pub fn link(&mut self, directory: InodeId, name: &[u8], mark: u32, inode: InodeId) -> Result<(), Error> {
        if self.is_directory(inode) {
            return Err(Error::Link(shown(name)));
        }
        self.name(directory, name, Entry { inode, mark })
    }

    /// Removes a name with all that is below it, if it is there. Returns the blocks that no file has any more.
    pub fn remove(&mut self, directory: InodeId, name: &[u8]) -> Vec<Extent> {
        let mut unused = Vec::new();
        let Some(entry) = self.entry(directory, name) else { return unused };
        let is_directory = self.is_directory(entry.inode);
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.remove(name);
            directory.subdirectories -= u32::from(is_directory);
        }
        let mut gone = vec![(entry.inode, name.len())];
        while let Some((id, name_len)) = gone.pop() {
            self.give_back(ENTRY_COST + name_len as u64);
            let inode = self.inode_mut(id);
            inode.links -= 1;
            if inode.links > 0 {
                continue;
            }
            match self.drop_inode(id).map(|inode| inode.kind) {
                Some(Kind::Directory(directory)) => {
                    gone.extend(directory.entries.into_iter().map(|(name, entry)| (entry.inode, name.len())));
                }
                Some(Kind::File(Content::Blocks(extent))) => unused.push(extent),
                _ => {}
            }
        }
        unused
    }

    fn name(&mut self, directory: InodeId, name: &[u8], entry: Entry) -> Result<(), Error> {
        if !is_name(name) {
            return Err(Error::Name(shown(name)));
        }
        if self.entry(directory, name).is_some() {
            return Err(Error::Twice(shown(name)));
        }
        let is_directory = self.is_directory(entry.inode);
        let links = self.inode(entry.inode).links.checked_add(1);
        let (Some(links), true) = (links, self.is_directory(directory)) else {
            return Err(Error::Link(shown(name)));
        };
        self.take(ENTRY_COST + name.len() as u64)?;
        if let Some(directory) = self.directory_mut(directory) {
            directory.entries.insert(name.into(), entry);
            directory.subdirectories += u32::from(is_directory);
        }
        self.inode_mut(entry.inode).links = links;
        Ok(())
    }

    fn drop_inode(&mut self, id: InodeId) -> Option<Inode> {
        let inode = self.inodes[id.index()].take()?;
        self.free.push(id);
        self.give_back(inode_cost(&inode));
        Some(inode)
    }

    fn take(&mut self, bytes: u64) -> Result<(), Error> {
        let memory = self.memory.saturating_add(bytes);
        if memory > self.most_memory {
            return Err(Error::Memory(self.most_memory));
        }
        self.memory = memory;
        Ok(())
    }

    fn give_back(&mut self, bytes: u64) {
        self.memory = self.memory.saturating_sub(bytes);
    }
}

/// What an inode takes in memory, without its names.
fn inode_cost(inode: &Inode) -> u64 {
    let kind = match &inode.kind {
        Kind::Directory(_) => DIRECTORY_COST,
        Kind::File(Content::Inline(bytes)) | Kind::Symlink(bytes) => bytes.len() as u64,
        _ => 0,
    };
    INODE_COST + inode.metadata.xattrs.bytes().len() as u64 + kind
}

/// Whether an entry can be called that, besides `.` and `..`, which each directory has.
fn is_name(name: &[u8]) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
        && !matches!(name, b"." | b"..")
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}
