//! The open descriptors of a process, and what each is: `/proc/PID/fd` and `/proc/PID/fdinfo` (proc(5)).

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use serde::Serialize;

use super::text;

/// An open descriptor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Descriptor {
    /// Its number.
    pub fd: u32,
    /// What it is, in a word or two.
    pub what: String,
    /// What the kernel calls it.
    pub target: String,
    /// `r`, `w`, `rw`, or `path` for one that only names a file.
    pub access: &'static str,
    /// Whether a program that the process starts gets it.
    pub inherited: bool,
}

/// The lists of sockets, and which column of each has the inode.
const SOCKETS: [(&str, usize); 9] = [
    ("unix", 6),
    ("tcp", 9),
    ("tcp6", 9),
    ("udp", 9),
    ("udp6", 9),
    ("raw", 9),
    ("raw6", 9),
    ("packet", 8),
    ("netlink", 9),
];

/// All of them, in order.
///
/// # Errors
/// The folder cannot be read.
pub fn of(process: &Path) -> io::Result<Vec<Descriptor>> {
    let numbers = text::numbers(process.join("fd"))?;
    // One may be closed while we look.
    Ok(numbers.into_iter().filter_map(|fd| descriptor(process, fd)).collect())
}

fn descriptor(process: &Path, fd: u32) -> Option<Descriptor> {
    let path = process.join("fd").join(fd.to_string());
    let target = text::link(&path).ok()?;
    let info = text::read(process.join("fdinfo").join(fd.to_string())).unwrap_or_default();
    let (access, inherited) = flags(&info);
    let what = match target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
        Some(inode) => socket(process, inode),
        None => what(&target, &info).unwrap_or_else(|| file(&path)),
    };
    Some(Descriptor { fd, what, target, access, inherited })
}

/// What the kernel's own names mean; none for a file.
pub(super) fn what(target: &str, info: &str) -> Option<String> {
    if let Some(kind) = target.strip_prefix("anon_inode:") {
        let kind = kind.trim_start_matches('[').trim_end_matches(']');
        return Some(match (kind, kind.strip_prefix("kvm-vcpu:")) {
            ("kvm-vm", _) => "the machine".to_owned(),
            (_, Some(number)) => format!("vCPU {number}"),
            (other, None) => other.to_owned(),
        });
    }
    match target {
        "/dev/net/tun" => Some(match text::field(info, "iff") {
            Some(name) => format!("tap {name}"),
            None => "tap".to_owned(),
        }),
        _ if target.starts_with("pipe:[") => Some("pipe".to_owned()),
        _ if target.starts_with("/memfd:") => Some("memory".to_owned()),
        _ => None,
    }
}

/// The kind of a file, which is looked at and not opened.
fn file(path: &Path) -> String {
    let Ok(metadata) = fs::metadata(path) else { return "file".to_owned() };
    let kind = metadata.file_type();
    let what = match () {
        () if kind.is_dir() => "folder",
        () if kind.is_block_device() => "block device",
        () if kind.is_char_device() => character_device(metadata.rdev()),
        () if kind.is_fifo() => "pipe",
        () => "file",
    };
    what.to_owned()
}

/// The devices that kite uses have numbers of their own, whatever their files are called (linux/miscdevice.h).
fn character_device(number: u64) -> &'static str {
    match (major(number), minor(number)) {
        (1, 3) => "null",
        (10, 232) => "KVM",
        (10, 238) => "vhost-net",
        (136..=143, _) => "terminal",
        _ => "device",
    }
}

/// Of which kind a socket is, as far as the lists of the process's network tell.
fn socket(process: &Path, inode: &str) -> String {
    let kind = SOCKETS.iter().find(|(list, column)| {
        let text = text::read(process.join("net").join(list)).unwrap_or_default();
        text.lines().skip(1).any(|line| line.split_whitespace().nth(*column) == Some(inode))
    });
    kind.map_or_else(|| "socket".to_owned(), |(list, _)| format!("{list} socket"))
}

/// Access, and whether it is inherited; `flags` is octal.
pub(super) fn flags(info: &str) -> (&'static str, bool) {
    let flags = text::field(info, "flags").and_then(|text| i32::from_str_radix(text, 8).ok());
    let Some(flags) = flags.map(OFlag::from_bits_retain) else { return ("?", false) };
    let access = match flags & OFlag::O_ACCMODE {
        _ if flags.contains(OFlag::O_PATH) => "path",
        OFlag::O_WRONLY => "w",
        OFlag::O_RDWR => "rw",
        _ => "r",
    };
    (access, !flags.contains(OFlag::O_CLOEXEC))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_kernel_s_names_are_told_in_words() {
        for (target, info, expected) in [
            ("anon_inode:kvm-vm", "", "the machine"),
            ("anon_inode:kvm-vcpu:12", "", "vCPU 12"),
            ("anon_inode:[eventfd]", "", "eventfd"),
            ("anon_inode:", "", ""),
            ("/dev/net/tun", "iff:\ttap0\n", "tap tap0"),
            ("/dev/net/tun", "", "tap"),
            ("pipe:[1]", "", "pipe"),
            ("/memfd:ram (deleted)", "", "memory"),
        ] {
            assert_eq!(what(target, info).as_deref(), Some(expected), "{target}");
        }
        assert_eq!(what("/etc/passwd\n", ""), None);
    }

    #[test]
    fn flags_are_octal() {
        assert_eq!(flags("pos:\t0\nflags:\t02100002\n"), ("rw", false));
        assert_eq!(flags("flags:\t0100000\n"), ("r", true));
        assert_eq!(flags("flags:\t012000000\n"), ("path", false));
        for text in ["", "flags:", "flags:\t9", "flags:\t77777777777777"] {
            assert_eq!(flags(text), ("?", false), "{text:?}");
        }
    }

    #[test]
    fn our_own_descriptors_are_what_they_are() {
        let (file, null) = (tempfile::tempfile().unwrap(), fs::File::open("/dev/null").unwrap());
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let all = of(Path::new("/proc/self")).unwrap();
        for (fd, what, access) in [
            (file.as_raw_fd(), "file", "rw"),
            (null.as_raw_fd(), "null", "r"),
            (socket.as_raw_fd(), "unix socket", "rw"),
        ] {
            let found = all.iter().find(|it| it.fd == fd as u32).unwrap();
            assert_eq!((found.what.as_str(), found.access, found.inherited), (what, access, false));
        }
    }
}
