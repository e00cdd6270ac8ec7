//! Files that programs read, and find whole at any time: written beside and then given their name.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::{Mode, SFlag, fstatat};
use nix::unistd::{AccessFlags, UnlinkatFlags, access, unlinkat};

/// How many names are tried for a file that is being written: who has taken so many wants none to be.
const NAMES: usize = 16;
/// Why a link is refused: another user may have planted it.
const LINK: &str = "is a symbolic link; name the file itself";
/// The same of a hard link.
const OTHER_NAME: &str = "the file has another name, too: remove it, or name another";

/// Refuses a path that [`write()`] would, before the work that is reported there.
///
/// # Errors
/// There is something else than a file of one name, a link for one, or no such folder, or that cannot be written to.
pub fn check(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            bail!("{}: {LINK}", path.display())
        }
        Ok(metadata) if !metadata.is_file() => {
            bail!("{}: is not a regular file", path.display())
        }
        Ok(metadata) if metadata.nlink() > 1 => bail!("{}: {OTHER_NAME}", path.display()),
        Ok(_) => {}
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    if path.file_name().is_none() {
        bail!("{}: is not the name of a file", path.display());
    }
    let folder = folder(path);
    match fs::metadata(folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => bail!("cannot write {}: {} is not a folder", path.display(), folder.display()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            bail!("cannot write {}: there is no folder {}", path.display(), folder.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", folder.display())),
    }
    access(folder, AccessFlags::W_OK | AccessFlags::X_OK)
        .with_context(|| format!("cannot write {}: no file can be made in its folder", path.display()))
}

/// As [`check`], and has [`write()`] find the file's folder again where this process has none any more ([`send_to`]).
///
/// # Errors
/// Those of [`check`].
pub fn expect(path: &Path) -> anyhow::Result<()> {
    let place = Place::of(path)?;
    expected().push(Arc::new(place));
    Ok(())
}

/// The files that are expected. They are one list a process, as options in many rooms name them.
static EXPECTED: Mutex<Vec<Arc<Place>>> = Mutex::new(Vec::new());

fn expected() -> MutexGuard<'static, Vec<Arc<Place>>> {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The places of the files that are expected, in their order.
pub fn places() -> Vec<Arc<Place>> {
    expected().clone()
}

/// Takes a file's number among those that are expected, and its content, to write it elsewhere.
pub type Send = Box<dyn Fn(u8, OwnedFd) -> io::Result<()> + std::marker::Send + Sync>;

/// The way to the process that writes this one's files, and the paths of those that were expected.
static PROXY: OnceLock<(Send, Vec<PathBuf>)> = OnceLock::new();

/// Has `send` write the files that are expected, and no other: this process has their folders no more.
pub fn send_to(send: Send) {
    let paths = expected().drain(..).map(|place| place.path.clone()).collect();
    // A process forks once.
    let _ = PROXY.set((send, paths));
}

/// Whether this process sends files to another one.
pub fn are_sent() -> bool {
    PROXY.get().is_some_and(|(_, paths)| !paths.is_empty())
}

/// Sends a file as memory.
fn send(
    (send, paths): &(Send, Vec<PathBuf>),
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let Some(index) = paths.iter().position(|it| it == path) else {
        return Err(io::Error::other("it was not named at the start"));
    };
    let mut memory = BufWriter::new(memory()?);
    content(&mut memory)?;
    send(index as u8, memory.into_inner()?.into())
}

/// Memory that is no program, which a host may demand (Linux `Documentation/userspace-api/mfd_noexec.rst`).
///
/// # Errors
/// The host has no descriptor left.
pub fn memory() -> nix::Result<File> {
    let make = |flags| memfd_create(c"file", MFdFlags::MFD_CLOEXEC | flags);
    let sealed = make(MFdFlags::from_bits_retain(libc::MFD_NOEXEC_SEAL));
    match sealed {
        // Before Linux 6.3.
        Err(Errno::EINVAL) => make(MFdFlags::empty()),
        made => made,
    }
    .map(File::from)
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The folder of `path`, which stays the same one though it is moved or replaced by a link.
///
/// # Errors
/// It cannot be opened.
pub fn open_folder(path: &Path) -> nix::Result<OwnedFd> {
    open(folder(path), OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// Opens a file that grows while others read it: made, or emptied. Neither a planted symbolic link is
/// followed, nor a file emptied that has another name.
///
/// # Errors
/// It cannot be written, or is such a link.
pub fn emptied(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    options.write(true).create(true).truncate(false).custom_flags(flags.bits());
    let file = options.open(path).map_err(|error| match Errno::try_from(error) {
        Ok(Errno::ELOOP) => io::Error::other(format!("it {LINK}")),
        Ok(Errno::ENXIO) => io::Error::other("it is a pipe that nobody reads, or a socket"),
        Ok(errno) => errno.into(),
        Err(error) => error,
    })?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        if metadata.nlink() > 1 {
            return Err(io::Error::other(OTHER_NAME));
        }
        file.set_len(0)?;
    }
    Ok(file)
}

/// Makes the file of what `content` writes. A reader finds the file of before or the whole new one, and a planted link is
/// not followed.
///
/// # Errors
/// The file cannot be written there.
pub fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    if let Some(proxy) = PROXY.get() {
        return send(proxy, path, content).with_context(what);
    }
    let known = expected().iter().find(|place| place.path == path).cloned();
    let place = known.map_or_else(|| Place::of(path).map(Arc::new), Ok)?;
    let mut draft = Draft::of(place)?;
    content(&mut draft).with_context(what)?;
    draft.finish()
}

/// A file's place, in the folder that has this path now ([`open_folder`]).
pub struct Place {
    folder: OwnedFd,
    name: OsString,
    path: PathBuf,
}

impl Place {
    /// The one at `path`.
    ///
    /// # Errors
    /// Those of [`check`].
    pub fn of(path: &Path) -> anyhow::Result<Self> {
        check(path)?;
        let what = || format!("cannot open the folder of {}", path.display());
        let name = path.file_name().with_context(what)?.to_owned();
        let folder = open_folder(path).with_context(what)?;
        Ok(Self { folder, name, path: path.to_owned() })
    }

    /// What the user calls it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its folder.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Whether a file may take its name: that may have become something else's.
    fn check(&self) -> anyhow::Result<()> {
        match fstatat(&self.folder, self.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot look at {}", self.path.display())),
            Ok(it) if it.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits() => Ok(()),
            Ok(_) => bail!("{}: is not a regular file", self.path.display()),
        }
    }
}

/// A file that is being written, beside its place. Removed when dropped before it is whole.
pub struct Draft {
    place: Arc<Place>,
    name: String,
    file: File,
}

impl Draft {
    /// An empty one.
    ///
    /// # Errors
    /// It cannot be made there.
    pub fn of(place: Arc<Place>) -> anyhow::Result<Self> {
        place.check()?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        // As any new file: the process's umask takes from it.
        let mode = Mode::from_bits_truncate(0o666);
        let mut made = Err(Errno::EEXIST);
        let mut name = String::new();
        for _ in 0..NAMES {
            name = format!(".kite-{:016x}", RandomState::new().hash_one(&place.path));
            made = openat(&place.folder, name.as_str(), flags, mode);
            if !matches!(made, Err(Errno::EEXIST)) {
                break;
            }
        }
        let file = made.with_context(|| format!("cannot write {}", place.path.display()))?.into();
        Ok(Self { place, name, file })
    }

    /// What the user calls it.
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// It is whole, and gets its name.
    ///
    /// # Errors
    /// It cannot have it.
    pub fn finish(self) -> anyhow::Result<()> {
        let Place { folder, name, path } = &*self.place;
        self.place.check()?;
        renameat(folder, self.name.as_str(), folder, name.as_os_str())
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Once it is whole there is nothing of this name.
        let _ = unlinkat(&self.place.folder, self.name.as_str(), UnlinkatFlags::NoRemoveDir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_name_is_neither_emptied_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("precious"), "kept").unwrap();
        fs::hard_link(path("precious"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("precious"), path("soft")).unwrap();
        for name in ["hard", "soft"] {
            assert!(emptied(&path(name)).is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(path("precious")).unwrap(), "kept");
    }

    #[test]
    fn a_folder_that_is_replaced_by_a_link_is_not_the_file_s_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("results")).unwrap();
        fs::create_dir(path("precious")).unwrap();
        let place = Arc::new(Place::of(&path("results/file")).unwrap());
        fs::rename(path("results"), path("moved")).unwrap();
        std::os::unix::fs::symlink(path("precious"), path("results")).unwrap();
        let write = |text: &[u8]| {
            let mut draft = Draft::of(place.clone())?;
            draft.write_all(text)?;
            draft.finish()
        };
        write(b"whole").unwrap();
        assert_eq!(fs::read_dir(path("precious")).unwrap().count(), 0);
        assert_eq!(fs::read_to_string(path("moved/file")).unwrap(), "whole");
        // Nor is a link in its own place followed, nor anything left beside it.
        fs::remove_file(path("moved/file")).unwrap();
        std::os::unix::fs::symlink(path("precious/new"), path("moved/file")).unwrap();
        assert!(write(b"more").unwrap_err().to_string().ends_with("is not a regular file"));
        drop(Draft::of(Arc::new(Place::of(&path("moved/other")).unwrap())).unwrap());
        assert_eq!(fs::read_dir(path("moved")).unwrap().count(), 1);
    }

    #[test]
    fn a_file_of_before_is_emptied_and_a_new_one_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for text in ["a long line", "short"] {
            emptied(&path).unwrap().write_all(text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
