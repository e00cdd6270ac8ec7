//! Requests about names: looking up, making, moving and removing them.
//!
//! Each is about one name in one directory that the guest has looked up. No request walks a path, no link is followed.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use nix::errno::Errno;

use crate::virtio::fs::fd_lookup::NodeFd;
use crate::virtio::fs::host::{self, Stat};
use crate::virtio::fs::proc_fd::Caller;
use crate::virtio::fs::server::{Call, Placed, Server, Stop};
use crate::virtio::fs::wire::{Append, Attr, Header, opcode};

impl Server {
    /// Finds a name. What the host has in memory is found at once.
    pub fn lookup(&self, call: &mut Call<'_>) -> Placed {
        let name = call.args.name()?;
        let parent = self.folder(call.header.node)?;
        let mut opened = None;
        let found = if call.wait {
            host::stat_at(&parent, name)
        } else {
            // EAGAIN: the host would have to look on a disk. ENOSYS: it cannot know.
            match host::open_at(&parent, name, libc::O_PATH, libc::RESOLVE_CACHED) {
                Err(Errno::EAGAIN | Errno::ENOSYS) => return Err(Stop::Wait),
                result => result.and_then(|fd| host::stat(opened.insert(fd))),
            }
        };
        let stat = match found {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => {
                // That there is none holds as long as what there is.
                call.out.entry_out(0, &Attr::default(), self.valid());
                return Ok(0);
            }
            Err(error) => return Err(error.into()),
        };
        let node = self.entry(call, (call.header.node, &parent), name, stat)?;
        if let Some(fd) = opened
            && stat.is_dir()
        {
            self.table().cache_fd(node, stat.identity, Arc::new(fd), false);
        }
        Ok(0)
    }

    /// Forgets lookups of one node, or of several.
    pub fn forget(&self, call: &mut Call<'_>) -> Placed {
        let forget = |node: u64, count: u64| self.table().forget(node, count);
        if call.header.opcode == opcode::FORGET {
            forget(call.header.node, call.args.u64().map_err(|_| Stop::Silent)?);
            return Err(Stop::Silent);
        }
        let count = call.args.u32().map_err(|_| Stop::Silent)?;
        call.args.skip().map_err(|_| Stop::Silent)?;
        for _ in 0..count {
            let (Ok(node), Ok(lookups)) = (call.args.u64(), call.args.u64()) else { break };
            forget(node, lookups);
        }
        Err(Stop::Silent)
    }

    /// Reads a symbolic link.
    pub fn readlink(&self, call: &mut Call<'_>) -> Placed {
        call.may_wait()?;
        let node = call.header.node;
        if self.table().identity(node)?.kind != libc::S_IFLNK {
            return Err(Errno::EINVAL.into());
        }
        let mut target = host::readlink_at(self.fd_of(node)?, c"")?;
        target.truncate(call.room());
        call.out.append(&mut target);
        Ok(0)
    }

    /// Replies with what was made under `name` just now.
    fn made(&self, call: &mut Call<'_>, parent: &NodeFd, name: &CStr) -> Placed {
        let stat = host::stat_at(parent, name)?;
        self.entry(call, (call.header.node, parent), name, stat)?;
        Ok(0)
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, call: &mut Call<'_>) -> Placed {
        let (name, target) = (call.args.name()?, call.args.string()?);
        let parent = self.folder(call.header.node)?;
        let caller = Caller::new(call.header.uid, call.header.gid);
        host::symlink_at(target, &parent, name)?;
        drop(caller);
        self.made(call, &parent, name)
    }

    /// Makes something as the user who asks, with what `mask` takes off its permissions.
    ///
    /// # Errors
    /// What `make` says, or the host of the mask.
    pub fn as_caller<T>(
        &self,
        header: &Header,
        mask: u32,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let _masked = self.descriptors.masked(mask)?;
        let _caller = Caller::new(header.uid, header.gid);
        make()
    }

    /// Makes a file of any type. A device needs a host that lets this process make one.
    pub fn mknod(&self, call: &mut Call<'_>) -> Placed {
        let (mode, rdev) = (call.args.u32()?, call.args.u32()?);
        let mask = call.args.u32()?;
        call.args.skip()?;
        let name = call.args.name()?;
        let parent = self.folder(call.header.node)?;
        self.as_caller(&call.header, mask, || host::mknod_at(&parent, name, self.unprivileged(mode), rdev))?;
        self.made(call, &parent, name)
    }

    /// Makes a directory.
    pub fn mkdir(&self, call: &mut Call<'_>) -> Placed {
        let (mode, mask) = (call.args.u32()?, call.args.u32()?);
        let name = call.args.name()?;
        let parent = self.folder(call.header.node)?;
        self.as_caller(&call.header, mask, || host::mkdir_at(&parent, name, mode))?;
        self.made(call, &parent, name)
    }

    /// What will lose the name: the guest may go on using it, by its node or by what it has open. Nothing is done if there is
    /// none, which the call that follows reports.
    ///
    /// # Errors
    /// It has more open than there is room for (ENFILE).
    fn about_to_go(&self, parent: &NodeFd, name: &CStr) -> Result<Option<(Stat, NodeFd)>, Errno> {
        let Ok(fd) = host::open_at(parent, name, libc::O_PATH, 0).map(Arc::new) else { return Ok(None) };
        let Ok(stat) = host::stat(&fd) else { return Ok(None) };
        let node = self.table().node(stat.identity);
        if let Some(node) = node {
            self.reclaim(node, &fd)?;
        }
        Ok(Some((stat, fd)))
    }

    /// Removes a name.
    pub fn unlink(&self, call: &mut Call<'_>, flags: i32) -> Placed {
        let name = call.args.name()?;
        let parent = self.folder(call.header.node)?;
        let gone = self.about_to_go(&parent, name)?;
        host::unlink_at(&parent, name, flags)?;
        if let Some((stat, fd)) = gone {
            self.table().cache_unlinked(stat.identity, fd);
        }
        Ok(0)
    }

    /// Moves a name, within the share.
    pub fn rename(&self, call: &mut Call<'_>, has_flags: bool) -> Placed {
        let target = call.args.u64()?;
        let mut flags = 0;
        if has_flags {
            flags = call.args.u32()?;
            call.args.skip()?;
        }
        // A whiteout is what an overlay's upper layer has in place of a name that was removed.
        if flags & !(libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE | libc::RENAME_WHITEOUT) != 0 {
            return Err(Errno::EINVAL.into());
        }
        let (name, new_name) = (call.args.name()?, call.args.name()?);
        let source = call.header.node;
        let (from, to) = (self.folder(source)?, self.folder(target)?);
        let exchange = flags & libc::RENAME_EXCHANGE != 0;
        let gone = if exchange { None } else { self.about_to_go(&to, new_name)? };
        let moving = self.moving();
        host::rename_at((from.as_fd(), name), (to.as_fd(), new_name), flags)?;
        let moved = host::stat_at(&to, new_name);
        let back = if exchange { host::stat_at(&from, name).ok() } else { None };
        let mut table = self.table();
        if let Ok(moved) = moved {
            table.renamed(target, new_name, moved.identity);
        }
        if let Some(back) = back {
            table.renamed(source, name, back.identity);
        }
        drop(moving);
        // Two names of one file do not change.
        if let Some((stat, fd)) = gone
            && moved.is_ok_and(|moved| moved.identity != stat.identity)
        {
            table.cache_unlinked(stat.identity, fd);
        }
        Ok(0)
    }

    /// Gives a file one more name.
    pub fn link(&self, call: &mut Call<'_>) -> Placed {
        let old = call.args.u64()?;
        let name = call.args.name()?;
        if self.table().identity(old)?.kind == libc::S_IFDIR {
            return Err(Errno::EPERM.into());
        }
        let (file, parent) = (self.fd_of(old)?, self.folder(call.header.node)?);
        self.descriptors.link(&file, &parent, name)?;
        self.made(call, &parent, name)
    }
}
