//! What `kite run` boots by default: a kernel and its modules.

use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use boot::kernel::{self, Image};
use boot::modules::{self, Modules};

use super::{Problem, Verdict};

/// What `kite run` boots without `--kernel`.
pub(super) struct Kernel {
    /// Whether it can be read and booted; with that, what else is installed.
    pub image: Verdict,
    /// Whether its modules are there.
    pub modules: Verdict,
}

/// The kernel that is `named` (`$KITE_KERNEL`), else the one built in the current folder, else the newest that is
/// installed below `root`.
pub(super) fn kernel(named: Option<OsString>, root: &Path) -> Kernel {
    let named = named.filter(|path| !path.is_empty()).map(PathBuf::from);
    let named = named.or_else(|| kernel::built(Path::new("")));
    let found = kernel::choose(named.as_deref(), root);
    let opened = found.map_err(|error| Problem::new(error.to_string(), error.fix())).and_then(|path| {
        let image = open(&path).map_err(|error| refused(&path, &error, root))?;
        Ok((path, image.version()))
    });
    match opened {
        Ok((path, version)) => Kernel {
            image: Ok(described(&path, version.as_deref(), root)),
            modules: modules(&path, version.as_deref()),
        },
        // What is missing is the kernel, and so is the fix.
        Err(problem) => Kernel {
            modules: Err(Problem::new("unknown without a kernel", problem.fix.clone())),
            image: Err(problem),
        },
    }
}

/// The kernel, and the versions of the others that are installed, as `--kernel` takes them.
fn described(path: &Path, version: Option<&str>, root: &Path) -> String {
    let version = version.map_or(String::new(), |version| format!(", Linux {version}"));
    let others = kernel::installed(root).into_iter().filter(|kernel| kernel.path != path).map(|kernel| {
        let closed = if kernel.is_readable() { "" } else { " (permission denied)" };
        format!("{}{closed}", kernel.version)
    });
    let others: Vec<_> = others.collect();
    let others = if others.is_empty() { String::new() } else { format!("; also {}", others.join(", ")) };
    format!("{}{version}{others}", path.display())
}

fn open(path: &Path) -> Result<Image, kernel::Error> {
    // Before opening: opening a pipe would wait for its writer.
    match fs::metadata(path)?.is_file() {
        true => Image::open(path),
        false => Err(kernel::Error::NotAFile),
    }
}

fn refused(path: &Path, error: &kernel::Error, root: &Path) -> Problem {
    let is_other = |kernel: &kernel::Installed| kernel.path != path && kernel.is_readable();
    let other = kernel::installed(root).into_iter().find(is_other);
    let fix = |what: &str| match &other {
        Some(other) => format!("kite run --kernel {}, or set KITE_KERNEL to {what}", other.version),
        None => format!("set KITE_KERNEL to {what}"),
    };
    let path = path.display();
    match error {
        // Ubuntu's kernels are for root only.
        kernel::Error::Read(error) if error.kind() == ErrorKind::PermissionDenied => Problem::new(
            format!("{path}: permission denied"),
            format!("chmod +r {path}, or copy it and set KITE_KERNEL"),
        ),
        kernel::Error::Read(error) => {
            Problem::new(format!("{path}: {error}"), fix("a bzImage or vmlinux that can be read"))
        }
        error => Problem::new(format!("{path}: {error}"), fix("an x86-64 bzImage or vmlinux")),
    }
}

/// The modules of `kernel`, of this version, are where `kite run` looks for them, in order.
fn modules(kernel: &Path, version: Option<&str>) -> Verdict {
    let Some(folder) = modules::of_kernel(kernel, version) else {
        let of = version.map_or(String::new(), |version| format!(" of {version}"));
        let found = format!("no folder of modules{of}: it needs virtio_mmio and more built in");
        let fix = match version {
            Some(version) => format!("install them (Debian: apt install linux-image-{version})"),
            None => "put the kernel beside its modules".to_owned(),
        };
        return Err(Problem::new(found, format!("{fix}, or kite run --modules DIR")));
    };
    let found = Modules::open(&folder).and_then(|modules| modules.resolve(&[modules::TRANSPORT], &[]));
    let error = match found {
        Ok(_) => return Ok(folder.display().to_string()),
        Err(error) => error,
    };
    let fix = match &error {
        modules::Error::NoList { .. } => format!("depmod {}", version.unwrap_or("VERSION")),
        modules::Error::Missing { .. } | modules::Error::Malformed { .. } => {
            format!("depmod {}, or kite run --modules DIR", version.unwrap_or("VERSION"))
        }
        _ => format!("chmod -R a+rX {}, or kite run --modules DIR", folder.display()),
    };
    Err(Problem::new(format!("{:#}", anyhow::Error::from(error)), fix))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: &str = "/nonexistent";

    fn found(path: &Path) -> Problem {
        kernel(Some(path.into()), Path::new(NOWHERE)).image.unwrap_err()
    }

    #[test]
    fn an_unusable_kernel_is_named_with_its_fault() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text");
        fs::write(&text, "hello").unwrap();
        assert!(found(&text).found.contains("looks like text"));
        assert!(found(folder.path()).found.contains("holds no kernel"));
        assert!(found(&folder.path().join("none")).found.contains("No such file"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(found(&pipe).found.contains("not a regular file"));
    }

    #[test]
    fn a_forbidden_kernel_is_fixed_by_its_mode() {
        let error = kernel::Error::Read(ErrorKind::PermissionDenied.into());
        let problem = refused(Path::new("/boot/vmlinuz-6"), &error, Path::new(NOWHERE));
        assert_eq!(problem.found, "/boot/vmlinuz-6: permission denied");
        assert!(problem.fix.starts_with("chmod +r /boot/vmlinuz-6"));
    }

    #[test]
    fn another_kernel_is_the_fix_of_one_that_is_broken() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        for version in ["6.1", "9.9"] {
            fs::write(root.path().join(format!("boot/vmlinuz-{version}")), "").unwrap();
        }
        let problem = kernel(None, root.path()).image.unwrap_err();
        assert!(problem.found.contains("vmlinuz-9.9: "), "{}", problem.found);
        assert!(problem.fix.starts_with("kite run --kernel 6.1, or set KITE_KERNEL"), "{}", problem.fix);
    }

    #[test]
    fn no_kernel_has_one_fix() {
        let kernel = kernel(Some("".into()), Path::new(NOWHERE));
        let (image, modules) = (kernel.image.unwrap_err(), kernel.modules.unwrap_err());
        assert!(image.fix.contains("linux-image"));
        assert_eq!(image.fix, modules.fix);
    }

    #[test]
    fn other_kernels_are_listed_by_the_versions_that_pick_them() {
        let root = tempfile::tempdir().unwrap();
        for version in ["7.3.4", "6.12", "6.1"] {
            let folder = root.path().join("usr/lib/modules").join(version);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("vmlinuz"), "").unwrap();
        }
        let newest = root.path().join("usr/lib/modules/7.3.4/vmlinuz");
        let expected = format!("{}, Linux 7.3.4; also 6.12, 6.1", newest.display());
        assert_eq!(described(&newest, Some("7.3.4"), root.path()), expected);
    }

    #[test]
    fn modules_are_looked_for_where_kite_run_does_and_need_their_list() {
        let root = tempfile::tempdir().unwrap();
        let (image, folder) = (root.path().join("vmlinuz"), root.path().join("lib/modules/6.1-none"));
        let modules = || modules(&image, Some("6.1-none"));
        assert!(modules().unwrap_err().fix.contains("linux-image-6.1-none"));
        fs::create_dir_all(&folder).unwrap();
        assert_eq!(modules().unwrap_err().fix, "depmod 6.1-none");
        fs::write(folder.join("modules.dep"), "").unwrap();
        assert!(modules().unwrap_err().found.contains("no kernel module virtio_mmio"));
        fs::write(folder.join("modules.dep"), "kernel/virtio_mmio.ko:\n").unwrap();
        assert_eq!(modules().unwrap(), folder.display().to_string());
    }
}
