//! Extended attributes (xattr(7)) of the root folder, which of an overlay are those of its upper folder alone.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

/// The most bytes of all names of a file, and of one value (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MOST: usize = 1 << 16;

/// Gives a folder the attributes of another, but for those that its file system or the kernel cannot have.
///
/// # Errors
/// They cannot be read.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), Errno> {
    let (mut names, mut value) = (vec![0; MOST], vec![0; MOST]);
    let len = match llistxattr(from, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => 0,
        len => len?,
    };
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let len = lgetxattr(from, name, value.as_mut_slice())?;
        // Before Linux 6.6 memory has none of users' attributes.
        let _ = lsetxattr(to, name, &value[..len], XattrFlags::empty());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_gets_the_attributes_of_another() {
        let folder = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| folder.path().join(name));
        [&from, &to].into_iter().for_each(|folder| fs::create_dir(folder).unwrap());
        copy(&from, &to).unwrap();
        let long = [7; 1000];
        for (name, value) in [("user.empty", &b""[..]), ("user.long", &long)] {
            if let Err(error) = lsetxattr(&from, name, value, XattrFlags::empty()) {
                println!("skipped: a_folder_gets_the_attributes_of_another: {error}");
                return;
            }
        }
        copy(&from, &to).unwrap();
        let mut value = [0; 2000];
        assert_eq!(lgetxattr(&to, "user.empty", &mut value[..]), Ok(0));
        assert_eq!(lgetxattr(&to, "user.long", &mut value[..]), Ok(1000));
        assert_eq!(value[..1000], long);
    }
}
