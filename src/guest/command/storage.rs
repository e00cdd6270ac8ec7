//! Where tools of containers have theirs: a file system that their overlays may lie on, which the root folder, an overlay
//! itself, is not.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::user::User;

/// What is there where such tools are (containers-common).
const TOOLS: [&str; 2] = ["/etc/containers", "/usr/share/containers"];
/// Where root has them (containers-storage.conf(5)).
const OF_ROOT: &str = "/var/lib/containers";
/// Where others have them, below their homes.
const OF_OTHERS: [&str; 3] = [".local", "share", "containers"];

/// Mounts memory where the user's containers are to be, if the root folder has tools for them and nothing is mounted there.
///
/// # Errors
/// The folder cannot be made.
pub(super) fn mount_memory(user: &User, home: Option<&OsStr>) -> io::Result<()> {
    if !TOOLS.iter().any(|folder| Path::new(folder).is_dir()) {
        return Ok(());
    }
    let folder = match (user.uid, home) {
        (0, _) => {
            DirBuilder::new().recursive(true).mode(0o755).create(OF_ROOT)?;
            PathBuf::from(OF_ROOT)
        }
        (_, Some(home)) if Path::new(home).is_dir() => below_home(Path::new(home), user)?,
        _ => return Ok(()),
    };
    let parent = folder.parent().unwrap_or(Path::new("/"));
    if fs::metadata(&folder)?.dev() != fs::metadata(parent)?.dev() {
        return Ok(());
    }
    let (mode, flags) = if user.uid == 0 { ("0755", MsFlags::empty()) } else { ("0700", MsFlags::MS_NODEV) };
    let options = format!("mode={mode},uid={},gid={}", user.uid, user.gid);
    Ok(mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// The folder below a user's home, made if need be, and the user's then.
fn below_home(home: &Path, user: &User) -> io::Result<PathBuf> {
    let mut folder = home.to_owned();
    for name in OF_OTHERS {
        folder.push(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => chown(&folder, Some(user.uid), Some(user.gid))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(folder)
}
