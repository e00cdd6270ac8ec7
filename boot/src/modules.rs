//! Kernel modules: which files a guest needs, in the order to load them (`modules.dep(5)`, `depmod(8)`).
//!
//! A line of `modules.dep` names a module's file and every file it needs, in full and latest first, so one line
//! a wanted module is all there is to find. The file is searched as it is read and never held: a distribution's
//! has thousands of lines, and a guest wants a handful.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, Read};
use std::ops::ControlFlow::{self, Break, Continue};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

mod alias;
mod folder;
mod tree;
mod whole;
pub mod zstd;

pub use folder::of_kernel;

/// The module that finds the board's virtio devices.
pub const TRANSPORT: &str = "virtio_mmio";
/// The module that finds virtio devices on a PCI bus.
pub const PCI_TRANSPORT: &str = "virtio_pci";
/// The list of a folder's modules, which `depmod` writes.
const LIST: &str = "modules.dep";
/// What a line may measure. The longest of a distribution's are a tenth of it.
const LINE_MAX: usize = 1 << 15;
/// What a list may measure. A distribution's are a twentieth of it.
const LIST_MAX: u64 = 1 << 24;
/// Where links of modules may lead: to those of other kernels (`weak-updates`), to where dkms(8) builds them
/// (`symlink_modules`), and to packages' folders (NixOS, Guix).
const SYSTEMS: [&str; 5] = ["/lib/modules", "/usr/lib/modules", "/var/lib/dkms", "/nix/store", "/gnu/store"];
/// What module files end in.
const SUFFIXES: [&[u8]; 4] = [b".ko", b".ko.xz", b".ko.zst", b".ko.gz"];

/// Why the modules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder itself is missing or closed to us.
    #[error("cannot read modules folder {}", .0.display())]
    Folder(PathBuf, #[source] io::Error),
    /// `depmod` has not run for this folder, nor was a kernel built in it.
    #[error("{} has no modules.dep: run `depmod -b {} {}`", .dir.display(), .root.display(), .version)]
    NoList {
        /// The folder.
        dir: PathBuf,
        /// The folder's `lib/modules` is in this one.
        root: PathBuf,
        /// The kernel's version.
        version: String,
    },
    /// A list is there and cannot be read.
    #[error("cannot read {}", .0.display())]
    Read(PathBuf, #[source] io::Error),
    /// No list that `depmod` wrote.
    #[error("{} is no list of modules: it has {what}", .path.display())]
    Malformed {
        /// The list.
        path: PathBuf,
        /// What it has and should not have.
        what: &'static str,
    },
    /// Neither a module nor built in.
    #[error("no kernel module {name} in {}", .dir.display())]
    Missing {
        /// The module.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// A module's file cannot be opened.
    #[error("cannot open kernel module {}", .0.display())]
    Open(PathBuf, #[source] io::Error),
    /// A module's file is a folder, device or pipe.
    #[error("kernel module {} is no regular file", .0.display())]
    NotRegular(PathBuf),
    /// A module's file cannot be loaded as it is.
    #[error("kernel module {} cannot be used: {what}", .path.display())]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// One kernel module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleFile {
    /// The module's name, as `lsmod` shows it.
    pub name: String,
    /// Its file, perhaps compressed.
    pub path: PathBuf,
}

impl ModuleFile {
    /// The last component of the path.
    pub fn file_name(&self) -> &str {
        self.path.file_name().and_then(OsStr::to_str).unwrap_or(&self.name)
    }

    /// Opens the file for reading, if all of it is there.
    pub fn open(&self) -> Result<File, Error> {
        // Before opening: opening a pipe would wait for its writer.
        let metadata = fs::metadata(&self.path).map_err(|error| Error::Open(self.path.clone(), error))?;
        if !metadata.is_file() {
            return Err(Error::NotRegular(self.path.clone()));
        }
        let file = File::open(&self.path).map_err(|error| Error::Open(self.path.clone(), error))?;
        match whole::check(&file).map_err(|error| Error::Read(self.path.clone(), error))? {
            Ok(()) => Ok(file),
            Err(what) => Err(Error::Broken { path: self.path.clone(), what }),
        }
    }
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub struct Modules {
    dir: PathBuf,
    /// They are where they were built, not installed.
    built: bool,
}

impl Modules {
    /// The modules in `dir`, a folder like `/lib/modules/VERSION`, or one that a kernel was built in.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let list = dir.join(LIST);
        match fs::metadata(&list) {
            Ok(metadata) if metadata.is_file() => Ok(Self { dir: dir.into(), built: false }),
            Ok(_) => Err(Error::Malformed { path: list, what: "no bytes" }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.join(tree::ORDER).is_file() => {
                Ok(Self { dir: dir.into(), built: true })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.is_dir() => Err(no_list(dir)),
            Err(error) => Err(Error::Folder(dir.into(), error)),
        }
    }

    /// The files that `names` need, themselves included, in the order to load them and each once, and those of
    /// `optional` that there are. Modules built into the kernel need none; `-` and `_` are one in names.
    pub fn resolve(&self, names: &[&str], optional: &[&str]) -> Result<Vec<ModuleFile>, Error> {
        let files = match self.built {
            true => tree::resolve(self, &[names, optional].concat(), names.len()),
            false => self.listed(names, optional),
        }?;
        self.check_links(&files)?;
        Ok(files)
    }

    /// Whether the files are the folder's own: a folder may come with another user's sources, and what a link in it
    /// leads to would reach the guest. Those of some distributions lead to other folders of modules.
    fn check_links(&self, files: &[ModuleFile]) -> Result<(), Error> {
        let dir = self.dir.canonicalize().map_err(|error| Error::Folder(self.dir.clone(), error))?;
        for file in files {
            // What is not there is reported when it is opened.
            let Ok(path) = file.path.canonicalize() else { continue };
            if !path.starts_with(&dir) && !SYSTEMS.iter().any(|folder| path.starts_with(folder)) {
                return Err(Error::Broken {
                    path: file.path.clone(),
                    what: "it is a link that leads out of the folder of modules",
                });
            }
        }
        Ok(())
    }

    fn listed(&self, names: &[&str], optional: &[&str]) -> Result<Vec<ModuleFile>, Error> {
        let lines = self.lines(&[names, optional].concat(), names.len())?;
        let mut files: Vec<ModuleFile> = Vec::new();
        for line in lines.into_iter().flatten() {
            for path in line.split(|&byte| byte == b' ').rev().filter(|path| !path.is_empty()) {
                let file = self.file(path)?;
                if !files.iter().any(|known| known.name == file.name) {
                    files.push(file);
                }
            }
        }
        Ok(files)
    }

    /// For each name the files of its line, itself first, or nothing for one built in. The first `needed` must be there.
    fn lines(&self, names: &[&str], needed: usize) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut found = vec![None; names.len()];
        let mut left = names.len();
        if left == 0 {
            return Ok(found);
        }
        scan(&self.dir.join(LIST), |line| {
            let Some((path, needs)) = split_at(line, b':') else {
                return Continue(());
            };
            for (name, slot) in names.iter().zip(&mut found) {
                if slot.is_none() && is_file_of(path, name) {
                    *slot = Some([path, b" ", needs].concat());
                    left -= 1;
                }
            }
            if left == 0 { Break(()) } else { Continue(()) }
        })?;
        if left > 0 && needed > 0 {
            let missing: Vec<&str> = names[..needed]
                .iter()
                .zip(&found)
                .filter(|(_, slot)| slot.is_none())
                .map(|(name, _)| *name)
                .collect();
            self.check_built_in(missing)?;
        }
        Ok(found)
    }

    fn check_built_in(&self, mut names: Vec<&str>) -> Result<(), Error> {
        let list = self.dir.join("modules.builtin");
        if list.is_file() {
            scan(&list, |line| {
                names.retain(|name| !is_file_of(line, name));
                if names.is_empty() { Break(()) } else { Continue(()) }
            })?;
        }
        match names.first() {
            None => Ok(()),
            Some(&name) => Err(Error::Missing { name: name.into(), dir: self.dir.clone() }),
        }
    }

    /// The module at `path`, which is inside the folder or refused.
    fn file(&self, path: &[u8]) -> Result<ModuleFile, Error> {
        let malformed = |what| Error::Malformed { path: self.dir.join(LIST), what };
        let relative = Path::new(OsStr::from_bytes(path));
        if !is_inside(relative) {
            return Err(malformed("a path that leaves the folder"));
        }
        let stem = stem(path).ok_or_else(|| malformed("a path that is no module's"))?;
        let name = stem.rsplit(|&byte| byte == b'/').next().unwrap_or(stem);
        // The kernel's own names are C identifiers and dashes; a line break would split a line of the manifest.
        let plain = |byte: &u8| byte.is_ascii_graphic();
        if name.is_empty() || !name.iter().all(plain) {
            return Err(malformed("a module without a proper name"));
        }
        let name = String::from_utf8_lossy(name).replace('-', "_");
        Ok(ModuleFile { name, path: self.dir.join(relative) })
    }
}

/// Whether a relative path cannot lead out of the folder that it is relative to.
fn is_inside(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn no_list(dir: &Path) -> Error {
    // What `depmod -b ROOT VERSION` works on is ROOT/lib/modules/VERSION.
    let root =
        dir.parent().filter(|parent| parent.ends_with("lib/modules")).and_then(|_| dir.ancestors().nth(3));
    let root = root.unwrap_or(Path::new("ROOT"));
    let version = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Error::NoList { dir: dir.into(), root: root.into(), version }
}

/// Whether `path` is the file of module `name`.
fn is_file_of(path: &[u8], name: &str) -> bool {
    // By length first: almost every line ends here.
    let Some(stem) = stem(path) else {
        return false;
    };
    let Some(start) = stem.len().checked_sub(name.len()) else {
        return false;
    };
    (start == 0 || stem[start - 1] == b'/')
        && stem[start..].iter().zip(name.as_bytes()).all(|(a, b)| is_same(*a, *b))
        && !name.contains('/')
}

/// Whether two bytes of modules' names are one: `-` and `_` are.
fn is_same(a: u8, b: u8) -> bool {
    a == b || (matches!(a, b'-' | b'_') && matches!(b, b'-' | b'_'))
}

/// A module file's path without its suffix.
fn stem(path: &[u8]) -> Option<&[u8]> {
    SUFFIXES.iter().find_map(|suffix| path.strip_suffix(*suffix))
}

/// What is before and after the first `byte`. A list is all looking for bytes, and the C library's way to do it,
/// which buffered readers use, is ten times the speed of comparing one by one.
fn split_at(bytes: &[u8], byte: u8) -> Option<(&[u8], &[u8])> {
    let mut rest = bytes;
    let skipped = rest.skip_until(byte).ok()?;
    let before = bytes[..skipped].strip_suffix(&[byte])?;
    Some((before, rest))
}

/// Shows `each` the lines of the file at `path`, until it breaks off, with one buffer and bounded work.
fn scan(path: &Path, mut each: impl FnMut(&[u8]) -> ControlFlow<()>) -> Result<(), Error> {
    let failed = |error| Error::Read(path.into(), error);
    let malformed = |what| Error::Malformed { path: path.into(), what };
    let mut file = File::open(path).map_err(failed)?;
    let mut buffer = vec![0; LINE_MAX];
    let (mut filled, mut total) = (0, 0);
    loop {
        let count = file.read(&mut buffer[filled..]).map_err(failed)?;
        total += count as u64;
        if total > LIST_MAX {
            return Err(malformed("more than 16 MiB"));
        }
        filled += count;
        let mut rest = &buffer[..filled];
        while let Some((line, after)) = split_at(rest, b'\n') {
            if each(line).is_break() {
                return Ok(());
            }
            rest = after;
        }
        if count == 0 {
            // depmod and the kernel's build end every line.
            return if rest.is_empty() {
                Ok(())
            } else {
                Err(malformed("no end of its last line: it is cut short"))
            };
        }
        if rest.len() == buffer.len() {
            return Err(malformed("a line of 32 KiB and more"));
        }
        let kept = rest.len();
        buffer.copy_within(filled - kept..filled, 0);
        filled = kept;
    }
}

#[cfg(test)]
mod tests;
