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
