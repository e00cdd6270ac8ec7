//! The documentation: its commands and options are kite's, its links lead somewhere, its fields are those of JSON outputs.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use page::Page;

#[expect(dead_code, unused_macros, reason = "what only other tests need")]
#[macro_use]
#[path = "../support/mod.rs"]
mod support;

mod commands;
mod json;
mod links;
mod options;
mod page;
mod shell;
mod table;

/// The most words that the landing page has.
const MOST_WORDS: usize = 1200;

/// A path in the source tree.
fn tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The text of a file of the source tree.
fn source(path: &str) -> String {
    fs::read_to_string(tree(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages for users and developers, by their paths in the source tree.
fn pages() -> Vec<(String, Page)> {
    let mut paths: Vec<_> = fs::read_dir(tree("resources/doc"))
        .unwrap()
        .map(|entry| format!("resources/doc/{}", entry.unwrap().file_name().to_str().unwrap()))
        .filter(|path| path.ends_with(".md"))
        .collect();
    let others = [
        "README.md",
        "CHANGELOG.md",
        ".github/CONTRIBUTING.md",
        ".github/SECURITY.md",
        "findings/README.md",
        "resources/action/README.md",
    ];
    paths.extend(others.map(str::to_owned));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), Page::read(&source(&path)))).collect()
}

#[test]
fn the_readme_is_no_longer_than_a_landing_page() {
    let count = source("README.md").split_whitespace().count();
    assert!(count <= MOST_WORDS, "{count} words, {MOST_WORDS} at most: move text to resources/doc");
}

#[test]
fn every_page_of_the_folder_is_linked_from_the_readme() {
    let readme = Page::read(&source("README.md"));
    for (path, _) in pages() {
        let is_linked = readme.links.iter().any(|link| link.split('#').next() == Some(&path));
        let is_elsewhere = ["README.md", ".github/CONTRIBUTING.md", "findings/README.md"].contains(&&*path);
        assert!(is_linked || is_elsewhere, "README.md has no link to {path}");
    }
}
