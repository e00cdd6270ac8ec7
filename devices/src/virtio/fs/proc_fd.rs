//! What only a thread of its own can do: create files as the one who asks, with just the permissions it asks for, and
//! reach extended attributes, for which the kernel wants a path, without one.
//!
//! `/proc/self/fd`, open from the start, leads from a descriptor's number to its file: even after pivot_root(2), and
//! whatever the file's names are. Where a call takes no directory's descriptor, that folder is the thread's working
//! directory, which it first parts from the other threads' (unshare(2), CLONE_FS), as it does its file creation mask.
//! A container may refuse that: then the way is the whole path, and the mask is everybody's for a moment.
#![expect(unsafe_code, reason = "system calls that concern one thread, not the process")]

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::c_long;
use nix::errno::Errno;

use super::host::check;

thread_local! {
    /// This thread's working directory and mask are its own.
    static APART: Cell<bool> = const { Cell::new(false) };
    /// This thread's mask, where it is its own.
    static MINE: Cell<u32> = const { Cell::new(0) };
}

/// Held while the mask of all threads is that of a guest's process.
static MASK: Mutex<()> = Mutex::new(());

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
            // SAFETY: a descriptor that the call has just returned is owned by nothing else.
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
                // SAFETY: a descriptor that the call has just returned is owned by nothing else.
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

    /// Until this is dropped, files are made as by a process with this mask. The host knows when that does not count, as a
    /// folder says what its files permit (acl(5), "Object creation and default ACLs").
    ///
    /// # Errors
    /// The host's.
    pub fn masked(&self, mask: u32) -> Result<Masked, Errno> {
        let mask = mask & 0o777;
        if self.part()? {
            if MINE.replace(mask) != mask {
                // SAFETY: takes a number, and does not fail.
                unsafe { libc::umask(mask) };
            }
            return Ok(Masked(None));
        }
        let lock = MASK.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: takes a number, and does not fail.
        let before = unsafe { libc::umask(mask) };
        Ok(Masked(Some((before, lock))))
    }

    /// Parts this thread's working directory and mask from those of the others, once, and makes them this folder and
    /// none. Answers whether the host lets it.
    fn part(&self) -> Result<bool, Errno> {
        if APART.get() {
            return Ok(true);
        }
        // SAFETY: takes flags.
        match check(unsafe { libc::unshare(libc::CLONE_FS) }.into()) {
            Err(Errno::EPERM | Errno::ENOSYS) => return Ok(false),
            result => result?,
        };
        // SAFETY: takes a descriptor.
        check(unsafe { libc::fchdir(self.0.as_raw_fd()) }.into())?;
        // SAFETY: takes a number, and does not fail.
        unsafe { libc::umask(0) };
        MINE.set(0);
        APART.set(true);
        Ok(true)
    }

    fn with_path<T>(
        &self,
        file: BorrowedFd<'_>,
        call: impl FnOnce(*const c_char) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let number = number(file);
        if self.part()? {
            return call(number.as_ptr());
        }
        // A process that may not part this has the host's folders: its root folder is unchanged for the same reason.
        let path = [b"/proc/self/fd/", number.as_bytes()].concat();
        call(CString::new(path).expect("digits have no zero byte").as_ptr())
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

/// The mask of a guest's process holds while this is there.
pub struct Masked(Option<(libc::mode_t, MutexGuard<'static, ()>)>);

impl Drop for Masked {
    fn drop(&mut self) {
        if let Some((before, _lock)) = &self.0 {
            // SAFETY: takes a number, and does not fail.
            unsafe { libc::umask(*before) };
        }
    }
}

/// This thread creates files as another user until this is dropped.
pub struct Caller {
    changed: bool,
}

impl Caller {
    /// As `uid` and `gid`, if this process may: it is root's. Anybody else's files stay their own.
    ///
    /// Permissions were checked by the guest, which knows more of them than two numbers: a process that may override them here
    /// does so.
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
            // This brings back the capabilities that went with it.
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Has unshare(2) refused to this thread, as a container's engine has it refused to all.
    fn refuse_unshare() {
        let statement = |code, jump, k| libc::sock_filter { code, jt: 0, jf: jump, k };
        // Load the number; if it is not this one, skip the next; return SECCOMP_RET_ERRNO, or SECCOMP_RET_ALLOW.
        let mut program = [
            statement(0x20, 0, 0),
            statement(0x15, 1, libc::SYS_unshare as u32),
            statement(0x06, 0, 0x0005_0000 | libc::EPERM as u32),
            statement(0x06, 0, 0x7fff_0000),
        ];
        let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: takes numbers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
        // SAFETY: reads a program of this length.
        let set =
            unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
        assert_eq!(set, 0);
    }

    #[test]
    fn what_a_container_refuses_to_a_thread_is_done_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let made = std::thread::scope(|scope| {
            let body = || {
                refuse_unshare();
                let descriptors = Descriptors::open().unwrap();
                assert_eq!(descriptors.part(), Ok(false));
                let path = folder.path().join("made");
                let masked = descriptors.masked(0).unwrap();
                let file = File::options().write(true).create_new(true).mode(0o666).open(&path).unwrap();
                drop(masked);
                descriptors.list_attributes(&file, &mut []).unwrap();
                let after = File::create(folder.path().join("after")).unwrap();
                [file, after].map(|file| file.metadata().unwrap().permissions().mode() & 0o777)
            };
            scope.spawn(body).join().unwrap()
        });
        // SAFETY: takes a number, and does not fail.
        let mask = unsafe { libc::umask(0o022) };
        // SAFETY: as above.
        unsafe { libc::umask(mask) };
        assert_eq!(made, [0o666, 0o666 & !mask]);
    }
}
