//! Gates that take minutes and rarely fail: the quick run has one only if what it watches is not what it was when the gate
//! passed last, in a nightly run, which writes that down in a file of the tree.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::host;

/// Where it is written down: a line a gate, of its name and a digest.
const FILE: &str = "resources/xtask/passed";

/// What a gate watches, relative to the root folder of the tree.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    name: &'static str,
    paths: &'static [&'static str],
}

const GATES: [Watched; 2] = [
    // A rule that lacks fails every test that needs it; one that nothing needs any more comes of a change in here.
    Watched { name: "calls", paths: &["src/sandbox", "resources/xtask/src/seccomp_coverage"] },
    Watched {
        name: "instructions",
        paths: &[
            "src/vcpu",
            "src/observe/stats",
            "src/cmd/bench/exits",
            "devices/src/bus.rs",
            "resources/xtask/src/bench/latency.rs",
        ],
    },
];

impl Watched {
    /// What the gate of this name watches.
    pub fn of(name: &str) -> Option<Self> {
        GATES.into_iter().find(|gate| gate.name == name)
    }

    /// Whether something is not as it was when the gate passed last; or cannot be read.
    pub fn has_changed(&self) -> bool {
        let now = digest(host::root(), self.paths).ok();
        now.is_none() || now != recorded().remove(self.name)
    }

    /// Notes that the gate has passed.
    ///
    /// # Errors
    /// A file cannot be read, or the note not be written.
    pub fn record(&self) -> Result<()> {
        let mut recorded = recorded();
        let now = digest(host::root(), self.paths)?;
        if recorded.insert(self.name.to_owned(), now.clone()).as_ref() == Some(&now) {
            return Ok(());
        }
        let lines: String = recorded.iter().map(|(name, digest)| format!("{name} {digest}\n")).collect();
        fs::write(host::root().join(FILE), lines).with_context(|| format!("writing {FILE}"))?;
        println!("{}: has passed with what it watches now: {FILE} is to be committed", self.name);
        Ok(())
    }
}

fn recorded() -> BTreeMap<String, String> {
    let text = fs::read_to_string(host::root().join(FILE)).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.map(|(name, digest)| (name.to_owned(), digest.to_owned())).collect()
}

/// Of the names and contents of all files (FNV-1a, of 64 bits).
fn digest(root: &Path, paths: &[&str]) -> Result<String> {
    let mut files = Vec::new();
    for path in paths {
        collect(&root.join(path), &mut files)?;
    }
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for file in files {
        let content = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(&file);
        feed(name.as_os_str().as_encoded_bytes());
        feed(&(content.len() as u64).to_le_bytes());
        feed(&content);
    }
    Ok(format!("{hash:016x}"))
}

/// Finds the files of a folder and of those in it.
pub fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = fs::read_dir(path).with_context(|| format!("listing {}", path.display()))?;
    for entry in entries {
        collect(&entry.context("listing a folder")?.path(), files)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gates_watch_is_there() {
        for gate in GATES {
            for path in gate.paths {
                assert!(host::root().join(path).exists(), "{}: {path}", gate.name);
            }
        }
    }

    #[test]
    fn a_changed_a_new_and_a_renamed_file_change_the_digest() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let now = || digest(folder.path(), &["."]).unwrap();
        write("a", "1");
        let first = now();
        assert_eq!(first, now());
        write("a", "2");
        let changed = now();
        write("b", "");
        let more = now();
        fs::rename(folder.path().join("b"), folder.path().join("c")).unwrap();
        let mut all = [first, changed, more, now()];
        all.sort();
        assert!(all.windows(2).all(|pair| pair[0] != pair[1]), "{all:?}");
    }
}
