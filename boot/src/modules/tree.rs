//! Modules in the folder that a kernel was built in (Linux `Documentation/kbuild/kbuild.rst`, `modules.order`): nobody
//! has run `depmod` there, so that each module's own word is taken for what it needs (`depends=` in its section
//! `.modinfo`).

use std::fs::File;
use std::io;
use std::ops::ControlFlow::{Break, Continue};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Error, ModuleFile, Modules, is_file_of, scan};

/// The list of a build folder's modules.
pub(super) const ORDER: &str = "modules.order";
/// How many modules one guest loads at most.
const MODULES_MAX: usize = 512;
/// What a section may measure that is read whole: names, and what a module says of itself.
const SECTION_MAX: u64 = 1 << 20;
/// Lengths of ELF's header and of a section's (ELF-64).
const HEADER: usize = 64;
const SECTION: usize = 64;

/// The files that `names` need, themselves included, in the order to load them. The first `needed` must be there.
pub(super) fn resolve(modules: &Modules, names: &[&str], needed: usize) -> Result<Vec<ModuleFile>, Error> {
    let mut found = Search { modules, files: Vec::new(), visited: Vec::new() };
    let mut missing = Vec::new();
    for (index, name) in names.iter().enumerate() {
        if !found.add(name)? && index < needed {
            missing.push(*name);
        }
    }
    modules.check_built_in(missing)?;
    Ok(found.files)
}

struct Search<'a> {
    modules: &'a Modules,
    files: Vec<ModuleFile>,
    /// Names that were looked for: a circle ends at one.
    visited: Vec<String>,
}

impl Search<'_> {
    /// Adds a module behind what it needs; answers whether it is there.
    fn add(&mut self, name: &str) -> Result<bool, Error> {
        // Each with what it needs that has not been looked for yet.
        let mut stack: Vec<(ModuleFile, Vec<String>)> = Vec::new();
        let Some(first) = self.visit(name)? else {
            return Ok(self.files.iter().any(|file| same(&file.name, name)));
        };
        stack.push(first);
        while let Some((_, needs)) = stack.last_mut() {
            match needs.pop() {
                Some(need) => stack.extend(self.visit(&need)?),
                None => self.files.extend(stack.pop().map(|(file, _)| file)),
            }
        }
        Ok(true)
    }

    /// A module that was not looked for before, and what it needs.
    fn visit(&mut self, name: &str) -> Result<Option<(ModuleFile, Vec<String>)>, Error> {
        if self.visited.iter().any(|known| same(known, name)) {
            return Ok(None);
        }
        if self.visited.len() >= MODULES_MAX {
            let (path, what) = (self.modules.dir.join(ORDER), "modules that need too many others");
            return Err(Error::Malformed { path, what });
        }
        self.visited.push(name.to_owned());
        let Some(path) = find(&self.modules.dir, name)? else { return Ok(None) };
        let file = ModuleFile { name: name.replace('-', "_"), path };
        let mut needs = needs(&file.open()?).map_err(|error| Error::Read(file.path.clone(), error))?;
        // From the end on, so that the first is loaded first.
        needs.reverse();
        Ok(Some((file, needs)))
    }
}

fn same(a: &str, b: &str) -> bool {
    a.replace('-', "_") == b.replace('-', "_")
}

/// The file of a module, by its line: `fs/fuse/fuse.o`, or of older kernels `kernel/fs/fuse/fuse.ko`.
fn find(dir: &Path, name: &str) -> Result<Option<PathBuf>, Error> {
    let mut found = None;
    scan(&dir.join(ORDER), |line| {
        let stem = line.strip_suffix(b".o").or_else(|| line.strip_suffix(b".ko")).unwrap_or(line);
        let file = [stem, b".ko"].concat();
        match is_file_of(&file, name) {
            true => {
                found = Some(file);
                Break(())
            }
            false => Continue(()),
        }
    })?;
    let Some(file) = found else { return Ok(None) };
    let malformed = |what| Error::Malformed { path: dir.join(ORDER), what };
    let file = String::from_utf8(file).map_err(|_| malformed("a module without a proper name"))?;
    let relative = Path::new(&file);
    if !super::is_inside(relative) {
        return Err(malformed("a path that leaves the folder"));
    }
    let path = dir.join(relative);
    Ok(Some(match relative.strip_prefix("kernel") {
        Ok(rest) if !path.exists() => dir.join(rest),
        _ => path,
    }))
}

/// The modules that a module needs.
fn needs(file: &File) -> io::Result<Vec<String>> {
    let told = section(file, b".modinfo")?;
    let list = told.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"depends="));
    let list = String::from_utf8_lossy(list.unwrap_or_default()).into_owned();
    Ok(list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

/// The bytes of a section of a 64-bit ELF file.
fn section(file: &File, name: &[u8]) -> io::Result<Vec<u8>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no ELF file for this processor"));
    }
    let half = |bytes: &[u8], at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let start = long(&header, 0x28);
    let (size, count, names) = (half(&header, 0x3a), half(&header, 0x3c), half(&header, 0x3e));
    if usize::from(size) != SECTION {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its section headers have an unknown size"));
    }
    let mut headers = vec![0; SECTION * usize::from(count)];
    file.read_exact_at(&mut headers, start)?;
    let headers: Vec<&[u8]> = headers.chunks_exact(SECTION).collect();
    let names = headers.get(usize::from(names)).map(|header| content(file, header)).transpose()?;
    let names = names.unwrap_or_default();
    let is_it = |header: &&&[u8]| {
        let at = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        names.get(at..).is_some_and(|rest| rest.split(|byte| *byte == 0).next() == Some(name))
    };
    headers.iter().find(is_it).map_or(Ok(Vec::new()), |header| content(file, header))
}

/// The bytes of the section with this header.
fn content(file: &File, header: &[u8]) -> io::Result<Vec<u8>> {
    let len = long(header, 0x20);
    if len > SECTION_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a section has more than 1 MiB"));
    }
    let mut bytes = vec![0; len as usize];
    file.read_exact_at(&mut bytes, long(header, 0x18))?;
    Ok(bytes)
}

/// The little-endian number of eight bytes at `at`, where there are as many.
pub(super) fn long(bytes: &[u8], at: usize) -> u64 {
    let mut long = [0; 8];
    long.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(long)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// An ELF file with the sections that matter.
    fn module(modinfo: &[u8]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let (first, second) = (HEADER, HEADER + modinfo.len());
        let start = second + names.len();
        let mut file = vec![0; start + 3 * SECTION];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[0x28..0x30].copy_from_slice(&(start as u64).to_le_bytes());
        for (at, value) in [(0x3a, SECTION as u16), (0x3c, 3), (0x3e, 2)] {
            file[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        file[first..second].copy_from_slice(modinfo);
        file[second..start].copy_from_slice(names);
        for (index, name, offset, len) in [(1, 1u32, first, modinfo.len()), (2, 10, second, names.len())] {
            let header = &mut file[start + index * SECTION..][..SECTION];
            header[..4].copy_from_slice(&name.to_le_bytes());
            header[0x18..0x20].copy_from_slice(&(offset as u64).to_le_bytes());
            header[0x20..0x28].copy_from_slice(&(len as u64).to_le_bytes());
        }
        file
    }

    fn tree(order: &str, modules: &[(&str, &str)]) -> (TempDir, Modules) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(ORDER), order).unwrap();
        for (path, needs) in modules {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, module(format!("license=GPL\0depends={needs}\0name=x\0").as_bytes())).unwrap();
        }
        let modules = Modules::open(dir.path()).unwrap();
        (dir, modules)
    }

    fn names(modules: &Modules, wanted: &[&str]) -> Vec<String> {
        modules.resolve(wanted, &[]).unwrap().into_iter().map(|file| file.name).collect()
    }

    #[test]
    fn what_a_module_says_it_needs_comes_before_it() {
        let (dir, modules) = tree(
            "fs/fuse/fuse.o\nfs/fuse/virtiofs.o\ndrivers/virtio/virtio.o\n",
            &[
                ("fs/fuse/fuse.ko", ""),
                ("fs/fuse/virtiofs.ko", "fuse,virtio"),
                ("drivers/virtio/virtio.ko", ""),
            ],
        );
        assert_eq!(names(&modules, &["virtiofs"]), ["fuse", "virtio", "virtiofs"]);
        assert_eq!(names(&modules, &["virtio", "virtiofs", "fuse"]), ["virtio", "fuse", "virtiofs"]);
        let files = modules.resolve(&["fuse"], &[]).unwrap();
        assert_eq!(files[0].path, dir.path().join("fs/fuse/fuse.ko"));
    }

    #[test]
    fn older_lists_name_installed_files() {
        let (dir, modules) = tree("kernel/fs/a-b.ko\n", &[("fs/a-b.ko", "")]);
        assert_eq!(modules.resolve(&["a_b"], &[]).unwrap()[0].path, dir.path().join("fs/a-b.ko"));
    }

    #[test]
    fn a_circle_of_modules_ends() {
        let (_dir, modules) = tree("a.o\nb.o\n", &[("a.ko", "b"), ("b.ko", "a")]);
        assert_eq!(names(&modules, &["a"]), ["b", "a"]);
    }

    #[test]
    fn what_is_missing_is_an_error_unless_built_in_or_optional() {
        let (dir, modules) = tree("a.o\n", &[("a.ko", "")]);
        assert!(matches!(modules.resolve(&["b"], &[]), Err(Error::Missing { name, .. }) if name == "b"));
        assert_eq!(modules.resolve(&["a"], &["b"]).unwrap().len(), 1);
        fs::write(dir.path().join("modules.builtin"), "kernel/x/b.ko\n").unwrap();
        assert!(modules.resolve(&["b"], &[]).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_is_no_module_or_not_in_the_folder_is_an_error() {
        let (dir, modules) = tree("a.o\n../b.o\n", &[("a.ko", "")]);
        assert!(matches!(modules.resolve(&["b"], &[]), Err(Error::Malformed { .. })));
        let whole = module(b"depends=\0");
        for end in 0..whole.len() {
            fs::write(dir.path().join("a.ko"), &whole[..end]).unwrap();
            assert!(modules.resolve(&["a"], &[]).is_err(), "cut at {end}");
        }
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 0xff;
            fs::write(dir.path().join("a.ko"), broken).unwrap();
            // Any answer but a panic.
            let _ = modules.resolve(&["a"], &[]);
        }
    }
}
