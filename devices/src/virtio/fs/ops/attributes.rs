//! Requests about attributes: a node's own, the extended ones, and those of the file system.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::unistd::ftruncate;

use crate::virtio::fs::fd_lookup::NodeFd;
use crate::virtio::fs::host;
use crate::virtio::fs::proc_fd::{NOW, OMIT};
use crate::virtio::fs::server::{Call, Placed, Server, Stop};
use crate::virtio::fs::wire::{Append, Attr, flag, opcode};

/// Access control lists (acl(5)), as extended attributes.
const ACLS: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];
/// A program's capabilities (capabilities(7), "File capabilities").
const CAPABILITIES: &CStr = c"security.capability";

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
    pub fn get_attributes(&self, call: &mut Call<'_>) -> Placed {
        let flags = call.args.u32()?;
        call.args.skip()?;
        let handle = call.args.u64()?;
        let node = call.header.node;
        let attr = if flags & flag::GETATTR_FH != 0 {
            let open = self.table().handle(node, handle)?;
            match open.descriptor() {
                Some(file) => self.stat_open(node, &file)?,
                None => self.stat(node)?,
            }
        } else {
            self.stat(node)?
        };
        match call.header.opcode {
            // Whatever is asked for, it is given all there is.
            opcode::STATX => call.out.statx_out(&attr, self.valid()),
            _ => call.out.attr_out(&attr, self.valid()),
        }
        Ok(0)
    }

    /// The attributes of a node that is open, as the guest sees them.
    fn stat_open(&self, node: u64, file: impl AsFd) -> Result<Attr, Errno> {
        let attr = host::stat(&file)?.attr;
        let ino = self.table().mount(node)?.1;
        Ok(Attr { ino, ..self.shown(attr, file, c"") })
    }

    /// Changes attributes: what can be refused first, and the permissions behind the owner, who takes bits of them along.
    pub fn set_attributes(&self, call: &mut Call<'_>) -> Placed {
        let change = Change::parse(call)?;
        let node = call.header.node;
        let own = change.has(flag::FATTR_FH);
        let held = if own {
            let open = self.table().handle(node, change.handle)?;
            self.file(call, &open)?
        } else {
            self.folder(node)?
        };
        if change.has(flag::FATTR_MODE | flag::FATTR_UID | flag::FATTR_GID) {
            self.reclaim(node, &held)?;
        }
        if change.has(flag::FATTR_SIZE) {
            self.resize(node, &held, own, &change)?;
        }
        if change.has(flag::FATTR_UID | flag::FATTR_GID) {
            self.set_owner(&held, &change)?;
        }
        if change.has(flag::FATTR_MODE) {
            let kind = self.table().identity(node)?.kind;
            self.descriptors.chmod(&held, self.unprivileged(kind | change.mode & 0o7777) & 0o7777)?;
        }
        if change.has(flag::FATTR_ATIME | flag::FATTR_MTIME) {
            self.descriptors.set_times(&held, change.times)?;
        }
        let attr = self.stat_open(node, &held)?;
        call.out.attr_out(&attr, self.valid());
        Ok(0)
    }

    /// Sets the owner and the group, unless the guest sees the new ones already: the host may know them by other numbers.
    fn set_owner(&self, held: &NodeFd, change: &Change) -> Result<(), Errno> {
        let seen = self.shown(host::stat(held)?.attr, held, c"");
        let is_as_seen =
            |flag, id: u32, seen: u32| self.share.unknown.is_some() && change.has(flag) && id == seen;
        let group_is = is_as_seen(flag::FATTR_GID, change.gid, seen.gid);
        let id = |flag, id| if change.has(flag) { id } else { u32::MAX };
        let gid = if group_is { u32::MAX } else { id(flag::FATTR_GID, change.gid) };
        host::chown(held, id(flag::FATTR_UID, change.uid), gid)
    }

    fn resize(&self, node: u64, held: &NodeFd, own: bool, change: &Change) -> Result<(), Stop> {
        let size = i64::try_from(change.size).map_err(|_| Errno::EFBIG)?;
        match own {
            true => ftruncate(held, size)?,
            false => ftruncate(self.reopen(node, held, OFlag::O_WRONLY.bits())?, size)?,
        }
        Ok(self.written(held, change.has(flag::FATTR_KILL_SUIDGID))?)
    }

    /// A file's content was changed: takes what would have it run as its owner, if the guest asks for that, or may leave no
    /// such program. (The host does so itself only if this process is not root's.)
    pub fn written(&self, file: impl AsFd, asked: bool) -> Result<(), Errno> {
        if asked || !self.share.suid { self.drop_privileges(file) } else { Ok(()) }
    }

    /// Takes the bits that let a program run as its file's owner, as a write by anybody but root does.
    pub fn drop_privileges(&self, file: impl AsFd) -> Result<(), Errno> {
        let mode = host::stat(&file)?.attr.mode;
        let group = libc::S_ISGID | libc::S_IXGRP;
        let taken = libc::S_ISUID | if mode & group == group { libc::S_ISGID } else { 0 };
        match mode & taken {
            0 => Ok(()),
            _ => self.descriptors.chmod(file, mode & 0o7777 & !taken),
        }
    }

    /// The file system that a node is in.
    pub fn stat_fs(&self, call: &mut Call<'_>) -> Placed {
        let stat = host::stat_fs(self.fd_of(call.header.node)?)?;
        for value in [stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_files, stat.f_ffree] {
            call.out.u64(value);
        }
        for value in [stat.f_bsize, stat.f_namelen, stat.f_frsize, 0, 0, 0, 0, 0, 0, 0] {
            call.out.u32(u32::try_from(value).unwrap_or(u32::MAX));
        }
        Ok(0)
    }

    /// Reads or lists extended attributes; how long that would be, if the guest has no room.
    pub fn get_xattr(&self, call: &mut Call<'_>) -> Placed {
        // The longest name of an extended attribute, and the most bytes of one or of the list (xattr(7)).
        const MOST_NAME: usize = 255;
        const MOST_VALUE: usize = 64 << 10;
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
        let file = self.fd_of(call.header.node)?;
        let mut value = vec![0; size.min(MOST_VALUE)];
        let got = match name {
            Some(name) if ACLS.contains(&name) => {
                // The guest's kernel takes any other error for one of the permissions that it checks.
                let got = self.descriptors.get_attribute(&file, name, &mut value);
                let got =
                    got.map_err(|error| if error == Errno::EOPNOTSUPP { Errno::ENODATA } else { error })?;
                self.show_acl(&mut value);
                got
            }
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
    pub fn set_xattr(&self, call: &mut Call<'_>) -> Placed {
        let (size, flags) = (call.args.u32()? as usize, call.args.u32()?);
        let mut how = 0;
        if self.long_xattr.load(Ordering::SeqCst) {
            how = call.args.u32()?;
            call.args.skip()?;
        }
        let name = call.args.string()?;
        let value = call.args.0.get(..size).ok_or(Errno::E2BIG)?;
        if name == CAPABILITIES && !self.share.suid {
            return Err(Errno::EPERM.into());
        }
        let file = self.folder(call.header.node)?;
        self.reclaim(call.header.node, &file)?;
        self.descriptors.set_attribute(&file, name, value, flags)?;
        if how & flag::SETXATTR_ACL_KILL_SGID != 0 {
            let mode = host::stat(&file)?.attr.mode & 0o7777;
            self.descriptors.chmod(&file, mode & !libc::S_ISGID)?;
        }
        Ok(0)
    }

    /// Makes an access control list one that the guest's kernel takes: a user or a group that the host does not show has a
    /// number there that is none.
    fn show_acl(&self, value: &mut [u8]) {
        // Bytes of a list's header, and of an entry: tag, permissions, number (`linux/posix_acl_xattr.h`).
        const ACL_HEADER: usize = 4;
        const ACL_ENTRY: usize = 8;
        // The tags of entries that have a number.
        const ACL_USER: u16 = 2;
        const ACL_GROUP: u16 = 8;
        // Whom kernels show in place of an unknown owner, unless set otherwise.
        const UNKNOWN: u32 = 65534;
        let (user, group) = self.share.unknown.unwrap_or((UNKNOWN, UNKNOWN));
        let entries = value.get_mut(ACL_HEADER..).unwrap_or_default();
        for entry in entries.chunks_exact_mut(ACL_ENTRY) {
            let id = match u16::from_le_bytes([entry[0], entry[1]]) {
                ACL_USER => user,
                ACL_GROUP => group,
                _ => continue,
            };
            if entry[4..] == u32::MAX.to_le_bytes() {
                entry[4..].copy_from_slice(&id.to_le_bytes());
            }
        }
    }

    /// Removes an extended attribute.
    pub fn remove_xattr(&self, call: &mut Call<'_>) -> Placed {
        let name = call.args.string()?;
        let file = self.folder(call.header.node)?;
        self.reclaim(call.header.node, &file)?;
        self.descriptors.remove_attribute(&file, name)?;
        Ok(0)
    }
}
