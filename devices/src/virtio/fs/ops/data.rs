//! Requests about open files: opening, reading, writing and closing them.
//!
//! Only regular files are opened. What is behind a FIFO, a socket or a device is the guest kernel's own business, which
//! never asks for it; locks are too, as they are between the guest's processes.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{close, dup, fdatasync, fsync};

use crate::virtio::fs::fd_lookup::NodeFd;
use crate::virtio::fs::handle_table::Open;
use crate::virtio::fs::host;
use crate::virtio::fs::server::{Call, MOST_DATA, Placed, Server, Stop};
use crate::virtio::fs::wire::{Append, Attr, IN_HEADER, IOCTL_OUT, OUT_HEADER, WRITE_IN, flag};

/// The most bytes that are read while a device's lock is held.
const MOST_AT_ONCE: usize = 64 << 10;
/// The most bytes that one request copies; a guest asks again for the rest.
const MOST_COPIED: u64 = 64 << 20;
impl Server {
    /// Opens a node's file anew, for what its descriptor cannot do. No thread waits for a lease that a process has on the
    /// file (fcntl(2), F_SETLEASE): this process may have it on what the guest was loaded from, and cannot give it back
    /// while the request is served.
    ///
    /// # Errors
    /// It is not a regular file (ENXIO), or in a pseudo file system (EACCES); the host's; a lease is being given back.
    pub fn reopen(&self, node: u64, held: &NodeFd, flags: i32) -> Result<OwnedFd, Stop> {
        match self.table().identity(node)?.kind {
            libc::S_IFREG => {}
            libc::S_IFDIR => return Err(Errno::EISDIR.into()),
            _ => return Err(Errno::ENXIO.into()),
        }
        let (mount, _) = self.table().mount(node)?;
        if self.is_pseudo(mount, held)? {
            return Err(Errno::EACCES.into());
        }
        // To a regular file that is open, O_NONBLOCK means nothing.
        match self.descriptors.reopen(held, flags | libc::O_NONBLOCK) {
            Err(Errno::EAGAIN) => Err(Stop::Wait),
            result => Ok(result?),
        }
    }

    /// Opens a file for what its flags say. The others of them are the guest kernel's to see to.
    pub fn open(&self, call: &mut Call<'_>) -> Placed {
        let (asked, how) = (call.args.u32()?.cast_signed(), call.args.u32()?);
        let truncate = asked & libc::O_TRUNC;
        let access = asked & libc::O_ACCMODE;
        if !self.share.writable && (access != libc::O_RDONLY || truncate != 0) {
            return Err(Errno::EROFS.into());
        }
        let node = call.header.node;
        let writable = access != libc::O_RDONLY;
        if writable || truncate != 0 {
            call.may_wait()?;
        } else if let Some(handle) = self.table().open_shared(node)? {
            return self.reply_opened(call, handle, flag::FOPEN_KEEP_CACHE);
        }
        self.have_room(call)?;
        let held = self.fd_of(node)?;
        let file = self.reopen(node, &held, access | truncate)?;
        if truncate != 0 {
            self.written(&file, how & flag::OPEN_KILL_SUIDGID != 0)?;
        }
        let handle = self.handle(node, Open::file(access), file)?;
        self.reply_opened(call, handle, flag::FOPEN_KEEP_CACHE)
    }

    /// Replies with a handle. What the guest has read it caches if only the host writes: it looks at the time of the
    /// last change whenever its attributes are no longer valid.
    pub fn reply_opened(&self, call: &mut Call<'_>, handle: u64, keep: u32) -> Placed {
        call.out.u64(handle);
        call.out.u32(if self.share.writable { 0 } else { keep });
        call.out.u32(0);
        Ok(0)
    }

    /// Makes a file, if it is not there, and opens it.
    pub fn create(&self, call: &mut Call<'_>) -> Placed {
        let (asked, mode) = (call.args.u32()?.cast_signed(), call.args.u32()?);
        let (mask, how) = (call.args.u32()?, call.args.u32()?);
        let name = call.args.name()?;
        let parent = self.folder(call.header.node)?;
        let access = asked & libc::O_ACCMODE;
        self.make_room()?;
        let mode = self.unprivileged(mode & 0o7777);
        let made = self.as_caller(&call.header, mask, || host::create_at(&parent, name, access, mode));
        let (stat, file) = match made {
            Ok(file) => (host::stat(&file)?, Some(file)),
            Err(Errno::EEXIST) if asked & libc::O_EXCL == 0 => (host::stat_at(&parent, name)?, None),
            Err(error) => return Err(error.into()),
        };
        let node = self.entry(call, (call.header.node, &parent), name, stat)?;
        let opened = self.open_created(node, file, asked, how);
        let opened = opened.and_then(|file| Ok(self.handle(node, Open::file(access), file)?));
        match opened {
            Ok(handle) => self.reply_opened(call, handle, 0),
            Err(stop) => {
                self.table().forget(node, 1);
                Err(stop)
            }
        }
    }

    /// Makes a file without a name (open(2), O_TMPFILE), which a link may give one.
    pub fn create_nameless(&self, call: &mut Call<'_>) -> Placed {
        let (asked, mode) = (call.args.u32()?.cast_signed(), call.args.u32()?);
        let mask = call.args.u32()?;
        let parent = self.folder(call.header.node)?;
        let access = asked & libc::O_ACCMODE;
        self.make_room()?;
        let mode = self.unprivileged(mode & 0o7777);
        let file = self.as_caller(&call.header, mask, || host::create_nameless(&parent, access, mode))?;
        let stat = host::stat(&file)?;
        let (node, ino) = self.table().found(call.header.node, c"", stat.identity)?;
        let attr = Attr { ino, ..self.shown(stat.attr, &file, c"") };
        match self.handle(node, Open::file(access), file) {
            Ok(handle) => {
                call.out.entry_out(node, &attr, self.valid());
                self.reply_opened(call, handle, 0)
            }
            Err(error) => {
                self.table().forget(node, 1);
                Err(error.into())
            }
        }
    }

    /// A file's flags, to be read or set (ioctl_iflags(2)): of all that ioctl(2) may do, it does this.
    pub fn control(&self, call: &mut Call<'_>) -> Placed {
        let (handle, _how, code) = (call.args.u64()?, call.args.u32()?, call.args.u32()?);
        let _address = call.args.u64()?;
        let (_given, room) = (call.args.u32()?, call.args.u32()? as usize);
        let open = self.table().handle(call.header.node, handle)?;
        let file = self.file(call, &open)?;
        let mut answer = match libc::Ioctl::from(code) {
            libc::FS_IOC_GETFLAGS => host::flags(&file)?.to_le_bytes().to_vec(),
            host::GET_EXTENDED => host::extended_flags(&file)?.to_vec(),
            libc::FS_IOC_SETFLAGS if !self.share.writable => return Err(Errno::EROFS.into()),
            libc::FS_IOC_SETFLAGS => {
                self.reclaim(call.header.node, &file)?;
                host::set_flags(&file, call.args.u32()?)?;
                Vec::new()
            }
            _ => return Err(Errno::ENOTTY.into()),
        };
        if answer.len() > room {
            return Err(Errno::EINVAL.into());
        }
        // What it returned, and nothing to be tried again.
        call.out.extend([0; IOCTL_OUT]);
        call.out.append(&mut answer);
        Ok(0)
    }

    /// What was just made, or what was there already.
    fn open_created(&self, node: u64, file: Option<OwnedFd>, asked: i32, how: u32) -> Result<OwnedFd, Stop> {
        if let Some(file) = file {
            return Ok(file);
        }
        let flags = asked & (libc::O_ACCMODE | libc::O_TRUNC);
        let file = self.reopen(node, &self.fd_of(node)?, flags)?;
        if flags & libc::O_TRUNC != 0 {
            self.written(&file, how & flag::OPEN_KILL_SUIDGID != 0)?;
        }
        Ok(file)
    }

    /// Closes a handle. The last one of a file without a name frees what that has on a disk.
    pub fn release(&self, call: &mut Call<'_>) -> Placed {
        let handle = call.args.u64()?;
        if self.share.writable && self.table().handle(call.header.node, handle)?.listing.is_none() {
            call.may_wait()?;
        }
        // Two statements: the table is not locked meanwhile.
        let file = self.table().release(call.header.node, handle);
        drop(file?);
        Ok(0)
    }

    /// Reads. A little that the host has in memory is had at once.
    pub fn read(&self, call: &mut Call<'_>) -> Placed {
        let (handle, offset, size) = (call.args.u64()?, call.args.u64()?, call.args.u32()?);
        let open = self.table().handle(call.header.node, handle)?;
        if open.listing.is_some() {
            return Err(Errno::EISDIR.into());
        }
        check_offset(offset)?;
        let len = size.min(MOST_DATA) as usize;
        let len = len.min(call.room());
        if len > MOST_AT_ONCE {
            call.may_wait()?;
        }
        let file = self.file(call, &open)?;
        let (file, reply) = (&file, OUT_HEADER..OUT_HEADER + len);
        if call.wait {
            return Ok(call.exchange.fill(reply, file, offset, true)?);
        }
        match call.exchange.fill(reply, file, offset, false) {
            Ok(got) if got == len => Ok(got),
            // The end, or the end of what is in memory.
            Ok(got) if host::stat(file)?.attr.size <= offset.saturating_add(got as u64) => Ok(got),
            _ => Err(Stop::Wait),
        }
    }

    /// Writes, as far as there is data.
    pub fn write(&self, call: &mut Call<'_>) -> Placed {
        let (handle, offset, size) = (call.args.u64()?, call.args.u64()?, call.args.u32()? as usize);
        let how = call.args.u32()?;
        let _owner = call.args.u64()?;
        let append = call.args.u32()?.cast_signed() & libc::O_APPEND != 0;
        let open = self.table().handle(call.header.node, handle)?;
        let data = (call.header.len as usize).saturating_sub(IN_HEADER + WRITE_IN);
        if size > data || size > MOST_DATA as usize {
            return Err(Errno::EINVAL.into());
        }
        check_offset(offset)?;
        let file = self.file(call, &open)?;
        let mut done = 0;
        while done < size {
            let at = offset + done as u64;
            match call.exchange.drain(IN_HEADER + WRITE_IN + done, size - done, &file, at, append) {
                Ok(0) => break,
                Ok(more) => done += more,
                Err(_) if done > 0 => break,
                Err(error) => return Err(error.into()),
            }
        }
        self.written(&file, how & flag::WRITE_KILL_SUIDGID != 0)?;
        call.out.u32(done as u32);
        call.out.u32(0);
        Ok(0)
    }

    /// Brings a file, or a directory, to the disk. There is nothing to bring if the guest cannot write.
    pub fn sync(&self, call: &mut Call<'_>) -> Placed {
        if !self.share.writable {
            return Err(Errno::ENOSYS.into());
        }
        let (handle, flags) = (call.args.u64()?, call.args.u32()?);
        let open = self.table().handle(call.header.node, handle)?;
        // One that has given its descriptor back may have been written to through it.
        let file = self.file(call, &open)?;
        match flags & flag::FSYNC_FDATASYNC {
            0 => fsync(&file)?,
            _ => fdatasync(&file)?,
        }
        Ok(0)
    }

    /// Brings everything to the disk.
    pub fn sync_all(&self) -> Placed {
        if !self.share.writable {
            return Err(Errno::ENOSYS.into());
        }
        host::sync_fs(&self.share.root)?;
        Ok(0)
    }

    /// A process closes a file. A file system of this machine has nothing to say then, and is not asked again.
    pub fn flush(&self, call: &mut Call<'_>) -> Placed {
        if self.local {
            return Err(Errno::ENOSYS.into());
        }
        let handle = call.args.u64()?;
        let open = self.table().handle(call.header.node, handle)?;
        let file = self.file(call, &open)?;
        close(dup(&file)?)?;
        Ok(0)
    }

    /// Allocates room in a file, or frees some.
    pub fn allocate(&self, call: &mut Call<'_>) -> Placed {
        let (handle, offset, len) = (call.args.u64()?, call.args.u64()?, call.args.u64()?);
        let mode = FallocateFlags::from_bits_retain(call.args.u32()?.cast_signed());
        let open = self.table().handle(call.header.node, handle)?;
        let file = self.file(call, &open)?;
        fallocate(&file, mode, offset.cast_signed(), len.cast_signed())?;
        self.written(&file, false)?;
        Ok(0)
    }

    /// Finds data or a hole.
    pub fn seek(&self, call: &mut Call<'_>) -> Placed {
        let (handle, offset, whence) = (call.args.u64()?, call.args.u64()?, call.args.u32()?.cast_signed());
        let open = self.table().handle(call.header.node, handle)?;
        if open.listing.is_some() || ![libc::SEEK_DATA, libc::SEEK_HOLE].contains(&whence) {
            return Err(Errno::EINVAL.into());
        }
        let at = host::seek(self.file(call, &open)?, offset, whence)?;
        call.out.u64(at);
        Ok(0)
    }

    /// Copies from one open file to another.
    pub fn copy(&self, call: &mut Call<'_>) -> Placed {
        let (from, at, to_node) = (call.args.u64()?, call.args.u64()?, call.args.u64()?);
        let (to, to_at, len) = (call.args.u64()?, call.args.u64()?, call.args.u64()?);
        let (from, to) = {
            let table = self.table();
            (table.handle(call.header.node, from)?, table.handle(to_node, to)?)
        };
        let (from, to) = (self.file(call, &from)?, self.file_of(to_node, &to)?);
        let source = (from.as_fd(), at.cast_signed());
        let target = (to.as_fd(), to_at.cast_signed());
        let done = host::copy(source, target, len.min(MOST_COPIED) as usize)?;
        self.written(&to, false)?;
        call.out.u32(done as u32);
        call.out.u32(0);
        Ok(0)
    }
}

/// An offset that is none is -1 to the host, which takes that for the file's position.
fn check_offset(offset: u64) -> Result<(), Errno> {
    i64::try_from(offset).map(drop).map_err(|_| Errno::EINVAL)
}
