//! An empty root folder (pivot_root(2)): what is open is all that this process has of the host's files.
#![expect(unsafe_code, reason = "pivot_root(2) of one folder onto itself has no safe interface")]

use std::env;
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// Folders of which every host has one, for the new root to be mounted on for a moment.
const FOLDERS: [&str; 3] = ["/proc", "/dev", "/tmp"];

/// Makes the root of this process, which is in a mount namespace of its own, an empty folder that cannot be written to.
///
/// # Errors
/// The host forbids a step.
pub(super) fn empty() -> anyhow::Result<()> {
    let none = None::<&Path>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)
        .context("cannot part the mounts from the host's")?;
    let folder = FOLDERS.into_iter().find(|folder| Path::new(folder).is_dir());
    let folder = folder.context("there is no folder to mount a new root on")?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), folder, Some("tmpfs"), flags, Some("size=4k,nr_inodes=2,mode=555"))
        .context("cannot mount an empty root")?;
    env::set_current_dir(folder).context("cannot enter the empty root")?;
    // SAFETY: reads two strings.
    let moved = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()) };
    Errno::result(moved).context("cannot change the root")?;
    // The old root lies on the new one now.
    umount2(".", MntFlags::MNT_DETACH).context("cannot let go of the host's files")?;
    env::set_current_dir("/").context("cannot enter the new root")
}
