//! What POSIX says of files, asked of the server directly.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use super::super::wire::{Append, Args, flag, opcode};
use super::client::{Client, share, string, wide};

const RW: i32 = libc::O_RDWR;

/// The fields of a request to change attributes.
#[derive(Default)]
struct Change {
    valid: u32,
    handle: u64,
    size: u64,
    times: [(u64, u32); 2],
    mode: u32,
    owner: [u32; 2],
}

impl Change {
    fn ask(&self, guest: &Client, node: u64) -> Result<(), i32> {
        let mut args = wide(&[self.valid.into(), self.handle, self.size, 0]);
        args.extend(wide(&[self.times[0].0, self.times[1].0, 0]));
        let words = [self.times[0].1, self.times[1].1, 0, self.mode, 0, self.owner[0], self.owner[1], 0];
        words.iter().for_each(|word| args.u32(*word));
        guest.call(opcode::SETATTR, node, &args).map(drop)
    }
}

#[test]
fn an_open_file_without_a_name_works_as_before() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (file, handle) = guest.create(1, "file", RW, 0o640).unwrap();
    assert_eq!(guest.write(handle, 0, b"some text", 0), Ok(9));
    guest.remove(opcode::UNLINK, 1, "file").unwrap();
    assert_eq!(guest.lookup(1, "file"), Err(libc::ENOENT));
    assert_eq!(guest.read(handle, 5, 100).unwrap(), b"text");
    assert_eq!(guest.write(handle, 9, b", more", 0), Ok(6));
    let stat = guest.attributes(file.node).unwrap();
    assert_eq!((stat.nlink, stat.size, stat.mode & 0o777), (0, 15, 0o640));
    let size = Change { valid: flag::FATTR_SIZE | flag::FATTR_FH, handle, size: 4, ..Change::default() };
    size.ask(&guest, file.node).unwrap();
    Change { valid: flag::FATTR_MODE, mode: 0o600, ..Change::default() }.ask(&guest, file.node).unwrap();
    let stat = guest.attributes(file.node).unwrap();
    assert_eq!((stat.size, stat.mode & 0o777), (4, 0o600));
    // Another file of that name is another file.
    let (other, _) = guest.create(1, "file", RW, 0o600).unwrap();
    assert_ne!(other.node, file.node);
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"some");
    guest.release(handle).unwrap();
}

#[test]
fn a_file_that_is_not_open_and_a_folder_outlive_their_names() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "x").unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    let guest = Client::writable(folder.path());
    let (file, dir) = (guest.lookup(1, "file").unwrap(), guest.lookup(1, "dir").unwrap());
    guest.remove(opcode::UNLINK, 1, "file").unwrap();
    guest.remove(opcode::RMDIR, 1, "dir").unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().nlink, 0);
    assert_eq!(guest.attributes(dir.node).unwrap().nlink, 0);
    assert_eq!(guest.create(dir.node, "new", RW, 0o644).err(), Some(libc::ENOENT));
    let handle = guest.open_directory(dir.node).unwrap();
    assert_eq!(guest.list(dir.node, handle, 0, 4096, true).err(), Some(libc::ENOENT));
}

#[test]
fn what_is_below_a_folder_moves_along_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b/c");
    fs::create_dir_all(&deep).unwrap();
    fs::create_dir(folder.path().join("other")).unwrap();
    fs::write(deep.join("file"), "content").unwrap();
    (0..30).for_each(|n| fs::create_dir(folder.path().join(format!("other/{n}"))).unwrap());
    let mut limited = share(folder.path(), true);
    limited.limits.descriptors = 16;
    let guest = Client::new(limited);
    let file = guest.walk("a/b/c/file").unwrap();
    let (a, other) = (guest.lookup(1, "a").unwrap(), guest.lookup(1, "other").unwrap());
    guest.rename((a.node, "b"), (other.node, "moved"), 0).unwrap();
    // Nothing of the way is kept then.
    (0..30).for_each(|n| assert!(guest.lookup(other.node, &n.to_string()).is_ok()));
    assert_eq!(guest.attributes(file.node).unwrap().size, 7);
    assert!(guest.open(file.node, RW).is_ok());
    assert_eq!(guest.walk("other/moved/c/file").unwrap().node, file.node);
}

#[test]
fn a_rename_replaces_keeps_or_swaps_as_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["one", "two", "three"] {
        fs::write(folder.path().join(name), name).unwrap();
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    let guest = Client::writable(folder.path());
    let [one, two] = ["one", "two"].map(|name| guest.lookup(1, name).unwrap());
    let handle = guest.open(two.node, libc::O_RDONLY).unwrap();
    assert_eq!(guest.rename((1, "one"), (1, "two"), 1), Err(libc::EEXIST));
    guest.rename((1, "one"), (1, "three"), 2).unwrap();
    assert_eq!([read("one"), read("three")], ["three", "one"]);
    assert_eq!(guest.attributes(one.node).unwrap().size, 3);
    guest.rename((1, "three"), (1, "two"), 0).unwrap();
    assert_eq!(read("two"), "one");
    assert_eq!(guest.read(handle, 0, 10).unwrap(), b"two");
    assert_eq!(guest.attributes(two.node).unwrap().nlink, 0);
    assert_eq!(guest.lookup(1, "two").unwrap().node, one.node);
    assert_eq!(guest.rename((1, "two"), (1, "x"), 8), Err(libc::EINVAL));
    assert_eq!(guest.rename((1, "none"), (1, "x"), 0), Err(libc::ENOENT));
}

#[test]
fn names_of_one_file_are_one_node() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (file, _) = guest.create(1, "one", RW, 0o644).unwrap();
    let linked = guest.link(file.node, 1, "two").unwrap();
    assert_eq!((linked.node, linked.ino, linked.nlink), (file.node, file.ino, 2));
    guest.remove(opcode::UNLINK, 1, "two").unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().nlink, 1);
    // Moving one name onto another of the same file does nothing.
    guest.link(file.node, 1, "two").unwrap();
    guest.rename((1, "one"), (1, "two"), 0).unwrap();
    assert_eq!(guest.lookup(1, "one").unwrap().nlink, 2);
    let dir = guest.make(opcode::MKDIR, 1, "dir", 0o755).unwrap();
    assert_eq!(guest.link(dir.node, 1, "three"), Err(libc::EPERM));
}

#[test]
fn what_is_made_has_the_mode_that_was_asked_for_and_the_one_who_asked() {
    let folder = tempfile::tempdir().unwrap();
    let mut guest = Client::writable(folder.path());
    let root = nix::unistd::geteuid().is_root();
    guest.uid = if root { 1234 } else { nix::unistd::geteuid().as_raw() };
    let made = [
        guest.create(1, "file", RW, 0o666).unwrap().0,
        guest.make(opcode::MKDIR, 1, "dir", 0o777).unwrap(),
        guest.make(opcode::MKNOD, 1, "fifo", libc::S_IFIFO | 0o622).unwrap(),
        guest.make(opcode::MKNOD, 1, "node", libc::S_IFREG | 0o606).unwrap(),
        guest.symlink(1, "link", "target").unwrap(),
    ];
    for (entry, mode) in made.iter().zip([0o666, 0o777, 0o622, 0o606, 0o777]) {
        assert_eq!((entry.mode & 0o7777, entry.uid), (mode, guest.uid), "{:o}", entry.mode);
    }
    if root {
        assert_eq!(made.map(|it| it.gid), [1234; 5]);
        guest.uid = 0;
        assert_eq!(guest.create(1, "roots", RW, 0o600).unwrap().0.uid, 0, "the thread is itself again");
    }
}

#[test]
fn what_is_appended_goes_to_the_end_wherever_that_is() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (file, handle) = guest.create(1, "log", libc::O_WRONLY | libc::O_APPEND, 0o644).unwrap();
    let other = guest.open(file.node, libc::O_WRONLY | libc::O_APPEND).unwrap();
    guest.write(handle, 0, b"one ", libc::O_APPEND).unwrap();
    guest.write(other, 0, b"two ", libc::O_APPEND).unwrap();
    fs::File::options().append(true).open(folder.path().join("log")).unwrap().write_at(b"host ", 0).unwrap();
    guest.write(handle, 4, b"three", libc::O_APPEND).unwrap();
    // It no longer appends (fcntl(2), F_SETFL).
    guest.write(handle, 0, b"ONE", 0).unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "ONE two host three");
}

#[test]
fn opening_truncates_when_told() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    let guest = Client::writable(folder.path());
    let file = guest.lookup(1, "file").unwrap();
    guest.open(file.node, RW).unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().size, 7);
    guest.open(file.node, libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().size, 0);
    fs::write(folder.path().join("file"), "content").unwrap();
    assert_eq!(guest.create(1, "file", RW, 0o600).unwrap().0.size, 7);
    assert_eq!(guest.create(1, "file", RW | libc::O_EXCL, 0o600).err(), Some(libc::EEXIST));
    guest.create(1, "file", RW | libc::O_TRUNC, 0o600).unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().size, 0);
}

#[test]
fn a_write_takes_the_bits_that_run_a_program_as_somebody_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let guest = Client::writable(folder.path());
    let (file, handle) = guest.create(1, "program", RW, 0o755).unwrap();
    let armed = || fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    let mode = || fs::metadata(&path).unwrap().mode() & 0o7777;
    armed();
    let args = [wide(&[handle, 0, 1 | u64::from(flag::WRITE_KILL_SUIDGID) << 32, 0, 0]), vec![7]].concat();
    guest.call(opcode::WRITE, file.node, &args).unwrap();
    assert_eq!(mode(), 0o755);
    armed();
    let valid = flag::FATTR_SIZE | flag::FATTR_KILL_SUIDGID;
    Change { valid, size: 3, ..Change::default() }.ask(&guest, file.node).unwrap();
    assert_eq!(mode(), 0o755);
    armed();
    let open = u64::from((RW | libc::O_TRUNC).cast_unsigned()) | u64::from(flag::OPEN_KILL_SUIDGID) << 32;
    guest.ask(opcode::OPEN, file.node, &[open]).unwrap();
    assert_eq!(mode(), 0o755);
    if nix::unistd::geteuid().is_root() {
        armed();
        Change { valid: flag::FATTR_UID, owner: [1, 0], ..Change::default() }.ask(&guest, file.node).unwrap();
        assert_eq!(mode(), 0o755);
    }
}

#[test]
fn times_are_set_to_a_moment_or_to_now() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (file, _) = guest.create(1, "file", RW, 0o644).unwrap();
    let link = guest.symlink(1, "link", "file").unwrap();
    let stat = |name: &str| fs::symlink_metadata(folder.path().join(name)).unwrap();
    let valid = flag::FATTR_ATIME | flag::FATTR_MTIME;
    let both = Change { valid, times: [(5, 6), (7, 8)], ..Change::default() };
    both.ask(&guest, file.node).unwrap();
    both.ask(&guest, link.node).unwrap();
    for name in ["file", "link"] {
        let stat = stat(name);
        assert_eq!(
            [stat.atime(), stat.atime_nsec(), stat.mtime(), stat.mtime_nsec()],
            [5, 6, 7, 8],
            "{name}"
        );
    }
    let valid = flag::FATTR_MTIME | flag::FATTR_MTIME_NOW;
    Change { valid, ..Change::default() }.ask(&guest, file.node).unwrap();
    assert_eq!(stat("file").atime(), 5);
    assert!(stat("file").mtime() > 1_000_000_000);
    // What would be a flag to the host is a time.
    let valid = flag::FATTR_ATIME;
    let odd = Change { valid, times: [(1, libc::UTIME_OMIT as u32), (0, 0)], ..Change::default() };
    odd.ask(&guest, file.node).unwrap();
    assert_eq!((stat("file").atime(), stat("file").atime_nsec()), (1, 999_999_999));
}

#[test]
fn a_folder_is_listed_whole_while_its_names_go() {
    const COUNT: usize = 3000;
    for plus in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let names: BTreeSet<String> = (0..COUNT).map(|n| format!("name-{n}")).collect();
        names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
        let guest = Client::writable(folder.path());
        let handle = guest.open_directory(1).unwrap();
        let (mut from, mut seen) = (0, Vec::new());
        loop {
            let listed = guest.list(1, handle, from, 2000, plus).unwrap();
            let Some(last) = listed.last() else { break };
            from = last.next;
            for it in listed.iter().filter(|it| it.name.starts_with("name")) {
                assert!(!plus || it.entry.node != 0, "{}", it.name);
                guest.remove(opcode::UNLINK, 1, &it.name).unwrap();
                guest.forget(it.entry.node, 1);
                seen.push(it.name.clone());
            }
        }
        assert_eq!(seen.len(), COUNT, "each once");
        assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), names);
        assert_eq!(guest.list(1, handle, 0, 4096, plus).unwrap().len(), 2, "from the beginning it is empty");
    }
}

#[test]
fn a_list_goes_on_from_any_name_of_it() {
    let folder = tempfile::tempdir().unwrap();
    (0..500).for_each(|n| fs::write(folder.path().join(n.to_string()), "").unwrap());
    let guest = Client::read_only(folder.path());
    let handle = guest.open_directory(1).unwrap();
    let whole = guest.list(1, handle, 0, 128 << 10, false).unwrap();
    assert_eq!(whole.len(), 502);
    for at in [0, 1, 250, 17, 499, 500, 3] {
        let rest = guest.list(1, handle, whole[at].next, 128 << 10, at % 2 == 0).unwrap();
        assert_eq!(rest.len(), 501 - at);
        assert!(rest.iter().zip(&whole[at + 1..]).all(|(one, other)| one.name == other.name));
    }
    assert_eq!(guest.list(1, handle, 0, 30, false).map(|_| ()), Err(libc::EINVAL), "not one entry has room");
}

#[test]
fn extended_attributes_are_set_read_listed_and_removed() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (file, handle) = guest.create(1, "file", RW, 0o644).unwrap();
    let set = |value: &[u8], flags: u32| {
        let mut args = Vec::new();
        args.u32(value.len() as u32);
        args.u32(flags);
        guest.call(opcode::SETXATTR, file.node, &[args, string("user.kite"), value.to_vec()].concat())
    };
    let get =
        |size: u64| guest.call(opcode::GETXATTR, file.node, &[wide(&[size]), string("user.kite")].concat());
    if set(b"", 0) == Err(libc::EOPNOTSUPP) {
        eprintln!("NOT RUN: {} has no extended attributes", folder.path().display());
        return;
    }
    assert_eq!(set(b"value", libc::XATTR_CREATE as u32), Err(libc::EEXIST));
    set(b"value", libc::XATTR_REPLACE as u32).unwrap();
    assert_eq!(get(100).unwrap(), b"value");
    assert_eq!(Args(&get(0).unwrap()).u32(), Ok(5));
    assert_eq!(get(3), Err(libc::ERANGE));
    assert_eq!(guest.ask(opcode::LISTXATTR, file.node, &[100]).unwrap(), b"user.kite\0");
    // Of what has no name any more, too.
    guest.remove(opcode::UNLINK, 1, "file").unwrap();
    assert_eq!(get(100).unwrap(), b"value");
    guest.call(opcode::REMOVEXATTR, file.node, &string("user.kite")).unwrap();
    assert_eq!(get(100), Err(libc::ENODATA));
    guest.release(handle).unwrap();
}

#[test]
fn a_share_that_is_read_only_says_once_that_it_has_no_extended_attributes() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::read_only(folder.path());
    let args = [wide(&[100]), string("user.kite")].concat();
    assert_eq!(guest.call(opcode::GETXATTR, 1, &args), Err(libc::ENOSYS));
    assert_eq!(guest.ask(opcode::LISTXATTR, 1, &[100]), Err(libc::ENOSYS));
    let mut shown = share(folder.path(), false);
    shown.attributes = true;
    assert_ne!(Client::new(shown).call(opcode::GETXATTR, 1, &args), Err(libc::ENOSYS));
}

#[test]
fn holes_are_made_found_and_copied() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (_, from) = guest.create(1, "from", RW, 0o644).unwrap();
    let (to_file, to) = guest.create(1, "to", RW, 0o644).unwrap();
    guest.write(from, 2 * MIB, b"data", 0).unwrap();
    let seek = |whence: i32, at: u64| {
        let reply = guest.ask(opcode::LSEEK, guest.node_of(from), &[from, at, whence as u64])?;
        Ok::<_, i32>(Args(&reply).u64().unwrap())
    };
    assert_eq!(seek(libc::SEEK_DATA, 0), Ok(2 * MIB));
    assert_eq!(seek(libc::SEEK_HOLE, 0), Ok(0));
    assert_eq!(seek(libc::SEEK_DATA, 3 * MIB), Err(libc::ENXIO));
    assert_eq!(seek(libc::SEEK_SET, 0), Err(libc::EINVAL));
    let reply = guest
        .ask(opcode::COPY_FILE_RANGE, guest.node_of(from), &[from, 2 * MIB, guest.node_of(to), to, 3, 4, 0])
        .unwrap();
    assert_eq!(Args(&reply).u32(), Ok(4));
    assert_eq!(guest.read(to, 0, 10).unwrap(), b"\0\0\0data");
    guest.ask(opcode::FALLOCATE, guest.node_of(to), &[to, 0, MIB, 0]).unwrap();
    assert_eq!(guest.attributes(to_file.node).unwrap().size, MIB);
    let punch = (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE) as u64;
    guest.ask(opcode::FALLOCATE, guest.node_of(to), &[to, 0, 6, punch]).unwrap();
    assert_eq!(guest.read(to, 0, 8).unwrap(), b"\0\0\0\0\0\0a\0");
}

#[test]
fn what_the_host_changes_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    fs::write(&path, "one").unwrap();
    let guest = Client::read_only(folder.path());
    let file = guest.lookup(1, "file").unwrap();
    fs::write(&path, "longer").unwrap();
    assert_eq!(guest.attributes(file.node).unwrap().size, 6);
    fs::rename(&path, folder.path().join("moved")).unwrap();
    fs::write(&path, "another").unwrap();
    assert_eq!(guest.attributes(file.node), Err(libc::ESTALE));
    let another = guest.lookup(1, "file").unwrap();
    assert_ne!(another.node, file.node);
    // Seen again under its new name it is the same node.
    assert_eq!(guest.lookup(1, "moved").unwrap().node, file.node);
    assert_eq!(guest.attributes(file.node).unwrap().size, 6);
}

#[test]
fn folders_that_the_host_turns_inside_out_are_no_endless_way() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
    let guest = Client::writable(folder.path());
    let (a, b) = (guest.walk("a").unwrap(), guest.walk("a/b").unwrap());
    let c = guest.lookup(b.node, "c").unwrap();
    fs::rename(folder.path().join("a/b"), folder.path().join("b")).unwrap();
    fs::rename(folder.path().join("a"), folder.path().join("b/c/a")).unwrap();
    // Through a node that is still known: now it is above what it was below.
    assert_eq!(guest.lookup(c.node, "a").unwrap().node, a.node);
    for node in [a, b, c] {
        let _ = guest.attributes(node.node);
    }
    assert_eq!(guest.walk("b/c/a").unwrap().node, a.node);
    [a, b, c].iter().for_each(|it| guest.forget(it.node, 100));
}

#[test]
fn inode_numbers_of_several_mounts_differ() {
    let guest = Client::read_only(std::path::Path::new("/"));
    // The roots of these file systems have number 1 each.
    let found = ["proc", "sys"].map(|name| guest.lookup(1, name).unwrap());
    let on_host = ["/proc", "/sys"].map(|name| fs::metadata(name).unwrap());
    if on_host[0].dev() == on_host[1].dev() || on_host[0].ino() != on_host[1].ino() {
        eprintln!("NOT RUN: /proc and /sys are not mounts here");
        return;
    }
    assert_ne!(found[0].ino, found[1].ino);
    let root = guest.attributes(1).unwrap();
    assert_eq!(root.ino, fs::metadata("/").unwrap().ino());
}
