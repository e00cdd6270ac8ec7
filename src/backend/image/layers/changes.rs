//! Layers' changes, applied to the tree.
//!
//! Each name is marked with the last layer that brought it or something below it, so that a whiteout hides what lower
//! layers have, wherever in its own layer it is.

use std::io::Read;
use std::mem;

use anyhow::{Context, Result, bail, ensure};
use boot::erofs::{self, Content, Device, Extent, InodeId, Kind, Metadata, Time, Tree, Writer, Xattrs};

use super::path::{self, Step};
use super::tar::{Attributes, Entry, EntryType};
use super::{Limits, shown};

/// What the names of whiteouts begin with.
const WHITEOUT: &[u8] = b".wh.";
/// What follows in the name of an opaque mark.
const OPAQUE: &[u8] = b".wh..opq";
/// The mode of a directory that no layer says anything about.
const DIRECTORY_MODE: u16 = 0o755;
/// Linux has no other mode of symbolic links.
const SYMLINK_MODE: u16 = 0o777;
/// What belongs to the machine where a layer was made (umoci's list).
const FORBIDDEN: [&[u8]; 3] = [b"security.selinux", b"system.nfs4_acl", b"trusted.overlay.opaque"];
/// A file up to this size is put behind its inode, where reading it reads nothing else.
const INLINE_MAX: u64 = 1024;
/// As long as all of them are no larger than this, as they are in memory until the end.
const INLINE_TOTAL: u64 = 8 << 20;
/// How much of a file's data is read at once.
const BUFFER: usize = 128 << 10;

/// The tree in the making, and the image that it is for.
pub(super) struct Changes<'a> {
    tree: Tree,
    writer: Writer<'a>,
    /// The number of the layer, from 1 on.
    layer: u32,
    unused: Vec<Extent>,
    entries: u64,
    most_entries: u64,
    steps: u64,
    inline: u64,
    dropped_xattrs: u64,
    buffer: Vec<u8>,
}

impl<'a> Changes<'a> {
    /// An empty root directory.
    pub(super) fn new(writer: Writer<'a>, limits: &Limits) -> Self {
        Self {
            tree: Tree::new(directory(), limits.memory),
            writer,
            layer: 0,
            unused: Vec::new(),
            entries: 0,
            most_entries: limits.entries,
            steps: limits.steps,
            inline: INLINE_TOTAL,
            dropped_xattrs: 0,
            buffer: vec![0; BUFFER],
        }
    }

    /// How many entries were applied.
    pub(super) fn entries(&self) -> u64 {
        self.entries
    }

    /// How many extended attributes were dropped.
    pub(super) fn dropped_xattrs(&self) -> u64 {
        self.dropped_xattrs
    }

    /// What follows is of the next layer.
    pub(super) fn begin_layer(&mut self) {
        self.layer += 1;
    }

    /// Ends a layer. Returns which blocks of the image were hidden by it, and nothing waits to be written to.
    pub(super) fn end_layer(&mut self) -> Result<Vec<Extent>, erofs::Error> {
        self.writer.flush()?;
        Ok(mem::take(&mut self.unused))
    }

    /// Makes the image.
    pub(super) fn finish(self, uuid: [u8; 16]) -> Result<erofs::Summary, erofs::Error> {
        self.writer.finish(&self.tree, uuid)
    }

    /// Applies an entry, whose data `data` has.
    ///
    /// # Errors
    /// It makes no sense, goes beyond a limit, or its data cannot be read or written.
    pub(super) fn apply(&mut self, mut entry: Entry, data: &mut impl Read) -> Result<()> {
        let path = mem::take(&mut entry.path);
        self.apply_at(&path, entry, data).with_context(|| format!("entry '{}'", shown(&path)))
    }

    fn apply_at(&mut self, path: &[u8], entry: Entry, data: &mut impl Read) -> Result<()> {
        self.entries += 1;
        ensure!(self.entries <= self.most_entries, "the layers have more than {} entries", self.most_entries);
        let parts = path::parts(path)?;
        let Some((name, above)) = parts.split_last() else {
            ensure!(entry.entry_type == EntryType::Directory, "the root directory is replaced");
            let metadata = self.metadata(&entry)?;
            return Ok(self.tree.set_metadata(Tree::ROOT, metadata)?);
        };
        let mut way = path::resolve(&self.tree, above, &mut self.steps)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(&way, hidden);
        }
        let directory = self.make_way(&mut way)?;
        let existing = self.tree.entry(directory, name).map(|entry| entry.inode);
        let is_directory = |inode: &InodeId| self.tree.is_directory(*inode);
        if entry.entry_type == EntryType::Directory
            && let Some(existing) = existing.filter(is_directory)
        {
            let metadata = self.metadata(&entry)?;
            self.tree.set_metadata(existing, metadata)?;
            self.tree.mark(directory, name, self.layer);
            return Ok(());
        }
        self.remove(directory, name);
        if entry.entry_type == EntryType::HardLink {
            return self.hard_link(directory, name, &entry.target);
        }
        let kind = self.kind(&entry, data)?;
        let metadata = self.metadata(&entry)?;
        self.tree.add(directory, name, self.layer, metadata, kind)?;
        Ok(())
    }

    /// Makes directories that are missing, and marks all. Returns the last.
    fn make_way(&mut self, way: &mut [Step]) -> Result<InodeId> {
        let mut parent = Tree::ROOT;
        for step in way {
            parent = match step.inode {
                Some(inode) => {
                    ensure!(self.tree.is_directory(inode), "'{}' is no directory", shown(&step.name));
                    self.tree.mark(parent, &step.name, self.layer);
                    inode
                }
                None => self.tree.add(parent, &step.name, self.layer, directory(), Kind::directory())?,
            };
        }
        Ok(parent)
    }

    fn hard_link(&mut self, directory: InodeId, name: &[u8], target: &[u8]) -> Result<()> {
        let parts = path::parts(target).context("the file that it links to")?;
        let Some((last, above)) = parts.split_last() else { bail!("it links to the root directory") };
        let way = path::resolve(&self.tree, above, &mut self.steps)?;
        let found = path::end(&way).and_then(|directory| self.tree.entry(directory, last));
        let found = found.with_context(|| format!("it links to '{}', which is not there", shown(target)))?;
        ensure!(!self.tree.is_directory(found.inode), "it links to '{}', a directory", shown(target));
        self.tree.link(directory, name, self.layer, found.inode)?;
        Ok(())
    }

    /// Hides what lower layers have: everything in a directory, or one name with all that is below it.
    fn whiteout(&mut self, way: &[Step], hidden: &[u8]) -> Result<()> {
        ensure!(!matches!(hidden, b"" | b"." | b".."), "it hides nothing that can be");
        let Some(directory) = path::end(way) else { return Ok(()) };
        if hidden == OPAQUE {
            return self.hide_in(directory);
        }
        match self.tree.entry(directory, hidden) {
            Some(entry) if entry.mark == self.layer => self.hide_in(entry.inode),
            Some(_) => {
                self.remove(directory, hidden);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Removes what is below a directory and is not of this layer.
    fn hide_in(&mut self, directory: InodeId) -> Result<()> {
        let mut waiting = vec![directory];
        while let Some(inode) = waiting.pop() {
            let mut hidden: Vec<Box<[u8]>> = Vec::new();
            for (name, entry) in self.tree.directory(inode).into_iter().flat_map(|it| it.entries()) {
                path::take(&mut self.steps, 1)?;
                match entry.mark == self.layer {
                    true => waiting.push(entry.inode),
                    false => hidden.push(name.into()),
                }
            }
            for name in hidden {
                self.remove(inode, &name);
            }
        }
        Ok(())
    }

    fn remove(&mut self, directory: InodeId, name: &[u8]) {
        let unused = self.tree.remove(directory, name);
        self.unused.extend(unused.iter().filter(|extent| extent.size > 0));
    }

    /// What an entry becomes; a file's data is read.
    fn kind(&mut self, entry: &Entry, data: &mut impl Read) -> Result<Kind> {
        let (major, minor) = entry.device;
        Ok(match entry.entry_type {
            EntryType::File => Kind::File(self.content(entry, data)?),
            EntryType::Directory => Kind::directory(),
            EntryType::Symlink => Kind::symlink(&entry.target)?,
            EntryType::CharacterDevice => Kind::CharacterDevice(Device::new(major, minor)?),
            EntryType::BlockDevice => Kind::BlockDevice(Device::new(major, minor)?),
            EntryType::Fifo => Kind::Fifo,
            EntryType::HardLink => bail!("it links to nothing"),
        })
    }

    fn content(&mut self, entry: &Entry, data: &mut impl Read) -> Result<Content> {
        if entry.size <= INLINE_MAX.min(self.inline) {
            self.inline -= entry.size;
            let mut bytes = vec![0; entry.size as usize];
            for piece in &entry.pieces {
                data.read_exact(&mut bytes[piece.offset as usize..][..piece.size as usize])?;
            }
            return Ok(Content::Inline(bytes.into()));
        }
        let extent = self.writer.allocate(entry.size)?;
        for piece in &entry.pieces {
            let (mut at, end) = (piece.offset, piece.offset + piece.size);
            while at < end {
                let most = self.buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                let len = data.read(&mut self.buffer[..most])?;
                ensure!(len > 0, "its data is cut short");
                self.writer.write(extent, at, &self.buffer[..len])?;
                at += len as u64;
            }
        }
        Ok(Content::Blocks(extent))
    }

    fn metadata(&mut self, entry: &Entry) -> Result<Metadata> {
        let is_symlink = entry.entry_type == EntryType::Symlink;
        Ok(Metadata {
            mode: if is_symlink { SYMLINK_MODE } else { entry.mode },
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
            xattrs: self.xattrs(&entry.xattrs)?,
        })
    }

    fn xattrs(&mut self, all: &Attributes) -> Result<Xattrs> {
        let can_be = |name: &[u8]| !FORBIDDEN.contains(&name) && Xattrs::can_be(name);
        let taken: Attributes = all
            .iter()
            .filter(|(name, _)| can_be(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        self.dropped_xattrs += (all.len() - taken.len()) as u64;
        Ok(Xattrs::new(&taken)?)
    }
}

/// A directory that no layer says anything about: of root, from the epoch on, as umoci has the root directory then.
fn directory() -> Metadata {
    Metadata { mode: DIRECTORY_MODE, modified: Time::default(), ..Metadata::default() }
}
