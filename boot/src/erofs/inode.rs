//! What an inode says: owner, mode, time, attributes and kind.

use super::directory::Directory;
use super::{BLOCK, Error, TARGET_MAX, Xattrs};

/// A time, as Linux counts it: since the epoch, nanoseconds forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds, negative before 1970.
    pub seconds: i64,
    /// Nanoseconds behind them, below 10⁹.
    pub nanoseconds: u32,
}

/// What every inode has, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    /// Permissions with set-user-ID, set-group-ID and sticky bit: `0o7777` at most.
    pub mode: u16,
    /// The owner's number.
    pub uid: u32,
    /// The group's number.
    pub gid: u32,
    /// When it was last changed.
    pub modified: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// Blocks of an image that hold one file's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block.
    pub block: u32,
    /// How many bytes of data, from the beginning of that block.
    pub size: u64,
}

impl Extent {
    /// How many blocks.
    pub fn blocks(self) -> u64 {
        self.size.div_ceil(BLOCK)
    }

    /// Where the data begins in the image, in bytes.
    pub fn offset(self) -> u64 {
        u64::from(self.block) * BLOCK
    }
}

/// Where a file's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Here, until it is put behind its inode; or nowhere, as it is empty.
    Inline(Box<[u8]>),
    /// In the image.
    Blocks(Extent),
}

/// A device's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    major: u32,
    minor: u32,
}

impl Device {
    /// A device of this number.
    ///
    /// # Errors
    /// [`Error::Device`]: Linux has 12 bits for the first and 20 for the second.
    pub fn new(major: u32, minor: u32) -> Result<Self, Error> {
        let fits = major < 1 << 12 && minor < 1 << 20;
        fits.then_some(Self { major, minor }).ok_or(Error::Device(major, minor))
    }

    /// The number as EROFS has it (Linux `new_encode_dev`).
    pub(super) fn encode(self) -> u32 {
        self.minor & 0xff | self.major << 8 | (self.minor & !0xff) << 12
    }
}

/// What an inode is.
#[derive(Debug)]
pub enum Kind {
    /// A directory.
    Directory(Directory),
    /// A regular file.
    File(Content),
    /// A symbolic link: where it leads.
    Symlink(Box<[u8]>),
    /// A character device.
    CharacterDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// An empty directory.
    pub fn directory() -> Self {
        Self::Directory(Directory::default())
    }

    /// A symbolic link.
    ///
    /// # Errors
    /// [`Error::Target`]
    pub fn symlink(target: &[u8]) -> Result<Self, Error> {
        let can_be = (1..=TARGET_MAX).contains(&target.len()) && !target.contains(&0);
        can_be.then(|| Self::Symlink(target.into())).ok_or(Error::Target(target.len()))
    }

    /// The bits of `i_mode` that name the kind (`inode(7)`).
    pub(super) fn mode(&self) -> u16 {
        match self {
            Self::Directory(_) => 0o040_000,
            Self::File(_) => 0o100_000,
            Self::Symlink(_) => 0o120_000,
            Self::CharacterDevice(_) => 0o020_000,
            Self::BlockDevice(_) => 0o060_000,
            Self::Fifo => 0o010_000,
            Self::Socket => 0o140_000,
        }
    }

    /// The kind as directories name it (Linux's `FT_*`).
    pub(super) fn file_type(&self) -> u8 {
        match self {
            Self::File(_) => 1,
            Self::Directory(_) => 2,
            Self::CharacterDevice(_) => 3,
            Self::BlockDevice(_) => 4,
            Self::Fifo => 5,
            Self::Socket => 6,
            Self::Symlink(_) => 7,
        }
    }
}

/// One file of whatever kind, with any number of names.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) metadata: Metadata,
    pub(super) kind: Kind,
    /// How many entries lead to it.
    pub(super) links: u32,
}

impl Inode {
    /// How many links `stat(2)` counts: of a directory, its name, its `.`, and the `..` of directories in it.
    pub(super) fn link_count(&self) -> u32 {
        match &self.kind {
            Kind::Directory(directory) => directory.subdirectories.saturating_add(2),
            _ => self.links,
        }
    }
}
