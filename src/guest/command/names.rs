//! The files by which programs look names up: `/etc/hosts` with the guest's own name (hosts(5)), and `/etc/resolv.conf`
//! with the resolvers of its networks (resolv.conf(5)). What the host has in their places stays as it is there.
#![expect(unsafe_code, reason = "the kernel's newer calls for mounts have no safe interface")]

use std::ffi::CString;
use std::fmt::Write;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::file;
use crate::guest::network::Known;
use crate::spec::wire::Root;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
const HOSTNAME: &str = "/etc/hostname";
/// The first line of a file of resolvers.
const HEADER: &str = "# Written by kite.\n";
/// Where files lie that are mounted over others: in memory.
const FOLDER: &str = "/run/kite";
/// The guest's own addresses, by the custom of Debian; with the second no name server is asked for it.
const OWN: [&str; 2] = ["127.0.1.1", "::1"];
/// What a hosts file has at least.
const LEAST: &str = "127.0.0.1\tlocalhost\n::1\tlocalhost\n";
/// Flags of open_tree(2) and move_mount(2).
const CLONE: libc::c_uint = 1;
const EMPTY_PATH: libc::c_uint = 4;

/// Has the guest's own `name` resolve, unless it has no such file and nowhere to make one.
///
/// # Errors
/// The file can neither be written nor covered.
pub(super) fn add_own(root: &Root, name: &str) -> io::Result<()> {
    let hosts = match file::read(HOSTS) {
        Ok(hosts) => Some(hosts),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    match with_own(hosts.as_deref(), name) {
        Some(hosts) => match replace(root, Path::new(HOSTS), &hosts) {
            Err(error)
                if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                Ok(())
            }
            done => done,
        },
        None => Ok(()),
    }
}

/// Has an image's name be the guest's `name`, and gives it a file of resolvers if it has none, be it without any.
///
/// # Errors
/// A file can neither be written nor covered.
pub(super) fn complete_image(root: &Root, name: &str) -> io::Result<()> {
    if *root != Root::Image {
        return Ok(());
    }
    if fs::metadata(RESOLV_CONF).is_err() {
        replace(root, Path::new(RESOLV_CONF), HEADER.as_bytes())?;
    }
    replace(root, Path::new(HOSTNAME), format!("{name}\n").as_bytes())
}

/// A hosts file that knows `name`; nothing if it does already.
fn with_own(hosts: Option<&[u8]>, name: &str) -> Option<Vec<u8>> {
    let hosts = hosts.unwrap_or(LEAST.as_bytes());
    let text = String::from_utf8_lossy(hosts);
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    if lines.any(|line| line.split_whitespace().skip(1).any(|known| known == name)) {
        return None;
    }
    let end = if hosts.is_empty() || hosts.ends_with(b"\n") { "" } else { "\n" };
    let own = OWN.map(|address| format!("{address}\t{name}\n")).concat();
    Some([hosts, end.as_bytes(), own.as_bytes()].concat())
}

/// Has programs ask the resolvers that are known, if any are.
///
/// # Errors
/// The file can neither be written nor covered.
pub(super) fn set_resolvers(root: &Root, known: &Known) -> io::Result<()> {
    match resolv_conf(known) {
        Some(text) => replace(root, Path::new(RESOLV_CONF), text.as_bytes()),
        None => Ok(()),
    }
}

fn resolv_conf(known: &Known) -> Option<String> {
    let mut text = HEADER.to_owned();
    if !known.search.is_empty() {
        let _ = writeln!(text, "search {}", known.search.join(" "));
    }
    known.dns.iter().for_each(|server| _ = writeln!(text, "nameserver {server}"));
    (!known.dns.is_empty()).then_some(text)
}

/// Has `path` hold `content` in this guest and nowhere else. In the layer of memory that is a file; anywhere else a file of
/// memory's is mounted over what is there, be it a link that leads nowhere.
fn replace(root: &Root, path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let in_memory = root.is_in_memory();
    if in_memory {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    let of_root = fs::metadata(folder)?.dev() == fs::metadata("/")?.dev();
    if in_memory && of_root {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return write(path, content),
        }
    }
    if of_root && path.symlink_metadata().is_err() {
        // A disk gets an empty file to mount it over.
        write(path, b"")?;
    }
    DirBuilder::new().recursive(true).mode(0o755).create(FOLDER)?;
    let file = Path::new(FOLDER).join(path.file_name().unwrap_or_default());
    write(&file, content)?;
    mount_over(&file, path)
}

/// Writes a file that everybody may read.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    fs::write(path, content)?;
    fs::set_permissions(path, Permissions::from_mode(0o644))
}

/// Mounts a file over what is at `path` itself: mount(2) would follow a link.
fn mount_over(file: &Path, path: &Path) -> io::Result<()> {
    let [file, path] = [file, path].map(|it| CString::new(it.as_os_str().as_bytes()));
    let (file, path) = (file?, path?);
    let flags = CLONE | libc::O_CLOEXEC as libc::c_uint;
    // SAFETY: the name ends with a NUL and outlives the call.
    let tree = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, file.as_ptr(), flags) };
    if tree < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nothing else knows it.
    let tree = unsafe { OwnedFd::from_raw_fd(tree as RawFd) };
    let none = c"".as_ptr();
    // SAFETY: both names end with a NUL and outlive the call.
    let moved = unsafe {
        libc::syscall(libc::SYS_move_mount, tree.as_raw_fd(), none, libc::AT_FDCWD, path.as_ptr(), EMPTY_PATH)
    };
    if moved < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_file_is_mounted_over_a_link_that_leads_nowhere_and_over_a_file() {
        let alone = || unshare(CloneFlags::CLONE_NEWNS).and_then(|()| make_private());
        let test = move || {
            let folder = tempfile::tempdir().unwrap();
            if let Err(error) = alone() {
                println!(
                    "skipped: a_file_is_mounted_over_a_link_that_leads_nowhere_and_over_a_file: {error}"
                );
                return;
            }
            let [content, link, file] = ["content", "link", "file"].map(|name| folder.path().join(name));
            fs::write(&content, "new").unwrap();
            fs::write(&file, "old").unwrap();
            symlink("/nonexistent/file", &link).unwrap();
            for path in [&link, &file] {
                mount_over(&content, path).unwrap();
                assert_eq!(fs::read_to_string(path).unwrap(), "new");
                umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).unwrap();
            }
            assert_eq!(fs::read_link(&link).unwrap(), Path::new("/nonexistent/file"));
            assert_eq!(fs::read_to_string(&file).unwrap(), "old");
        };
        // A mount namespace may be a thread's.
        std::thread::spawn(test).join().unwrap();
    }

    fn make_private() -> nix::Result<()> {
        let flags = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
    }

    #[test]
    fn the_guests_own_name_is_added_once() {
        let with =
            |hosts: &str| with_own(Some(hosts.as_bytes()), "kite").map(|it| String::from_utf8(it).unwrap());
        assert_eq!(with("127.0.0.1 localhost").unwrap(), "127.0.0.1 localhost\n127.0.1.1\tkite\n::1\tkite\n");
        assert_eq!(with("1.2.3.4 x # kite\n").unwrap(), "1.2.3.4 x # kite\n127.0.1.1\tkite\n::1\tkite\n");
        assert_eq!(with("1.2.3.4 kite.example.org kite\n"), None);
        let made = String::from_utf8(with_own(None, "kite").unwrap()).unwrap();
        assert!(made.starts_with("127.0.0.1\tlocalhost\n") && made.ends_with("\tkite\n"), "{made}");
        // Whatever else it holds stays.
        assert!(with_own(Some(b"\xff\n"), "kite").unwrap().starts_with(b"\xff\n"));
    }

    #[test]
    fn resolvers_are_named_with_their_domains() {
        let dns = ["192.0.2.53", "2001:db8::53"].map(|it| it.parse().unwrap()).to_vec();
        let search = vec!["a.example".to_owned(), "example".to_owned()];
        let text = resolv_conf(&Known { dns, search, lacks: Vec::new() }).unwrap();
        assert!(
            text.ends_with("search a.example example\nnameserver 192.0.2.53\nnameserver 2001:db8::53\n"),
            "{text}"
        );
        assert_eq!(resolv_conf(&Known::default()), None);
    }
}
