//! The folder of control sockets, which is this user's alone.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, geteuid};

use crate::spec::id::MachineId;

/// The folder, which stays the same one though it is moved or replaced by a link.
pub(super) struct Folder {
    handle: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// Opens it; nothing if there is none.
    ///
    /// # Errors
    /// It is a link, another user's, or others may use it.
    pub fn open() -> anyhow::Result<Option<Self>> {
        Self::at(place(geteuid(), std::env::var_os("XDG_RUNTIME_DIR"), Path::new("/")))
    }

    /// Opens it, and makes it first if there is none.
    ///
    /// # Errors
    /// Those of [`Self::open`], or it cannot be made.
    pub fn make() -> anyhow::Result<Self> {
        let path = place(geteuid(), std::env::var_os("XDG_RUNTIME_DIR"), Path::new("/"));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                Err(error).with_context(|| format!("cannot make the folder {}", path.display()))
            }
            _ => Self::at(path.clone())?.with_context(|| format!("there is no folder {}", path.display())),
        }
    }

    fn at(path: PathBuf) -> anyhow::Result<Option<Self>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let handle = match open(&path, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ENOTDIR | Errno::ELOOP) => {
                bail!("{} is no folder, or a link: remove it", path.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot open {}", path.display())),
        };
        let metadata = File::from(handle.try_clone()?).metadata()?;
        let is_ours = metadata.uid() == geteuid().as_raw() && metadata.mode() & 0o077 == 0;
        ensure!(
            is_ours,
            "{} is another user's, or others can use it: remove it, or chmod 700 it if it is yours",
            path.display()
        );
        Ok(Some(Self { handle, path }))
    }

    /// The names of sockets in it, in order.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn ids(&self) -> anyhow::Result<Vec<MachineId>> {
        let entries =
            fs::read_dir(self.way()).with_context(|| format!("cannot read {}", self.path.display()))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut ids: Vec<_> = names.filter_map(|name| MachineId::parse(&name).ok()).collect();
        ids.sort();
        Ok(ids)
    }

    /// The path by which this process finds a machine's socket, short enough for unix(7) whatever the folder's is.
    pub fn way_to(&self, id: &MachineId) -> PathBuf {
        self.way().join(id.as_str())
    }

    /// The path by which people do.
    pub fn path_of(&self, id: &MachineId) -> PathBuf {
        self.path.join(id.as_str())
    }

    fn way(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.handle.as_raw_fd()).into()
    }
}

/// Where the folder is, below `root`, for a user whose `XDG_RUNTIME_DIR` is `runtime`.
fn place(user: Uid, runtime: Option<OsString>, root: &Path) -> PathBuf {
    if user.is_root() {
        return root.join("run/kite");
    }
    if let Some(own) = runtime.map(PathBuf::from).filter(|path| path.is_absolute()) {
        return own.join("kite");
    }
    let own = root.join("run/user").join(user.to_string());
    match fs::symlink_metadata(&own) {
        Ok(metadata) if metadata.is_dir() && metadata.uid() == user.as_raw() => own.join("kite"),
        _ => root.join("tmp").join(format!("kite-{user}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn the_folder_is_where_the_host_has_one_for_the_user() {
        let root = tempfile::tempdir().unwrap();
        let of = |user: u32, runtime: Option<&str>| {
            let path = place(Uid::from_raw(user), runtime.map(OsString::from), root.path());
            path.strip_prefix(root.path()).map(Path::to_owned).unwrap_or(path).display().to_string()
        };
        assert_eq!(of(0, Some("/x")), "run/kite");
        assert_eq!(of(1000, Some("/x")), "/x/kite");
        for runtime in [None, Some(""), Some("x")] {
            assert_eq!(of(1000, runtime), "tmp/kite-1000");
        }
        // A user's own, and another's.
        let us = geteuid().as_raw().max(1);
        fs::create_dir_all(root.path().join(format!("run/user/{us}"))).unwrap();
        fs::create_dir_all(root.path().join("run/user/4000000")).unwrap();
        if !geteuid().is_root() {
            assert_eq!(of(us, None), format!("run/user/{us}/kite"));
        }
        assert_eq!(of(4_000_000, None), "tmp/kite-4000000");
    }

    #[test]
    fn a_folder_that_others_can_use_or_a_link_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("kite");
        assert!(Folder::at(path.clone()).unwrap().is_none());
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        for name in ["b", "a", ".kite-0", "a b"] {
            fs::write(path.join(name), "").unwrap();
        }
        let folder = Folder::at(path.clone()).unwrap().unwrap();
        assert_eq!(folder.ids().unwrap(), ["a", "b"].map(|it| MachineId::parse(it).unwrap()));
        for mode in [0o770, 0o701, 0o755] {
            fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            assert!(Folder::at(path.clone()).err().unwrap().to_string().contains("others can use it"));
        }
        fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
        let link = root.path().join("link");
        symlink(&path, &link).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        for wrong in [link, root.path().join("file")] {
            assert!(Folder::at(wrong).err().unwrap().to_string().ends_with("remove it"));
        }
    }
}
