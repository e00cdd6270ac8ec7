//! Folders shared with the guest, as mounts of their own that are nowhere mounted (open_tree(2)).
//!
//! A folder of such a mount has no folder above: not even a name that begins with `..` leads out of it, and where the
//! guest may only read, so may this process. There is no path to them, so that the root can stay empty, and a folder
//! need not be made for each.
#![expect(unsafe_code, reason = "open_tree(2) and mount_setattr(2) have no safe interface")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};

/// The folder at `path`, which has to be the one that is open as `known`, as a mount of its own, with all that is mounted
/// below it; nothing of it can be changed unless `writable`.
///
/// # Errors
/// The host forbids it, or another folder has taken its place.
pub(super) fn part(path: &Path, known: &OwnedFd, writable: bool) -> anyhow::Result<OwnedFd> {
    // Anew, as the mounts are this process' own copies now.
    let folder = open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .context("cannot open it again")?;
    let (now, then) = (fstat(&folder)?, fstat(known)?);
    ensure!((now.st_dev, now.st_ino) == (then.st_dev, then.st_ino), "another folder has taken its place");
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    let flags = flags | (libc::AT_EMPTY_PATH | libc::AT_RECURSIVE) as libc::c_uint;
    // SAFETY: reads a string.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, folder.as_raw_fd(), c"".as_ptr(), flags) };
    let tree = Errno::result(tree).context("cannot copy its mounts")?;
    // SAFETY: nothing else has a descriptor that the call has just returned.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as i32) };
    restrict(&tree, writable).context("cannot restrict its mounts")?;
    Ok(tree)
}

/// Nothing in it is a device or gives rights, and unless it is `writable`, nothing changes.
fn restrict(tree: &OwnedFd, writable: bool) -> nix::Result<()> {
    let mut attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    if !writable {
        attributes.attr_set |= libc::MOUNT_ATTR_RDONLY;
    }
    let (tree, size) = (tree.as_raw_fd(), size_of::<libc::mount_attr>());
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: reads a string and a structure of this size.
    let set = unsafe {
        libc::syscall(libc::SYS_mount_setattr, tree, c"".as_ptr(), flags, &raw const attributes, size)
    };
    match Errno::result(set) {
        // Before Linux 5.12: Landlock keeps it, and the server.
        Err(Errno::ENOSYS) => Ok(()),
        result => result.map(drop),
    }
}
