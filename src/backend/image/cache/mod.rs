//! The cache of images: root file systems by chain ID, and what is known of the images that have them.
//!
//! It lies in `$XDG_CACHE_HOME/kite/images`, which belongs to one user and which nobody else may enter:
//!
//! | what | holds |
//! |---|---|
//! | `roots/HEX.erofs` | a root file system; its time of change is when it was last used |
//! | `making/HEX/` | what is there of one that is being made: `root`, and blobs of a registry by their digests |
//! | `records/HEX.json` | an image's name, configuration and layers; by the digest of the name |
//!
//! Locks are flock(2)'s, which end with the process that has them, however it ends. Who makes a root file system has the
//! folder of it in `making` alone; what a killed maker has left there is taken up. Who uses one has its file together with
//! others; it goes only when nobody has it.
//!
//! Blobs go once they are merged: layers that two images share are downloaded for each, and the disk holds every image's
//! files once, ready to be mapped. Images go, the least recently used first, once all are larger than a limit.

mod lock;
mod making;
mod record;
mod room;

use std::env;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow, bail};
use nix::fcntl::OFlag;
use nix::unistd::{User, geteuid};

use super::digest::Digest;
use crate::spec::number::bytes;
pub use making::Making;
pub use record::Record;
pub use room::{Freed, Stored};

/// How large all images may be, in bytes, unless [`LIMIT_VARIABLE`] says otherwise.
const DEFAULT_LIMIT: u64 = 10 << 30;
/// Names another limit, such as `20G`.
const LIMIT_VARIABLE: &str = "KITE_IMAGE_LIMIT";
const ROOTS: &str = "roots";
const MAKING: &str = "making";
const RECORDS: &str = "records";
/// What a root file system's file is called behind its digest.
const ENDING: &str = ".erofs";

/// How large all images may be, in bytes: what the environment says, or else the default.
///
/// # Errors
/// The environment's makes no sense.
pub fn limit() -> anyhow::Result<u64> {
    match env::var_os(LIMIT_VARIABLE).filter(|text| !text.is_empty()) {
        None => Ok(DEFAULT_LIMIT),
        Some(text) => {
            let text = text.to_string_lossy();
            bytes(&text).map_err(|why| anyhow!("invalid value '{text}' for ${LIMIT_VARIABLE}: {why}"))
        }
    }
}

/// The cache of one user.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: PathBuf,
}

/// A root file system that stays in the cache as long as this, or a copy of its descriptor in another process, is open.
#[derive(Debug)]
pub struct Root {
    file: File,
    path: PathBuf,
    chain_id: Digest,
}

impl Root {
    /// The file, open for reading.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The chain ID of the layers in it.
    pub fn chain_id(&self) -> &Digest {
        &self.chain_id
    }
}

impl Cache {
    /// The cache of this user, made if it is not there.
    ///
    /// # Errors
    /// It cannot be made, or is another user's, or others may write to it.
    pub fn open() -> anyhow::Result<Self> {
        let folder = |name| env::var_os(name).map(PathBuf::from).filter(|it: &PathBuf| it.is_absolute());
        let home = || folder("HOME").or_else(|| Some(User::from_uid(geteuid()).ok()??.dir));
        let cache = folder("XDG_CACHE_HOME").or_else(|| home().map(|home| home.join(".cache")));
        let cache = cache.context("there is no folder for images: set HOME or XDG_CACHE_HOME")?;
        Self::at(&cache)
    }

    /// The one below this folder of caches.
    ///
    /// # Errors
    /// Those of [`Cache::open`].
    pub fn at(cache: &Path) -> anyhow::Result<Self> {
        let folder = cache.join("kite/images");
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.with_context(|| format!("cannot make the folder for images {}", folder.display()))?;
        let parts = [ROOTS, MAKING, RECORDS].map(|name| folder.join(name));
        for part in &parts {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(part);
            made.with_context(|| format!("cannot make {}", part.display()))?;
        }
        [&cache.join("kite"), &folder].into_iter().chain(&parts).try_for_each(|it| check(it))?;
        Ok(Self { folder })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn root_path(&self, chain_id: &Digest) -> PathBuf {
        // Digests of two algorithms have two lengths.
        self.folder.join(ROOTS).join(format!("{}{ENDING}", chain_id.hex()))
    }

    /// The root file system of this chain ID, if it is there, and marks it as used now.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn root(&self, chain_id: &Digest) -> anyhow::Result<Option<Root>> {
        let path = self.root_path(chain_id);
        let what = || format!("cannot open {}", path.display());
        let Some(file) = open_file(&path).with_context(what)? else { return Ok(None) };
        lock::shared(&file).with_context(what)?;
        // It may have been removed before it was locked.
        if file.metadata().with_context(what)?.nlink() == 0 {
            return Ok(None);
        }
        // On a disk that is full, or may not be written to, it is as good.
        let _ = file.set_modified(SystemTime::now());
        Ok(Some(Root { file, path, chain_id: chain_id.clone() }))
    }
}

/// Opens a regular file of the cache for reading, if it is there.
fn open_file(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) if file.metadata()?.is_file() => Ok(Some(file)),
        Ok(_) => Err(io::Error::other("it is no regular file")),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Refuses a folder that another may have filled, and closes ours to others.
fn check(folder: &Path) -> anyhow::Result<()> {
    let what = || format!("cannot look at {}", folder.display());
    let link = fs::symlink_metadata(folder).with_context(what)?;
    let metadata = fs::metadata(folder).with_context(what)?;
    let own = geteuid().as_raw();
    if let Some(other) = [link.uid(), metadata.uid()].into_iter().find(|uid| *uid != own) {
        bail!(
            "the folder for images {} belongs to user {other}, not to {own}: name another with XDG_CACHE_HOME",
            folder.display()
        );
    }
    if metadata.mode() & 0o022 != 0 {
        bail!("others may write to the folder for images: chmod 700 {}", folder.display());
    }
    if metadata.mode() & 0o077 != 0 {
        fs::set_permissions(folder, Permissions::from_mode(0o700)).with_context(what)?;
    }
    Ok(())
}

/// The names in one of the cache's folders.
fn names(folder: &Path) -> anyhow::Result<Vec<String>> {
    let what = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).with_context(what)? {
        // kite makes no other names than text.
        names.extend(entry.with_context(what)?.file_name().into_string());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests;
