//! What root sees of a tree of files, and what differs between two.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FileType, lgetxattr, llistxattr};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// The most differences that are listed.
const SHOWN_MAX: usize = 5;

/// The files of a tree by their paths below its root folder.
pub type Tree = BTreeMap<Vec<u8>, Seen>;

/// What a file is.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Seen {
    mode: u32,
    owner: (u32, u32),
    /// None of a directory, if the file system does not count them.
    links: Option<u64>,
    /// None of a directory: each file system has another.
    size: Option<u64>,
    device: u64,
    /// When it was last changed; none of a directory, which umoci changes itself.
    modified: Option<(i64, i64)>,
    /// A file's SHA-256, or a symbolic link's target.
    content: Vec<u8>,
    /// By their names.
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Compares two trees, of which the one that is found may have what is `added`: files that are new, or others in the place
/// of what is no folder. Returns how many files are expected.
pub fn compare(expected: &Tree, mut found: Tree, added: &[Vec<u8>]) -> Result<usize> {
    let mut differences = Vec::new();
    for (path, expected) in expected {
        let shown = String::from_utf8_lossy(path);
        match found.remove(path) {
            Some(_) if added.contains(path) && !expected.is_directory() => {}
            Some(mut found) => {
                // Not every file system counts those of directories.
                if expected.links.is_none() || found.links.is_none() {
                    found.links = expected.links;
                }
                if found != *expected {
                    differences.push(format!("{shown}: {expected:?} is {found:?}"));
                }
            }
            None => differences.push(format!("{shown}: {expected:?} is missing")),
        }
    }
    let new = found.iter().filter(|(path, _)| !added.contains(path));
    differences
        .extend(new.map(|(path, found)| format!("{}: {found:?} is new", String::from_utf8_lossy(path))));
    let count = differences.len();
    differences.truncate(SHOWN_MAX);
    ensure!(count == 0, "{count} differences, such as {}", differences.join("\n"));
    Ok(expected.len())
}

impl Seen {
    fn of(path: &Path, metadata: &Metadata) -> Result<Self> {
        let kind = metadata.file_type();
        let mut content = Vec::new();
        if kind.is_file() {
            content = hash(File::open(path)?)?;
        } else if kind.is_symlink() {
            content = fs::read_link(path)?.into_os_string().into_vec();
        }
        let is_device = kind.is_char_device() || kind.is_block_device();
        let is_directory = kind.is_dir();
        Ok(Self {
            mode: metadata.mode(),
            owner: (metadata.uid(), metadata.gid()),
            links: Some(metadata.nlink()).filter(|links| !is_directory || *links > 1),
            size: (!is_directory).then(|| metadata.size()),
            device: if is_device { metadata.rdev() } else { 0 },
            modified: (!is_directory).then(|| (metadata.mtime(), metadata.mtime_nsec())),
            content,
            xattrs: xattrs(path)?,
        })
    }

    fn is_directory(&self) -> bool {
        FileType::from_raw_mode(self.mode).is_dir()
    }
}

/// The SHA-256 of a file.
fn hash(mut file: File) -> io::Result<Vec<u8>> {
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; 1 << 16]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().to_vec()),
            len => hasher.update(&buffer[..len]),
        }
    }
}

/// Looks at all that is in a folder, and the folder itself.
pub fn look(root: &Path) -> Result<Tree> {
    let mut tree = Tree::new();
    look_below(root, Path::new(""), &mut tree).with_context(|| format!("looking at {}", root.display()))?;
    Ok(tree)
}

fn look_below(root: &Path, path: &Path, tree: &mut Tree) -> Result<()> {
    let file = root.join(path);
    let metadata = fs::symlink_metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
    let found = Seen::of(&file, &metadata).with_context(|| format!("reading {}", file.display()))?;
    tree.insert(path.as_os_str().as_bytes().to_vec(), found);
    if metadata.is_dir() {
        for entry in fs::read_dir(&file).with_context(|| format!("listing {}", file.display()))? {
            look_below(root, &path.join(entry?.file_name()), tree)?;
        }
    }
    Ok(())
}

/// The extended attributes of a file, of a link itself.
fn xattrs(path: &Path) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut names = vec![0; 1 << 16];
    let len = match llistxattr(path, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => 0,
        len => len.context("listing attributes")?,
    };
    let mut xattrs = Vec::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice());
        value.truncate(len.context("reading an attribute")?);
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}
