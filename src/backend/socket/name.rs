//! Sockets' names: they are made with a socket, stay when no process listens any more, and have to be removed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{AtFlags, Flock, FlockArg, RenameFlags, renameat2};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, connect, socket};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use crate::host::atomic_file::open_folder;

/// How often a lock that another kite has is asked for, and how long it is waited in between.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Which file a name is of; as numbers are used again, with the time at which a socket was made.
type Identity = (u64, u64, i64, i64);

/// A socket's name, which is removed when dropped if it is still that socket's, in the folder that it was made in
/// ([`open_folder`]).
pub struct Name {
    folder: OwnedFd,
    name: OsString,
    /// Nothing if the name is another process's to remove.
    identity: Option<Identity>,
}

impl Name {
    fn of(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        let folder = open_folder(path)?;
        Ok(Self { identity: Some(identity(&folder, &name)?), folder, name })
    }

    /// Its folder.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Leaves it to another process, which has it too, to remove it.
    pub fn leave(mut self) {
        self.identity = None;
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.folder, &self.name).ok() == self.identity {
            // A failure has no reader here.
            let _ = unlinkat(&self.folder, self.name.as_os_str(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

/// Listens at `path`, where nothing is, or a socket's name that a kite of this user has left behind when it was killed.
///
/// # Errors
/// The host's; `AddrInUse` if there is anything else.
pub(super) fn listen(path: &Path) -> io::Result<(UnixListener, Name)> {
    listen_by(path, |path| UnixListener::bind(path))
}

/// As [`listen`], for this user's programs alone.
///
/// # Errors
/// The host's; `AddrInUse` if there is anything else.
pub fn listen_for_owner(path: &Path) -> io::Result<(UnixListener, Name)> {
    listen_for_owner_of(SockType::Stream, path)
}

/// As [`listen_for_owner`], for connections that have packets (unix(7), `SOCK_SEQPACKET`).
///
/// # Errors
/// The host's; `AddrInUse` if there is anything else.
pub fn listen_for_packets(path: &Path) -> io::Result<(UnixListener, Name)> {
    listen_for_owner_of(SockType::SeqPacket, path)
}

fn listen_for_owner_of(kind: SockType, path: &Path) -> io::Result<(UnixListener, Name)> {
    listen_by(path, |path| {
        let listener = socket(AddressFamily::Unix, kind, SockFlag::SOCK_CLOEXEC, None)?;
        // The name gets it when it is made: there is no moment at which others could connect.
        fchmod(&listener, Mode::S_IRUSR | Mode::S_IWUSR)?;
        bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
        nix::sys::socket::listen(&listener, Backlog::MAXCONN)?;
        Ok(listener.into())
    })
}

fn listen_by(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<UnixListener>,
) -> io::Result<(UnixListener, Name)> {
    let listener = match bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            let _alone = alone(path);
            if !remove_dead(path)? {
                return Err(error);
            }
            bind(path)?
        }
        result => result?,
    };
    let name = Name::of(path)?;
    listener.set_nonblocking(true)?;
    Ok((listener, name))
}

fn identity(folder: &OwnedFd, name: &OsStr) -> nix::Result<Identity> {
    let it = fstatat(folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok((it.st_dev, it.st_ino, it.st_mtime, it.st_mtime_nsec))
}

/// Keeps other kites from taking over a name in the folder of `path` until this is dropped: nothing if one does so for too
/// long, or the folder cannot be read.
fn alone(path: &Path) -> Option<Flock<File>> {
    let mut folder =
        File::open(path.parent().filter(|it| !it.as_os_str().is_empty()).unwrap_or(Path::new("."))).ok()?;
    for _ in 0..TRIES {
        match Flock::lock(folder, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Some(lock),
            Err((again, _)) => folder = again,
        }
        std::thread::sleep(PAUSE);
    }
    None
}

/// Removes the name at `path` if it is that of a socket of this user's which no process has any more; answers whether.
///
/// Another program may have the same in mind, and have made the name anew meanwhile. So the name is moved aside first,
/// which one of them does, and looked at again there.
fn remove_dead(path: &Path) -> io::Result<bool> {
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let folder = open_folder(path)?;
    let known = fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let kind = SFlag::from_bits_truncate(known.st_mode) & SFlag::S_IFMT;
    let identity_then = identity(&folder, name)?;
    if kind != SFlag::S_IFSOCK || known.st_uid != geteuid().as_raw() || !is_dead(path)? {
        return Ok(false);
    }
    let aside = OsString::from(format!(".kite-{:016x}", RandomState::new().hash_one(path)));
    let rename =
        |from: &OsStr, to: &OsStr| renameat2(&folder, from, &folder, to, RenameFlags::RENAME_NOREPLACE);
    match rename(name, &aside) {
        Ok(()) => {}
        // Somebody else has removed it.
        Err(Errno::ENOENT) => return Ok(true),
        Err(error) => return Err(error.into()),
    }
    if identity(&folder, &aside)? == identity_then {
        unlinkat(&folder, aside.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
        return Ok(true);
    }
    rename(&aside, name)?;
    Ok(false)
}

/// Whether no process has the socket of this name. A socket of another kind is asked to connect: its owner sees nothing
/// of that, and one that does not listen yet counts as well.
fn is_dead(path: &Path) -> io::Result<bool> {
    let asking = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(connect(asking.as_raw_fd(), &UnixAddr::new(path)?) == Err(Errno::ECONNREFUSED))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::{UnixDatagram, UnixStream};
    use std::path::PathBuf;

    use super::*;

    /// A folder, and where a socket may be in it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        (folder, path)
    }

    #[test]
    fn a_socket_s_name_that_nobody_listens_at_is_taken_over() {
        let (folder, path) = place();
        for _ in 0..2 {
            // As a process that is killed leaves it.
            drop(UnixListener::bind(&path).unwrap());
            let (listener, name) = listen(&path).unwrap();
            UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
            drop((listener, name));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_somebody_has_or_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let live = UnixListener::bind(path("live")).unwrap();
        live.set_nonblocking(true).unwrap();
        let _datagrams = UnixDatagram::bind(path("datagrams")).unwrap();
        let silent = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
        let address = UnixAddr::new(&path("silent")).unwrap();
        nix::sys::socket::bind(silent.as_raw_fd(), &address).unwrap();
        fs::write(path("file"), "precious").unwrap();
        fs::create_dir(path("folder")).unwrap();
        drop(UnixListener::bind(path("dead")).unwrap());
        std::os::unix::fs::symlink(path("dead"), path("link")).unwrap();
        for name in ["live", "datagrams", "silent", "file", "folder", "link"] {
            let refused = listen(&path(name)).map(|_| ()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::AddrInUse, "{name}");
        }
        assert_eq!(live.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "who listens has seen a client");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 7);
    }

    #[test]
    fn of_many_who_take_over_one_name_one_has_it() {
        let (folder, path) = place();
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let listening: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| listen(&path).ok())).collect();
                threads.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
            });
            assert_eq!(listening.len(), 1);
            let stream = UnixStream::connect(&path).unwrap();
            listening[0].0.accept().unwrap();
            drop((stream, listening));
            assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }
}
