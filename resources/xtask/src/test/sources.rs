//! Whether a test could be forgotten: a source file that no crate has as a module is compiled by nothing, and so are the
//! tests in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::native::Programs;
use super::tally::Tally;
use super::watched::collect;
use crate::host;

/// Where source files are.
const FOLDERS: [&str; 5] = ["src", "boot", "devices", "tests", "resources"];
/// What is compiled for other ends than tests: what Cargo runs to build a crate, and what libFuzzer drives.
const APART: [&str; 2] = ["build.rs", "tests/fuzz/src/libfuzzer.rs"];

/// Fails if a source file is in no program of tests.
///
/// # Errors
/// There is one; or what the compiler has noted cannot be read.
pub fn check(tally: &mut Tally, programs: &Programs) -> Result<()> {
    let root = host::root().canonicalize().context("finding the source tree")?;
    let mut known = BTreeSet::new();
    for program in programs.tests() {
        let notes = program.path.with_extension("d");
        let text = fs::read_to_string(&notes).with_context(|| format!("reading {}", notes.display()))?;
        // A module's path may lead through folders that it leaves again.
        known.extend(compiled(&text, &root).filter_map(|file| file.canonicalize().ok()));
    }
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files)?;
    }
    let is_source = |file: &PathBuf| file.extension().is_some_and(|it| it == "rs");
    let is_apart = |file: &PathBuf| APART.iter().any(|apart| file.ends_with(apart));
    files.retain(|file| is_source(file) && !is_apart(file) && !known.contains(file));
    ensure!(files.is_empty(), "tests in here are in no tier, as no crate has them as modules: {files:?}");
    tally.passed += 1;
    Ok(())
}

/// The files that the compiler has read (Makefile syntax: a target, and behind a colon what it is made from).
fn compiled<'a>(notes: &'a str, root: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    let rules = notes.lines().filter_map(|line| line.split_once(": "));
    rules.flat_map(|(_, files)| files.split(' ')).map(|file| root.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compilers_notes_name_files_behind_a_colon() {
        let notes = "/t/kite-1.d: src/lib.rs src/a.rs\n\n/t/kite-1: src/lib.rs src/a.rs\n\nsrc/a.rs:\n";
        let files: BTreeSet<_> = compiled(notes, Path::new("/tree")).collect();
        assert_eq!(files, ["/tree/src/lib.rs", "/tree/src/a.rs"].map(PathBuf::from).into());
    }
}
