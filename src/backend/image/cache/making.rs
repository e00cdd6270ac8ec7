//! A root file system in the making: one maker at a time, whose death leaves nothing that is in the way.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;

use super::{Cache, MAKING, Root, lock, open_file};
use crate::backend::image::digest::Digest;

/// The root file system's file while it is being made.
const ROOT: &str = "root";

/// What the maker of one root file system has, alone.
#[derive(Debug)]
pub struct Making {
    folder: PathBuf,
    /// The folder, locked.
    _lock: File,
}

impl Cache {
    /// The root file system of this chain ID: the one that is there, or else the one that `make` writes to the file that it
    /// is given. Of several who want the same at a time, one makes it; `wait` is called before waiting for that one.
    ///
    /// # Errors
    /// It cannot be made, or `make` fails, of which nothing stays but the blobs that it has got.
    pub fn root_or_make(
        &self,
        chain_id: &Digest,
        wait: impl Fn(),
        make: impl FnOnce(&Making, &File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Root> {
        if let Some(root) = self.root(chain_id)? {
            return Ok(root);
        }
        let making = Making::begin(&self.folder.join(MAKING).join(chain_id.hex()), wait)?;
        // Who was waited for has made it.
        if let Some(root) = self.root(chain_id)? {
            making.end()?;
            return Ok(root);
        }
        match self.make_root(&making, chain_id, make) {
            Ok(root) => {
                making.end()?;
                Ok(root)
            }
            Err(error) => {
                making.abandon();
                Err(error)
            }
        }
    }

    fn make_root(
        &self,
        making: &Making,
        chain_id: &Digest,
        make: impl FnOnce(&Making, &File) -> anyhow::Result<()>,
    ) -> anyhow::Result<Root> {
        let part = making.folder.join(ROOT);
        let what = || format!("cannot write {}", part.display());
        let file = writable(true).open(&part).with_context(what)?;
        make(making, &file)?;
        // A name that survives a crash of the host must not be that of content that does not.
        file.sync_data().with_context(what)?;
        file.set_permissions(Permissions::from_mode(0o400)).with_context(what)?;
        // In use before others can see it.
        let reader = open_file(&part).with_context(what)?.with_context(what)?;
        lock::shared(&reader).with_context(what)?;
        let path = self.root_path(chain_id);
        fs::rename(&part, &path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Root { file: reader, path, chain_id: chain_id.clone() })
    }
}

impl Making {
    /// Takes the folder, which is made if need be, and waits for who has it.
    fn begin(folder: &Path, wait: impl Fn()) -> anyhow::Result<Self> {
        let what = || format!("cannot lock {}", folder.display());
        loop {
            match DirBuilder::new().mode(0o700).create(folder) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                    return Err(error).with_context(what);
                }
                _ => {}
            }
            let Some(file) = open_folder(folder).with_context(what)? else { continue };
            if !lock::try_alone(&file).with_context(what)? {
                wait();
                lock::alone(&file).with_context(what)?;
            }
            // Who had it may have removed it, and another may have made a new one.
            if is_at(&file, folder) {
                return Ok(Self { folder: folder.to_owned(), _lock: file });
            }
        }
    }

    /// The same of a folder, unless another has it.
    pub(super) fn of_nobody(folder: &Path) -> anyhow::Result<Option<Self>> {
        let what = || format!("cannot lock {}", folder.display());
        let Some(file) = open_folder(folder).with_context(what)? else { return Ok(None) };
        let is_ours = lock::try_alone(&file).with_context(what)? && is_at(&file, folder);
        Ok(is_ours.then(|| Self { folder: folder.to_owned(), _lock: file }))
    }

    /// The file for a blob of a registry, with what a maker before has got of it.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn blob(&self, digest: &Digest) -> anyhow::Result<File> {
        let path = self.folder.join(digest.hex());
        let what = || format!("cannot open {}", path.display());
        let file = writable(false).open(&path).with_context(what)?;
        if !file.metadata().with_context(what)?.is_file() {
            bail!("{} is no regular file", path.display());
        }
        Ok(file)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Removes the half of a root file system, and the folder if it has no blobs: the disk may be full.
    fn abandon(self) {
        // What goes wrong here is less than what went wrong before. Later pruning removes it.
        let _ = fs::remove_file(self.folder.join(ROOT));
        let _ = fs::remove_dir(&self.folder);
    }

    /// Removes the folder with all that is in it. Who waits for it sees that it has gone.
    pub(super) fn end(self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.folder).with_context(|| format!("cannot remove {}", self.folder.display()))
    }
}

/// How a file that is to be written is opened, made if it is not there.
fn writable(is_emptied: bool) -> OpenOptions {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(is_emptied).mode(0o600).custom_flags(flags.bits());
    options
}

fn open_folder(path: &Path) -> io::Result<Option<File>> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    match File::options().read(true).custom_flags(flags.bits()).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an open file is what has this path now.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |it: fs::Metadata| (it.dev(), it.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => identity(open) == identity(there),
        _ => false,
    }
}
