//! Directories: in memory, and as blocks of entries.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

use super::BLOCK;
use super::tree::{Entry, InodeId};

/// The size of an entry without its name.
const DIRENT: usize = 12;

/// The entries of a directory, by name.
#[derive(Debug, Default)]
pub struct Directory {
    pub(super) parent: InodeId,
    pub(super) entries: BTreeMap<Box<[u8]>, Entry>,
    /// How many of the entries are directories.
    pub(super) subdirectories: u32,
}

impl Directory {
    /// The entries by name, without `.` and `..`.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], Entry)> {
        self.entries.iter().map(|(name, entry)| (name.as_ref(), *entry))
    }

    /// The entries in the order that Linux searches them in, bytewise, with `.` (which is `own`) and `..` in their places.
    pub(super) fn all(&self, own: InodeId) -> impl Iterator<Item = (&[u8], InodeId)> {
        let part = |from, to| {
            self.entries.range::<[u8], _>((from, to)).map(|(name, entry)| (name.as_ref(), entry.inode))
        };
        let (dot, dots): (&[u8], &[u8]) = (b".", b"..");
        part(Unbounded, Excluded(dot))
            .chain([(dot, own)])
            .chain(part(Excluded(dot), Excluded(dots)))
            .chain([(dots, self.parent)])
            .chain(part(Excluded(dots), Unbounded))
    }
}

/// Counts what entries take in blocks, each of which holds whole entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Packed {
    /// Blocks before the last.
    pub(super) full: u64,
    /// Bytes in the last block.
    pub(super) tail: usize,
}

impl Packed {
    /// What these entries take.
    pub(super) fn of<'a>(entries: impl Iterator<Item = (&'a [u8], InodeId)>) -> Self {
        let mut packed = Self::default();
        for (name, _) in entries {
            packed.add(name);
        }
        packed
    }

    /// Adds an entry; returns whether a new block begins with it.
    pub(super) fn add(&mut self, name: &[u8]) -> bool {
        let len = DIRENT + name.len();
        let is_full = self.tail + len > BLOCK as usize;
        if is_full {
            self.full += 1;
            self.tail = 0;
        }
        self.tail += len;
        is_full
    }
}

/// A block in the making: entries, each of a number, a type and a name.
#[derive(Default)]
pub(super) struct DirectoryBlock<'a> {
    entries: Vec<(u64, u8, &'a [u8])>,
}

impl<'a> DirectoryBlock<'a> {
    /// Adds an entry, for which there is room.
    pub(super) fn add(&mut self, nid: u64, file_type: u8, name: &'a [u8]) {
        self.entries.push((nid, file_type, name));
    }

    /// Empties the block, and returns its bytes, up to the last name's end.
    pub(super) fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK as usize);
        // The first name's place also says how many entries there are.
        let mut name_offset = DIRENT * self.entries.len();
        for (nid, file_type, name) in &self.entries {
            bytes.extend_from_slice(&nid.to_le_bytes());
            bytes.extend_from_slice(&(name_offset as u16).to_le_bytes());
            bytes.extend_from_slice(&[*file_type, 0]);
            name_offset += name.len();
        }
        for (_, _, name) in self.entries.drain(..) {
            bytes.extend_from_slice(name);
        }
        bytes
    }
}
