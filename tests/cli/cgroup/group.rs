//! Groups as a test sees them.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::attempt::{Attempt, run};
use crate::support::image::elf;
use crate::support::{KITE, kvm};

/// Whether groups with these limits can be made here.
pub fn groups(limit: &str) -> Result<(), String> {
    kvm()?;
    let (attempt, kernel) = Attempt::with(&elf());
    let end = attempt.end_of(run(KITE, &kernel).args(["--limit", limit]));
    match end.status.code() {
        Some(0) => Ok(()),
        _ => {
            // Any other failure is one.
            assert!(end.stderr.contains("group") || end.stderr.contains("cannot set"), "{}", end.stderr);
            let who = if nix::unistd::geteuid().is_root() { "" } else { "not root: " };
            Err(format!("{who}{}", end.stderr.trim()))
        }
    }
}

/// The folders of groups with this name, wherever they are.
pub fn folders(name: &str) -> Vec<PathBuf> {
    fn look(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == name {
                    found.push(entry.path());
                }
                look(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

/// A name that no other test has.
pub fn name(test: &str) -> String {
    format!("kite-test-{test}-{}", std::process::id())
}
