//! Where the groups of a process are: cgroups(7), `/proc/PID/cgroup` and `/proc/PID/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// A hierarchy of groups, and the process's place in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The controllers of a hierarchy of version 1; none for version 2, whose folders tell.
    pub v1: Option<Vec<String>>,
    /// The process's group, as the kernel names it.
    pub group: PathBuf,
    /// Where the hierarchy is mounted, and the group below that; none if it is not to be seen from here.
    pub seen: Option<(PathBuf, PathBuf)>,
}

impl Place {
    /// Whether it is a hierarchy of version 1 with this controller.
    pub fn is_v1_of(&self, controller: &str) -> bool {
        self.v1.as_ref().is_some_and(|names| names.iter().any(|name| name == controller))
    }

    /// The group's folder.
    pub fn folder(&self) -> Option<PathBuf> {
        self.seen.as_ref().map(|(mount, below)| joined(mount, below))
    }
}

/// One path of two, the second of which may be empty.
pub fn joined(mount: &Path, below: &Path) -> PathBuf {
    mount.iter().chain(below).collect()
}

/// A line of mountinfo about a hierarchy.
struct Mount {
    v2: bool,
    /// The part of the hierarchy that is mounted.
    root: PathBuf,
    at: PathBuf,
    options: String,
}

/// The places of a process: `groups` is its `cgroup` file, `mounts` is our own `mountinfo`. What is no line of such files is
/// passed over.
pub fn places(groups: &str, mounts: &str) -> Vec<Place> {
    let mounts: Vec<Mount> = mounts.lines().filter_map(mount).collect();
    groups.lines().filter_map(|line| place(line, &mounts)).collect()
}

/// `ID:CONTROLLERS:PATH`; version 2 has ID 0 and no controllers.
fn place(line: &str, mounts: &[Mount]) -> Option<Place> {
    let (id, rest) = line.split_once(':')?;
    let (controllers, path) = rest.split_once(':')?;
    if !path.starts_with('/') {
        return None;
    }
    let v2 = id == "0" && controllers.is_empty();
    let names: Vec<String> = controllers.split(',').map(str::to_owned).collect();
    let group = PathBuf::from(path);
    let has_all =
        |mount: &Mount| names.iter().all(|name| mount.options.split(',').any(|option| option == name));
    let is_its = |mount: &&Mount| if v2 { mount.v2 } else { !mount.v2 && has_all(mount) };
    // The last mounted is on top, should there be two at one place.
    let seen = mounts.iter().rev().filter(is_its).find_map(|mount| {
        let below = group.strip_prefix(&mount.root).ok()?;
        Some((mount.at.clone(), below.to_owned()))
    });
    Some(Place { v1: (!v2).then_some(names), group, seen })
}

/// `ID PARENT MAJOR:MINOR ROOT AT OPTIONS TAG... - TYPE SOURCE OPTIONS`.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, at) = (unescaped(before.next()?), unescaped(before.next()?));
    let mut after = after.split(' ');
    let v2 = match after.next()? {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    Some(Mount { v2, root, at, options: after.nth(1).unwrap_or_default().to_owned() })
}

/// A path of mountinfo, where a backslash and three octal digits are a byte.
fn unescaped(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|it| std::str::from_utf8(it).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Path::new(&OsString::from_vec(bytes)).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
        28 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
        40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";

    fn folder(place: &Place) -> String {
        place.folder().map(|folder| folder.display().to_string()).unwrap_or_default()
    }

    #[test]
    fn a_hybrid_host_has_a_place_in_each_hierarchy() {
        let groups = "9:name=systemd:/\n4:memory:/a/b:c\n1:cpu,cpuacct:/x\n0::/y\n";
        let places = places(groups, HYBRID);
        let folders: Vec<_> = places.iter().map(folder).collect();
        let root = "/sys/fs/cgroup";
        let expected = ["systemd", "memory/a/b:c", "cpu,cpuacct/x", "unified/y"];
        assert_eq!(folders, expected.map(|it| format!("{root}/{it}")));
        assert!(places[2].is_v1_of("cpuacct") && !places[2].is_v1_of("cpuac") && !places[3].is_v1_of(""));
        assert_eq!(places[3].v1, None);
    }

    #[test]
    fn a_group_that_is_not_mounted_here_is_not_seen() {
        let mounts = "30 1 0:2 /docker/7\\040a /sys/fs/c\\134g ro shared:1 - cgroup2 none ro\n";
        assert_eq!(folder(&places("0::/docker/7 a/b\n", mounts)[0]), "/sys/fs/c\\g/b");
        let other = &places("0::/../other\n", mounts)[0];
        assert_eq!((other.seen.clone(), other.group.as_path()), (None, Path::new("/../other")));
        assert_eq!(places("0::/\n", "")[0].seen, None);
    }

    #[test]
    fn the_last_mount_at_a_place_counts() {
        let mounts = "1 1 0:2 / /a rw - cgroup2 none rw\n2 1 0:2 / /b rw - cgroup2 none rw\n";
        assert_eq!(folder(&places("0::/x", mounts)[0]), "/b/x");
    }

    #[test]
    fn nonsense_is_passed_over() {
        for text in ["", ":", "::", "0::", "0::relative", "x", "\0:\n:\u{fffd}:", "1:memory"] {
            assert_eq!(places(text, text), [], "{text:?}");
        }
        for line in ["", " - ", "a b c - cgroup2", "1 2 3 / /m - cgroup2", "1 2 3 \\ \\9 x - cgroup x"] {
            let _ = places("0::/\n1:a:/\n", line);
        }
        assert_eq!(unescaped("\\"), Path::new("\\"));
        assert_eq!(unescaped("\\777\\04"), Path::new("\\777\\04"));
    }
}
