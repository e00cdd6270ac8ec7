//! Links between pages: each leads to a file of the source tree, and each anchor to a heading.

use crate::page::Page;
use crate::{pages, source, tree};

#[test]
fn every_link_leads_to_a_file_and_a_heading() {
    let mut count = 0;
    for (path, page) in pages() {
        for link in &page.links {
            count += 1;
            if link.starts_with("https://") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((&**link, None), |(file, anchor)| (file, Some(anchor)));
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let target = if file.is_empty() { path.clone() } else { joined(folder, file) };
            assert!(tree(&target).exists(), "{path}: {link} leads to no file");
            if let Some(anchor) = anchor {
                let anchors = Page::read(&source(&target)).anchors;
                assert!(
                    anchors.iter().any(|it| it == anchor),
                    "{path}: {link} leads to no heading: {anchors:?}"
                );
            }
        }
    }
    assert!(count >= 60, "only {count} links");
}

/// What begins a path of the source tree.
const TOP: [&str; 7] = ["src/", "boot/", "devices/", "tests/", "resources/", "findings/", ".github/"];

#[test]
fn every_path_of_the_source_tree_that_a_page_names_is_there() {
    let mut count = 0;
    for (path, page) in pages() {
        // What has changed may be gone.
        for name in page.inline.iter().filter(|_| path != "CHANGELOG.md") {
            // `boot/1` is a schema.
            let is_schema = name.ends_with("/1");
            let is_path = TOP.iter().any(|top| name.starts_with(top)) && !name.contains([' ', '*']);
            let is_path = is_path && !is_schema;
            if is_path {
                count += 1;
                assert!(tree(name).exists(), "{path}: there is no {name}");
            }
        }
    }
    assert!(count >= 30, "only {count} paths");
}

#[test]
fn the_design_has_the_folders_in_the_order_that_the_code_is_held_to() {
    let layers = source("src/layers.rs");
    let order = layers.split("const ORDER").nth(1).unwrap().split(';').nth(1).unwrap();
    let folders: Vec<_> = order.split('"').skip(1).step_by(2).collect();
    assert!(folders.len() >= 10, "{folders:?}");
    let design = source("resources/doc/design.md");
    let sentence = design.split("in this order: ").nth(1).unwrap().split('.').next().unwrap();
    let named: Vec<_> = sentence.split('`').skip(1).step_by(2).collect();
    assert_eq!(named, folders);
    for folder in folders {
        assert!(design.contains(&format!("| `src/{folder}/` |")), "the map has no {folder}");
    }
}

/// A path from a folder, without `..`.
fn joined(folder: &str, file: &str) -> String {
    let mut parts: Vec<_> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in file.split('/') {
        if part == ".." {
            assert!(parts.pop().is_some(), "{file} leads out of the source tree");
        } else {
            parts.push(part);
        }
    }
    parts.join("/")
}

#[test]
fn a_path_loses_its_dots() {
    assert_eq!(joined("resources/doc", "../../README.md"), "README.md");
    assert_eq!(joined("", "LICENSE"), "LICENSE");
}
