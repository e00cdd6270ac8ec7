//! Which kernel is meant: a file, a folder that one was built in, or the version of one that is installed.

use std::cmp::Ordering;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where a kernel lies in the folder that it was built in.
pub const BUILT: &str = "arch/x86/boot/bzImage";

/// A kernel of the system's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// The version, by the file's name or its folder's.
    pub version: String,
    /// The image.
    pub path: PathBuf,
}

impl Installed {
    /// Whether this user may read the image: some distributions let root alone.
    pub fn is_readable(&self) -> bool {
        File::open(&self.path).is_ok()
    }

    /// Whether `name` is the version, or the beginning of it that splits no number: `6.1` is none of `6.12`.
    fn is(&self, name: &str) -> bool {
        let digit = |text: Option<char>| text.is_some_and(|char| char.is_ascii_digit());
        let rest = self.version.strip_prefix(name).filter(|_| !name.is_empty());
        rest.is_some_and(|rest| !digit(name.chars().last()) || !digit(rest.chars().next()))
    }
}

/// Why there is no kernel to boot.
#[derive(Debug, thiserror::Error)]
pub enum NotFound {
    /// None is installed.
    #[error("no kernel in /boot/vmlinuz-*, /usr/lib/modules/*/vmlinuz or /lib/modules/*/vmlinuz")]
    None,
    /// The folder has none.
    #[error("{} holds no kernel, neither {BUILT} nor vmlinuz nor vmlinux", .0.display())]
    Folder(PathBuf),
    /// None that is installed has this version.
    #[error("there is no file {name}, and no installed kernel of that version{}", among(.installed))]
    Version {
        /// The version.
        name: String,
        /// The versions that there are.
        installed: Vec<String>,
    },
    /// Several that are installed have this version.
    #[error("{name} is the version of {} installed kernels{}", .installed.len(), among(.installed))]
    Several {
        /// The version.
        name: String,
        /// The versions that begin with it.
        installed: Vec<String>,
    },
    /// This user may not read it.
    #[error("{}: permission denied", .path.display())]
    Closed {
        /// The kernel.
        path: PathBuf,
        /// The newest version of those that may be read.
        readable: Option<String>,
    },
}

impl NotFound {
    /// What to do.
    pub fn fix(&self) -> String {
        match self {
            Self::None => {
                "install one (Debian: apt install linux-image-cloud-amd64), or name one with --kernel or \
                           $KITE_KERNEL"
                    .into()
            }
            Self::Folder(_) => "build one there (make bzImage), or name a file or another folder".into(),
            Self::Version { .. } => "name a file, a kernel's folder, or an installed version".into(),
            Self::Several { .. } => "name more of the version".into(),
            Self::Closed { path, readable } => {
                let other = readable.as_ref().map(|version| format!(", or use another: --kernel {version}"));
                format!("chmod +r {}, as root{}", path.display(), other.unwrap_or_default())
            }
        }
    }
}

fn among(versions: &[String]) -> String {
    match versions {
        [] => String::new(),
        versions => format!(": {}", versions.join(", ")),
    }
}

/// The kernel that is `named`, or the newest that is installed below `root`. A file, or a folder that has a kernel, comes
/// before a version of the same name.
///
/// # Errors
/// There is none, or it is not clear which.
pub fn choose(named: Option<&Path>, root: &Path) -> Result<PathBuf, NotFound> {
    let kernels = || installed(root);
    let Some(path) = named else {
        let kernels = kernels();
        return readable(kernels.first().ok_or(NotFound::None)?, &kernels);
    };
    let is_folder = path.is_dir();
    if let Some(image) = in_folder(path).filter(|_| is_folder) {
        return Ok(image);
    }
    let version = path.to_str().filter(|name| name.starts_with(|first: char| first.is_ascii_digit()));
    match version.filter(|name| !name.contains('/') && (is_folder || !path.exists())) {
        Some(name) => match by_version(name, kernels()) {
            Err(NotFound::Version { .. }) if is_folder => Err(NotFound::Folder(path.into())),
            found => found,
        },
        None if is_folder => Err(NotFound::Folder(path.into())),
        None => Ok(path.into()),
    }
}

/// The kernel in a folder: one that it was built in, or one that keeps it beside its modules.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    built(folder).or_else(|| {
        let images = ["vmlinuz", "vmlinux"].map(|name| folder.join(name));
        images.into_iter().find(|image| image.is_file())
    })
}

/// The kernel that was built in `folder`, a kernel's tree or its `O=` folder.
pub fn built(folder: &Path) -> Option<PathBuf> {
    Some(folder.join(BUILT)).filter(|image| image.is_file())
}

fn by_version(name: &str, kernels: Vec<Installed>) -> Result<PathBuf, NotFound> {
    let of = |kernels: Vec<Installed>| kernels.into_iter().map(|kernel| kernel.version).collect();
    if let Some(kernel) = kernels.iter().find(|kernel| kernel.version == name) {
        return readable(kernel, &kernels);
    }
    let (mut found, others): (Vec<_>, Vec<_>) = kernels.into_iter().partition(|kernel| kernel.is(name));
    match (found.pop(), found.is_empty()) {
        (Some(kernel), true) => readable(&kernel, &others),
        (Some(kernel), false) => {
            found.push(kernel);
            Err(NotFound::Several { name: name.into(), installed: of(found) })
        }
        (None, _) => Err(NotFound::Version { name: name.into(), installed: of(others) }),
    }
}

fn readable(kernel: &Installed, all: &[Installed]) -> Result<PathBuf, NotFound> {
    if kernel.is_readable() {
        return Ok(kernel.path.clone());
    }
    let readable = all.iter().find(|other| other.is_readable()).map(|other| other.version.clone());
    Err(NotFound::Closed { path: kernel.path.clone(), readable })
}

/// The kernels that are installed below `root`, newest first, one of each version: those in `/boot`, and those beside
/// their modules, as Fedora, Arch and Debian (from Linux 6.19 on) have them. Of several files of one version the first that
/// can be read counts.
pub fn installed(root: &Path) -> Vec<Installed> {
    let mut kernels = Vec::new();
    for entry in entries(&root.join("boot")) {
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some(version) = name.strip_prefix("vmlinuz-") {
            kernels.push(Installed { version: version.into(), path: entry });
        }
    }
    for folder in ["usr/lib/modules", "lib/modules"] {
        for entry in entries(&root.join(folder)) {
            let version = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            kernels.push(Installed { version: version.into(), path: entry.join("vmlinuz") });
        }
    }
    let version = |kernel: &Installed| kernel.version.starts_with(|first: char| first.is_ascii_digit());
    kernels.retain(|kernel| version(kernel) && !is_spare(&kernel.version) && kernel.path.is_file());
    // The sort keeps the order of places; within a version what can be read comes first.
    kernels.sort_by(|a, b| compare(&b.version, &a.version).then_with(|| a.version.cmp(&b.version)));
    kernels.dedup_by(|next, first| {
        let same = next.version == first.version;
        if same && !first.is_readable() && next.is_readable() {
            first.path.clone_from(&next.path);
        }
        same
    });
    kernels
}

/// Whether it is what an installation has put aside or not finished, which GRUB does not offer as the newest either.
fn is_spare(version: &str) -> bool {
    let spare = [".old", ".bak", ".orig", ".rpmsave", ".rpmnew", "~"];
    spare.iter().any(|end| version.ends_with(end)) || version.contains(".dpkg-")
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()))
}

/// Compares runs of digits as numbers and everything else as text; `-rc` comes before the release.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    while !a.is_empty() && !b.is_empty() {
        match (a.starts_with("-rc"), b.starts_with("-rc")) {
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            _ => {}
        }
        let (x, y) = (run(&mut a), run(&mut b));
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    match (a.starts_with("-rc"), b.starts_with("-rc")) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        _ => a.len().cmp(&b.len()),
    }
}

/// Cuts the leading run of digits, or of anything else, off `text`.
fn run<'a>(text: &mut &'a str) -> &'a str {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root folder with these files.
    fn root(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let file = root.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        root
    }

    fn versions(root: &Path) -> Vec<String> {
        installed(root).into_iter().map(|kernel| kernel.version).collect()
    }

    fn chosen(root: &Path, named: &str) -> Result<String, String> {
        let found = choose(Some(Path::new(named)), root).map_err(|error| error.to_string())?;
        Ok(found.strip_prefix(root).unwrap_or(&found).display().to_string())
    }

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_version_wherever_it_lies() {
        let root = root(&[
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-37-amd64",
            "boot/vmlinuz.old",
            "boot/vmlinuz-6.1.0-37-amd64.old",
            "boot/vmlinuz-9.0.0-amd64.dpkg-new",
            "boot/vmlinuz-9.0.0-amd64.rpmsave",
            "boot/vmlinuz-9.0.0-amd64~",
            "boot/vmlinuz-x",
            "boot/vmlinuz-0-rescue-d41d8cd9",
            "usr/lib/modules/7.3.4+deb13-amd64/vmlinuz",
            "usr/lib/modules/7.4.0/modules.dep",
            "lib/modules/6.12.9-arch1-1/vmlinuz",
            "usr/lib/modules/extra/vmlinuz",
        ]);
        let expected =
            ["7.3.4+deb13-amd64", "6.12.9-arch1-1", "6.1.0-37-amd64", "6.1.0-9-amd64", "0-rescue-d41d8cd9"];
        assert_eq!(versions(root.path()), expected);
        let newest = root.path().join("usr/lib/modules/7.3.4+deb13-amd64/vmlinuz");
        assert_eq!(choose(None, root.path()).unwrap(), newest);
    }

    #[test]
    fn a_kernel_that_lies_in_several_places_is_one() {
        let root = root(&["boot/vmlinuz-6.1", "usr/lib/modules/6.1/vmlinuz", "usr/lib/modules/6.2/vmlinuz"]);
        std::os::unix::fs::symlink("usr/lib", root.path().join("lib")).unwrap();
        let paths: Vec<_> = installed(root.path()).into_iter().map(|kernel| kernel.path).collect();
        assert_eq!(
            paths,
            ["usr/lib/modules/6.2/vmlinuz", "boot/vmlinuz-6.1"].map(|path| root.path().join(path))
        );
    }

    #[test]
    fn no_kernel_at_all_says_how_to_get_one() {
        let error = choose(None, Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().contains("/usr/lib/modules/*/vmlinuz"), "{error}");
        assert!(error.fix().contains("apt install"));
    }

    #[test]
    fn a_version_or_the_beginning_of_one_picks_a_kernel() {
        let root = root(&[
            "boot/vmlinuz-6.1.0-9-amd64",
            "boot/vmlinuz-6.1.0-37-amd64",
            "boot/vmlinuz-6.12",
            "boot/vmlinuz-6.12-rc3",
            "usr/lib/modules/7.3.4+deb13-amd64/vmlinuz",
        ]);
        let chosen = |name| chosen(root.path(), name);
        assert_eq!(chosen("7.3").unwrap(), "usr/lib/modules/7.3.4+deb13-amd64/vmlinuz");
        assert_eq!(chosen("7").unwrap(), "usr/lib/modules/7.3.4+deb13-amd64/vmlinuz");
        assert_eq!(chosen("6.1.0-9").unwrap(), "boot/vmlinuz-6.1.0-9-amd64");
        assert_eq!(chosen("6.1.0-37-am").unwrap(), "boot/vmlinuz-6.1.0-37-amd64");
        assert_eq!(chosen("6.12").unwrap(), "boot/vmlinuz-6.12", "a whole version is that one");
        assert_eq!(
            chosen("6.1").unwrap_err(),
            "6.1 is the version of 2 installed kernels: 6.1.0-37-amd64, 6.1.0-9-amd64"
        );
        // A number is not split: 3 is not 37.
        let unknown = chosen("6.1.0-3").unwrap_err();
        assert!(
            unknown.contains("no installed kernel of that version: 7.3.4+deb13-amd64, 6.12,"),
            "{unknown}"
        );
        assert_eq!(chosen("/6.12").unwrap(), "/6.12", "a path is a path");
        assert_eq!(chosen("bzImage").unwrap(), "bzImage");
    }

    #[test]
    fn a_folder_that_has_a_kernel_is_one() {
        let root = root(&["tree/arch/x86/boot/bzImage", "tree/vmlinux", "modules/vmlinuz", "empty/Kbuild"]);
        let folder = |name: &str| chosen(root.path(), root.path().join(name).to_str().unwrap());
        assert_eq!(folder("tree").unwrap(), "tree/arch/x86/boot/bzImage");
        assert_eq!(folder("modules").unwrap(), "modules/vmlinuz");
        assert!(
            folder("empty").unwrap_err().contains("empty holds no kernel, neither arch/x86/boot/bzImage nor")
        );
        assert_eq!(built(&root.path().join("tree")), Some(root.path().join("tree").join(BUILT)));
        assert_eq!(built(&root.path().join("modules")), None);
    }

    #[test]
    fn a_kernel_that_only_root_may_read_is_passed_over_for_no_other() {
        let kernel = |version: &str, path: PathBuf| Installed { version: version.into(), path };
        let here = std::env::current_exe().unwrap();
        let closed = kernel("6.8", "/nonexistent/vmlinuz-6.8".into());
        let error = readable(&closed, &[closed.clone(), kernel("6.5", here)]).unwrap_err();
        assert_eq!(error.to_string(), "/nonexistent/vmlinuz-6.8: permission denied");
        let fix = "chmod +r /nonexistent/vmlinuz-6.8, as root, or use another: --kernel 6.5";
        assert_eq!(error.fix(), fix);
        assert!(!readable(&closed, &[]).unwrap_err().fix().contains("another"));
    }

    #[test]
    fn versions_compare_by_number_and_release_candidates_come_first() {
        for (older, newer) in [
            ("6.9", "6.10"),
            ("6.1.0-9", "6.1.0-10"),
            ("6.12-rc3", "6.12"),
            ("6.12-rc3", "6.12-rc10"),
            ("6.1", "6.1.1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        assert_eq!(compare("6.1", "6.1"), Ordering::Equal);
    }
}
