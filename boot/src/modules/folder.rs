//! Where a kernel's modules are, by where the kernel is and its version.

use std::path::{Path, PathBuf};

use super::tree;
use crate::kernel::BUILT;

/// The folder of the modules of `kernel`, of this version: the one that the kernel was built in or lies in beside them,
/// `lib/modules` in its folder or the one above, or the host's, whichever there is.
pub fn of_kernel(kernel: &Path, version: Option<&str>) -> Option<PathBuf> {
    let lists = [tree::ORDER, super::LIST];
    let around = around(kernel).filter(|folder| lists.iter().any(|list| folder.join(list).is_file()));
    around.or_else(|| {
        let folder = Path::new("lib/modules").join(version?);
        let beside = kernel.ancestors().skip(1).take(2).map(|above| above.join(&folder));
        let host = ["/", "/usr"].map(|root| Path::new(root).join(&folder));
        beside.chain(host).find(|folder| folder.is_dir())
    })
}

/// The folder that a kernel was built in, by its place in it: a bzImage's, or a vmlinux's.
fn around(kernel: &Path) -> Option<PathBuf> {
    // `./bzImage` may be started from the folder that it is in.
    let kernel = kernel.canonicalize().ok()?;
    match kernel.ends_with(BUILT) {
        true => kernel.ancestors().nth(4).map(Path::to_owned),
        false => kernel.parent().map(Path::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn found(kernel: &Path) -> Option<PathBuf> {
        of_kernel(kernel, Some("1.2.3-none"))
    }

    #[test]
    fn modules_are_where_the_kernel_was_built_or_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let kernel = dir.join(BUILT);
        fs::create_dir_all(kernel.parent().unwrap()).unwrap();
        fs::write(&kernel, "").unwrap();
        assert_eq!(found(&kernel), None);
        fs::write(dir.join(tree::ORDER), "").unwrap();
        assert_eq!(found(&kernel), Some(dir.clone()));
        let beside = dir.join("boot/lib/modules/1.2.3-none");
        fs::create_dir_all(&beside).unwrap();
        fs::write(dir.join("boot/vmlinuz"), "").unwrap();
        assert_eq!(found(&dir.join("boot/vmlinuz")), Some(beside.clone()));
        // As distributions have it now: the kernel is among its modules, whose folder may be under any name.
        for list in [tree::ORDER, crate::modules::LIST] {
            let folder = dir.join(list);
            let _ = fs::remove_file(&folder);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(list), "").unwrap();
            fs::write(folder.join("vmlinuz"), "").unwrap();
            assert_eq!(found(&folder.join("vmlinuz")), Some(folder));
        }
    }
}
