//! Which processes are kites, and which belong together: the one outside and its machine's.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::text;

/// How deep children are followed, and how many processes one kite is taken to have.
const DEEPEST: usize = 4;
const MOST: usize = 256;

/// What tells a kite from other programs: the file, or its name.
pub struct Program {
    file: Option<(u64, u64)>,
    name: String,
}

impl Program {
    /// This program.
    pub fn this() -> Self {
        let own = Path::new("/proc/self");
        Self { file: file(own), name: name(own).unwrap_or_else(|| "kite".to_owned()) }
    }

    /// Whether the process runs it.
    pub fn is_run_by(&self, pid: u32) -> bool {
        let process = folder(pid);
        file(&process).is_some_and(|it| Some(it) == self.file)
            || name(&process).is_some_and(|it| it == self.name)
    }

    /// Every process of this user's, for root every one, that is a `kite run`, but those that another one started.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn machines(&self) -> std::io::Result<Vec<u32>> {
        let found: Vec<u32> =
            text::numbers("/proc")?.into_iter().filter(|pid| self.is_machine(*pid)).collect();
        let is_child = |pid: &u32| parent(*pid).is_some_and(|parent| found.contains(&parent));
        Ok(found.iter().copied().filter(|pid| !is_child(pid)).collect())
    }

    fn is_machine(&self, pid: u32) -> bool {
        self.is_run_by(pid) && arguments(pid).get(1).is_some_and(|argument| argument == "run")
    }
}

/// The folder of a process.
pub fn folder(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The device and inode of the program's file.
fn file(process: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(process.join("exe")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// The name of the program's file, also if it has been removed.
fn name(process: &Path) -> Option<String> {
    program(&text::link(process.join("exe")).ok()?)
}

pub(super) fn program(target: &str) -> Option<String> {
    let target = target.strip_suffix(" (deleted)").unwrap_or(target);
    target.rsplit('/').next().filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The command line, a word each.
pub fn arguments(pid: u32) -> Vec<String> {
    let mut bytes = Vec::new();
    let read =
        File::open(folder(pid).join("cmdline")).and_then(|file| file.take(1 << 16).read_to_end(&mut bytes));
    match read {
        Ok(_) => words(&bytes),
        Err(_) => Vec::new(),
    }
}

pub(super) fn words(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned();
    if text.is_empty() { Vec::new() } else { text.split('\0').map(str::to_owned).collect() }
}

/// Who started it.
pub fn parent(pid: u32) -> Option<u32> {
    text::field(&text::read(folder(pid).join("status")).ok()?, "PPid")?.parse().ok()
}

/// The name of a process.
pub fn comm(pid: u32) -> String {
    text::read(folder(pid).join("comm")).unwrap_or_default().trim_end().to_owned()
}

/// The process and all that it has started, each behind who started it.
pub fn family(pid: u32) -> Vec<u32> {
    let mut family = vec![pid];
    add_children(pid, DEEPEST, &mut family);
    family
}

fn add_children(pid: u32, depth: usize, family: &mut Vec<u32>) {
    if depth == 0 {
        return;
    }
    for thread in text::numbers(folder(pid).join("task")).unwrap_or_default() {
        let list = folder(pid).join("task").join(thread.to_string()).join("children");
        for child in text::read(list).unwrap_or_default().split_whitespace() {
            let Ok(child) = child.parse() else { continue };
            if family.len() < MOST && !family.contains(&child) {
                family.push(child);
                add_children(child, depth - 1, family);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_program_is_known_by_its_file_s_name_even_if_it_is_gone() {
        assert_eq!(program("/usr/bin/kite").as_deref(), Some("kite"));
        assert_eq!(program("/a/kite (deleted)").as_deref(), Some("kite"));
        assert_eq!(program(""), None);
        assert_eq!(program("/"), None);
    }

    #[test]
    fn a_command_line_is_words() {
        assert_eq!(words(b"kite\0run\0\0x\0"), ["kite", "run", "", "x"]);
        assert_eq!(words(b"\xff"), ["\u{fffd}"]);
        assert!(words(b"").is_empty() && words(b"\0").is_empty());
    }

    #[test]
    fn children_are_family_and_strangers_are_not() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let own = std::process::id();
        let family = family(own);
        let (is_in, theirs) = (family.contains(&child.id()), parent(child.id()));
        let (kite, name) = (Program::this().is_run_by(child.id()), comm(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(is_in && family[0] == own && !family.contains(&1), "{family:?}");
        assert_eq!((theirs, kite, name.as_str()), (Some(own), false, "sleep"));
        assert!(Program::this().is_run_by(own) && !Program::this().machines().unwrap().contains(&own));
    }
}
