//! How much room images take, and how it is made.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};

use super::{Cache, ENDING, MAKING, Making, ROOTS, Record, lock, names, open_file};
use crate::backend::image::digest::Digest;

/// A root file system in the cache.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The chain ID of its layers.
    pub chain_id: Digest,
    /// How much of the disk it takes, in bytes.
    pub size: u64,
    /// When it was last used.
    pub used: SystemTime,
    path: PathBuf,
}

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Freed {
    /// How many root file systems.
    pub images: usize,
    /// How many that nobody went on to make.
    pub unfinished: usize,
    /// How much of the disk they took, in bytes.
    pub bytes: u64,
}

impl Stored {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a machine has it.
    ///
    /// # Errors
    /// It cannot be locked.
    pub fn is_in_use(&self) -> anyhow::Result<bool> {
        let what = || format!("cannot lock {}", self.path.display());
        let Some(file) = open_file(&self.path).with_context(what)? else { return Ok(false) };
        Ok(!lock::try_alone(&file).with_context(what)?)
    }

    /// Removes it, unless a machine has it. Returns whether it did.
    fn remove(&self) -> anyhow::Result<bool> {
        let what = || format!("cannot remove {}", self.path.display());
        let Some(file) = open_file(&self.path).with_context(what)? else { return Ok(false) };
        if !lock::try_alone(&file).with_context(what)? {
            return Ok(false);
        }
        fs::remove_file(&self.path).with_context(what)?;
        Ok(true)
    }
}

impl Cache {
    /// The root file systems, the least recently used first.
    ///
    /// # Errors
    /// The cache cannot be read.
    pub fn stored(&self) -> anyhow::Result<Vec<Stored>> {
        let folder = self.folder.join(ROOTS);
        let mut stored = Vec::new();
        for name in names(&folder)? {
            let path = folder.join(&name);
            let hex = name.strip_suffix(ENDING).unwrap_or_default();
            let digests = [format!("sha256:{hex}"), format!("sha512:{hex}")].map(|text| text.parse().ok());
            let Some(chain_id) = digests.into_iter().flatten().next() else { continue };
            // It may have gone meanwhile.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            stored.push(Stored { chain_id, size: metadata.blocks() * 512, used, path });
        }
        stored.sort_by_key(|it| it.used);
        Ok(stored)
    }

    /// Removes what nobody has gone on to make for `patience`, and then images, the least recently used first, until all
    /// take at most `limit` bytes; but none that a machine has. What is known of a removed image goes with it.
    ///
    /// # Errors
    /// The cache cannot be read, or something cannot be removed.
    pub fn make_room(&self, limit: u64, patience: Duration) -> anyhow::Result<Freed> {
        let mut freed = Freed::default();
        self.remove_unfinished(patience, &mut freed)?;
        let stored = self.stored()?;
        let mut total: u64 = stored.iter().map(|it| it.size).sum();
        for image in &stored {
            if total <= limit {
                break;
            }
            if image.remove()? {
                total -= image.size;
                freed.images += 1;
                freed.bytes += image.size;
            }
        }
        if freed.images > 0 {
            self.drop_records_without_root()?;
        }
        Ok(freed)
    }

    fn remove_unfinished(&self, patience: Duration, freed: &mut Freed) -> anyhow::Result<()> {
        let folder = self.folder.join(MAKING);
        for name in names(&folder)? {
            let path = folder.join(name);
            let begun = fs::symlink_metadata(&path).and_then(|it| it.modified());
            if begun.is_ok_and(|begun| begun.elapsed().is_ok_and(|age| age < patience)) {
                continue;
            }
            let Some(making) = Making::of_nobody(&path)? else { continue };
            freed.bytes += size_in(&path);
            freed.unfinished += 1;
            making.end()?;
        }
        Ok(())
    }

    fn drop_records_without_root(&self) -> anyhow::Result<()> {
        for record in self.records()? {
            if !self.root_path(&record.chain_id).exists() {
                self.drop_record(&record)?;
            }
        }
        Ok(())
    }

    /// Removes an image, with its root file system unless another image has the same.
    ///
    /// # Errors
    /// A machine has it, or it cannot be removed.
    pub fn remove(&self, record: &Record) -> anyhow::Result<Freed> {
        let is_other = |it: &Record| it.reference != record.reference && it.chain_id == record.chain_id;
        let mut freed = Freed::default();
        if !self.records()?.iter().any(is_other) {
            let stored = self.stored()?;
            if let Some(image) = stored.iter().find(|it| it.chain_id == record.chain_id) {
                if !image.remove()? && image.path.exists() {
                    bail!(
                        "a machine has the image {} in use; stop that first",
                        record.reference.escape_debug()
                    );
                }
                freed = Freed { images: 1, bytes: image.size, ..freed };
            }
        }
        self.drop_record(record)?;
        Ok(freed)
    }
}

/// How much of the disk the files in a folder take, in bytes.
fn size_in(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|it| it.blocks() * 512).sum()
}
