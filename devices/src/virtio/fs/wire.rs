//! The FUSE protocol (`linux/fuse.h`, 7.31 and later): what requests and replies are made of.
//!
//! Nothing here is laid over memory: fields are taken from bytes and appended to bytes, in their order.

use std::ffi::CStr;
use std::time::Duration;

use nix::errno::Errno;

/// The major version, which every kernel since 2.6.15 speaks.
pub const MAJOR: u32 = 7;
/// The minor version that is offered.
pub const MINOR: u32 = 39;
/// The least minor version that is served: Linux 5.4, the first with virtio-fs, has it.
pub const LEAST_MINOR: u32 = 31;

/// What a request asks for (`enum fuse_opcode`).
pub mod opcode {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const READDIRPLUS: u32 = 44;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
    pub const SYNCFS: u32 = 50;
    pub const TMPFILE: u32 = 51;
    pub const STATX: u32 = 52;
}

/// What both sides agree on (`FUSE_INIT` flags).
pub mod init {
    pub const ASYNC_READ: u32 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const DONT_MASK: u32 = 1 << 6;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const DO_READDIRPLUS: u32 = 1 << 13;
    pub const READDIRPLUS_AUTO: u32 = 1 << 14;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const POSIX_ACL: u32 = 1 << 20;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const CACHE_SYMLINKS: u32 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
    pub const SETXATTR_EXT: u32 = 1 << 29;
}

/// Flags within requests and replies.
pub mod flag {
    pub const GETATTR_FH: u32 = 1 << 0;
    pub const FATTR_MODE: u32 = 1 << 0;
    pub const FATTR_UID: u32 = 1 << 1;
    pub const FATTR_GID: u32 = 1 << 2;
    pub const FATTR_SIZE: u32 = 1 << 3;
    pub const FATTR_ATIME: u32 = 1 << 4;
    pub const FATTR_MTIME: u32 = 1 << 5;
    pub const FATTR_FH: u32 = 1 << 6;
    pub const FATTR_ATIME_NOW: u32 = 1 << 7;
    pub const FATTR_MTIME_NOW: u32 = 1 << 8;
    pub const FATTR_KILL_SUIDGID: u32 = 1 << 11;
    pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
    pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
    pub const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
    pub const FSYNC_FDATASYNC: u32 = 1 << 0;
    pub const FOPEN_KEEP_CACHE: u32 = 1 << 1;
    pub const FOPEN_CACHE_DIR: u32 = 1 << 3;
}

/// Bytes of a request's header (`struct fuse_in_header`).
pub const IN_HEADER: usize = 40;
/// Bytes of a reply's header (`struct fuse_out_header`).
pub const OUT_HEADER: usize = 16;
/// Bytes of `struct fuse_write_in`, behind which data follows.
pub const WRITE_IN: usize = 40;
/// Bytes of `struct fuse_entry_out`.
pub const ENTRY_OUT: usize = 128;
/// Bytes of `struct fuse_attr_out`.
pub const ATTR_OUT: usize = 104;
/// Bytes of `struct fuse_statx_out`.
pub const STATX_OUT: usize = 288;
/// Bytes of `struct fuse_ioctl_out`, behind which data follows.
pub const IOCTL_OUT: usize = 16;
/// Bytes of `struct fuse_open_out`.
pub const OPEN_OUT: usize = 16;
/// Bytes of `struct fuse_dirent` without the name.
pub const DIRENT: usize = 24;

/// The header of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// Bytes of the request, the header's among them.
    pub len: u32,
    /// One of [`opcode`].
    pub opcode: u32,
    /// What the reply names it by.
    pub unique: u64,
    /// The node that it is about.
    pub node: u64,
    /// Who asks.
    pub uid: u32,
    /// Who asks.
    pub gid: u32,
}

impl Header {
    /// Of the first [`IN_HEADER`] bytes of a request.
    pub fn parse(bytes: &[u8; IN_HEADER]) -> Self {
        let mut args = Args(bytes);
        let mut word = || args.u32().unwrap_or_default();
        let (len, opcode) = (word(), word());
        let mut wide = || u64::from(word()) | u64::from(word()) << 32;
        let (unique, node) = (wide(), wide());
        Self { len, opcode, unique, node, uid: word(), gid: word() }
    }
}

/// What follows a request's header, field by field. A field that is not there is EINVAL.
#[derive(Clone, Copy, Debug)]
pub struct Args<'a>(pub &'a [u8]);

impl<'a> Args<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(*first)
    }

    /// The next 4 bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.take().map(u32::from_le_bytes)
    }

    /// The next 8 bytes.
    ///
    /// # Errors
    /// There are fewer.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.take().map(u64::from_le_bytes)
    }

    /// Passes over 4 bytes of padding, or of what is not needed.
    ///
    /// # Errors
    /// There are fewer.
    pub fn skip(&mut self) -> Result<(), Errno> {
        self.u32().map(drop)
    }

    /// Bytes up to a zero.
    ///
    /// # Errors
    /// There is none.
    pub fn string(&mut self) -> Result<&'a CStr, Errno> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::EINVAL)?;
        self.0 = &self.0[string.to_bytes_with_nul().len()..];
        Ok(string)
    }

    /// One name in a directory: never a path, and neither `.` nor `..`.
    ///
    /// # Errors
    /// It is something else (EINVAL), or too long (ENAMETOOLONG).
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.string()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::EINVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::EINVAL),
            bytes if bytes.len() > 255 => Err(Errno::ENAMETOOLONG),
            _ => Ok(name),
        }
    }
}

/// The attributes of a node (`struct fuse_attr`).
#[derive(Clone, Copy, Debug, Default)]
pub struct Attr {
    /// The inode number that the guest sees.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Seconds and nanoseconds of the last access, change of data and change of attributes.
    pub times: [(i64, u32); 3],
    /// Type and permissions.
    pub mode: u32,
    /// Hard links.
    pub nlink: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Of a device: its number, as the kernel packs it.
    pub rdev: u32,
    /// The preferred size of requests, in bytes.
    pub blksize: u32,
    /// Seconds and nanoseconds of its birth, if the host has noted that.
    pub born: Option<(i64, u32)>,
}

/// Appends fields to a reply.
pub trait Append {
    /// 4 bytes.
    fn u32(&mut self, value: u32);
    /// 8 bytes.
    fn u64(&mut self, value: u64);
    /// `struct fuse_attr`.
    fn attr(&mut self, attr: &Attr);
    /// `struct fuse_attr_out`: attributes, and how long they hold.
    fn attr_out(&mut self, attr: &Attr, valid: Duration);
    /// `struct fuse_statx_out`: attributes with a time of birth, and how long they hold.
    fn statx_out(&mut self, attr: &Attr, valid: Duration);
    /// `struct fuse_entry_out`: a node, its attributes, and how long both hold. Node 0 is none.
    fn entry_out(&mut self, node: u64, attr: &Attr, valid: Duration);
    /// `struct fuse_dirent`, padded; of an entry whose position is `offset`.
    fn dirent(&mut self, ino: u64, offset: u64, kind: u32, name: &[u8]);
}

impl Append for Vec<u8> {
    fn u32(&mut self, value: u32) {
        self.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.extend(value.to_le_bytes());
    }

    fn attr(&mut self, attr: &Attr) {
        for value in [attr.ino, attr.size, attr.blocks] {
            self.u64(value);
        }
        attr.times.iter().for_each(|(seconds, _)| self.u64(seconds.cast_unsigned()));
        attr.times.iter().for_each(|(_, nanoseconds)| self.u32(*nanoseconds));
        for value in [attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, attr.blksize, 0] {
            self.u32(value);
        }
    }

    fn attr_out(&mut self, attr: &Attr, valid: Duration) {
        self.u64(valid.as_secs());
        self.u32(valid.subsec_nanos());
        self.u32(0);
        self.attr(attr);
    }

    fn statx_out(&mut self, attr: &Attr, valid: Duration) {
        const BASIC: u32 = 0x7ff;
        const BIRTH: u32 = 0x800;
        self.u64(valid.as_secs());
        for value in [valid.subsec_nanos(), 0, 0, 0, 0, 0] {
            self.u32(value);
        }
        self.u32(BASIC | if attr.born.is_some() { BIRTH } else { 0 });
        self.u32(attr.blksize);
        self.u64(0); // Attributes such as append-only.
        for value in [attr.nlink, attr.uid, attr.gid, attr.mode & 0xffff] {
            self.u32(value);
        }
        for value in [attr.ino, attr.size, attr.blocks, 0] {
            self.u64(value);
        }
        let [access, modified, changed] = attr.times;
        for (seconds, nanoseconds) in [access, attr.born.unwrap_or_default(), changed, modified] {
            self.u64(seconds.cast_unsigned());
            self.u32(nanoseconds);
            self.u32(0);
        }
        // The device's number in two halves; that of its own device is the guest's affair.
        for value in [attr.rdev >> 8 & 0xfff, attr.rdev & 0xff | attr.rdev >> 12 & 0xfff00, 0, 0] {
            self.u32(value);
        }
        self.resize(self.len() + 112, 0);
    }

    fn entry_out(&mut self, node: u64, attr: &Attr, valid: Duration) {
        for value in [node, 0, valid.as_secs(), valid.as_secs()] {
            self.u64(value);
        }
        self.u32(valid.subsec_nanos());
        self.u32(valid.subsec_nanos());
        self.attr(attr);
    }

    fn dirent(&mut self, ino: u64, offset: u64, kind: u32, name: &[u8]) {
        self.u64(ino);
        self.u64(offset);
        self.u32(name.len() as u32);
        self.u32(kind);
        self.extend(name);
        self.resize(self.len() + padding(name.len()), 0);
    }
}

/// Bytes between a directory entry's name and the next entry.
pub fn padding(name: usize) -> usize {
    name.next_multiple_of(8) - name
}
