//! What root sees of a tree of files, and what differs between two.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{lgetxattr, llistxattr};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// The most differences that are listed.
const SHOWN_MAX: usize = 5;

/// What a file is.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
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
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Compares two trees. Returns how many files they have.
pub fn compare(expected: &Path, found: &Path) -> Result<usize> {
    let [expected, found] = [expected, found].map(|root| {
        let mut seen = BTreeMap::new();
        look(root, Path::new(""), &mut seen).with_context(|| format!("looking at {}", root.display()))?;
        anyhow::Ok(seen)
    });
    let (expected, mut found) = (expected?, found?);
    let mut differences = Vec::new();
    for (path, expected) in &expected {
        match found.remove(path) {
            Some(mut found) => {
                // Not every file system counts those of directories.
                found.links = found.links.filter(|_| expected.links.is_some());
                if found != *expected {
                    differences.push(format!("{}: {expected:?} is {found:?}", path.display()));
                }
            }
            None => differences.push(format!("{}: {expected:?} is missing", path.display())),
        }
    }
    differences.extend(found.iter().map(|(path, found)| format!("{}: {found:?} is new", path.display())));
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

/// Looks at a file and all that is below it.
fn look(root: &Path, path: &Path, seen: &mut BTreeMap<PathBuf, Seen>) -> Result<()> {
    let file = root.join(path);
    let metadata = fs::symlink_metadata(&file).with_context(|| format!("looking at {}", file.display()))?;
    let found = Seen::of(&file, &metadata).with_context(|| format!("reading {}", file.display()))?;
    seen.insert(path.to_owned(), found);
    if metadata.is_dir() {
        for entry in fs::read_dir(&file).with_context(|| format!("listing {}", file.display()))? {
            look(root, &path.join(entry?.file_name()), seen)?;
        }
    }
    Ok(())
}

/// The extended attributes of a file, of a link itself.
fn xattrs(path: &Path) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 1 << 16];
    let len = match llistxattr(path, names.as_mut_slice()) {
        Err(Errno::NOTSUP) => 0,
        len => len.context("listing attributes")?,
    };
    let mut xattrs = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 1 << 16];
        let len = lgetxattr(path, OsStr::from_bytes(name), value.as_mut_slice());
        value.truncate(len.context("reading an attribute")?);
        xattrs.insert(name.to_vec(), value);
    }
    Ok(xattrs)
}
