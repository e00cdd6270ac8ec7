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

/// Whether the root folder has tools of containers.
pub(super) fn has_tools() -> bool {
    TOOLS.iter().any(|folder| Path::new(folder).is_dir())
}

/// Mounts memory where the user's containers are to be, if the root folder has tools for them, the user may have a folder
/// there, and it is the root folder's own: what lies in a share is the host's.
///
/// # Errors
/// The folder cannot be made.
pub(super) fn mount_memory(user: &User, home: Option<&OsStr>) -> io::Result<()> {
    if !has_tools() {
        return Ok(());
    }
    let folder = match (user.uid, home) {
        (0, _) => PathBuf::from(OF_ROOT),
        (_, Some(home)) if Path::new(home).is_dir() => Path::new(home).join(OF_OTHERS.join("/")),
        _ => return Ok(()),
    };
    if !is_of_root(&folder) {
        return Ok(());
    }
    let made = match home.filter(|_| user.uid != 0) {
        None => DirBuilder::new().recursive(true).mode(0o755).create(&folder),
        Some(home) => make_below_home(Path::new(home), user),
    };
    match made.map_err(|error| (error.kind(), error)) {
        Err((io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem, _)) => return Ok(()),
        made => made.map_err(|(_, error)| error)?,
    }
    let (mode, flags) = if user.uid == 0 { ("0755", MsFlags::empty()) } else { ("0700", MsFlags::MS_NODEV) };
    let options = format!("mode={mode},uid={},gid={}", user.uid, user.gid);
    Ok(mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, Some(options.as_str()))?)
}

/// Whether a folder is, or would be, on the file system of the root folder.
fn is_of_root(folder: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).ok().map(|it| it.dev());
    folder.ancestors().find_map(device) == device(Path::new("/"))
}

/// Makes the folder below a user's home, the user's if it is new.
fn make_below_home(home: &Path, user: &User) -> io::Result<()> {
    let mut folder = home.to_owned();
    for name in OF_OTHERS {
        folder.push(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => chown(&folder, Some(user.uid), Some(user.gid))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_is_to_be_made_is_where_its_nearest_ancestor_is() {
        assert!(is_of_root(Path::new("/nosuch/folder")));
        assert!(!is_of_root(Path::new("/proc/nosuch/folder")));
    }
}
