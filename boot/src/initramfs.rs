//! The initramfs: a cpio archive in the "newc" format
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`).
//!
//! Nothing is read: what comes from disk goes into the archive as a range of its file, and a big file's data
//! begins on a page boundary of the archive, so that it can be mapped privately where the archive is loaded
//! page-aligned. The boundary is reached by zeros between two entries, which the format allows.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::Piece;
use crate::modules::{self, ModuleFile};

/// Where [`standard`] puts kernel modules, each under its file's own name.
pub const MODULES: &str = "/modules";
/// The modules' file names inside [`MODULES`], one a line, in the order to load them. A module's own name ends
/// in `.ko` and perhaps more, so none can take this one. Missing where there is no module.
pub const MANIFEST: &str = "/modules/list";

const PAGE: u64 = 4096;
/// A shorter file costs less to copy than to map.
const WORTH_MAPPING: u64 = 4 * PAGE;
/// Linux's `PATH_MAX`, which counts the NUL: entries with longer names are skipped.
const PATH_MAX: usize = 4096;
/// The name that ends an archive.
const TRAILER: &str = "TRAILER!!!";

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;
const PERMISSIONS: u32 = 0o7777;

/// Why an archive cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is empty, too long, or holds a NUL, `.`, `..` or an empty component.
    #[error("initramfs entry {0:?} has no usable name")]
    Name(String),
    /// Two entries have one name.
    #[error("initramfs entry {0} is there twice")]
    Twice(String),
    /// Linux makes no folders by itself: the parent has to come first.
    #[error("initramfs entry {0} comes before its folder")]
    NoParent(String),
    /// cpio sizes are 32 bits wide.
    #[error("initramfs entry {0} is 4 GiB or more")]
    TooLarge(String),
    /// A folder, device or pipe has no bytes to put into an archive.
    #[error("initramfs entry {0} comes from no regular file")]
    NotRegular(String),
    /// The file cannot be asked for its length.
    #[error("cannot read the length of initramfs entry {0}")]
    Length(String, #[source] io::Error),
    /// A kernel module's file cannot be opened.
    #[error(transparent)]
    Module(#[from] modules::Error),
}

/// A finished archive.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The archive's bytes, in order and without gaps.
    pub pieces: Vec<Piece>,
    /// The archive's length in bytes.
    pub len: u64,
}

impl Archive {
    /// Writes the archive's bytes to `out`, reading its files now; a file that has shrunk since is an error.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let mut buffer = vec![0; 1 << 16];
        for piece in &self.pieces {
            match piece {
                Piece::Bytes(bytes) => out.write_all(bytes)?,
                Piece::File { file, offset, len } => {
                    let (mut at, mut left) = (*offset, *len);
                    while left > 0 {
                        let part = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                        file.read_exact_at(&mut buffer[..part], at)?;
                        out.write_all(&buffer[..part])?;
                        at += part as u64;
                        left -= part as u64;
                    }
                }
            }
        }
        out.flush()
    }
}

/// An archive in the making. Names are absolute paths inside the guest; modes are permission bits. Everything
/// belongs to root and was last changed at the epoch.
#[derive(Debug, Default)]
pub struct Initramfs {
    pieces: Vec<Piece>,
    /// The bytes after the last piece.
    tail: Vec<u8>,
    /// The length of everything before `tail`.
    before: u64,
    /// Every entry so far, and whether it is a folder.
    names: BTreeMap<String, bool>,
}

/// What one header says besides the name.
struct Entry {
    mode: u32,
    len: u32,
    device: (u32, u32),
}

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self { tail: Vec::with_capacity(2 * PAGE as usize), ..Self::default() }
    }

    /// Adds a folder.
    pub fn dir(&mut self, name: &str, mode: u32) -> Result<&mut Self, Error> {
        self.entry(name, Entry { mode: DIRECTORY | mode & PERMISSIONS, len: 0, device: (0, 0) })?;
        Ok(self)
    }

    /// Adds a character device node.
    pub fn device(&mut self, name: &str, mode: u32, major: u32, minor: u32) -> Result<&mut Self, Error> {
        let mode = CHARACTER_DEVICE | mode & PERMISSIONS;
        self.entry(name, Entry { mode, len: 0, device: (major, minor) })?;
        Ok(self)
    }

    /// Adds a file with these bytes.
    pub fn file(&mut self, name: &str, mode: u32, bytes: &[u8]) -> Result<&mut Self, Error> {
        let len = u32::try_from(bytes.len()).map_err(|_| Error::TooLarge(name.into()))?;
        self.entry(name, Entry { mode: REGULAR | mode & PERMISSIONS, len, device: (0, 0) })?;
        self.tail.extend_from_slice(bytes);
        Ok(self)
    }

    /// Adds a file with the bytes of `file`, a regular file, as long as it is now.
    pub fn file_from(&mut self, name: &str, mode: u32, file: Arc<File>) -> Result<&mut Self, Error> {
        let metadata = file.metadata().map_err(|error| Error::Length(name.into(), error))?;
        if !metadata.is_file() {
            return Err(Error::NotRegular(name.into()));
        }
        let len = u32::try_from(metadata.len()).map_err(|_| Error::TooLarge(name.into()))?;
        if metadata.len() >= WORTH_MAPPING {
            // Where the header has to begin for the data to begin a page.
            let header = padded(HEADER + name.trim_start_matches('/').len() as u64 + 1, 4);
            self.pad_to(4);
            self.zeros(padded(self.len() + header, PAGE) - header - self.len());
        }
        self.entry(name, Entry { mode: REGULAR | mode & PERMISSIONS, len, device: (0, 0) })?;
        self.flush();
        self.before += u64::from(len);
        self.pieces.push(Piece::File { file, offset: 0, len: len.into() });
        Ok(self)
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Archive {
        self.header(TRAILER, 0, &Entry { mode: 0, len: 0, device: (0, 0) });
        self.flush();
        Archive { len: self.len(), pieces: self.pieces }
    }

    fn entry(&mut self, name: &str, entry: Entry) -> Result<(), Error> {
        // Relative to the root folder, in which Linux unpacks: as cpio itself writes names.
        let Some(path) = name.strip_prefix('/').filter(|path| usable(path)) else {
            return Err(Error::Name(name.into()));
        };
        if let Some((parent, _)) = path.rsplit_once('/')
            && self.names.get(parent) != Some(&true)
        {
            return Err(Error::NoParent(name.into()));
        }
        let folder = entry.mode & DIRECTORY == DIRECTORY;
        if self.names.insert(path.into(), folder).is_some() {
            return Err(Error::Twice(name.into()));
        }
        self.header(path, self.names.len(), &entry);
        Ok(())
    }

    /// A header and its name: thirteen fields of eight hexadecimal digits behind the magic number.
    fn header(&mut self, path: &str, inode: usize, entry: &Entry) {
        self.pad_to(4);
        let links = if entry.mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        let (major, minor) = entry.device;
        let name_len = path.len() as u32 + 1;
        self.tail.extend_from_slice(b"070701");
        // Zero are user and group; time; the device the archive came from; and, last, the checksum.
        let mode = entry.mode;
        for field in [inode as u32, mode, 0, 0, links, 0, entry.len, 0, 0, major, minor, name_len, 0] {
            self.hex(field);
        }
        self.tail.extend_from_slice(path.as_bytes());
        self.tail.push(0);
        self.pad_to(4);
    }

    fn hex(&mut self, field: u32) {
        let digit = |shift: u32| b"0123456789abcdef"[(field >> shift & 0xf) as usize];
        self.tail.extend([28, 24, 20, 16, 12, 8, 4, 0].map(digit));
    }

    fn len(&self) -> u64 {
        self.before + self.tail.len() as u64
    }

    fn pad_to(&mut self, alignment: u64) {
        self.zeros(padded(self.len(), alignment) - self.len());
    }

    /// Adds zeros, less than a page of them.
    fn zeros(&mut self, count: u64) {
        self.tail.resize(self.tail.len() + count as usize, 0);
    }

    fn flush(&mut self) {
        if !self.tail.is_empty() {
            self.before += self.tail.len() as u64;
            self.pieces.push(Piece::Bytes(std::mem::take(&mut self.tail)));
        }
    }
}

/// What kite gives a guest that was given no initrd: `init` as `/init`, the folders it mounts on, a console for
/// its output (without `/dev/console` Linux warns and init writes into nothing), `/dev/null` in its place for a guest
/// without console, as no program starts without open standard streams, `modules` to load in order, and `files` of the root folder that only root can read.
pub fn standard(init: Arc<File>, modules: &[ModuleFile], files: &[(&str, &[u8])]) -> Result<Archive, Error> {
    let mut archive = Initramfs::new();
    archive.dir("/dev", 0o755)?;
    archive.device("/dev/console", 0o600, 5, 1)?.device("/dev/null", 0o666, 1, 3)?;
    archive.dir("/proc", 0o555)?.dir("/sys", 0o555)?;
    for (name, bytes) in files {
        archive.file(name, 0o600, bytes)?;
    }
    if !modules.is_empty() {
        let mut manifest = String::new();
        for module in modules {
            manifest.push_str(module.file_name());
            manifest.push('\n');
        }
        archive.dir(MODULES, 0o755)?.file(MANIFEST, 0o644, manifest.as_bytes())?;
        for module in modules {
            let name = format!("{MODULES}/{}", module.file_name());
            archive.file_from(&name, 0o644, Arc::new(module.open()?))?;
        }
    }
    archive.file_from("/init", 0o755, init)?;
    Ok(archive.finish())
}

/// The length of a header: the magic number and thirteen fields.
const HEADER: u64 = 6 + 13 * 8;

fn padded(len: u64, alignment: u64) -> u64 {
    len.next_multiple_of(alignment)
}

fn usable(path: &str) -> bool {
    path.len() < PATH_MAX
        && path != TRAILER
        && !path.contains('\0')
        && path.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

#[cfg(test)]
mod tests;
