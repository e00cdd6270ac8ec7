//! What there is to boot when `kite run` is told nothing else: a kernel and its modules.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::{fs, io};

use boot::kernel::{self, Image};
use boot::modules::{self, Modules};

use super::{Problem, Verdict};

/// The kernel that `kite run` takes without `--kernel`: `chosen` (`$KITE_KERNEL`), else the newest in
/// `folder`.
pub(super) fn find(chosen: Option<OsString>, folder: &Path) -> Option<PathBuf> {
    chosen.filter(|path| !path.is_empty()).map(PathBuf::from).or_else(|| kernel::newest(folder))
}

/// The kernel can be read and booted; with that, its version if it tells it.
pub(super) fn image(path: Option<&Path>) -> (Verdict, Option<String>) {
    let Some(path) = path else {
        let fix = "install one (Debian: apt-get install linux-image-amd64), or kite run --kernel PATH";
        return (Err(Problem::new("no KITE_KERNEL in the environment, no vmlinuz-* in /boot", fix)), None);
    };
    match open(path) {
        Ok(image) => {
            let version = image.version();
            let named = version.as_ref().map_or(String::new(), |version| format!(", Linux {version}"));
            (Ok(format!("{}{named}", path.display())), version)
        }
        Err(error) => (Err(refused(path, &error)), None),
    }
}

fn open(path: &Path) -> Result<Image, kernel::Error> {
    // Before opening: opening a pipe would wait for its writer.
    match fs::metadata(path)?.is_file() {
        true => Image::open(path),
        false => Err(kernel::Error::NotAFile),
    }
}

fn refused(path: &Path, error: &kernel::Error) -> Problem {
    let path = path.display();
    match error {
        // Ubuntu's kernels are for root only.
        kernel::Error::Read(error) if error.kind() == ErrorKind::PermissionDenied => Problem::new(
            format!("{path}: permission denied"),
            format!("chmod +r {path}, or copy it and set KITE_KERNEL"),
        ),
        kernel::Error::Read(error) => Problem::new(
            format!("{path}: {error}"),
            "set KITE_KERNEL to a bzImage or vmlinux that can be read",
        ),
        error => Problem::new(format!("{path}: {error}"), "set KITE_KERNEL to an x86-64 bzImage or vmlinux"),
    }
}

/// The modules of kernel `version` are in `root`, in order.
pub(super) fn modules(version: Option<&str>, root: &Path) -> Verdict {
    let version = version.ok_or_else(|| {
        Problem::new(
            "unknown without a kernel that tells its version",
            "see kernel, or kite run --modules DIR",
        )
    })?;
    let folder = root.join(version);
    match Modules::open(&folder) {
        Ok(_) => Ok(folder.display().to_string()),
        Err(modules::Error::NoList { .. }) => {
            Err(Problem::new(format!("{} has no modules.dep", folder.display()), format!("depmod {version}")))
        }
        Err(modules::Error::Folder(_, error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(Problem::new(
                format!("{} is missing", folder.display()),
                format!(
                    "install them (Debian: apt-get install linux-image-{version}), or kite run --modules DIR"
                ),
            ))
        }
        Err(error) => {
            let found = format!("{:#}", anyhow::Error::from(error));
            Err(Problem::new(found, format!("chmod -R a+rX {}, or kite run --modules DIR", folder.display())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &Path) -> Problem {
        image(Some(path)).0.unwrap_err()
    }

    #[test]
    fn the_environment_comes_before_the_newest() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(find(None, folder.path()), None);
        let newest = folder.path().join("vmlinuz-6.10");
        for name in ["vmlinuz-6.10", "vmlinuz-6.9"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(find(Some("/my".into()), folder.path()), Some("/my".into()));
        assert_eq!(find(Some("".into()), folder.path()), Some(newest));
    }

    #[test]
    fn an_unusable_kernel_is_named_with_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        fs::write(&text, "hello").unwrap();
        assert!(found(&text).found.contains("looks like text"));
        assert!(found(folder.path()).found.contains("not a regular file"));
        assert!(found(&folder.path().join("none")).found.contains("No such file"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(found(&pipe).found.contains("not a regular file"));
    }

    #[test]
    fn a_forbidden_kernel_is_fixed_by_its_mode() {
        let error = kernel::Error::Read(ErrorKind::PermissionDenied.into());
        let problem = refused(Path::new("/boot/vmlinuz-6"), &error);
        assert_eq!(problem.found, "/boot/vmlinuz-6: permission denied");
        assert!(problem.fix.starts_with("chmod +r /boot/vmlinuz-6"));
    }

    #[test]
    fn no_kernel_says_how_to_get_one() {
        let (verdict, version) = image(None);
        assert!(verdict.unwrap_err().fix.contains("linux-image"));
        assert!(modules(version.as_deref(), Path::new("/")).is_err());
    }

    #[test]
    fn modules_need_a_folder_and_its_list() {
        let root = tempfile::tempdir().unwrap();
        assert!(modules(Some("6.1"), root.path()).unwrap_err().fix.contains("linux-image-6.1"));
        fs::create_dir(root.path().join("6.1")).unwrap();
        assert_eq!(modules(Some("6.1"), root.path()).unwrap_err().fix, "depmod 6.1");
        fs::write(root.path().join("6.1/modules.dep"), "").unwrap();
        assert!(modules(Some("6.1"), root.path()).unwrap().ends_with("/6.1"));
    }
}
