//! Requests about open directories.
//!
//! An entry's position is the host's own cookie, so that a guest may go on from any entry it has seen, also while names
//! come and go.

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::time::Duration;

use nix::errno::Errno;

use crate::virtio::fs::handle_table::Open;
use crate::virtio::fs::host;
use crate::virtio::fs::mounts::ROOT_MOUNT;
use crate::virtio::fs::server::{Call, MOST_DATA, Placed, Server, Stop};
use crate::virtio::fs::wire::{Append, Attr, DIRENT, ENTRY_OUT, flag, padding};

/// How many bytes of entries are had from the host at once.
const BATCH: usize = 8 << 10;
/// The most bytes of a reply.
const MOST_REPLY: usize = 128 << 10;

/// How far a directory is listed.
#[derive(Default)]
pub struct Listing {
    /// What the host has listed (`struct linux_dirent64`), and the guest has not seen; empty if nothing.
    batch: Vec<u8>,
    at: usize,
    /// The position of what is next.
    position: u64,
    /// The position at which the host had no more.
    ended: Option<u64>,
}

/// One entry as the host lists it.
struct Entry<'a> {
    ino: u64,
    /// The position of the next one.
    next: u64,
    kind: u8,
    name: &'a CStr,
    /// Bytes that it takes.
    len: usize,
}

impl<'a> Entry<'a> {
    /// Of `struct linux_dirent64`: inode number, position of the next, length, type, name.
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (ino, rest) = bytes.split_first_chunk::<8>()?;
        let (next, rest) = rest.split_first_chunk::<8>()?;
        let (len, rest) = rest.split_first_chunk::<2>()?;
        let (kind, rest) = rest.split_first()?;
        let len = usize::from(u16::from_ne_bytes(*len));
        let name = CStr::from_bytes_until_nul(rest).ok()?;
        (len > 0).then_some(Self {
            ino: u64::from_ne_bytes(*ino),
            next: u64::from_ne_bytes(*next),
            kind: *kind,
            name,
            len,
        })
    }
}

impl Listing {
    /// Goes to `position`, unless it is there.
    fn go_to(&mut self, dir: &OwnedFd, position: u64) -> Result<(), Errno> {
        if position != self.position || position == 0 {
            self.batch.clear();
            self.at = 0;
            host::seek(dir, position, libc::SEEK_SET)?;
            self.position = position;
            self.ended = None;
        }
        Ok(())
    }

    /// Forgets all but where the guest is: the directory is opened again when more is asked for.
    pub fn forget(&mut self) {
        // No entry is there: whatever is asked for next is looked for.
        *self = Self { position: u64::MAX, ..Self::default() };
    }

    /// Hands entries to `take` until it does not take one, or they end.
    fn each(&mut self, dir: &OwnedFd, mut take: impl FnMut(&Entry<'_>) -> bool) -> Result<(), Errno> {
        loop {
            while let Some(entry) = Entry::parse(&self.batch[self.at..]) {
                if !take(&entry) {
                    return Ok(());
                }
                self.at = (self.at + entry.len).min(self.batch.len());
                self.position = entry.next;
            }
            self.at = 0;
            self.batch.resize(BATCH, 0);
            let got = host::entries(dir, &mut self.batch);
            self.batch.truncate(*got.as_ref().unwrap_or(&0));
            if got? == 0 {
                self.batch = Vec::new();
                self.ended = Some(self.position);
                return Ok(());
            }
        }
    }
}

impl Server {
    /// Opens a directory.
    pub fn open_directory(&self, call: &mut Call<'_>) -> Placed {
        let node = call.header.node;
        if self.table().identity(node)?.kind != libc::S_IFDIR {
            return Err(Errno::ENOTDIR.into());
        }
        let held = self.fd_of(node)?;
        self.have_room(call)?;
        let file = host::open_at(&held, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?;
        let handle = self.handle(node, Open::directory(), file)?;
        self.reply_opened(call, handle, flag::FOPEN_KEEP_CACHE | flag::FOPEN_CACHE_DIR)
    }

    /// Lists a directory from a position on; with `plus` each entry is looked up too.
    pub fn read_directory(&self, call: &mut Call<'_>, plus: bool) -> Placed {
        let (handle, position, size) = (call.args.u64()?, call.args.u64()?, call.args.u32()?);
        let open = self.table().handle(call.header.node, handle)?;
        let listing = open.listing.as_ref().ok_or(Errno::ENOTDIR)?;
        if !call.wait {
            // That it is at its end already is all that is known without the host.
            let ended =
                listing.try_lock().is_ok_and(|listing| position != 0 && listing.ended == Some(position));
            return if ended { Ok(0) } else { Err(Stop::Wait) };
        }
        let room = (size.min(MOST_DATA) as usize).min(call.room()).min(MOST_REPLY);
        let node = call.header.node;
        let mount = self.table().mount(node)?.0;
        let file = self.file(call, &open)?;
        if mount != ROOT_MOUNT && self.is_pseudo(mount, &file)? {
            return Ok(0);
        }
        let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.go_to(&file, position)?;
        let mut full = false;
        let listed = listing.each(&file, |entry| {
            let name = entry.name.to_bytes();
            let len = DIRENT + name.len() + padding(name.len()) + if plus { ENTRY_OUT } else { 0 };
            full = call.out.len() + len > room;
            if full {
                return false;
            }
            if plus {
                self.entry_plus(call, &file, entry.name);
            }
            let ino = self.table().mounts.visible(mount, entry.ino);
            call.out.dirent(ino, entry.next, u32::from(entry.kind), name);
            true
        });
        match listed {
            // What was listed has to be answered: the guest knows nodes of it.
            Err(_) if !call.out.is_empty() => Ok(0),
            Err(error) => Err(error.into()),
            // A reply without entries would be the end.
            Ok(()) if full && call.out.is_empty() => Err(Errno::EINVAL.into()),
            Ok(()) => Ok(0),
        }
    }

    /// Looks an entry up. One that cannot be is node 0: the guest looks it up itself, and learns why.
    fn entry_plus(&self, call: &mut Call<'_>, dir: &OwnedFd, name: &CStr) {
        if name != c"." && name != c".." {
            let start = call.out.len();
            let stat = host::stat_at(dir, name).map_err(Stop::from);
            if stat.and_then(|stat| self.entry(call, (call.header.node, dir), name, stat)).is_ok() {
                return;
            }
            call.out.truncate(start);
        }
        call.out.entry_out(0, &Attr::default(), Duration::ZERO);
    }
}
