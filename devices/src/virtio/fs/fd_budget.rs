//! Descriptors of open files, of which a guest may have more than this process: those of idle files are given back, and
//! opened again by their names.
//!
//! What cannot be opened again is not given back: a file without a name, or one that may not be opened any more. What the
//! guest does later to a name, or to who may open a file, is preceded by opening what is given back ([`Server::reclaim`]).
//! A name that the host itself takes away is not seen before the file is used: that is ESTALE then.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use nix::errno::Errno;

use super::fd_lookup::{NodeFd, Step};
use super::handle_table::Open;
use super::host;
use super::server::{Call, Server, Stop, stale};

/// How many idle files are looked at for one that can give its descriptor back.
const TRIES: usize = 1024;

impl Server {
    /// Makes room for one more descriptor.
    ///
    /// # Errors
    /// No file that is open can do without its own (ENFILE).
    pub(super) fn make_room(&self) -> Result<(), Errno> {
        // Those that could not be opened again before may be by now.
        let mut rounds = 2;
        for _ in 0..TRIES {
            let idle = {
                let mut table = self.table();
                if !table.handles.is_full() {
                    return Ok(());
                }
                table.idle()
            };
            let Some((node, open)) = idle else {
                rounds -= 1;
                if rounds == 0 {
                    break;
                }
                continue;
            };
            match self.can_reopen(node, &open) {
                Ok(born) => {
                    // Two statements: the table is not locked while it is closed.
                    let file = self.table().handles.take_idle(&open, born);
                    drop(file);
                }
                Err(_) => open.fix(),
            }
        }
        if self.table().handles.is_full() { Err(Errno::ENFILE) } else { Ok(()) }
    }

    /// As [`Self::make_room`], for a request that may not be allowed to take its time.
    ///
    /// # Errors
    /// As that; it takes time.
    pub(super) fn have_room(&self, call: &Call<'_>) -> Result<(), Stop> {
        if self.table().handles.is_full() {
            call.may_wait()?;
            self.make_room()?;
        }
        Ok(())
    }

    /// Opens a file that is open again, by its name, and answers when it was born, if the host knows.
    ///
    /// # Errors
    /// It cannot be, or another file has its name.
    pub(super) fn can_reopen(&self, node: u64, open: &Open) -> Result<Option<(i64, u32)>, Stop> {
        let (held, steps) = self.table().route_by_name(node)?;
        let held = self.follow(held, steps)?;
        let again = host::stat(self.open_as(node, &held, open)?)?;
        let now = host::stat(open.descriptor().ok_or(Errno::ESTALE)?)?;
        let same = (now.identity, now.attr.born) == (again.identity, again.attr.born);
        if same { Ok(now.attr.born) } else { Err(Errno::ESTALE.into()) }
    }

    /// Opens a node for what `open` is for.
    fn open_as(&self, node: u64, held: &NodeFd, open: &Open) -> Result<OwnedFd, Stop> {
        match open.listing {
            Some(_) => Ok(host::open_at(held, c".", libc::O_RDONLY | libc::O_DIRECTORY, 0)?),
            None => self.reopen(node, held, open.access),
        }
    }

    /// Goes down from a descriptor by names to one of the file that they are to lead to.
    pub(super) fn follow(&self, mut held: NodeFd, steps: Vec<Step>) -> Result<NodeFd, Errno> {
        for step in steps {
            let fd = host::open_at(&held, &step.name, libc::O_PATH, 0).map_err(stale)?;
            let stat = host::stat(&fd)?;
            if stat.identity != step.identity {
                return Err(Errno::ESTALE);
            }
            let fd = Arc::new(fd);
            if stat.is_dir() {
                self.table().cache_fd(step.node, step.identity, fd.clone(), false);
            }
            held = fd;
        }
        Ok(held)
    }

    /// The descriptor of an open file of the node that a request is about: opened again if it was given back.
    ///
    /// # Errors
    /// It has to be, and the request must not take its time; nothing leads to it any more; the host's.
    pub(super) fn file(&self, call: &Call<'_>, open: &Arc<Open>) -> Result<NodeFd, Stop> {
        match open.descriptor() {
            Some(file) => Ok(file),
            None => {
                call.may_wait()?;
                self.file_of(call.header.node, open)
            }
        }
    }

    /// As [`Self::file`], of any node, for a request that may take its time.
    pub(super) fn file_of(&self, node: u64, open: &Arc<Open>) -> Result<NodeFd, Stop> {
        if let Some(file) = open.descriptor() {
            return Ok(file);
        }
        self.make_room()?;
        let again = || self.fd_of(node).map_err(Stop::from).and_then(|held| self.open_as(node, &held, open));
        let file = match again() {
            Err(Stop::Failed(Errno::ESTALE)) => {
                // What was moved a moment ago may have a name that is not noted yet.
                let _moved = self.moving();
                again()?
            }
            result => result?,
        };
        if !open.is(host::stat(&file)?.attr.born) {
            return Err(Errno::ESTALE.into());
        }
        Ok(self.table().give(node, open, Arc::new(file)))
    }

    /// Opens a handle of a node, which has this file open.
    pub(super) fn handle(&self, node: u64, open: Open, file: OwnedFd) -> Result<u64, Errno> {
        let open = Arc::new(open);
        let mut table = self.table();
        let handle = table.open(node, open.clone())?;
        table.give(node, &open, Arc::new(file));
        Ok(handle)
    }

    /// Opens again what a node has open and has given back, before it can no longer be opened: it is about to lose its name,
    /// or permissions. `held` is a descriptor of it. However many handles there are, they share a descriptor for each thing
    /// that it is opened for.
    ///
    /// # Errors
    /// There is no room (ENFILE).
    pub(super) fn reclaim(&self, node: u64, held: &NodeFd) -> Result<(), Errno> {
        let given_back = self.table().without_descriptor(node);
        for access in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR] {
            let mut of_access = given_back.iter().filter(|open| open.access == access).peekable();
            let Some(first) = of_access.peek() else { continue };
            self.make_room()?;
            // What cannot be opened any more is lost already, and fails when it is used.
            let Ok(file) = self.open_as(node, held, first) else { continue };
            let file = Arc::new(file);
            let mut table = self.table();
            of_access.for_each(|open| _ = table.give(node, open, file.clone()));
        }
        Ok(())
    }
}
