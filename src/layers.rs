//! The order of the folders of `src/`: one may use those below it, and none above.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The folders from top to bottom.
const ORDER: [&str; 13] = [
    "cli",
    "cmd",
    "oci",
    "lifecycle",
    "session",
    "sandbox",
    "backend",
    "observe",
    "guest",
    "vm",
    "vcpu",
    "spec",
    "host",
];

/// Every file of Rust below `folder`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<_>, Vec<_>) = entries.partition(|path| path.is_dir());
    let files = files.into_iter().filter(|path| path.extension().is_some_and(|it| it == "rs"));
    files.chain(folders.iter().flat_map(|folder| sources(folder))).collect()
}

/// The folders that code names: what follows each `crate::`, also in braces. Comments name what they like.
fn used(code: &str) -> BTreeSet<String> {
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    let code = lines.collect::<Vec<_>>().join("\n");
    let paths = code.split("crate::").skip(1);
    paths.flat_map(|path| first_names(path).into_iter().map(str::to_owned)).collect()
}

/// The first name of a path, or of each path in a group.
fn first_names(path: &str) -> Vec<&str> {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let Some(group) = path.strip_prefix('{') else { return vec![&path[..word(path)]] };
    let (mut names, mut depth, mut is_first) = (Vec::new(), 0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_first = true,
            _ if is_first && c.is_alphanumeric() => {
                names.push(&group[at..at + word(&group[at..])]);
                is_first = false;
            }
            _ => {}
        }
    }
    names
}

/// Which folder uses which, and a file that does.
fn arrows() -> BTreeMap<(String, String), PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut arrows = BTreeMap::new();
    for file in sources(&root) {
        let path = file.strip_prefix(&root).unwrap();
        let Some(from) = path.parent().and_then(|it| it.iter().next()) else { continue };
        let from = from.to_str().unwrap();
        for to in used(&fs::read_to_string(&file).unwrap()) {
            if to != from {
                arrows.insert((from.to_owned(), to), path.to_owned());
            }
        }
    }
    arrows
}

#[test]
fn every_folder_uses_only_folders_below_it() {
    let rank = |name: &str| {
        ORDER
            .iter()
            .position(|it| *it == name)
            .unwrap_or_else(|| panic!("src/{name} has no place in the order"))
    };
    let wrong: Vec<_> = arrows()
        .iter()
        .filter(|((from, to), _)| rank(to) < rank(from))
        .map(|((from, to), file)| format!("{from} uses {to}, which is above it, in src/{}", file.display()))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn paths_are_found_alone_and_in_groups() {
    let code = "use crate::a::b;\nuse crate::{c::{d, e}, f, g::h};\nlet x = crate::i::j(); // crate::k\n";
    assert_eq!(used(code).into_iter().collect::<Vec<_>>(), ["a", "c", "f", "g", "i"]);
}
