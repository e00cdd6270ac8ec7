//! The image in the making: data first, what describes it at the end.

use std::fs::File;

use super::metadata::Plan;
use super::sink::Sink;
use super::{BLOCK, Error, Extent, Tree};

/// The first block behind the superblock's.
const FIRST: u64 = 1;
/// The format has 32 bits for a block's number.
const MOST_BLOCKS: u64 = u32::MAX as u64;

/// What a finished image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// How many inodes it has.
    pub inodes: u64,
    /// How large it is, in bytes.
    pub size: u64,
}

/// Writes an image into a file.
pub struct Writer<'a> {
    file: &'a File,
    sink: Sink<'a>,
    /// The first block that nothing is in yet.
    next: u64,
    most_blocks: u64,
}

impl<'a> Writer<'a> {
    /// An image without anything in it. What the file has is lost. The image gets no larger than `most` bytes.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn new(file: &'a File, most: u64) -> Result<Self, Error> {
        file.set_len(0).map_err(Error::Write)?;
        let most_blocks = (most / BLOCK).min(MOST_BLOCKS);
        Ok(Self { file, sink: Sink::new(file), next: FIRST, most_blocks })
    }

    /// Blocks for a file's data, zeros so far.
    ///
    /// # Errors
    /// [`Error::Size`]
    pub fn allocate(&mut self, size: u64) -> Result<Extent, Error> {
        let block = self.next;
        let end = block.checked_add(size.div_ceil(BLOCK)).filter(|end| *end <= self.most_blocks);
        let end = end.ok_or(Error::Size(self.most_blocks * BLOCK))?;
        self.next = end;
        // No larger than the format's limit.
        Ok(Extent { block: block as u32, size })
    }

    /// Writes data of a file at an offset, where nothing has been written.
    ///
    /// # Errors
    /// [`Error::Outside`], [`Error::Write`]
    pub fn write(&mut self, extent: Extent, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let end = offset.checked_add(bytes.len() as u64);
        end.filter(|end| *end <= extent.size).ok_or(Error::Outside)?;
        self.sink.write(extent.offset() + offset, bytes)
    }

    /// Writes all data that waits to be written with what follows it.
    ///
    /// # Errors
    /// [`Error::Write`]
    pub fn flush(&mut self) -> Result<(), Error> {
        self.sink.flush()
    }

    /// Puts directories and inodes behind the data, and the superblock in front of it. The same tree and data with the same
    /// `uuid` make the same image.
    ///
    /// # Errors
    /// [`Error::Size`], [`Error::Write`]
    pub fn finish(mut self, tree: &Tree, uuid: [u8; 16]) -> Result<Summary, Error> {
        self.sink.flush()?;
        let plan = Plan::new(tree, self.next);
        let blocks = u32::try_from(plan.end()).ok().filter(|blocks| u64::from(*blocks) <= self.most_blocks);
        let blocks = blocks.ok_or(Error::Size(self.most_blocks * BLOCK))?;
        let superblock = plan.write(self.file, blocks, uuid)?;
        let size = u64::from(blocks) * BLOCK;
        self.file.set_len(size).map_err(Error::Write)?;
        self.sink.write(0, &superblock.block())?;
        self.sink.flush()?;
        Ok(Summary { inodes: superblock.inodes, size })
    }
}
