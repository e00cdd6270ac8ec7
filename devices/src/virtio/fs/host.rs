//! What the host does for a share: system calls on a folder's descriptor and one name, never on a path.
#![expect(unsafe_code, reason = "system calls that nix lacks, or that need a path where a name will do")]

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_long;
use nix::errno::Errno;

use super::wire::Attr;

/// What makes a file that file: it is the same one if all of this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// The mount it is in; 0 if the host does not say.
    pub mount: u64,
    /// The device.
    pub device: u64,
    /// The inode number.
    pub ino: u64,
    /// Its type (`S_IFMT`), so that a number that is used again is found out in most cases.
    pub kind: u32,
}

/// A file's attributes.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// Which file it is.
    pub identity: Identity,
    /// What the guest sees, with the host's inode number.
    pub attr: Attr,
}

impl Stat {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.identity.kind == libc::S_IFDIR
    }

    fn of(it: &libc::statx) -> Self {
        let device = u64::from(it.stx_dev_major) << 32 | u64::from(it.stx_dev_minor);
        let known = it.stx_mask & libc::STATX_MNT_ID != 0;
        let mode = u32::from(it.stx_mode);
        let identity = Identity {
            mount: if known { it.stx_mnt_id } else { 0 },
            device,
            ino: it.stx_ino,
            kind: mode & libc::S_IFMT,
        };
        let time = |time: &libc::statx_timestamp| (time.tv_sec, time.tv_nsec);
        let (major, minor) = (it.stx_rdev_major, it.stx_rdev_minor);
        let attr = Attr {
            ino: it.stx_ino,
            size: it.stx_size,
            blocks: it.stx_blocks,
            times: [time(&it.stx_atime), time(&it.stx_mtime), time(&it.stx_ctime)],
            mode,
            nlink: it.stx_nlink,
            uid: it.stx_uid,
            gid: it.stx_gid,
            rdev: minor & 0xff | major << 8 | (minor & !0xff) << 12,
            blksize: it.stx_blksize,
            born: (it.stx_mask & libc::STATX_BTIME != 0).then(|| time(&it.stx_btime)),
        };
        Self { identity, attr }
    }
}

pub(super) fn check(result: c_long) -> Result<c_long, Errno> {
    if result < 0 { Err(Errno::last()) } else { Ok(result) }
}

fn repeat(mut call: impl FnMut() -> c_long) -> Result<c_long, Errno> {
    loop {
        match check(call()) {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn owned(fd: c_long) -> OwnedFd {
    // SAFETY: a descriptor that a call has just returned is owned by nothing else.
    unsafe { OwnedFd::from_raw_fd(fd as RawFd) }
}

fn statx(dir: BorrowedFd<'_>, name: &CStr, flags: libc::c_int) -> Result<Stat, Errno> {
    // SAFETY: a structure of integers, all of which may be zero.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = flags | libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | libc::AT_STATX_SYNC_AS_STAT;
    let mask = libc::STATX_BASIC_STATS | libc::STATX_BTIME | libc::STATX_MNT_ID;
    // SAFETY: reads a string and writes one structure.
    repeat(|| unsafe { libc::statx(dir.as_raw_fd(), name.as_ptr(), flags, mask, &raw mut stat) }.into())?;
    Ok(Stat::of(&stat))
}

/// The attributes of `name` in `dir`, of a symbolic link its own.
///
/// # Errors
/// The host's.
pub fn stat_at(dir: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    statx(dir.as_fd(), name, 0)
}

/// The attributes of an open file.
///
/// # Errors
/// The host's.
pub fn stat(file: impl AsFd) -> Result<Stat, Errno> {
    statx(file.as_fd(), c"", libc::AT_EMPTY_PATH)
}

/// Opens `name` in `dir`; a symbolic link is opened itself (with `O_PATH`) or refused.
///
/// # Errors
/// The host's; EAGAIN if `resolve` has `RESOLVE_CACHED` and it would have to wait, ENOSYS if it cannot know.
pub fn open_at(dir: impl AsFd, name: &CStr, flags: i32, resolve: u64) -> Result<OwnedFd, Errno> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: a structure of integers, all of which may be zero.
    let mut how: libc::open_how = unsafe { std::mem::zeroed() };
    how.flags = flags as u64;
    how.resolve = resolve | libc::RESOLVE_BENEATH | libc::RESOLVE_NO_MAGICLINKS | libc::RESOLVE_NO_SYMLINKS;
    let (how, size) = (&raw const how, size_of::<libc::open_how>());
    // SAFETY: reads a string and one structure.
    match repeat(|| unsafe { libc::syscall(libc::SYS_openat2, dir, name.as_ptr(), how, size) }) {
        // An old kernel, or a filter that does not know the call. One name that is not followed stays beneath too.
        Err(Errno::ENOSYS | Errno::EPERM) if resolve == 0 => {
            // SAFETY: reads a string.
            repeat(|| unsafe { libc::openat(dir, name.as_ptr(), flags) }.into()).map(owned)
        }
        Err(Errno::EPERM) => Err(Errno::ENOSYS),
        result => result.map(owned),
    }
}

/// Creates a regular file `name` in `dir`, which must not be there yet.
///
/// # Errors
/// The host's.
pub fn create_at(dir: impl AsFd, name: &CStr, access: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = access | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: reads a string.
    repeat(|| unsafe { libc::openat(dir, name.as_ptr(), flags, mode) }.into()).map(owned)
}

/// Creates a regular file without a name in `dir` (open(2), O_TMPFILE).
///
/// # Errors
/// The host's.
pub fn create_nameless(dir: impl AsFd, access: i32, mode: u32) -> Result<OwnedFd, Errno> {
    let flags = access | libc::O_TMPFILE | libc::O_CLOEXEC;
    let dir = dir.as_fd().as_raw_fd();
    // SAFETY: reads a string.
    repeat(|| unsafe { libc::openat(dir, c".".as_ptr(), flags, mode) }.into()).map(owned)
}

/// Makes a directory.
///
/// # Errors
/// The host's.
pub fn mkdir_at(dir: impl AsFd, name: &CStr, mode: u32) -> Result<(), Errno> {
    // SAFETY: reads a string.
    check(unsafe { libc::mkdirat(dir.as_fd().as_raw_fd(), name.as_ptr(), mode) }.into()).map(drop)
}

/// Makes a file of any type; `rdev` is a device's number as [`Attr::rdev`] has it.
///
/// # Errors
/// The host's.
pub fn mknod_at(dir: impl AsFd, name: &CStr, mode: u32, rdev: u32) -> Result<(), Errno> {
    let device = libc::makedev(rdev >> 8 & 0xfff, rdev & 0xff | rdev >> 12 & 0xfff00);
    // SAFETY: reads a string.
    check(unsafe { libc::mknodat(dir.as_fd().as_raw_fd(), name.as_ptr(), mode, device) }.into()).map(drop)
}

/// Makes a symbolic link, whatever it says.
///
/// # Errors
/// The host's.
pub fn symlink_at(target: &CStr, dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
    // SAFETY: reads two strings.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_fd().as_raw_fd(), name.as_ptr()) }.into())
        .map(drop)
}

/// Removes a name; with `AT_REMOVEDIR` that of a directory.
///
/// # Errors
/// The host's.
pub fn unlink_at(dir: impl AsFd, name: &CStr, flags: i32) -> Result<(), Errno> {
    // SAFETY: reads a string.
    check(unsafe { libc::unlinkat(dir.as_fd().as_raw_fd(), name.as_ptr(), flags) }.into()).map(drop)
}

/// Moves a name (renameat2(2)).
///
/// # Errors
/// The host's.
pub fn rename_at(
    (from, name): (BorrowedFd<'_>, &CStr),
    (to, new_name): (BorrowedFd<'_>, &CStr),
    flags: u32,
) -> Result<(), Errno> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    let names = [name.as_ptr(), new_name.as_ptr()];
    // SAFETY: reads two strings.
    let renamed = check(unsafe { libc::syscall(libc::SYS_renameat2, from, names[0], to, names[1], flags) });
    renamed.map(drop)
}

/// What the symbolic link `name` in `dir` says.
///
/// # Errors
/// The host's.
pub fn readlink_at(dir: impl AsFd, name: &CStr) -> Result<Vec<u8>, Errno> {
    let mut target = vec![0; libc::PATH_MAX as usize];
    let (dir, to) = (dir.as_fd().as_raw_fd(), target.as_mut_ptr().cast());
    // SAFETY: reads a string and writes into `target`, not more than it has.
    let len = check(unsafe { libc::readlinkat(dir, name.as_ptr(), to, target.len()) } as c_long)?;
    target.truncate(len as usize);
    Ok(target)
}

/// Reads entries of a directory from its position on (getdents64(2)); returns how many bytes there are, 0 at the end.
///
/// # Errors
/// The host's.
pub fn entries(dir: impl AsFd, into: &mut [u8]) -> Result<usize, Errno> {
    let (dir, to) = (dir.as_fd().as_raw_fd(), into.as_mut_ptr());
    // SAFETY: writes into `into`, not more than it has.
    repeat(|| unsafe { libc::syscall(libc::SYS_getdents64, dir, to, into.len()) }).map(|len| len as usize)
}

/// Moves a file's position, or finds data and holes in it (lseek(2)).
///
/// # Errors
/// The host's.
pub fn seek(file: impl AsFd, offset: u64, whence: i32) -> Result<u64, Errno> {
    // SAFETY: takes and returns numbers.
    check(unsafe { libc::lseek(file.as_fd().as_raw_fd(), offset.cast_signed(), whence) }).map(|at| at as u64)
}

/// Sets the owner and group; `u32::MAX` leaves one as it is.
///
/// # Errors
/// The host's.
pub fn chown(file: impl AsFd, uid: u32, gid: u32) -> Result<(), Errno> {
    let file = file.as_fd().as_raw_fd();
    // SAFETY: reads a string.
    check(unsafe { libc::fchownat(file, c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) }.into()).map(drop)
}

/// Whether this process may do what the bits of `wanted` say (`R_OK` and so on) to `name` in `dir`, to `dir` itself if the
/// name is empty (faccessat2(2)). On a host that cannot say, it is no.
pub fn may(dir: impl AsFd, name: &CStr, wanted: i32) -> bool {
    let flags = libc::AT_EACCESS | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW;
    let (dir, name) = (dir.as_fd().as_raw_fd(), name.as_ptr());
    // SAFETY: reads a string.
    check(unsafe { libc::syscall(libc::SYS_faccessat2, dir, name, wanted, flags) }).is_ok()
}

/// A file's flags, such as append-only (ioctl_iflags(2)).
///
/// # Errors
/// The host's.
pub fn flags(file: impl AsFd) -> Result<u32, Errno> {
    // As wide as the request says, though the kernel writes half of it.
    let mut flags: libc::c_long = 0;
    let file = file.as_fd().as_raw_fd();
    // SAFETY: writes one number.
    check(unsafe { libc::ioctl(file, libc::FS_IOC_GETFLAGS, &raw mut flags) }.into())?;
    Ok(flags as u32)
}

/// FS_IOC_FSGETXATTR, which libc does not name.
pub const GET_EXTENDED: libc::Ioctl = 0x801c_581f;

/// A file's flags and more as `struct fsxattr`, which Linux reads before it sets [`flags`].
///
/// # Errors
/// The host's.
pub fn extended_flags(file: impl AsFd) -> Result<[u8; 28], Errno> {
    let mut flags = [0; 28];
    // SAFETY: writes one structure of this size.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), GET_EXTENDED, flags.as_mut_ptr()) }.into())?;
    Ok(flags)
}

/// Sets a file's flags.
///
/// # Errors
/// The host's.
pub fn set_flags(file: impl AsFd, flags: u32) -> Result<(), Errno> {
    let flags = libc::c_long::from(flags);
    // SAFETY: reads one number.
    check(unsafe { libc::ioctl(file.as_fd().as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) }.into())
        .map(drop)
}

/// The file system that a file is in.
///
/// # Errors
/// The host's.
pub fn stat_fs(file: impl AsFd) -> Result<libc::statfs, Errno> {
    // SAFETY: a structure of integers, all of which may be zero.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: writes one structure.
    repeat(|| unsafe { libc::fstatfs(file.as_fd().as_raw_fd(), &raw mut stat) }.into())?;
    Ok(stat)
}

/// Copies within the host, from and to offsets of files (copy_file_range(2)).
///
/// # Errors
/// The host's.
pub fn copy(
    (from, mut at): (BorrowedFd<'_>, i64),
    (to, mut to_at): (BorrowedFd<'_>, i64),
    len: usize,
) -> Result<usize, Errno> {
    let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
    // SAFETY: reads and writes the two offsets.
    repeat(|| unsafe {
        libc::syscall(libc::SYS_copy_file_range, from, &raw mut at, to, &raw mut to_at, len, 0)
    })
    .map(|len| len as usize)
}

/// The soft limit of descriptors of this process.
pub fn descriptor_limit() -> usize {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: writes one structure.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if failed == 0 { usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX) } else { 256 }
}

/// Brings the file system that a file is in to the disk (syncfs(2)).
///
/// # Errors
/// The host's.
pub fn sync_fs(file: impl AsFd) -> Result<(), Errno> {
    // The folder of a share is open with `O_PATH`, which syncs nothing.
    let root = open_at(file, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
    // SAFETY: takes a number.
    repeat(|| unsafe { libc::syncfs(root.as_raw_fd()) }.into()).map(drop)
}
