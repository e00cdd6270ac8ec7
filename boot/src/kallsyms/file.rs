//! Symbols from a file beside the kernel: a `System.map`, as nm(1) prints it, or an ELF `vmlinux` with its symbol table
//! (System V ABI, "Symbol Table").

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::names::Names;
use super::{KERNEL_HALF, Symbols};

/// What a list of symbols may measure. Those of distributions have less than 20 MiB.
const FILE_MAX: u64 = 128 << 20;
/// With less, a list lists nothing: Debian's says in one line that it is elsewhere.
const LEAST: usize = 100;

/// The line that Debian has in place of a `System.map`, which is in a package of its own: one symbol, at no kernel's address.
const STUB: &str = "ffffffffffffffff B The real System.map is in the ";

/// The files that may have a kernel's symbols, open.
#[derive(Default)]
pub struct Files {
    files: Vec<(PathBuf, File)>,
    /// Those that this user may not read.
    closed: Vec<PathBuf>,
}

impl Files {
    /// Opens those of `kernel`, of this version, whose modules are in `modules`: beside it, further up the tree that it was
    /// built in, among the modules, or where distributions have them.
    pub fn of(kernel: &Path, version: Option<&str>, modules: Option<&Path>) -> Self {
        Self::below(Path::new("/"), kernel, version, modules)
    }

    /// The same, with the distribution's folders below `root`.
    pub(super) fn below(root: &Path, kernel: &Path, version: Option<&str>, modules: Option<&Path>) -> Self {
        let mut own = Self { files: Vec::new(), closed: Vec::new() };
        for path in places(root, kernel, version, modules) {
            match open(&path) {
                Ok(file) => own.files.push((path, file)),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => own.closed.push(path),
                Err(_) => {}
            }
        }
        own
    }

    /// The symbols of the first file that has any.
    pub fn symbols(&self) -> Option<Symbols> {
        self.files.iter().find_map(|(_, file)| read(file))
    }

    /// Why there are none, and where they may be had.
    pub fn lack(&self) -> String {
        let stub = self.files.iter().find_map(|(path, file)| Some((path, stub(file)?)));
        match (stub, self.closed.first()) {
            (Some((path, package)), _) => {
                format!("{} says that the package {package} has them", path.display())
            }
            (None, Some(path)) => format!("{} cannot be read: permission denied", path.display()),
            (None, None) => {
                "no System.map or vmlinux of it is beside it, among its modules or in /usr/lib/debug".into()
            }
        }
    }
}

/// The package that has the real `System.map`, if this file only refers to it.
fn stub(file: &File) -> Option<String> {
    let mut text = [0; 256];
    let len = file.read_at(&mut text, 0).ok()?;
    let text = str::from_utf8(&text[..len]).ok()?;
    let package = text.strip_prefix(STUB)?.split_whitespace().next()?;
    package.chars().all(|char| char.is_ascii_graphic()).then(|| package.to_owned())
}

/// Where the symbols may be.
fn places(root: &Path, kernel: &Path, version: Option<&str>, modules: Option<&Path>) -> Vec<PathBuf> {
    let folder = kernel.parent().unwrap_or(Path::new(""));
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let tree = folder.join("../../..");
    let mut places = vec![kernel.to_owned()];
    let version = version.filter(|version| !version.contains('/'));
    if let Some(version) = version {
        let map = format!("System.map-{version}");
        places.extend([folder.join(&map), root.join("boot").join(&map)]);
    }
    let own = ["usr/lib/modules", "lib/modules"].map(|folder| version.map(|it| root.join(folder).join(it)));
    for folder in modules.map(Path::to_owned).into_iter().chain(own.into_iter().flatten()) {
        places.extend(["System.map", "build/System.map", "build/vmlinux"].map(|name| folder.join(name)));
    }
    if let Some(version) = version {
        let debug = root.join("usr/lib/debug");
        let kinds = ["System.map", "vmlinux"];
        for modules in ["lib/modules", "usr/lib/modules"] {
            places.extend(kinds.map(|name| debug.join(modules).join(version).join(name)));
        }
        places.extend(kinds.map(|name| debug.join("boot").join(format!("{name}-{version}"))));
    }
    let in_tree = folder.ends_with("arch/x86/boot") || folder.ends_with("arch/x86_64/boot");
    for folder in [Some(folder), in_tree.then_some(tree.as_path())].into_iter().flatten() {
        places.extend([folder.join("System.map"), folder.join("vmlinux")]);
    }
    places
}

/// Opens a regular file.
pub(super) fn open(path: &Path) -> io::Result<File> {
    // Before opening: opening a pipe would wait for its writer.
    match fs::metadata(path)?.is_file() {
        true => File::open(path),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// The symbols in a file, whichever kind it is of.
pub(super) fn read(file: &File) -> Option<Symbols> {
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).ok().filter(|_| len <= FILE_MAX)?];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let magic = read(0, 4)?;
    match magic.as_slice() {
        b"\x7fELF" => elf(file),
        [b'0'..=b'9' | b'a'..=b'f', ..] => system_map(read(0, file.metadata().ok()?.len())?),
        _ => None,
    }
}

/// The symbols of a `System.map`: lines of an address, the kind's letter, and the name.
pub(super) fn system_map(text: Vec<u8>) -> Option<Symbols> {
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.split(|&byte| byte == b'\n') {
        let entry = || {
            let (address, rest) = line.split_at_checked(16)?;
            let address = u64::from_str_radix(str::from_utf8(address).ok()?, 16).ok()?;
            let [b' ', kind, b' ', name @ ..] = rest else { return None };
            let end = u32::try_from(start + line.len()).ok()?;
            Some((address, (*kind, end - name.len() as u32, end)))
        };
        found.extend(entry());
        start += line.len() + 1;
    }
    symbols(text, found)
}

fn symbols(text: Vec<u8>, mut found: Vec<(u64, (u8, u32, u32))>) -> Option<Symbols> {
    found.retain(|(address, _)| *address >= KERNEL_HALF);
    if found.len() < LEAST {
        return None;
    }
    // Code first, where several have one address.
    found.sort_by_key(|(address, (kind, ..))| (*address, !matches!(kind, b't' | b'T')));
    let (addresses, places) = found.into_iter().unzip();
    Some(Symbols { addresses, names: Names::Plain { text, places }, slide: 0 })
}

/// The symbols of an ELF file; nothing if it has been stripped of them, or is no proper one.
pub(super) fn elf(file: &File) -> Option<Symbols> {
    const HEADER: usize = 64;
    const SECTION: u64 = 64;
    const SYMBOL: usize = 24;
    // The type of the section with the symbols.
    const SHT_SYMTAB: u32 = 2;
    // The types of symbols that are something in memory: none given, an object, a function.
    const TYPES: [u8; 3] = [0, 1, 2];
    const FUNCTION: u8 = 2;
    let read = |at: u64, len: u64| {
        let mut bytes = vec![0; usize::try_from(len).ok().filter(|_| len <= FILE_MAX)?];
        file.read_exact_at(&mut bytes, at).ok().map(|()| bytes)
    };
    let header = read(0, HEADER as u64)?;
    let sections = word(&header, 40)?;
    let section = |index: u64| read(sections.checked_add(index * SECTION)?, SECTION);
    let count = u64::from(half(&header, 60)?);
    // Class 64, little-endian.
    let headers = (0..count).filter(|_| header[4..6] == [2, 1]).map_while(section);
    let table = headers.into_iter().find(|header| int(header, 4) == Some(SHT_SYMTAB))?;
    let strings = section(int(&table, 40)?.into())?;
    let content = |header: &[u8]| read(word(header, 24)?, word(header, 32)?);
    let (table, text) = (content(&table)?, content(&strings)?);
    let entry = |symbol: &[u8; SYMBOL]| {
        let start = int(symbol, 0)? as usize;
        let len = text.get(start..)?.iter().take(512).position(|&byte| byte == 0)?;
        let kind = TYPES.contains(&(symbol[4] & 0xf)).then_some(symbol[4] & 0xf)?;
        let kind = if kind == FUNCTION { b't' } else { b'd' };
        let place = (kind, start as u32, u32::try_from(start + len).ok()?);
        (len > 0).then_some((word(symbol, 8)?, place))
    };
    let found = table.as_chunks().0.iter().filter_map(entry).collect();
    symbols(text, found)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn int(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}
