//! Requests about attributes: a node's own, the extended ones, and those of the file system.

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::ftruncate;

use super::host;
use super::protocol::{Append, flag, opcode};
use super::reach::Held;
use super::server::{Call, Placed, Server, Stop};
use super::thread::{NOW, OMIT};

/// The longest name of an extended attribute, and the most bytes of one or of the list (xattr(7)).
const MOST_NAME: usize = 255;
const MOST_VALUE: usize = 64 << 10;

/// What `FUSE_SETATTR` asks for.
struct Change {
    valid: u32,
    handle: u64,
    size: u64,
    times: [libc::timespec; 2],
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Change {
    fn parse(call: &mut Call<'_>) -> Result<Self, Errno> {
        let args = &mut call.args;
        let valid = args.u32()?;
        args.skip()?;
        let (handle, size, _owner) = (args.u64()?, args.u64()?, args.u64()?);
        let (access, modified, _changed) = (args.u64()?, args.u64()?, args.u64()?);
        let (access_ns, modified_ns, _changed_ns) = (args.u32()?, args.u32()?, args.u32()?);
        let mode = args.u32()?;
        args.skip()?;
        let (uid, gid) = (args.u32()?, args.u32()?);
        let time = |set: u32, now: u32, seconds: u64, nanoseconds: u32| match () {
            () if valid & set == 0 => OMIT,
            () if valid & now != 0 => NOW,
            // More than a second's would be a flag to the host.
            () => {
                libc::timespec { tv_sec: seconds.cast_signed(), tv_nsec: nanoseconds.min(999_999_999).into() }
            }
        };
        let times = [
            time(flag::FATTR_ATIME, flag::FATTR_ATIME_NOW, access, access_ns),
            time(flag::FATTR_MTIME, flag::FATTR_MTIME_NOW, modified, modified_ns),
        ];
        Ok(Self { valid, handle, size, times, mode, uid, gid })
    }

    fn has(&self, flags: u32) -> bool {
        self.valid & flags != 0
    }
}

impl Server {
    /// The attributes of a node, or of what a handle has open.
    pub(super) fn get_attributes(&self, call: &mut Call<'_>) -> Placed {
        let flags = call.args.u32()?;
        call.args.skip()?;
        let handle = call.args.u64()?;
        let node = call.header.node;
        let attr = if flags & flag::GETATTR_FH != 0 {
            let open = self.table().handle(node, handle)?;
            let mut attr = host::stat(&open.file)?.attr;
            attr.ino = self.table().place(node)?.1;
            attr
        } else {
            self.stat(node)?.attr
        };
        call.out.attr_out(&self.shown(attr), self.valid());
        Ok(0)
    }

    /// Changes attributes: what can be refused first, and the permissions behind the owner, who takes bits of them along.
    pub(super) fn set_attributes(&self, call: &mut Call<'_>) -> Placed {
        let change = Change::parse(call)?;
        let node = call.header.node;
        let open =
            if change.has(flag::FATTR_FH) { Some(self.table().handle(node, change.handle)?) } else { None };
        let held = match open {
            Some(open) => Held::Open(open),
            None => self.folder(node)?,
        };
        if change.has(flag::FATTR_SIZE) {
            self.resize(node, &held, &change)?;
        }
        if change.has(flag::FATTR_UID | flag::FATTR_GID) {
            let id = |flag, id| if change.has(flag) { id } else { u32::MAX };
            host::chown(&held, id(flag::FATTR_UID, change.uid), id(flag::FATTR_GID, change.gid))?;
        }
        if change.has(flag::FATTR_MODE) {
            self.descriptors.chmod(&held, change.mode & 0o7777)?;
        }
        if change.has(flag::FATTR_ATIME | flag::FATTR_MTIME) {
            self.descriptors.set_times(&held, change.times)?;
        }
        let mut attr = host::stat(&held)?.attr;
        attr.ino = self.table().place(node)?.1;
        call.out.attr_out(&self.shown(attr), self.valid());
        Ok(0)
    }

    fn resize(&self, node: u64, held: &Held, change: &Change) -> Result<(), Stop> {
        let size = i64::try_from(change.size).map_err(|_| Errno::EFBIG)?;
        match held {
            Held::Open(open) if change.has(flag::FATTR_FH) => ftruncate(&open.file, size)?,
            _ => ftruncate(self.reopen(node, held, OFlag::O_WRONLY.bits())?, size)?,
        }
        if change.has(flag::FATTR_KILL_SUIDGID) {
            self.drop_privileges(held)?;
        }
        Ok(())
    }

    /// Takes the bits that let a program run as its file's owner, as a write by anybody but root does.
    pub(super) fn drop_privileges(&self, file: impl std::os::fd::AsFd) -> Result<(), Errno> {
        let mode = host::stat(&file)?.attr.mode;
        let group = libc::S_ISGID | libc::S_IXGRP;
        let taken = libc::S_ISUID | if mode & group == group { libc::S_ISGID } else { 0 };
        match mode & taken {
            0 => Ok(()),
            _ => self.descriptors.chmod(file, mode & 0o7777 & !taken),
        }
    }

    /// The file system that a node is in.
    pub(super) fn stat_fs(&self, call: &mut Call<'_>) -> Placed {
        let stat = host::stat_fs(self.held(call.header.node)?)?;
        for value in [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree] {
            call.out.u64(value);
        }
        for value in [stat.f_bsize, stat.f_namelen, stat.f_frsize, 0, 0, 0, 0, 0, 0, 0] {
            call.out.u32(u32::try_from(value).unwrap_or(u32::MAX));
        }
        Ok(0)
    }

    /// Reads or lists extended attributes; how long that would be, if the guest has no room.
    pub(super) fn get_xattr(&self, call: &mut Call<'_>) -> Placed {
        if !self.share.attributes {
            // Once said, it is not asked again.
            return Err(Errno::ENOSYS.into());
        }
        call.may_wait()?;
        let size = call.args.u32()? as usize;
        call.args.skip()?;
        let name = match call.header.opcode {
            opcode::GETXATTR => Some(call.args.string()?),
            _ => None,
        };
        if name.is_some_and(|name| name.is_empty() || name.count_bytes() > MOST_NAME) {
            return Err(Errno::ERANGE.into());
        }
        let file = self.held(call.header.node)?;
        let mut value = vec![0; size.min(MOST_VALUE)];
        let got = match name {
            Some(name) => self.descriptors.get_attribute(&file, name, &mut value)?,
            None => self.descriptors.list_attributes(&file, &mut value)?,
        };
        if size == 0 {
            call.out.u32(got as u32);
            call.out.u32(0);
        } else if got > call.room() {
            return Err(Errno::ERANGE.into());
        } else {
            value.truncate(got);
            call.out.append(&mut value);
        }
        Ok(0)
    }

    /// Sets an extended attribute. Which ones it may set, and those of what kind, is for the host to say.
    pub(super) fn set_xattr(&self, call: &mut Call<'_>) -> Placed {
        let (size, flags) = (call.args.u32()? as usize, call.args.u32()?);
        let name = call.args.string()?;
        let value = call.args.0.get(..size).ok_or(Errno::E2BIG)?;
        self.descriptors.set_attribute(self.folder(call.header.node)?, name, value, flags)?;
        Ok(0)
    }

    /// Removes an extended attribute.
    pub(super) fn remove_xattr(&self, call: &mut Call<'_>) -> Placed {
        let name = call.args.string()?;
        self.descriptors.remove_attribute(self.folder(call.header.node)?, name)?;
        Ok(0)
    }
}
