//! An EROFS image: a read-only file system in one file (Linux `Documentation/filesystems/erofs.rst`, "On-disk details";
//! field by field `fs/erofs/erofs_fs.h`).
//!
//! Files' data goes into the image as it comes, each file in blocks of its own, one behind the other. What describes them, the
//! [`Tree`], stays in memory until [`Writer::finish`] appends it: blocks of directories, then the inodes. What makes
//! the tree may thus hide a file again whose data is already written; the blocks stay behind, and who owns the
//! image's file may punch holes there. The superblock is written last: an image that was not finished is none.
//!
//! ```text
//! | superblock | data of files | directories, long targets | inodes, each with its xattrs and short data |
//! 0            1               end of data                 meta_blkaddr
//! ```
//!
//! The same tree and the same data make the same bytes. Nothing is compressed, and only features are used that Linux has had since
//! 5.4, the first version with EROFS outside of staging.

mod directory;
mod inode;
mod metadata;
#[cfg(any(test, feature = "testing"))]
pub mod reader;
mod sink;
mod superblock;
mod tree;
mod writer;
mod xattr;

#[cfg(test)]
mod tests;

use std::io;

pub use inode::{Content, Device, Extent, Kind, Metadata, Time};
pub use tree::{Entry, InodeId, Tree};
pub use writer::{Summary, Writer};
pub use xattr::Xattrs;

/// The size of a block in bytes: the page size of every machine that kite has.
pub const BLOCK: u64 = 4096;
/// The binary logarithm of [`BLOCK`].
const BLOCK_BITS: u8 = 12;
/// What inodes are aligned to, in bytes; an inode's number counts these.
const SLOT: u64 = 32;
/// The longest name of an entry in bytes (`EROFS_NAME_LEN`).
pub const NAME_MAX: usize = 255;
/// The longest target of a symbolic link in bytes: Linux's `PATH_MAX` without the NUL.
pub const TARGET_MAX: usize = 4095;

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be written.
    #[error("cannot write the image")]
    Write(#[source] io::Error),
    /// There is no room for so much.
    #[error("the image would be larger than {0} bytes")]
    Size(u64),
    /// What describes files takes too much memory.
    #[error("what describes the files would take more than {0} bytes of memory")]
    Memory(u64),
    /// A directory cannot have an entry of this name.
    #[error("{0:?} is no name of a file")]
    Name(String),
    /// The directory has an entry of this name.
    #[error("{0:?} is there twice")]
    Twice(String),
    /// A file has more links than the format counts, a directory more than one name, or a file's parent is no directory.
    #[error("{0:?} cannot be linked")]
    Link(String),
    /// A symbolic link's target is empty, too long, or holds a NUL.
    #[error("a symbolic link leads to {0} bytes: 1 to {TARGET_MAX} without a NUL are possible")]
    Target(usize),
    /// A device's number does not fit: 12 bits of major and 20 of minor number are possible.
    #[error("the device number {0}:{1} is too large")]
    Device(u32, u32),
    /// A value of an extended attribute is too long.
    #[error("the extended attribute {0:?} has {1} bytes: {max} are possible", max = u16::MAX)]
    XattrValue(String, usize),
    /// All extended attributes of a file together are too long.
    #[error("the extended attributes of a file take {0} bytes: {max} are possible", max = xattr::MAX)]
    Xattrs(usize),
    /// Data was written outside of its extent.
    #[error("data is written outside of its file")]
    Outside,
}
