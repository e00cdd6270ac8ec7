//! Files that the VM process only reads, on mounts where nothing can be changed (mount_setattr(2)).
//!
//! What a descriptor may be written by is the descriptor's own business; but its file's owner, permissions, times and
//! extended attributes are changed by way of the mount that it was opened on. So all mounts of the machine's namespace
//! become read-only, and what was opened before, on the host's, is opened there again in its place.
#![expect(unsafe_code, reason = "mount_setattr(2), and descriptors by their numbers, have no safe interface")]

use std::fs;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::statfs::{PROC_SUPER_MAGIC, SYSFS_MAGIC, fstatfs};
use nix::unistd::{Whence, lseek};

/// Where this process's descriptors are.
const DESCRIPTORS: &str = "/proc/self/fd";

/// Makes every mount of this process's namespace, which has one of its own, read-only: what is opened from now on is opened
/// there.
///
/// # Errors
/// The kernel is older than Linux 5.12, or the host forbids it.
pub(super) fn mounts() -> anyhow::Result<()> {
    let attributes =
        libc::mount_attr { attr_set: libc::MOUNT_ATTR_RDONLY, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let size = size_of::<libc::mount_attr>();
    // SAFETY: reads a string and a structure of this size.
    let set = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            &raw const attributes,
            size,
        )
    };
    Errno::result(set).map(drop).context("cannot make the mounts read-only")
}

/// Opens again, by [`mounts`] and with the same numbers, the files that are open for reading alone, but for the standard
/// streams and those whose numbers are `others`. Answers what could not be, a line each.
pub(super) fn reopen_files(others: &[RawFd]) -> Vec<String> {
    let numbers = match numbers() {
        Ok(numbers) => numbers,
        Err(error) => return vec![format!("cannot list {DESCRIPTORS}: {error}")],
    };
    let numbers = numbers.into_iter().filter(|number| *number > 2 && !others.contains(number));
    numbers.filter_map(|number| reopen(number).err().map(|error| format!("{error:#}"))).collect()
}

fn numbers() -> io::Result<Vec<RawFd>> {
    let names = fs::read_dir(DESCRIPTORS)?.flatten();
    Ok(names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
}

fn reopen(number: RawFd) -> anyhow::Result<()> {
    // SAFETY: this process has one thread, which closes nothing meanwhile. The folder's own descriptor is closed by now:
    // for that every call here fails.
    let old = unsafe { BorrowedFd::borrow_raw(number) };
    let Some((path, flags)) = read_alone(old) else { return Ok(()) };
    let again = || -> anyhow::Result<()> {
        let new = open(&path, flags)?;
        let identity = |file: &File| file.metadata().map(|it| (it.dev(), it.ino(), it.rdev()));
        let known = File::from(old.try_clone_to_owned()?);
        ensure!(identity(&new)? == identity(&known)?, "another file has taken its place");
        lseek(&new, lseek(old, 0, Whence::SeekCur)?, Whence::SeekSet)?;
        lock_as(number, &new)?;
        // SAFETY: the number stays one of an open file, and its holder finds the same file there.
        let put = unsafe { libc::dup3(new.as_raw_fd(), number, libc::O_CLOEXEC) };
        Errno::result(put).map(drop)?;
        Ok(())
    };
    again().with_context(|| format!("cannot open {} where nothing can be changed", path.display()))
}

/// The path and the flags of what is a file with a name and open for reading alone.
fn read_alone(file: BorrowedFd<'_>) -> Option<(PathBuf, OFlag)> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).ok()?);
    if flags.intersects(OFlag::O_PATH) || flags & OFlag::O_ACCMODE != OFlag::O_RDONLY {
        return None;
    }
    let metadata = File::from(file.try_clone_to_owned().ok()?).metadata().ok()?;
    let kind = metadata.file_type();
    if !(kind.is_file() || kind.is_block_device()) || metadata.nlink() == 0 {
        return None;
    }
    // The kernel's own words are nobody's to change, and another process's are not found here.
    let system = fstatfs(file).ok()?.filesystem_type();
    if [PROC_SUPER_MAGIC, SYSFS_MAGIC].contains(&system) {
        return None;
    }
    Some((fs::read_link(Path::new(DESCRIPTORS).join(file.as_raw_fd().to_string())).ok()?, flags))
}

/// Opens a file with these flags. Until it is known to be the right one, a pipe in its place must not make this wait.
fn open(path: &Path, flags: OFlag) -> anyhow::Result<File> {
    let kept = flags & (OFlag::O_DIRECT | OFlag::O_NOATIME | OFlag::O_NONBLOCK);
    let opening = kept | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(opening.bits()).open(path)?;
    fcntl(&file, FcntlArg::F_SETFL(kept))?;
    Ok(file)
}

/// Locks `new` as the file with that number is locked: for reading, as it is open for nothing else.
fn lock_as(number: RawFd, new: &File) -> anyhow::Result<()> {
    let known = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    if known.lines().any(|line| line.starts_with("lock:") && line.contains("FLOCK")) {
        // SAFETY: takes a descriptor and flags. The lock is a shared one, as is the one that is there.
        let locked = unsafe { libc::flock(new.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        Errno::result(locked).context("cannot lock it again")?;
    }
    if !known.lines().any(|line| line.starts_with("lock:") && line.contains("OFDLCK")) {
        return Ok(());
    }
    let whole = libc::flock {
        l_type: libc::F_RDLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(new, FcntlArg::F_OFD_SETLK(&whole)).map(drop).context("cannot lock it again")
}
