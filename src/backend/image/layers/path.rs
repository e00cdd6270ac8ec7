//! Names of entries, taken apart and followed in the tree, as `umoci unpack` follows them on disk (Go's
//! `filepath.Clean`, and `SecureJoin` of `filepath-securejoin`): nothing leads out of the root directory.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use boot::erofs::{InodeId, Kind, NAME_MAX, Tree};

use super::shown;

/// The longest name of an entry or target of a hard link in bytes: Linux's `PATH_MAX` without the NUL.
const PATH_MAX: usize = 4095;
/// The most symbolic links that lead to a file.
const LINKS_MAX: usize = 255;
/// The most directories above a file, more than a path of that length can have.
const DEPTH_MAX: usize = 2048;

/// A directory on the way to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// What it is called in the directory above.
    pub(super) name: Box<[u8]>,
    /// What is there, if something is; it may be no directory.
    pub(super) inode: Option<InodeId>,
}

/// The parts of a name: `.` and empty ones are dropped, `..` takes back the part before it.
///
/// # Errors
/// It is too long, or has a NUL.
pub(super) fn parts(path: &[u8]) -> Result<Vec<&[u8]>> {
    ensure!(path.len() <= PATH_MAX, "the name has {} bytes, {PATH_MAX} are possible", path.len());
    ensure!(!path.contains(&0), "the name has a NUL");
    let mut parts = Vec::new();
    for part in path.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => _ = parts.pop(),
            _ => parts.push(part),
        }
    }
    let long = parts.iter().find(|part| part.len() > NAME_MAX);
    if let Some(long) = long {
        bail!("'{}' has {} bytes, a name has {NAME_MAX} at most", shown(long), long.len());
    }
    Ok(parts)
}

/// The way to a directory: symbolic links are followed, and what is not there is taken as a directory. Counts down `steps`.
///
/// # Errors
/// There are too many links or steps, or it is too deep.
pub(super) fn resolve(tree: &Tree, parts: &[&[u8]], steps: &mut u64) -> Result<Vec<Step>> {
    let mut way: Vec<Step> = Vec::with_capacity(parts.len());
    let mut waiting: Vec<Cow<'_, [u8]>> = parts.iter().rev().map(|part| Cow::Borrowed(*part)).collect();
    let mut links = 0;
    while let Some(part) = waiting.pop() {
        take(steps, 1)?;
        if matches!(part.as_ref(), b"" | b".") {
            continue;
        }
        if part.as_ref() == b".." {
            way.pop();
            continue;
        }
        let inode = end(&way).and_then(|directory| tree.entry(directory, &part)).map(|entry| entry.inode);
        if let Some(Kind::Symlink(target)) = inode.map(|inode| tree.kind(inode)) {
            links += 1;
            ensure!(links <= LINKS_MAX, "too many symbolic links lead to it");
            take(steps, target.len() as u64 / 16)?;
            if target.starts_with(b"/") {
                way.clear();
            }
            let parts = target.split(|byte| *byte == b'/');
            waiting.extend(parts.rev().map(|part| Cow::Owned(part.to_vec())));
            continue;
        }
        ensure!(way.len() < DEPTH_MAX, "it is in more than {DEPTH_MAX} directories");
        way.push(Step { name: part.as_ref().into(), inode });
    }
    Ok(way)
}

/// What is at the end of a way, if something is.
pub(super) fn end(way: &[Step]) -> Option<InodeId> {
    way.last().map_or(Some(Tree::ROOT), |step| step.inode)
}

/// Takes from what may be spent.
pub(super) fn take(steps: &mut u64, count: u64) -> Result<()> {
    match steps.checked_sub(count) {
        Some(fewer) => *steps = fewer,
        None => bail!("to find the files of all entries takes too many steps"),
    }
    Ok(())
}
