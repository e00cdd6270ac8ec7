//! Which of several kernels is the newest.

use std::cmp::Ordering;
use std::path::{Path, PathBuf};

/// The newest `vmlinuz-*` in `folder`, by the version in its name.
pub fn newest(folder: &Path) -> Option<PathBuf> {
    let name = |path: &PathBuf| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let version = |path: &PathBuf| name(path)?.strip_prefix("vmlinuz-").map(str::to_owned);
    std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter_map(|path| Some((version(&path)?, path)))
        .filter(|(version, path)| version.starts_with(|c: char| c.is_ascii_digit()) && path.is_file())
        .max_by(|(a, _), (b, _)| compare(a, b))
        .map(|(_, path)| path)
}

/// Compares runs of digits as numbers and everything else as text; `-rc` comes before the release.
fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    while !a.is_empty() && !b.is_empty() {
        match (a.starts_with("-rc"), b.starts_with("-rc")) {
            (true, false) => return Ordering::Less,
            (false, true) => return Ordering::Greater,
            _ => {}
        }
        let (x, y) = (run(&mut a), run(&mut b));
        let order = match (x.parse::<u64>(), y.parse::<u64>()) {
            (Ok(x), Ok(y)) => x.cmp(&y),
            _ => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    match (a.starts_with("-rc"), b.starts_with("-rc")) {
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        _ => a.len().cmp(&b.len()),
    }
}

/// Cuts the leading run of digits, or of anything else, off `text`.
fn run<'a>(text: &mut &'a str) -> &'a str {
    let digit = text.starts_with(|c: char| c.is_ascii_digit());
    let end = text.find(|c: char| c.is_ascii_digit() != digit).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    *text = rest;
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_the_one_with_the_highest_version() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(newest(folder.path()), None);
        for name in
            ["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-37-amd64", "vmlinuz-5.19.17", "vmlinuz.old", "vmlinuz-x"]
        {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        assert_eq!(newest(folder.path()), Some(folder.path().join("vmlinuz-6.1.0-37-amd64")));
    }

    #[test]
    fn versions_compare_by_number_and_release_candidates_come_first() {
        for (older, newer) in [
            ("6.9", "6.10"),
            ("6.1.0-9", "6.1.0-10"),
            ("6.12-rc3", "6.12"),
            ("6.12-rc3", "6.12-rc10"),
            ("6.1", "6.1.1"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
        assert_eq!(compare("6.1", "6.1"), Ordering::Equal);
    }
}
