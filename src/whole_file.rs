//! Files that programs read, and find whole at any time: written beside and then given their name.

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::unistd::{AccessFlags, access};

use crate::sandbox::{self, post};

/// Refuses a path that [`write`] would: to be asked before the work that is to be told of.
///
/// # Errors
/// There is something else than a file, a link for one, or no such folder, or that cannot be written to.
pub fn check(path: &Path) -> anyhow::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_symlink() => {
            bail!("{}: is a symbolic link; name the file itself", path.display())
        }
        Ok(metadata) if !metadata.is_file() => {
            bail!("{}: is not a regular file", path.display())
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", path.display())),
    }
    if path.file_name().is_none() {
        bail!("{}: is not the name of a file", path.display());
    }
    let folder = folder(path);
    match fs::metadata(&folder) {
        Ok(metadata) if metadata.is_dir() => {}
        Ok(_) => bail!("{}: is not a folder", folder.display()),
        Err(error) => return Err(error).with_context(|| format!("cannot look at {}", folder.display())),
    }
    access(&folder, AccessFlags::W_OK | AccessFlags::X_OK)
        .with_context(|| format!("cannot write {}: no file can be made in its folder", path.display()))
}

/// As [`check`], for a file that a machine's process is to write, which has no folders of the host's.
///
/// # Errors
/// Those of [`check`].
pub fn expect(path: &Path) -> anyhow::Result<()> {
    check(path)?;
    post::expect(path);
    Ok(())
}

fn folder(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Makes the file of what `content` writes. Whoever looks finds the file of before or the whole new one, and a link that
/// somebody has planted is not followed.
///
/// # Errors
/// The file cannot be written there.
pub fn write(path: &Path, content: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> anyhow::Result<()> {
    let what = || format!("cannot write {}", path.display());
    if sandbox::is_inside() {
        let mut text = Vec::new();
        content(&mut text).with_context(what)?;
        return post::send(path, &text).unwrap_or(Ok(())).with_context(what);
    }
    check(path)?;
    // As any new file: the process's umask takes from it.
    let permissions = Permissions::from_mode(0o666);
    let mut file = tempfile::Builder::new()
        .prefix(".kite-")
        .permissions(permissions)
        .tempfile_in(folder(path))
        .with_context(what)?;
    content(file.as_file_mut()).with_context(what)?;
    file.persist(path).map_err(|error| error.error).with_context(what)?;
    Ok(())
}
