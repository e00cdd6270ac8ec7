//! Images of containers: what `kite image pull` makes of each, as an ordinary user, is the tree that `umoci unpack` makes
//! as root.
//!
//! So is what a guest sees. And what a pull takes of memory, whatever the layer's size. The images are made by the programs
//! of Debian that people make them with, and by hand where those have no way to.

mod cases;
pub mod guest;
mod layout;
mod memory;
mod tree;

#[path = "../../../../src/backend/image/layers/tar/testing.rs"]
mod tar;

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use self::cases::{CASES, Case};
use crate::host;
use crate::setup::{Setup, Unavailable};
use crate::step::{output, step};
use crate::user::USER;

/// What the tests use, each with its package.
const PROGRAMS: [(&str, &str); 7] = [
    ("umoci", "umoci"),
    ("skopeo", "skopeo"),
    ("buildah", "buildah"),
    ("fsck.erofs", "erofs-utils"),
    ("setcap", "libcap2-bin"),
    ("tar", "tar"),
    ("zstd", "zstd"),
];
/// What buildah asks for, and its package only recommends.
const NETAVARK: &str = "/usr/lib/podman/netavark";
/// A disk's file system: one in memory may lack extended attributes.
const DISK: &str = "/var/tmp";
/// The folder that umoci makes.
const BUNDLE: &str = "bundle";
/// The folder of a user's caches.
const CACHE: &str = "cache";
/// What lines begin with that say what became of a test.
const PASSED: &str = "passed ";
const FAILED: &str = "failed ";

/// What became of the tests.
pub struct Outcome {
    /// How many images have the right tree.
    pub passed: usize,
    /// The others, and why.
    pub failed: Vec<String>,
}

/// Compares all images, as root.
///
/// # Errors
/// [`Unavailable`] where the kernel has no EROFS; or what is needed cannot be installed.
pub fn compare_all(setup: &mut Setup, kite: &Path) -> Result<Outcome> {
    install(setup)?;
    let _ = output(host::as_root("modprobe")?.args(["-q", "-a", "erofs", "loop"]));
    let known = fs::read_to_string("/proc/filesystems").context("reading /proc/filesystems")?;
    if !known.split_whitespace().any(|name| name == "erofs") {
        return Err(Unavailable("this kernel has no EROFS".to_owned()).into());
    }
    let said = as_root(kite, &[])?;
    let lines = |start| said.lines().filter_map(move |line: &str| line.strip_prefix(start));
    Ok(Outcome {
        passed: lines(PASSED).count(),
        failed: lines(FAILED).map(|line| format!("images: {line}")).collect(),
    })
}

/// Measures what a pull of a layer of 1 GiB takes of memory at most, as an ordinary user. Returns a line for each compression.
///
/// # Errors
/// What is needed cannot be installed, or a pull fails or takes more than it may.
pub fn measure_memory(setup: &mut Setup, kite: &Path) -> Result<Vec<String>> {
    setup.programs(&[("tar", "tar"), ("zstd", "zstd")])?;
    let names = memory::KINDS.map(|(name, ..)| name);
    let said = step("pulling layers of 1 GiB", || as_root(kite, &names))?;
    ensure!(said.lines().all(|line| line.starts_with(PASSED)), "{said}");
    Ok(said.lines().map(|line| line.trim_start_matches(PASSED).to_owned()).collect())
}

/// Has root compare images, those of these names or all. Returns what is printed.
fn as_root(kite: &Path, names: &[&str]) -> Result<String> {
    let own = std::env::current_exe().context("finding this program")?;
    let own = own.to_str().context("this program's path is no text")?;
    output(host::as_root(own)?.arg("images").arg(kite).args(names))
}

/// Installs what makes images.
fn install(setup: &mut Setup) -> Result<()> {
    setup.programs(&PROGRAMS)?;
    if !Path::new(NETAVARK).exists() {
        setup.install("netavark")?;
    }
    Ok(())
}

/// Compares images as root, those of these names or all, and prints a line about each.
///
/// # Errors
/// There is no image of a name, or no folder for them.
pub fn compare(kite: &Path, names: &[String]) -> Result<()> {
    let known = || CASES.iter().map(|(name, _)| *name).chain(memory::KINDS.map(|(name, _, _)| name));
    for name in names {
        ensure!(known().any(|known| known == name), "no image {name}");
    }
    let is_wanted = |name: &str| names.is_empty() || names.iter().any(|it| it == name);
    let work = Work::new(kite)?;
    for (name, case) in CASES.iter().filter(|(name, _)| is_wanted(name)) {
        print(name, work.compare(name, *case).map(|files| format!("{files} files")));
    }
    for (name, kind, program) in memory::KINDS.into_iter().filter(|(name, ..)| is_wanted(name)) {
        print(name, memory::measure(&work, name, kind, program).map(|peak| format!("{peak} KiB at most")));
    }
    Ok(())
}

fn print(name: &str, result: Result<String>) {
    match result {
        Ok(detail) => println!("{PASSED}{name}: {detail}"),
        Err(error) => println!("{FAILED}{name}: {}", format!("{error:#}").replace('\n', " | ")),
    }
}

/// An image in two forms of the same content.
pub struct Image {
    /// What kite is given.
    kite: PathBuf,
    /// A layout's folder with the tag `t`, for umoci.
    umoci: PathBuf,
}

impl Image {
    /// A layout's folder, for both.
    fn layout(folder: PathBuf) -> Self {
        Self { kite: folder.clone(), umoci: folder }
    }

    /// What kite knows it by.
    fn reference(&self) -> PathBuf {
        if self.kite.is_dir() { tagged(&self.kite) } else { self.kite.clone() }
    }
}

/// Makes an image in a folder, for everybody to read. Returns it, and the root folder that umoci makes of it.
fn unpacked(folder: &Path, case: Case) -> Result<(Image, PathBuf)> {
    let image = case(folder).context("making the image")?;
    // umoci's blobs are its user's.
    run("chmod", ["-R".as_ref(), "a+rX".as_ref(), folder.as_os_str()])?;
    let bundle = folder.join(BUNDLE);
    let name = tagged(&image.umoci);
    run("umoci", ["unpack".as_ref(), "--image".as_ref(), name.as_os_str(), bundle.as_os_str()])?;
    Ok((image, bundle.join("rootfs")))
}

/// A folder where images are made and compared.
struct Work {
    folder: TempDir,
    kite: PathBuf,
}

impl Work {
    fn new(kite: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir_in(DISK);
        let folder = folder.context("making a folder")?;
        // Where an ordinary user reaches it.
        let own = folder.path().join("kite");
        fs::copy(kite, &own).with_context(|| format!("copying {}", kite.display()))?;
        Ok(Self { folder, kite: own })
    }

    /// Compares one image. Returns how many files it has.
    fn compare(&self, name: &str, case: Case) -> Result<usize> {
        let folder = self.make_folder(name)?;
        let (image, expected) = unpacked(&folder, case)?;
        let root = self.pull(&folder, &image).context("kite")?;
        run("fsck.erofs", [root.as_os_str()])?;
        let mounted = Mounted::new(&root, folder.join("mounted"))?;
        let count = tree::compare(&tree::look(&expected)?, tree::look(&mounted.0)?, &[])?;
        drop(mounted);
        fs::remove_dir_all(&folder).context("removing what was compared")?;
        Ok(count)
    }

    fn make_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.path().join(name);
        fs::create_dir(&folder).context("making a folder")?;
        Ok(folder)
    }

    /// `kite image` as an ordinary user, with an empty cache in `folder`.
    fn kite(&self, folder: &Path, arguments: &[&str]) -> Result<Command> {
        let cache = folder.join(CACHE);
        fs::create_dir(&cache).context("making a cache")?;
        chown(&cache, Some(USER), Some(USER)).context("giving the cache to the user")?;
        let mut kite = Command::new(&self.kite);
        kite.arg("image").args(arguments).uid(USER).gid(USER);
        kite.env_clear().env("HOME", &cache).env("XDG_CACHE_HOME", &cache).current_dir("/");
        Ok(kite)
    }

    /// The root file system that kite makes of an image.
    fn pull(&self, folder: &Path, image: &Image) -> Result<PathBuf> {
        let mut kite = self.kite(folder, &["pull"])?;
        output(kite.arg(image.reference()))?;
        let roots = folder.join(CACHE).join("kite/images/roots");
        let mut files = fs::read_dir(&roots).with_context(|| format!("listing {}", roots.display()))?;
        match (files.next(), files.next()) {
            (Some(root), None) => Ok(root?.path()),
            _ => bail!("it has not made one root file system"),
        }
    }
}

/// A mounted image.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, at: PathBuf) -> Result<Self> {
        fs::create_dir(&at).context("making a mount point")?;
        let options = ["-t", "erofs", "-o", "ro,loop"].map(OsStr::new);
        run("mount", options.into_iter().chain([image.as_os_str(), at.as_os_str()]))?;
        Ok(Self(at))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = run("umount", [self.0.as_os_str()]) {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// A layout's folder with the tag that all have.
fn tagged(folder: &Path) -> PathBuf {
    let mut name = folder.as_os_str().to_owned();
    name.push(":t");
    name.into()
}

/// Runs a program. Returns what it prints.
fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) -> Result<String> {
    // Those of administrators are not in everybody's path.
    let path = host::program(program).unwrap_or_else(|| program.into());
    output(Command::new(path).args(arguments)).with_context(|| format!("running {program}"))
}
