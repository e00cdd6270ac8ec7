//! What is behind a block device: an image or a host's block device, and what the guest wrote if that does not last.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::overlay::Map;
use super::uring::Spare;

/// Bytes of a sector, whatever the disk's blocks are (virtio 1.2 §5.2.4).
pub const SECTOR: u64 = 512;
/// The most bytes that a serial number has (§5.2.6).
pub const SERIAL: usize = 20;

/// What the guest sees of a disk's blocks, in bytes: powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks {
    /// The smallest unit that is addressed: from 512 on.
    pub logical: u32,
    /// The smallest unit that is written without reading before: from `logical` on.
    pub physical: u32,
}

impl Default for Blocks {
    /// Those of an image: sectors, in pages of the host's memory.
    fn default() -> Self {
        Self { logical: SECTOR as u32, physical: 4096 }
    }
}

/// Which file of a disk an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The image, through the page cache.
    Image,
    /// The image, around the page cache: memory, offset and length must be aligned.
    Direct,
    /// What was written to an ephemeral disk.
    Overlay,
}

/// A disk, as successive devices use it: it outlives a guest's reboot, and so do the writes to an ephemeral one.
#[derive(Debug)]
pub struct Disk {
    image: File,
    direct: Option<(File, u32)>,
    /// A sparse file as long as the image, each sector where it is there, and the sectors that are in it.
    overlay: Option<(File, Mutex<Map>)>,
    sectors: u64,
    read_only: bool,
    blocks: Blocks,
    serial: [u8; SERIAL],
    /// What one engine passes to the next.
    ring: Spare,
}

impl Disk {
    /// A disk of `bytes` bytes that can be written; a last part of `image` that is no whole sector is not visible.
    pub fn new(image: File, bytes: u64) -> Self {
        Self {
            image,
            direct: None,
            overlay: None,
            sectors: bytes / SECTOR,
            read_only: false,
            blocks: Blocks::default(),
            serial: [0; SERIAL],
            ring: Spare::default(),
        }
    }

    /// The ring that is used again when a guest starts again.
    pub(super) fn ring(&self) -> &Spare {
        &self.ring
    }

    /// Lets the guest only read.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Puts what the guest writes into `scratch`, an empty file; the image is only read.
    ///
    /// # Errors
    /// `scratch` cannot be as long as the image.
    pub fn ephemeral(mut self, scratch: File) -> io::Result<Self> {
        scratch.set_len(self.sectors * SECTOR)?;
        self.overlay = Some((scratch, Mutex::default()));
        Ok(self)
    }

    /// Goes around the page cache with `file`, the image opened with O_DIRECT, wherever memory, offset and length are
    /// multiples of `align`, a power of two.
    #[must_use]
    pub fn direct(mut self, file: File, align: u32) -> Self {
        self.direct = Some((file, align));
        self
    }

    /// Shows the guest blocks of these sizes.
    #[must_use]
    pub fn with_blocks(mut self, blocks: Blocks) -> Self {
        self.blocks = blocks;
        self
    }

    /// Gives it a serial number, of which 20 bytes count.
    #[must_use]
    pub fn with_serial(mut self, serial: &str) -> Self {
        self.serial.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
        self
    }

    /// The capacity in sectors.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Whether the guest may only read.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether what the guest writes is lost in the end: nothing is flushed.
    pub fn is_ephemeral(&self) -> bool {
        self.overlay.is_some()
    }

    /// Its blocks.
    pub fn blocks(&self) -> Blocks {
        self.blocks
    }

    /// Its serial number, padded with NUL.
    pub fn serial(&self) -> &[u8; SERIAL] {
        &self.serial
    }

    /// What requests around the page cache want aligned, if there are any.
    pub(super) fn alignment(&self) -> Option<u32> {
        self.direct.as_ref().map(|(_, align)| *align)
    }

    pub(super) fn fd(&self, target: Target) -> BorrowedFd<'_> {
        match (target, &self.direct, &self.overlay) {
            (Target::Direct, Some((file, _)), _) | (Target::Overlay, _, Some((file, _))) => file.as_fd(),
            _ => self.image.as_fd(),
        }
    }

    /// The sectors that the guest has written, of an ephemeral disk.
    pub(super) fn written(&self) -> Option<MutexGuard<'_, Map>> {
        self.overlay.as_ref().map(|(_, map)| map.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
