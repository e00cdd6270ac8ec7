//! The tree of an image as its guest sees it, listed there by this program, and what umoci makes of the image.

use std::fs;
use std::io::{Write, stdout};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{ffi::OsStr, io};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::utsname::uname;
use serde::{Deserialize, Serialize};

use super::cases::CASES;
use super::tree::{self, Seen, Tree};
use super::{BUNDLE, unpacked};
use crate::host;
use crate::setup::Setup;
use crate::step::{output, step};

/// Those whose guests are looked at, a boot each: by the programs that people use, and by hand.
pub const BY_TOOLS: [&str; 7] =
    ["oci-archive", "docker-archive", "zstd", "zstd-frames", "buildah", "sparse-1.0", "names"];
pub const BY_HAND: [&str; 7] =
    ["whiteouts-behind", "opaque", "hard-links", "replaced", "through-links", "owners", "xattrs"];
/// What umoci makes of an image, and what kite knows it by: files in its folder.
const EXPECTED: &str = "expected";
const REFERENCE: &str = "reference";
/// Where a guest's root folder is seen without what is mounted in it.
const BARE: &str = "/run/bare";
/// What kite makes in a root folder, if it is not there: places to mount on, and files that are each guest's own.
const ADDED: [&str; 8] =
    ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// What this program finds in a guest.
#[derive(Deserialize, Serialize)]
struct Listing {
    tree: Vec<(Vec<u8>, Seen)>,
    /// What kite has made, as far as it is there.
    added: Vec<Vec<u8>>,
}

/// An image, and what its guest is to see.
pub struct Case {
    /// Its name among the tests.
    pub name: &'static str,
    /// What kite knows it by.
    pub reference: PathBuf,
    expected: Tree,
}

/// Has root make the images, anew.
///
/// # Errors
/// What makes them cannot be installed, or fails.
pub fn prepare(setup: &mut Setup) -> Result<()> {
    super::install(setup)?;
    let own = std::env::current_exe().context("finding this program")?;
    let own = own.to_str().context("this program's path is no text")?;
    let mut make = host::as_root(own)?;
    make.arg("images-for-guests").arg(folder()?);
    step("making images for guests", || output(&mut make).map(drop))
}

/// Makes the images in a folder, as root, in the place of all that is there.
///
/// # Errors
/// One cannot be made.
pub fn make(folder: &Path) -> Result<()> {
    fs::remove_dir_all(folder).or_else(missing).context("removing the last images")?;
    for name in BY_TOOLS.into_iter().chain(BY_HAND) {
        let (_, case) = CASES.iter().find(|(known, _)| *known == name).context("no such image")?;
        let folder = folder.join(name);
        fs::create_dir_all(&folder).context("making a folder")?;
        let (image, root) = unpacked(&folder, *case).with_context(|| name.to_owned())?;
        let expected: Vec<_> = tree::look(&root)?.into_iter().collect();
        let expected = serde_json::to_vec(&expected).context("writing down a tree")?;
        fs::write(folder.join(EXPECTED), expected).context("writing down a tree")?;
        fs::write(folder.join(REFERENCE), image.reference().as_os_str().as_bytes())
            .context("writing down a name")?;
        fs::remove_dir_all(folder.join(BUNDLE)).context("removing what was unpacked")?;
    }
    Ok(())
}

fn missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The images of these names, if they have been made.
///
/// # Errors
/// One is damaged.
pub fn cases(names: &[&'static str]) -> Result<Option<Vec<Case>>> {
    let folder = folder()?;
    if !names.iter().all(|name| folder.join(name).join(REFERENCE).exists()) {
        return Ok(None);
    }
    let case = |name| -> Result<Case> {
        let read = |file| fs::read(folder.join(name).join(file)).with_context(|| format!("reading {name}"));
        let reference = PathBuf::from(OsStr::from_bytes(&read(REFERENCE)?));
        let expected: Vec<_> = serde_json::from_slice(&read(EXPECTED)?).context("reading a tree")?;
        Ok(Case { name, reference, expected: expected.into_iter().collect() })
    };
    names.iter().copied().map(case).collect::<Result<_>>().map(Some)
}

fn folder() -> Result<PathBuf> {
    host::target("images")
}

impl Case {
    /// Checks what a guest has printed. Returns how many files it has.
    ///
    /// # Errors
    /// It is not what umoci makes, or no list.
    pub fn check(&self, printed: &[u8]) -> Result<usize> {
        let listing: Listing = serde_json::from_slice(printed).context("reading what the guest lists")?;
        ensure!(listing.added.contains(&b"proc".to_vec()), "the guest has no /proc");
        tree::compare(&self.expected, listing.tree.into_iter().collect(), &listing.added)
    }
}

/// Prints what is in the root folder of the guest that this runs in, as its root.
///
/// # Errors
/// It cannot be looked at.
pub fn list() -> Result<()> {
    fs::create_dir(BARE).context("making a folder")?;
    // What is mounted in it stays behind.
    mount(Some("/"), BARE, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .context("mounting the root folder")?;
    let release = uname().context("asking for the kernel's version")?;
    let modules = Path::new("/lib/modules").join(release.release());
    let mut added = Vec::new();
    for path in ADDED.iter().map(Path::new).chain([modules.as_path()]) {
        // Where the image's links lead, from the root folder on.
        let Ok(path) = fs::canonicalize(path) else { continue };
        let below = path.ancestors().filter_map(|it| it.strip_prefix("/").ok());
        added.extend(below.map(|it| it.as_os_str().as_bytes().to_vec()));
    }
    let listing = Listing { tree: tree::look(Path::new(BARE))?.into_iter().collect(), added };
    let text = serde_json::to_vec(&listing).context("writing down a tree")?;
    stdout().write_all(&text).context("printing it")
}
