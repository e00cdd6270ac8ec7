//! The file system device (virtio 1.2 §5.11): a folder of the host's, by the FUSE protocol.
//!
//! What the guest may reach is the folder and what is mounted below it, whatever it asks for and whatever the host moves
//! meanwhile: a request names a node that was looked up and one name in it, never a path (`ops::names`); a node is the file
//! that it was, or stale (`inode_table`); nothing but regular files and directories is opened (`ops::data`). Memory and
//! descriptors are bounded ([`Limits`]), whatever the guest does not forget or close.
//!
//! Locks of either kind stay in the guest, where the processes are that they are between; so do permissions, as far as
//! the host lets this process do what the guest permits.
//!
//! The server is our own as no crate fits: `fuse-backend-rs` 0.14 and `virtiofsd` 1.14 are made for an older `vm-memory`
//! than this one, bring an async runtime along, and have a descriptor for each file that a guest has looked up.

mod exchange;
mod fd_budget;
mod fd_cache;
mod fd_lookup;
mod handle_table;
mod host;
mod inode_table;
mod mounts;
mod ops;
mod proc_fd;
mod server;
mod state;
#[cfg(test)]
mod tests;
mod wire;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::pool::{Pool, Spawn};
use super::{Copies, Error, Kind, Queues, Source, Thread, VirtioDevice};
use crate::GuestMemory;
use crate::device::{self, State};
use exchange::{Job, Worker};
pub use inode_table::Limits;
use server::Server;

/// What all file system devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_FS, module: "virtiofs" };
/// Bytes of a tag (§5.11.4).
pub const MOST_TAG: usize = 36;
/// The queue for what goes past other requests, and that for requests. A request has up to 256 pages and a few more
/// pieces, and a chain not more than a queue has entries.
const QUEUES: [u16; 2] = [64, 512];
/// The most threads of a share. They wait for disks more than they work.
const THREADS: usize = 8;
/// How long a guest may take what it knows of a share for true where others, too, can write: as much as `virtiofsd` gives.
const SHORT: Duration = Duration::from_secs(1);
/// The same where the guest cannot write: a compiler asks for the same thousands of names again and again, and a
/// user who changes a file on the host and goes to the guest's window expects it changed there. What was read of a file is dropped
/// when its time of change is seen to be another one.
const LONG: Duration = Duration::from_secs(5);
/// The most nodes that a guest may know: 400 MB of the host's memory, for a guest that has the tenfold for them.
const MOST_NODES: usize = 4_000_000;

/// A folder shown to the guest.
#[derive(Debug)]
pub struct Share {
    /// By what the guest mounts it: 1 to [`MOST_TAG`] bytes, none of them zero.
    pub tag: String,
    /// The folder, open with `O_PATH` or otherwise.
    pub root: OwnedFd,
    /// Whether the guest may change anything in it. What it makes belongs to whom it says, and may run as whom it says, if
    /// this process is root's; else it belongs to this process' user, who also must be allowed what the guest does.
    pub writable: bool,
    /// Whether the guest sees extended attributes. A guest asks for several whenever it looks up a name, overlays do
    /// most of all, unless it has learnt that there are none.
    pub attributes: bool,
    /// How long the guest may take what it knows of a file for true.
    pub valid: Duration,
    /// The user and the group that the host shows where this process may not know the owner (user_namespaces(7), "Unmapped
    /// user and group IDs"), if there are such: the guest sees root, whose such files are for the most part.
    pub unknown: Option<(u32, u32)>,
    /// The group of this process' user that is shown of files of such a group, if they have a group that the host does not show
    /// and this process is in it: without it the guest would refuse its user what the host does not.
    pub group: Option<u32>,
    /// Whether the guest may leave set-user-ID and set-group-ID programs, and programs with capabilities, in it.
    pub suid: bool,
    /// What it may use of the host.
    pub limits: Limits,
}

impl Share {
    /// A folder with the times that suit it, extended attributes only if they may be set, and most of the descriptors that
    /// this process may have: divide [`Limits::descriptors`] by the number of shares if there are several.
    pub fn new(tag: impl Into<String>, root: OwnedFd, writable: bool) -> Self {
        let most = host::descriptor_limit();
        let descriptors = most.saturating_sub((most / 4).max(64)).clamp(32, 1 << 16);
        let limits = Limits { descriptors, nodes: MOST_NODES };
        let valid = if writable { SHORT } else { LONG };
        let tag = tag.into();
        let (attributes, unknown) = (writable, None);
        Self { tag, root, writable, attributes, valid, unknown, group: None, suid: false, limits }
    }
}

/// A share in the guest.
pub struct Fs {
    name: String,
    worker: Worker,
    pool: Pool<Worker>,
    config: [u8; MOST_TAG + 4],
}

impl Fs {
    /// Shows `share` to the guest whose memory is `memory`, of which there may be `copies`; `spawn` makes threads for requests when there are some.
    ///
    /// # Errors
    /// The tag is no tag; the share is not a directory or cannot be looked at; there is no /proc; the host has no
    /// descriptors left.
    pub fn new(
        name: impl Into<String>,
        share: Arc<Share>,
        memory: GuestMemory,
        copies: Arc<Copies>,
        spawn: Spawn,
    ) -> io::Result<Self> {
        let tag = share.tag.as_bytes();
        if tag.is_empty() || tag.len() > MOST_TAG || tag.contains(&0) {
            let message = format!("the tag {:?} does not have 1 to {MOST_TAG} bytes", share.tag);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let mut config = [0; MOST_TAG + 4];
        config[..tag.len()].copy_from_slice(tag);
        config[MOST_TAG] = QUEUES.len() as u8 - 1;
        let worker = Worker { server: Arc::new(Server::new(share)?), memory, copies };
        let pool = Pool::new(worker.clone(), THREADS, spawn)?;
        Ok(Self { name: name.into(), worker, pool, config })
    }

    fn complete(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        let done = self.pool.completed();
        for index in 0..QUEUES.len() {
            let of_queue = done.iter().filter(|it| it.queue == index);
            let chains: Vec<_> = of_queue.map(|it| (it.head, it.written)).collect();
            queues.complete_all(index, &chains)?;
        }
        Ok(())
    }
}

impl VirtioDevice for Fs {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn thread(&self) -> Thread {
        Thread::Files { writable: self.worker.server.share.writable }
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.pool.source())]
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        while let Some(chain) = queues.take(index)? {
            match self.worker.server.serve(&mut self.worker.request(&chain), false) {
                Some(written) => queues.complete(index, chain.head, written as u32)?,
                None => self.pool.push(Job::new(index, chain)),
            }
        }
        self.complete(queues)
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.pool.resume();
        self.complete(queues)
    }

    /// Requests that wait for a lease are not waited for: they begin again when the device is served.
    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        while self.pool.wait() {
            self.complete(queues)?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        while self.pool.wait() {
            let _forgotten = self.pool.completed();
        }
        self.pool.forget_postponed();
        self.worker.server.clear();
    }

    fn save(&self) -> Result<State, device::Error> {
        match self.pool.in_flight() {
            0 => self.worker.server.save(),
            // Those that no thread has: whatever else is in flight has been waited for.
            count => Err(device::Error::Unsaveable(
                format!("{count} requests wait for a lease of another process on a file; save again later")
                    .into(),
            )),
        }
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        self.worker.server.load(state)
    }
}
