//! Where each directory and inode is put, and how it is written there.
//!
//! Inodes of one directory follow each other, directory after directory from the root on: `ls -l` reads few blocks. Each
//! has the extended form, as the compact one has no time.

use std::fs::File;

use super::directory::{DirectoryBlock, Packed};
use super::sink::Sink;
use super::superblock::Superblock;
use super::{BLOCK, Content, Error, InodeId, Kind, SLOT, Tree};

/// The size of an extended inode (`struct erofs_inode_extended`).
const INODE: u64 = 64;
/// The bit of `i_format` that says so.
const EXTENDED: u16 = 1;
/// The layouts of data, in the bits above.
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2 << 1;
/// Where the root's inode is in the area of inodes. At its beginning it would have the number 0, which `readdir(3)` takes for
/// an entry that is removed.
const ROOT: u64 = INODE;

/// Where one inode and its data are.
#[derive(Clone, Copy, Default)]
struct Place {
    /// Where the inode is in the area of inodes, in bytes.
    at: u64,
    /// The first block of its data, if blocks hold some.
    block: u64,
    /// Whether data is behind the inode: all that is not in whole blocks.
    is_inline: bool,
}

impl Place {
    fn nid(self) -> u64 {
        self.at / SLOT
    }
}

/// Where everything is.
pub(super) struct Plan<'a> {
    tree: &'a Tree,
    /// The inodes in their order in the image.
    order: Vec<InodeId>,
    /// By inode.
    places: Vec<Place>,
    /// The first block that is free for directories.
    next: u64,
    /// The first block of inodes.
    metadata: u64,
    /// The end of the inodes, in bytes.
    end: u64,
}

/// What is put behind an inode or into blocks now: data in files' blocks is written already.
enum Data<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// Entries, which are packed so.
    Entries(Packed),
    /// Nothing.
    None,
}

impl Data<'_> {
    /// Whole blocks, and bytes in the last one.
    fn size(&self) -> (u64, u64) {
        match self {
            Self::Bytes(bytes) => (bytes.len() as u64 / BLOCK, bytes.len() as u64 % BLOCK),
            Self::Entries(packed) => {
                let is_full = packed.tail as u64 == BLOCK;
                (packed.full + u64::from(is_full), if is_full { 0 } else { packed.tail as u64 })
            }
            Self::None => (0, 0),
        }
    }
}

impl<'a> Plan<'a> {
    /// Places everything that a tree has, from block `next` on.
    pub(super) fn new(tree: &'a Tree, next: u64) -> Self {
        let mut plan = Self {
            tree,
            order: Vec::with_capacity(tree.len()),
            places: vec![Place::default(); tree.end()],
            next,
            metadata: 0,
            end: ROOT,
        };
        plan.place(Tree::ROOT);
        let mut index = 0;
        while let Some(id) = plan.order.get(index).copied() {
            index += 1;
            for (_, entry) in tree.directory(id).into_iter().flat_map(|directory| directory.entries()) {
                // Another name of the same file may have come first.
                if plan.places[entry.inode.index()].at == 0 {
                    plan.place(entry.inode);
                }
            }
        }
        plan.metadata = plan.next;
        plan
    }

    /// The block behind the last.
    pub(super) fn end(&self) -> u64 {
        self.metadata + self.end.div_ceil(BLOCK)
    }

    fn data(&self, id: InodeId) -> Data<'a> {
        match self.tree.kind(id) {
            Kind::Directory(directory) => Data::Entries(Packed::of(directory.all(id))),
            Kind::File(Content::Inline(bytes)) | Kind::Symlink(bytes) => Data::Bytes(bytes),
            _ => Data::None,
        }
    }

    fn place(&mut self, id: InodeId) {
        let (full, tail) = self.data(id).size();
        let header = INODE + self.tree.metadata(id).xattrs.bytes().len() as u64;
        // What is inline has to be in one block.
        let fits = |at: u64| (at + header) % BLOCK + tail <= BLOCK;
        let here = self.end.next_multiple_of(SLOT);
        let next_block = here.next_multiple_of(BLOCK);
        let (at, is_inline) = match tail {
            0 => (here, false),
            _ if fits(here) => (here, true),
            _ if fits(next_block) => (next_block, true),
            _ => (here, false),
        };
        self.end = at + header + if is_inline { tail } else { 0 };
        let blocks = full + u64::from(tail > 0 && !is_inline);
        let block = if blocks > 0 { self.next } else { 0 };
        self.places[id.index()] = Place { at, block, is_inline };
        self.next += blocks;
        self.order.push(id);
    }

    /// Writes directories and inodes. Returns what the superblock says of an image of so many blocks.
    pub(super) fn write(&self, file: &File, blocks: u32, uuid: [u8; 16]) -> Result<Superblock, Error> {
        let (mut data, mut inodes) = (Sink::new(file), Sink::new(file));
        for (index, id) in self.order.iter().enumerate() {
            let tail = self.write_data(&mut data, *id)?;
            let mut bytes = self.inode(*id, index as u32);
            bytes.extend_from_slice(self.tree.metadata(*id).xattrs.bytes());
            bytes.extend_from_slice(&tail);
            inodes.write(self.metadata * BLOCK + self.places[id.index()].at, &bytes)?;
        }
        data.flush()?;
        inodes.flush()?;
        let root = self.places[Tree::ROOT.index()].nid();
        Ok(Superblock {
            root: root as u16,
            inodes: self.order.len() as u64,
            blocks,
            metadata: self.metadata as u32,
            uuid,
        })
    }

    /// Writes what belongs into blocks, and returns what belongs behind the inode.
    fn write_data(&self, sink: &mut Sink<'_>, id: InodeId) -> Result<Vec<u8>, Error> {
        let place = self.places[id.index()];
        let mut at = place.block * BLOCK;
        let last = match self.data(id) {
            Data::None => return Ok(Vec::new()),
            Data::Bytes(bytes) => {
                let full =
                    if place.is_inline { bytes.len() - bytes.len() % BLOCK as usize } else { bytes.len() };
                sink.write(at, &bytes[..full])?;
                return Ok(bytes[full..].to_vec());
            }
            Data::Entries(_) => {
                let (mut block, mut packed) = (DirectoryBlock::default(), Packed::default());
                for (name, inode) in self.tree.directory(id).into_iter().flat_map(|it| it.all(id)) {
                    if packed.add(name) {
                        sink.write(at, &block.take())?;
                        at += BLOCK;
                    }
                    block.add(self.places[inode.index()].nid(), self.tree.kind(inode).file_type(), name);
                }
                block.take()
            }
        };
        if place.is_inline {
            return Ok(last);
        }
        sink.write(at, &last)?;
        Ok(Vec::new())
    }

    /// The inode itself.
    fn inode(&self, id: InodeId, number: u32) -> Vec<u8> {
        let (inode, place) = (self.tree.inode(id), self.places[id.index()]);
        let metadata = &inode.metadata;
        let (size, address) = match &inode.kind {
            Kind::File(Content::Blocks(extent)) => (extent.size, extent.block),
            Kind::CharacterDevice(device) | Kind::BlockDevice(device) => (0, device.encode()),
            _ => {
                let (full, tail) = self.data(id).size();
                (full * BLOCK + tail, place.block as u32)
            }
        };
        let layout = if place.is_inline { FLAT_INLINE } else { FLAT_PLAIN };
        let mut bytes = Vec::with_capacity(INODE as usize);
        bytes.extend_from_slice(&(EXTENDED | layout).to_le_bytes());
        bytes.extend_from_slice(&metadata.xattrs.count().to_le_bytes());
        bytes.extend_from_slice(&(inode.kind.mode() | metadata.mode & 0o7777).to_le_bytes());
        bytes.extend_from_slice(&[0; 2]);
        bytes.extend_from_slice(&size.to_le_bytes());
        bytes.extend_from_slice(&address.to_le_bytes());
        // What `stat(2)` shows to programs of 32 bits.
        bytes.extend_from_slice(&(number + 1).to_le_bytes());
        bytes.extend_from_slice(&metadata.uid.to_le_bytes());
        bytes.extend_from_slice(&metadata.gid.to_le_bytes());
        bytes.extend_from_slice(&metadata.modified.seconds.to_le_bytes());
        bytes.extend_from_slice(&metadata.modified.nanoseconds.to_le_bytes());
        bytes.extend_from_slice(&inode.link_count().to_le_bytes());
        bytes.resize(INODE as usize, 0);
        bytes
    }
}
