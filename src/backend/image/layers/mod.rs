//! Layers of an image, merged into one tree, which becomes an EROFS image (OCI image specification, Image Layer Filesystem
//! Changeset).
//!
//! Each layer is read once, as a stream: files' data goes straight into the image, what describes them into a tree in memory. A later
//! layer may hide a file whose data is written; it becomes a hole of the image's file at the end of that layer. That costs
//! no second pass over compressed data, and no more room than the layers have unpacked one upon the other.
//!
//! What a layer means is what `umoci unpack` makes of it, as root. Nothing is unpacked, so nothing on the host can be
//! reached: names and links are followed in the tree alone.

mod blob;
mod changes;
mod path;
pub mod tar;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fs::File;
use std::io::Read;

use anyhow::{Context, Result};
use boot::erofs::{BLOCK, Extent, Writer};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};

use super::blob::Compression;
use super::digest::Digest;
use blob::Content;
use changes::Changes;

/// The most bytes of a name that an error shows.
const SHOWN_MAX: usize = 200;

/// A layer's blob, and what it has to be.
pub struct LayerBlob<'a> {
    /// The blob's bytes.
    pub reader: Box<dyn Read + 'a>,
    /// What they are compressed with.
    pub compression: Compression,
    /// The digest of the blob, if it is known.
    pub digest: Option<Digest>,
    /// The digest of the archive in it.
    pub diff_id: Digest,
}

/// Bounds on what an image may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries of all layers.
    pub entries: u64,
    /// Bytes of memory for what describes the files.
    pub memory: u64,
    /// Bytes of all layers' archives.
    pub content: u64,
    /// Bytes of the image, with its holes.
    pub image: u64,
    /// Steps of looking for files and removing them, all entries together.
    pub steps: u64,
    /// Bytes of a zstd frame's window, all of which are in memory.
    pub window: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 1_000_000,
            memory: 256 << 20,
            content: 128 << 30,
            image: 1 << 40,
            steps: 200_000_000,
            // What `zstd --ultra -22` writes, and others take without being asked.
            window: 128 << 20,
        }
    }
}

/// What became of the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// The chain ID of the layers, which names their merged tree; none of no layer.
    pub chain_id: Option<Digest>,
    /// How many entries the layers have.
    pub entries: u64,
    /// How many files, directories and others the image has.
    pub inodes: u64,
    /// The image's size in bytes, with its holes.
    pub size: u64,
    /// How many extended attributes were dropped: those that Linux or EROFS cannot have, and those of the machine where the
    /// layer was made.
    pub dropped_xattrs: u64,
}

/// Merges layers, the lowest first, and writes the image of the result to `out`; what that file has is lost. `progress` is
/// called with the number of bytes of blobs that were read since the last call.
///
/// The same layers make the same image, whatever they are compressed with.
///
/// # Errors
/// A layer cannot be read, is not what its digests say, makes no sense, or goes beyond a limit; or the image cannot be
/// written. `out` is no image then.
pub fn build<'a>(
    layers: impl IntoIterator<Item = Result<LayerBlob<'a>>>,
    out: &File,
    limits: &Limits,
    progress: &dyn Fn(u64),
) -> Result<Summary> {
    let mut changes = Changes::new(Writer::new(out, limits.image)?, limits);
    let content = Cell::new(limits.content);
    let mut chain_id = None;
    for (index, layer) in layers.into_iter().enumerate() {
        let layer = layer?;
        let what =
            format!("layer {} ({})", index + 1, layer.digest.as_ref().unwrap_or(&layer.diff_id).short());
        chain_id = Some(chained(chain_id, &layer.diff_id));
        let layer = Content::new(layer, limits.window, &content, progress);
        let unused = apply(&mut changes, layer).context(what)?;
        for extent in unused {
            punch(out, extent).context("cannot make a hole in the image")?;
        }
    }
    let (entries, dropped_xattrs) = (changes.entries(), changes.dropped_xattrs());
    let image = changes.finish(uuid(chain_id.as_ref())).context("cannot make the image's file system")?;
    Ok(Summary { chain_id, entries, inodes: image.inodes, size: image.size, dropped_xattrs })
}

/// Applies one layer. Returns which blocks of the image are no longer in use.
fn apply(changes: &mut Changes<'_>, content: Content<'_>) -> Result<Vec<Extent>> {
    let mut archive = tar::Archive::new(content);
    changes.begin_layer();
    while let Some(entry) = archive.next_entry()? {
        changes.apply(entry, &mut archive)?;
    }
    archive.into_inner().finish()?;
    Ok(changes.end_layer()?)
}

/// Frees blocks, if the image's file system can.
fn punch(image: &File, extent: Extent) -> Result<(), Errno> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let [offset, len] = [extent.offset(), extent.blocks() * BLOCK].map(u64::cast_signed);
    match fallocate(image, flags, offset, len) {
        Err(Errno::EOPNOTSUPP) => Ok(()),
        result => result,
    }
}

/// The chain ID of layers, of which `below` is that of all but the last (OCI image specification, Layer ChainID).
fn chained(below: Option<Digest>, diff_id: &Digest) -> Digest {
    below.map_or_else(|| diff_id.clone(), |below| Digest::of(format!("{below} {diff_id}").as_bytes()))
}

/// A UUID made of a digest (RFC 9562, version 8).
fn uuid(digest: Option<&Digest>) -> [u8; 16] {
    let hex = digest.map_or("", Digest::hex);
    let byte =
        |index: usize| hex.get(2 * index..2 * index + 2).and_then(|it| u8::from_str_radix(it, 16).ok());
    let mut uuid = std::array::from_fn(|index| byte(index).unwrap_or(0));
    uuid[6] = uuid[6] & 0xf | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Bytes of a layer, as an error shows them: printable, and not all of a long name.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(SHOWN_MAX)]);
    let more = if bytes.len() > SHOWN_MAX { "..." } else { "" };
    format!("{}{more}", text.escape_debug())
}
