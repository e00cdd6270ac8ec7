//! Entries of a tar archive (POSIX `pax`, "ustar Interchange Format" and "pax Interchange Format"; GNU tar's manual, "Basic Tar
//! Format" and "Storing Sparse Files"), read from a stream.
//!
//! What layers have is read: v7, ustar, PAX, and of GNU's format long names and sparse files; and what Go's `archive/tar`, with
//! which container tools read them, refuses, is refused. No crate does that: `tar` neither reads PAX's sparse
//! files nor bounds the length of names.

mod header;
mod pax;
mod sparse;

#[cfg(test)]
pub mod testing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::mem;

use anyhow::{Context, Result, bail, ensure};
use boot::erofs::Time;

use super::shown;
use header::Header;
use pax::Pax;

/// The size of a block: headers and data are padded to it.
const BLOCK: usize = 512;
/// The most bytes that a name or extended attributes may take in front of an entry, as Go has it.
const EXTENSION_MAX: u64 = 1 << 20;

/// Extended attributes by their names.
pub type Attributes = BTreeMap<Box<[u8]>, Box<[u8]>>;

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryType {
    /// A regular file.
    File,
    /// Another name of a file.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A FIFO.
    Fifo,
}

/// A part of a file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where in the file, in bytes.
    pub offset: u64,
    /// How many bytes.
    pub size: u64,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as it is there.
    pub path: Vec<u8>,
    /// What it is.
    pub entry_type: EntryType,
    /// Permissions, set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When it was last changed.
    pub modified: Time,
    /// Where a link leads.
    pub target: Vec<u8>,
    /// A device's major and minor number.
    pub device: (u32, u32),
    /// A file's size in bytes.
    pub size: u64,
    /// The parts of a file that the archive has, in their order; between them are zeros.
    pub pieces: Vec<Piece>,
    /// Extended attributes.
    pub xattrs: Attributes,
}

/// An archive; reading it gives the data of the entry that was last returned, its pieces one behind the other.
pub struct Archive<R> {
    inner: R,
    /// How many bytes of the entry's data are not yet read.
    data: u64,
    /// How many bytes of zeros follow them.
    padding: u64,
}

impl<R: Read> Archive<R> {
    /// The archive that `inner` has.
    pub fn new(inner: R) -> Self {
        Self { inner, data: 0, padding: 0 }
    }

    /// What follows the archive.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The next entry, behind the rest of this one's data; none at the archive's end.
    ///
    /// # Errors
    /// It cannot be read, or makes no sense.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let (mut pax, mut long_name, mut long_target) = (Pax::default(), Vec::new(), Vec::new());
        let mut is_extended = false;
        loop {
            self.skip_data()?;
            let Some(block) = self.block()? else {
                ensure!(!is_extended, "the archive is cut short");
                return Ok(None);
            };
            is_extended = true;
            let header = Header::new(&block)?;
            match header.type_flag() {
                b'x' => pax = Pax::parse(&self.extension(&header)?)?,
                b'g' => Pax::parse(&self.extension(&header)?)?.check_global()?,
                b'L' => long_name = header::text(&self.extension(&header)?).to_vec(),
                b'K' => long_target = header::text(&self.extension(&header)?).to_vec(),
                _ => {
                    let path = if long_name.is_empty() { pax.path.take() } else { Some(long_name) };
                    let target = if long_target.is_empty() { pax.target.take() } else { Some(long_target) };
                    let path = path.unwrap_or_else(|| header.path());
                    let what = format!("entry '{}'", shown(&path));
                    return self.entry(&header, pax, path, target).context(what).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, pax: Pax, path: Vec<u8>, target: Option<Vec<u8>>) -> Result<Entry> {
        let sparse_name = pax.sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name.unwrap_or(path);
        let entry_type = entry_type(header.type_flag(), &path)?;
        let stored = pax.size.map_or_else(|| header.size(), Ok)?;
        if entry_type == EntryType::File {
            self.begin_data(stored)?;
        }
        let (size, pieces) = match pax.sparse {
            _ if entry_type != EntryType::File => (0, Vec::new()),
            Some(sparse) => sparse::of_pax(self, sparse, stored)?,
            None if header.type_flag() == b'S' => sparse::of_gnu(self, header)?,
            None => (stored, Vec::from_iter((stored > 0).then_some(Piece { offset: 0, size: stored }))),
        };
        sparse::check(&pieces, size, self.data)?;
        Ok(Entry {
            entry_type,
            mode: header.mode()?,
            uid: owner(pax.uid.map_or_else(|| header.uid(), Ok)?).context("the user's number")?,
            gid: owner(pax.gid.map_or_else(|| header.gid(), Ok)?).context("the group's number")?,
            modified: pax.modified.map_or_else(|| header.modified(), Ok)?,
            target: target.unwrap_or_else(|| header.target()),
            device: match entry_type {
                EntryType::CharacterDevice | EntryType::BlockDevice => header.device()?,
                _ => (0, 0),
            },
            path,
            size,
            pieces,
            xattrs: pax.xattrs,
        })
    }

    /// So many bytes of data follow, and what pads them.
    fn begin_data(&mut self, size: u64) -> Result<()> {
        let padded = size.checked_next_multiple_of(BLOCK as u64).context("its size makes no sense")?;
        (self.data, self.padding) = (size, padded - size);
        Ok(())
    }

    /// The data of an entry that says something about the next one.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let size = header.size()?;
        if size > EXTENSION_MAX {
            bail!("a header has {size} bytes of names and attributes, {EXTENSION_MAX} are possible");
        }
        self.begin_data(size)?;
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data).map_err(cut_short)?;
        Ok(data)
    }

    fn skip_data(&mut self) -> Result<()> {
        let (data, padding) = (mem::take(&mut self.data), mem::take(&mut self.padding));
        let skipped = io::copy(&mut (&mut self.inner).take(data), &mut io::sink())?;
        ensure!(skipped == data, "the archive is cut short");
        // `umoci insert` ends its layers with the last byte of data.
        io::copy(&mut (&mut self.inner).take(padding), &mut io::sink())?;
        Ok(())
    }

    /// The next header's block; none at the end, which two blocks of zeros mark, or nothing.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.whole_block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.whole_block()? {
            Some(second) if second != [0; BLOCK] => bail!("the archive goes on behind a block of zeros"),
            _ => Ok(None),
        }
    }

    fn whole_block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = Vec::with_capacity(BLOCK);
        (&mut self.inner).take(BLOCK as u64).read_to_end(&mut block)?;
        if block.is_empty() {
            return Ok(None);
        }
        let whole = block.try_into();
        whole.map(Some).map_err(|_| cut_short(io::ErrorKind::UnexpectedEof.into()))
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let len = self.inner.read(&mut buffer[..most])?;
        if len == 0 && most > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"));
        }
        self.data -= len as u64;
        Ok(len)
    }
}

fn cut_short(error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => anyhow::anyhow!("the archive is cut short"),
        _ => error.into(),
    }
}

fn entry_type(flag: u8, path: &[u8]) -> Result<EntryType> {
    Ok(match flag {
        // The oldest archives have no other mark of a directory.
        0 if path.ends_with(b"/") => EntryType::Directory,
        0 | b'0' | b'7' | b'S' => EntryType::File,
        b'1' => EntryType::HardLink,
        b'2' => EntryType::Symlink,
        b'3' => EntryType::CharacterDevice,
        b'4' => EntryType::BlockDevice,
        b'5' => EntryType::Directory,
        b'6' => EntryType::Fifo,
        other => bail!("its type '{}' is none that a layer can have", shown(&[other])),
    })
}

fn owner(number: i64) -> Result<u32> {
    // The last number means "unchanged" to Linux.
    let owner = u32::try_from(number).ok().filter(|number| *number < u32::MAX);
    owner.with_context(|| format!("{number} is none"))
}
