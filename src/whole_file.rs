//! Files that programs read, and find whole at any time: written beside and then given their name.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::OFlag;
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

/// Opens a file that grows while others read it: made, or emptied. Neither a symbolic link that somebody has planted is
/// followed, nor a file emptied that has another name.
///
/// # Errors
/// It cannot be written, or is such a link.
pub fn emptied(path: &Path, flags: OFlag) -> io::Result<File> {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).custom_flags((OFlag::O_NOFOLLOW | flags).bits());
    let file = options.open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_file() {
        if metadata.nlink() > 1 {
            return Err(io::Error::other("the file has another name, too: remove it, or name another"));
        }
        file.set_len(0)?;
    }
    Ok(file)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_another_name_is_neither_emptied_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("precious"), "kept").unwrap();
        fs::hard_link(path("precious"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("precious"), path("soft")).unwrap();
        for name in ["hard", "soft"] {
            assert!(emptied(&path(name), OFlag::empty()).is_err(), "{name}");
        }
        assert_eq!(fs::read_to_string(path("precious")).unwrap(), "kept");
    }

    #[test]
    fn a_file_of_before_is_emptied_and_a_new_one_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        for text in ["a long line", "short"] {
            emptied(&path, OFlag::empty()).unwrap().write_all(text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
