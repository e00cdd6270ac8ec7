//! The server: takes a request's bytes, does what it says to the share, and writes the reply.
//!
//! It knows no queue and no thread. What a request is made of and where its reply goes is an [`Exchange`]; any number of
//! threads may serve at a time.

use std::ffi::{CStr, CString};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::errno::Errno;

use super::Share;
use super::fd_lookup::NodeFd;
use super::host::{self, Stat};
use super::inode_table::InodeTable;
use super::mounts::{PSEUDO, ROOT_MOUNT};
use super::proc_fd::Descriptors;
use super::wire::{
    ATTR_OUT, Append, Args, Attr, ENTRY_OUT, Header, IN_HEADER, IOCTL_OUT, LEAST_MINOR, MAJOR, MINOR,
    OPEN_OUT, OUT_HEADER, STATX_OUT, WRITE_IN, init, opcode,
};

/// The most bytes of one read or write: 256 pages, which is as many as a request may have.
pub const MOST_DATA: u32 = MOST_PAGES * 4096;
const MOST_PAGES: u32 = 256;
/// The most bytes of a request but for data written: the largest extended attribute, its name and the like.
const MOST_REQUEST: usize = (64 << 10) + 512;

/// One request, and the room for its reply.
pub trait Exchange {
    /// Bytes of the request.
    fn asked(&self) -> usize;
    /// Copies of the request, from `offset` on; returns how many bytes there were.
    fn read(&self, offset: usize, into: &mut [u8]) -> usize;
    /// Room for the reply, in bytes.
    fn room(&self) -> usize;
    /// Writes to `offset` of the reply, as far as there is room.
    fn write(&mut self, offset: usize, bytes: &[u8]);
    /// Reads a part of the reply, or less, from `from` of a file on.
    ///
    /// # Errors
    /// The host's; EAGAIN if it would wait and must not.
    fn fill(&mut self, part: Range<usize>, file: &OwnedFd, from: u64, wait: bool) -> io::Result<usize>;
    /// Writes the `len` bytes from `offset` of the request on to `to` of a file, or to its end.
    ///
    /// # Errors
    /// The host's.
    fn drain(&self, offset: usize, len: usize, file: &OwnedFd, to: u64, append: bool) -> io::Result<usize>;
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// It failed, and that is the reply.
    Failed(Errno),
    /// It may take its time, which it must not; or a lease is in its way, which takes time even where it may.
    Wait,
    /// There is nothing to reply.
    Silent,
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Failed(error)
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    }
}

/// A reply has so many bytes behind its header that are not in [`Call::out`], but in place already.
pub type Placed = Result<usize, Stop>;

/// A request that is being served.
pub struct Call<'a> {
    /// Its header.
    pub header: Header,
    /// What follows that; of a write, up to the data.
    pub args: Args<'a>,
    /// The reply, but for its header.
    pub out: &'a mut Vec<u8>,
    /// Where data goes past both.
    pub exchange: &'a mut dyn Exchange,
    /// Whether it may take its time.
    pub wait: bool,
}

impl Call<'_> {
    /// # Errors
    /// It may not take its time.
    pub fn may_wait(&self) -> Result<(), Stop> {
        if self.wait { Ok(()) } else { Err(Stop::Wait) }
    }

    /// Room for what follows the reply's header, in bytes.
    pub fn room(&self) -> usize {
        self.exchange.room().saturating_sub(OUT_HEADER)
    }
}

/// Serves one share.
pub struct Server {
    pub(super) share: Arc<Share>,
    pub(super) descriptors: Descriptors,
    /// Whether the share's files are on this machine, and what is in memory is had at once.
    pub(super) local: bool,
    root: Arc<OwnedFd>,
    table: Mutex<InodeTable>,
    /// Held while a name is moved, until that is noted.
    moving: Mutex<()>,
    /// Both sides have agreed (`FUSE_INIT`), and the guest has not ended it.
    pub(super) session: AtomicBool,
    /// A request to set an extended attribute has flags of its own.
    pub(super) long_xattr: AtomicBool,
}

impl Server {
    /// Serves `share` from its beginning.
    ///
    /// # Errors
    /// The folder cannot be looked at, or there is no /proc.
    pub fn new(share: Arc<Share>) -> io::Result<Self> {
        let root = Arc::new(share.root.try_clone()?);
        let stat = host::stat(&root)?;
        if !stat.is_dir() {
            return Err(io::Error::from(io::ErrorKind::NotADirectory));
        }
        let local = !is_remote(&host::stat_fs(&root)?);
        let table = Mutex::new(InodeTable::new(stat.identity, root.clone(), share.limits));
        let (session, long_xattr) = (AtomicBool::new(false), AtomicBool::new(false));
        let (descriptors, moving) = (Descriptors::open()?, Mutex::default());
        Ok(Self { descriptors, local, root, table, moving, share, session, long_xattr })
    }

    pub(super) fn table(&self) -> MutexGuard<'_, InodeTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no name is being moved.
    pub(super) fn moving(&self) -> MutexGuard<'_, ()> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the session: forgets every node and closes every file.
    pub fn clear(&self) {
        self.session.store(false, Ordering::SeqCst);
        if let Ok(root) = host::stat(&self.root) {
            let mut table = self.table();
            if table.is_new() {
                return;
            }
            let new = table.successor(root.identity, self.root.clone());
            let old = std::mem::replace(&mut *table, new);
            drop(table);
            drop(old);
        }
    }

    /// How long the guest may take what it knows for true.
    pub(super) fn valid(&self) -> Duration {
        self.share.valid
    }

    /// Serves a request; returns how many bytes its reply has. None if it may take its time and `wait` says that it
    /// must not, or if a file's lease has to be given back first: then nothing has happened, and it has to be served again.
    pub fn serve(&self, exchange: &mut dyn Exchange, wait: bool) -> Option<usize> {
        let mut bytes = [0; IN_HEADER];
        let whole = exchange.read(0, &mut bytes) == IN_HEADER;
        let header = Header::parse(&bytes);
        let mut out = Vec::with_capacity(2 * ENTRY_OUT);
        let len = header.len as usize;
        let done = if !whole || len < IN_HEADER || len > exchange.asked() {
            Err(Stop::Failed(Errno::EINVAL))
        } else if needs_reply(header.opcode) && exchange.room() < OUT_HEADER + fixed_reply(header.opcode) {
            // What was done could not be answered.
            Err(Stop::Failed(Errno::EINVAL))
        } else {
            let data = if header.opcode == opcode::WRITE { WRITE_IN } else { MOST_REQUEST };
            let mut args = vec![0; (len - IN_HEADER).min(data)];
            let read = exchange.read(IN_HEADER, &mut args);
            let args = Args(&args[..read]);
            self.dispatch(&mut Call { header, args, out: &mut out, exchange, wait })
        };
        let (error, placed) = match done {
            Ok(placed) => (0, placed),
            Err(Stop::Failed(error)) => {
                out.clear();
                (-(error as i32), 0)
            }
            Err(Stop::Wait) => return None,
            Err(Stop::Silent) => return Some(0),
        };
        Some(reply(exchange, header.unique, error, &out, placed))
    }

    /// Replies with an error to a request that is not served; returns how many bytes that has.
    pub fn refuse(exchange: &mut dyn Exchange, error: Errno) -> usize {
        let mut bytes = [0; IN_HEADER];
        exchange.read(0, &mut bytes);
        reply(exchange, Header::parse(&bytes).unique, -(error as i32), &[], 0)
    }

    fn dispatch(&self, call: &mut Call<'_>) -> Placed {
        let code = call.header.opcode;
        if code != opcode::INIT && !self.session.load(Ordering::SeqCst) {
            return Err(if needs_reply(code) { Errno::EIO.into() } else { Stop::Silent });
        }
        if !self.share.writable && modifies(code) {
            return Err(Errno::EROFS.into());
        }
        if !self.local && needs_reply(code) {
            call.may_wait()?;
        }
        match code {
            opcode::LOOKUP => self.lookup(call),
            opcode::FORGET | opcode::BATCH_FORGET => self.forget(call),
            opcode::GETATTR | opcode::STATX => self.get_attributes(call),
            opcode::READ => self.read(call),
            opcode::READDIR => self.read_directory(call, false),
            opcode::READDIRPLUS => self.read_directory(call, true),
            opcode::READLINK => self.readlink(call),
            opcode::OPEN => self.open(call),
            opcode::OPENDIR => self.open_directory(call),
            opcode::RELEASE | opcode::RELEASEDIR => self.release(call),
            opcode::LSEEK => self.seek(call),
            opcode::GETXATTR | opcode::LISTXATTR => self.get_xattr(call),
            opcode::STATFS => self.stat_fs(call),
            opcode::INIT => self.init(call),
            opcode::DESTROY => {
                self.clear();
                Ok(0)
            }
            // What is in flight is done all the same.
            opcode::INTERRUPT => Err(Stop::Silent),
            _ => self.dispatch_slow(call),
        }
    }

    /// What may take its time in any case.
    fn dispatch_slow(&self, call: &mut Call<'_>) -> Placed {
        call.may_wait()?;
        match call.header.opcode {
            opcode::SETATTR => self.set_attributes(call),
            opcode::SYMLINK => self.symlink(call),
            opcode::MKNOD => self.mknod(call),
            opcode::MKDIR => self.mkdir(call),
            opcode::UNLINK => self.unlink(call, 0),
            opcode::RMDIR => self.unlink(call, libc::AT_REMOVEDIR),
            opcode::RENAME => self.rename(call, false),
            opcode::RENAME2 => self.rename(call, true),
            opcode::LINK => self.link(call),
            opcode::CREATE => self.create(call),
            opcode::WRITE => self.write(call),
            opcode::FSYNC | opcode::FSYNCDIR => self.sync(call),
            opcode::SYNCFS => self.sync_all(),
            opcode::TMPFILE => self.create_nameless(call),
            opcode::IOCTL => self.control(call),
            opcode::FALLOCATE => self.allocate(call),
            opcode::COPY_FILE_RANGE => self.copy(call),
            opcode::FLUSH => self.flush(call),
            opcode::SETXATTR => self.set_xattr(call),
            opcode::REMOVEXATTR => self.remove_xattr(call),
            _ => Err(Errno::ENOSYS.into()),
        }
    }

    /// The two sides agree on what they can (`FUSE_INIT`). It begins a session: a driver that did not end the one before
    /// knows nothing of it.
    fn init(&self, call: &mut Call<'_>) -> Placed {
        let (major, minor) = (call.args.u32()?, call.args.u32()?);
        let (readahead, offered) = (call.args.u32()?, call.args.u32()?);
        if major < MAJOR || (major == MAJOR && minor < LEAST_MINOR) {
            return Err(Errno::EPROTO.into());
        }
        self.clear();
        let mut wanted = init::ASYNC_READ | init::BIG_WRITES | init::MAX_PAGES | init::PARALLEL_DIROPS;
        wanted |= init::ATOMIC_O_TRUNC | init::AUTO_INVAL_DATA | init::HANDLE_KILLPRIV_V2;
        wanted |= init::DO_READDIRPLUS | init::READDIRPLUS_AUTO;
        wanted |= init::DONT_MASK | init::SETXATTR_EXT;
        if self.share.attributes {
            wanted |= init::POSIX_ACL;
        }
        if !self.share.writable {
            wanted |= init::CACHE_SYMLINKS;
        }
        self.long_xattr.store(wanted & offered & init::SETXATTR_EXT != 0, Ordering::SeqCst);
        for value in [MAJOR, MINOR, readahead, wanted & offered] {
            call.out.u32(value);
        }
        // Requests in the background, and from how many on it is congested.
        call.out.u32(64 | 48 << 16);
        call.out.u32(MOST_DATA);
        call.out.u32(1); // Times are in nanoseconds.
        call.out.u32(MOST_PAGES);
        call.out.extend([0; 32]);
        // A guest that speaks a newer protocol begins again, in this one.
        self.session.store(major == MAJOR, Ordering::SeqCst);
        Ok(0)
    }

    /// A descriptor of a node: cached, open, or opened now.
    pub(super) fn fd_of(&self, node: u64) -> Result<NodeFd, Errno> {
        let (held, steps) = self.table().route(node)?;
        self.follow(held, steps)
    }

    /// As [`Self::fd_of`], of a node in whose folder, or in which, something is found or changed: there is nothing in a
    /// pseudo file system that is mounted below the share. A guest mounts its own.
    pub(super) fn folder(&self, node: u64) -> Result<NodeFd, Errno> {
        let held = self.fd_of(node)?;
        let (mount, _) = self.table().mount(node)?;
        if mount != ROOT_MOUNT && self.is_pseudo(mount, &held)? { Err(Errno::ENOENT) } else { Ok(held) }
    }

    /// Whether a mount, of which one file is `held`, is of a pseudo file system.
    pub(super) fn is_pseudo(&self, mount: u16, held: impl AsFd) -> Result<bool, Errno> {
        let known = self.table().mounts.pseudo(mount);
        if let Some(known) = known {
            return Ok(known);
        }
        let pseudo = PSEUDO.contains(&host::stat_fs(held)?.f_type);
        self.table().mounts.set_pseudo(mount, pseudo);
        Ok(pseudo)
    }

    /// The attributes of a node as they are now, as the guest sees them.
    pub(super) fn stat(&self, node: u64) -> Result<Attr, Errno> {
        let (identity, (_, ino)) = {
            let table = self.table();
            (table.identity(node)?, table.mount(node)?)
        };
        let (mut held, mut steps) = self.table().route(node)?;
        let mut name = CString::default();
        let stat = match steps.pop() {
            None => host::stat(&held)?,
            Some(last) if steps.is_empty() => {
                name = last.name;
                host::stat_at(&held, &name).map_err(stale)?
            }
            Some(_) => {
                held = self.fd_of(node)?;
                host::stat(&held)?
            }
        };
        if stat.identity != identity {
            return Err(Errno::ESTALE);
        }
        Ok(Attr { ino, ..self.shown(stat.attr, held, &name) })
    }

    /// Attributes as the guest sees them: those of `name` in `dir`, or of `dir` if the name is empty.
    pub(super) fn shown(&self, mut attr: Attr, dir: impl AsFd, name: &CStr) -> Attr {
        if let Some((user, group)) = self.share.unknown {
            if attr.gid == group {
                let ours = self.share.group.filter(|_| is_of_our_group(&attr, user, dir, name));
                attr.gid = ours.unwrap_or(0);
            }
            attr.uid = if attr.uid == user { 0 } else { attr.uid };
        }
        attr
    }

    /// The mode of a file that the guest makes or changes: without what would have a program run as its file's owner or
    /// group, but for a guest that may leave such programs.
    pub(super) fn unprivileged(&self, mode: u32) -> u32 {
        let is_dir = mode & libc::S_IFMT == libc::S_IFDIR;
        if self.share.suid || is_dir { mode } else { mode & !(libc::S_ISUID | libc::S_ISGID) }
    }

    /// Replies with a node that was found as `name` in a directory, which is a node and open as `dir`.
    pub(super) fn entry(
        &self,
        call: &mut Call<'_>,
        (parent, dir): (u64, impl AsFd),
        name: &CStr,
        stat: Stat,
    ) -> Result<u64, Stop> {
        let (node, ino) = self.table().found(parent, name, stat.identity)?;
        let mut attr = self.shown(stat.attr, dir, name);
        attr.ino = ino;
        call.out.entry_out(node, &attr, self.valid());
        Ok(node)
    }
}

/// Whether a file whose group this process may not know is of a group that it is in, as far as that matters: its own file,
/// or one that permits a group more, or less, than others. `user` is whom the host shows for an unknown owner.
fn is_of_our_group(attr: &Attr, user: u32, dir: impl AsFd, name: &CStr) -> bool {
    // Whether it may be read is for the file alone to say, and not for the mount that it is in.
    let first =
        |bits: u32| [libc::R_OK, libc::X_OK, libc::W_OK].into_iter().find(|bit| bits & *bit as u32 != 0);
    let (group, others) = (attr.mode >> 3 & 7, attr.mode & 7);
    match (first(group & !others), first(others & !group)) {
        _ if attr.uid != user => true,
        (Some(more), _) => host::may(dir, name, more),
        (None, Some(less)) => !host::may(dir, name, less),
        (None, None) => false,
    }
}

/// A name that leads nowhere any more makes its node stale.
pub(super) fn stale(error: Errno) -> Errno {
    match error {
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP => Errno::ESTALE,
        other => other,
    }
}

/// Writes a reply; returns its length: 0 if it has no room.
fn reply(exchange: &mut dyn Exchange, unique: u64, error: i32, out: &[u8], placed: usize) -> usize {
    let len = OUT_HEADER + out.len() + placed;
    if exchange.room() < len {
        return 0;
    }
    let mut header = Vec::with_capacity(OUT_HEADER + out.len());
    header.u32(len as u32);
    header.u32(error.cast_unsigned());
    header.u64(unique);
    header.extend_from_slice(out);
    exchange.write(0, &header);
    len
}

/// Whether the guest waits for a reply.
fn needs_reply(code: u32) -> bool {
    !matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT)
}

/// Bytes behind the header of a reply that has always as many.
fn fixed_reply(code: u32) -> usize {
    match code {
        opcode::LOOKUP | opcode::MKDIR | opcode::MKNOD | opcode::SYMLINK | opcode::LINK => ENTRY_OUT,
        opcode::CREATE | opcode::TMPFILE => ENTRY_OUT + OPEN_OUT,
        opcode::GETATTR | opcode::SETATTR => ATTR_OUT,
        opcode::STATX => STATX_OUT,
        opcode::IOCTL => IOCTL_OUT,
        opcode::OPEN | opcode::OPENDIR => OPEN_OUT,
        opcode::STATFS => 80,
        opcode::INIT => 64,
        opcode::WRITE | opcode::LSEEK | opcode::COPY_FILE_RANGE => 8,
        _ => 0,
    }
}

/// Whether a request changes the share whatever it says; opening may, too.
fn modifies(code: u32) -> bool {
    use opcode::*;
    let names = [SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, RENAME2, LINK, CREATE, TMPFILE];
    let data = [SETATTR, WRITE, FALLOCATE, COPY_FILE_RANGE, SETXATTR, REMOVEXATTR];
    names.contains(&code) || data.contains(&code)
}

/// Whether a file system may have to ask another machine, or a process, for what it knows.
fn is_remote(stat: &libc::statfs) -> bool {
    // CIFS, SMB2, 9P and Ceph, which libc does not name.
    const NAMELESS: [u32; 4] = [0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400];
    let kinds = [libc::NFS_SUPER_MAGIC, libc::FUSE_SUPER_MAGIC, libc::AFS_SUPER_MAGIC];
    let kinds = kinds.iter().chain(&[libc::SMB_SUPER_MAGIC, libc::CODA_SUPER_MAGIC]);
    kinds.map(|kind| *kind as u32).chain(NAMELESS).any(|kind| kind == stat.f_type as u32)
}
