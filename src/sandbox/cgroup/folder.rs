//! Folders of a cgroup file system (cgroups(7)), reached without following a link and checked to be what they seem: a
//! link or another file system planted on the way is an error.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, mkdirat};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{AccessFlags, UnlinkatFlags, faccessat, unlinkat};

/// The longest file that is read; the kernel's are short, but for lists of processes.
const LONGEST: u64 = 1 << 20;

/// An open folder.
#[derive(Debug)]
pub struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens `path`, which the kernel has named in mountinfo, and `below` in it.
    ///
    /// # Errors
    /// It cannot be opened, there is a link on the way, or it is no folder of a cgroup file system.
    pub fn open(path: &Path, below: &Path) -> Result<Self, Errno> {
        let links = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let top = OwnedFd::from(open_at(AT_FDCWD, path, OFlag::O_DIRECTORY, links)?);
        let top = Self { fd: top, path: path.to_owned() };
        top.check()?;
        if below.as_os_str().is_empty() { Ok(top) } else { top.folder(below) }
    }

    /// Opens a folder below this one.
    ///
    /// # Errors
    /// As with [`Folder::open`]; EXDEV if something is mounted there.
    pub fn folder(&self, below: &Path) -> Result<Self, Errno> {
        let fd = OwnedFd::from(open_at(&self.fd, below, OFlag::O_DIRECTORY, within())?);
        let folder = Self { fd, path: self.path.join(below) };
        folder.check()?;
        Ok(folder)
    }

    /// A folder on another file system was put there by another program.
    fn check(&self) -> Result<(), Errno> {
        let kind = fstatfs(&self.fd)?.filesystem_type();
        if kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC {
            Ok(())
        } else {
            Err(Errno::EMEDIUMTYPE)
        }
    }

    /// Makes a folder below this one and opens it.
    ///
    /// # Errors
    /// It is there already (EEXIST), may not be made, or cannot be opened.
    pub fn make(&self, name: &str) -> Result<Self, Errno> {
        mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755))?;
        self.folder(Path::new(name))
    }

    /// Whether this is the folder `name` of `parent`, and not one that has been removed.
    pub fn is(&self, parent: &Self, name: &str) -> bool {
        let file = |folder: &Self| fstat(&folder.fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        parent.folder(Path::new(name)).is_ok_and(|there| file(&there).is_some() && file(&there) == file(self))
    }

    /// Removes a folder below this one, which only works if it has neither processes nor folders.
    ///
    /// # Errors
    /// It is not empty (EBUSY), or may not be removed.
    pub fn remove(&self, name: &str) -> Result<(), Errno> {
        unlinkat(&self.fd, name, UnlinkatFlags::RemoveDir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether there is such a file.
    pub fn has(&self, file: &str) -> bool {
        faccessat(&self.fd, file, AccessFlags::F_OK, AtFlags::AT_SYMLINK_NOFOLLOW).is_ok()
    }

    /// A file's text.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, file: &str) -> Result<String, Errno> {
        let file = open_at(&self.fd, Path::new(file), OFlag::O_RDONLY, within())?;
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).map_err(errno)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The number on the line of a file that begins with `key`.
    pub fn number(&self, file: &str, key: &str) -> Option<u64> {
        value(&self.read(file).ok()?, key)
    }

    /// The processes of the group.
    ///
    /// # Errors
    /// They cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, Errno> {
        Ok(self.read("cgroup.procs")?.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Writes a file, in one call, as its kernel wants it.
    ///
    /// # Errors
    /// It may not be written, or the kernel does not take the text.
    pub fn write(&self, file: &str, text: &str) -> Result<(), Errno> {
        let mut file = open_at(&self.fd, Path::new(file), OFlag::O_WRONLY, within())?;
        let written = file.write(text.as_bytes()).map_err(errno)?;
        if written == text.len() { Ok(()) } else { Err(Errno::EIO) }
    }

    /// Whether this user may write a file of this name.
    ///
    /// # Errors
    /// Why not.
    pub fn may_write(&self, file: &str) -> Result<(), Errno> {
        open_at(&self.fd, Path::new(file), OFlag::O_WRONLY, within()).map(drop)
    }

    /// Takes the folder for one kite, until every copy of the descriptor is closed, in forked processes too.
    ///
    /// # Errors
    /// Another has it (EWOULDBLOCK).
    #[expect(unsafe_code, reason = "nix unlocks as soon as one copy is dropped")]
    pub fn lock(&self) -> Result<(), Errno> {
        // SAFETY: takes two numbers; the descriptor is open.
        Errno::result(unsafe { libc::flock(self.fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// No link, nothing above, no other file system.
fn within() -> ResolveFlag {
    ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV
}

fn open_at(at: impl AsFd, path: &Path, flags: OFlag, resolve: ResolveFlag) -> Result<File, Errno> {
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    openat2(at, path, how).map(File::from)
}

fn errno(error: std::io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// The number behind `key` and white space on a line of its own.
fn value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(char::is_whitespace));
    line?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_folder_that_is_no_cgroup_file_system_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Folder::open(folder.path(), Path::new("")).unwrap_err(), Errno::EMEDIUMTYPE);
    }

    #[test]
    fn a_link_on_the_way_is_never_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        std::fs::create_dir_all(real.join("below")).unwrap();
        std::fs::write(real.join("memory.max"), "max").unwrap();
        symlink(&real, &link).unwrap();
        symlink("memory.max", real.join("pids.max")).unwrap();
        symlink("below", real.join("planted")).unwrap();
        for path in [&link, &link.join("below")] {
            assert_eq!(Folder::open(path, Path::new("")).unwrap_err(), Errno::ELOOP, "{path:?}");
        }
        // As if it were a cgroup file system.
        let here = Folder { fd: File::open(&real).unwrap().into(), path: real.clone() };
        assert_eq!(here.write("pids.max", "1").unwrap_err(), Errno::ELOOP);
        assert_eq!(here.read("pids.max").unwrap_err(), Errno::ELOOP);
        assert_eq!(here.folder(Path::new("planted")).unwrap_err(), Errno::ELOOP);
        assert_eq!(here.make("planted").unwrap_err(), Errno::EEXIST);
        assert_eq!(here.folder(Path::new("../link")).unwrap_err(), Errno::EXDEV);
        assert_eq!(here.remove("planted").unwrap_err(), Errno::ENOTDIR);
        here.write("memory.max", "512").unwrap();
        assert_eq!(here.read("memory.max").unwrap(), "512");
    }

    #[test]
    fn a_number_is_found_by_its_whole_name() {
        let text = "oom 1\noom_kill 23\noom_group_kill 4\nx y\n";
        assert_eq!(value(text, "oom_kill"), Some(23));
        assert_eq!(value(text, "oom"), Some(1));
        assert_eq!(value(text, "x"), None);
        assert_eq!(value(text, "max"), None);
    }

    #[test]
    fn a_folder_is_one_kite_s() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Folder { fd: File::open(folder.path()).unwrap().into(), path: folder.path().into() };
        let first = open();
        first.lock().unwrap();
        let copy = Folder { fd: first.fd.try_clone().unwrap(), path: first.path.clone() };
        drop(first);
        assert_eq!(open().lock().unwrap_err(), Errno::EWOULDBLOCK);
        drop(copy);
        open().lock().unwrap();
    }
}
