//! What only a thread of its own can do: create files as the one who asks, with just the permissions it asks for, and
//! reach extended attributes, for which the kernel wants a path, without one.
//!
//! `/proc/self/fd`, kept open from the start, leads from a descriptor's number to its file: even after pivot_root(2), and
//! whatever the file's names are. Where a call takes no directory's descriptor, that folder is the thread's working
//! directory, which it first parts from the other threads' (unshare(2), CLONE_FS), as it does its file creation mask.
#![expect(unsafe_code, reason = "system calls that concern one thread, not the process")]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_long;
use nix::errno::Errno;

use super::host::check;

thread_local! {
    /// This thread's working directory and mask are its own.
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// The folder `/proc/self/fd`.
pub struct Descriptors(OwnedFd);

/// A time to set.
pub const NOW: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW };
/// A time to leave alone.
pub const OMIT: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT };

fn number(file: BorrowedFd<'_>) -> CString {
    CString::new(file.as_raw_fd().to_string()).expect("digits have no zero byte")
}

impl Descriptors {
    /// Opens it: if this process may, on a mount of its own, from which no way leads up.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn open() -> io::Result<Self> {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
        let path = c"/proc/self/fd".as_ptr();
        // SAFETY: reads a string.
        if let Ok(fd) = check(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path, flags) }) {
            // SAFETY: a descriptor that the call has just returned is nobody else's.
            return Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }));
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        Ok(Self(File::options().read(true).custom_flags(flags).open("/proc/self/fd")?.into()))
    }

    /// Opens a file anew. The caller knows it to be a regular file or a directory.
    ///
    /// # Errors
    /// The host's.
    pub fn reopen(&self, file: impl AsFd, flags: i32) -> Result<OwnedFd, Errno> {
        let name = number(file.as_fd());
        let flags = flags | libc::O_CLOEXEC | libc::O_NOCTTY;
        loop {
            // SAFETY: reads a string.
            match check(unsafe { libc::openat(self.0.as_raw_fd(), name.as_ptr(), flags) }.into()) {
                // SAFETY: a descriptor that the call has just returned is nobody else's.
                Ok(fd) => return Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets the permissions.
    ///
    /// # Errors
    /// The host's.
    pub fn chmod(&self, file: impl AsFd, mode: u32) -> Result<(), Errno> {
        let name = number(file.as_fd());
        // SAFETY: reads a string.
        check(unsafe { libc::fchmodat(self.0.as_raw_fd(), name.as_ptr(), mode, 0) }.into()).map(drop)
    }

    /// Sets the times of access and change of data.
    ///
    /// # Errors
    /// The host's.
    pub fn set_times(&self, file: impl AsFd, times: [libc::timespec; 2]) -> Result<(), Errno> {
        let name = number(file.as_fd());
        // SAFETY: reads a string and two structures.
        check(unsafe { libc::utimensat(self.0.as_raw_fd(), name.as_ptr(), times.as_ptr(), 0) }.into())
            .map(drop)
    }

    /// Gives the file one more name.
    ///
    /// # Errors
    /// The host's.
    pub fn link(&self, file: impl AsFd, dir: impl AsFd, name: &CStr) -> Result<(), Errno> {
        let (old, dir) = (number(file.as_fd()), dir.as_fd().as_raw_fd());
        let flags = libc::AT_SYMLINK_FOLLOW;
        // SAFETY: reads two strings.
        check(unsafe { libc::linkat(self.0.as_raw_fd(), old.as_ptr(), dir, name.as_ptr(), flags) }.into())
            .map(drop)
    }

    /// Parts this thread's working directory and mask from those of the others, once, and makes them this folder and
    /// none.
    ///
    /// # Errors
    /// The host's.
    pub fn part(&self) -> Result<(), Errno> {
        if APART.get() {
            return Ok(());
        }
        // SAFETY: takes flags.
        check(unsafe { libc::unshare(libc::CLONE_FS) }.into())?;
        // SAFETY: takes a descriptor.
        check(unsafe { libc::fchdir(self.0.as_raw_fd()) }.into())?;
        // SAFETY: takes a number, and does not fail.
        unsafe { libc::umask(0) };
        APART.set(true);
        Ok(())
    }

    fn with_path<T>(
        &self,
        file: BorrowedFd<'_>,
        call: impl FnOnce(*const c_char) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.part()?;
        call(number(file).as_ptr())
    }

    /// Reads an extended attribute; how long it is, if `into` is empty.
    ///
    /// # Errors
    /// The host's.
    pub fn get_attribute(&self, file: impl AsFd, name: &CStr, into: &mut [u8]) -> Result<usize, Errno> {
        let (to, len) = (into.as_mut_ptr().cast(), into.len());
        self.with_path(file.as_fd(), |path| {
            // SAFETY: reads two strings and writes into `into`, not more than it has.
            Ok(check(unsafe { libc::getxattr(path, name.as_ptr(), to, len) } as c_long)? as usize)
        })
    }

    /// Lists extended attributes; how long the list is, if `into` is empty.
    ///
    /// # Errors
    /// The host's.
    pub fn list_attributes(&self, file: impl AsFd, into: &mut [u8]) -> Result<usize, Errno> {
        let (to, len) = (into.as_mut_ptr().cast(), into.len());
        self.with_path(file.as_fd(), |path| {
            // SAFETY: reads a string and writes into `into`, not more than it has.
            Ok(check(unsafe { libc::listxattr(path, to, len) } as c_long)? as usize)
        })
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// The host's.
    pub fn set_attribute(&self, file: impl AsFd, name: &CStr, value: &[u8], flags: u32) -> Result<(), Errno> {
        let (from, len) = (value.as_ptr().cast(), value.len());
        self.with_path(file.as_fd(), |path| {
            // SAFETY: reads two strings and `value`.
            check(unsafe { libc::setxattr(path, name.as_ptr(), from, len, flags as i32) }.into()).map(drop)
        })
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// The host's.
    pub fn remove_attribute(&self, file: impl AsFd, name: &CStr) -> Result<(), Errno> {
        self.with_path(file.as_fd(), |path| {
            // SAFETY: reads two strings.
            check(unsafe { libc::removexattr(path, name.as_ptr()) }.into()).map(drop)
        })
    }
}

/// This thread creates files as somebody else until this is dropped.
pub struct Caller {
    changed: bool,
}

impl Caller {
    /// As `uid` and `gid`, if this process may: it is root's. Anybody else's files stay their own.
    ///
    /// Permissions were checked by the guest, which knows more of them than two numbers: whoever may override them here
    /// still does.
    pub fn new(uid: u32, gid: u32) -> Self {
        // SAFETY: returns a number.
        let root = unsafe { libc::geteuid() } == 0;
        let changed = root && (uid, gid) != (0, 0);
        if changed {
            // The raw calls: they concern this thread alone. They return what was, and do not fail visibly.
            // SAFETY: takes a number.
            unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
            // SAFETY: takes a number.
            unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
            override_permissions();
        }
        Self { changed }
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        if self.changed {
            // This brings back what of capabilities left with it.
            // SAFETY: takes a number.
            unsafe { libc::syscall(libc::SYS_setfsuid, 0) };
            // SAFETY: takes a number.
            unsafe { libc::syscall(libc::SYS_setfsgid, 0) };
        }
    }
}

/// Makes CAP_DAC_OVERRIDE effective again, which setfsuid(2) took, if it is permitted (capabilities(7)).
fn override_permissions() {
    const VERSION_3: u32 = 0x2008_0522;
    const DAC_OVERRIDE: u32 = 1 << 1;
    let mut header = [VERSION_3, 0];
    // Effective, permitted and inheritable, the lower half of each and then the upper.
    let mut sets = [0u32; 6];
    // SAFETY: reads the header, writes it if the version is wrong, and writes the sets.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    if got == 0 && sets[1] & DAC_OVERRIDE != 0 {
        sets[0] |= DAC_OVERRIDE;
        // SAFETY: reads the header and the sets.
        let _without = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    }
}
