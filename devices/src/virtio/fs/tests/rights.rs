//! What a guest's files permit, and to whom: masks, access control lists, and programs that run as somebody else.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use super::super::Share;
use super::super::wire::{Append, flag, opcode};
use super::bridge::mounted;
use super::client::{Client, share, string, wide};

const RW: u32 = libc::O_RDWR as u32;
const DEFAULT: &str = "system.posix_acl_default";
const ACCESS: &str = "system.posix_acl_access";

/// A list in which `user` and the mask have these permissions, the owner all, and others what is said.
fn list(user: u32, permissions: u16, others: u16) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries =
        [(1, 7, NONE), (2, permissions, user), (4, 0, NONE), (16, permissions, NONE), (32, others, NONE)];
    let mut list = Vec::new();
    list.u32(2);
    for (tag, permissions, id) in entries {
        list.u32(tag | u32::from(permissions) << 16);
        list.u32(id);
    }
    list
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// Whether the host keeps access control lists where tests have their folders.
fn has_lists(guest: &Client) -> bool {
    let set = guest.set_xattr(1, DEFAULT, &list(1234, 6, 0), 0);
    if set == Err(libc::EOPNOTSUPP) {
        println!("skipped: access control lists: this host's file system has none");
    }
    set.is_ok()
}

/// Makes one of each kind in `parent`, with everything but for a mask; answers their modes.
fn made(guest: &Client, parent: u64, folder: &Path, mask: u32) -> [u32; 4] {
    let (_, handle) = guest.create_with(opcode::CREATE, parent, "file", [RW, 0o666, mask]).unwrap();
    guest.make_masked(opcode::MKDIR, parent, "dir", [0o777, mask]).unwrap();
    guest.make_masked(opcode::MKNOD, parent, "fifo", [libc::S_IFIFO | 0o666, mask]).unwrap();
    guest.make_masked(opcode::MKNOD, parent, "node", [libc::S_IFREG | 0o666, mask]).unwrap();
    guest.release(handle).unwrap();
    let modes = ["file", "dir", "fifo", "node"].map(|name| mode(&folder.join(name)));
    ["file", "fifo", "node"].iter().for_each(|name| guest.remove(opcode::UNLINK, parent, name).unwrap());
    guest.remove(opcode::RMDIR, parent, "dir").unwrap();
    modes
}

#[test]
fn the_mask_is_that_of_the_one_who_asks() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    for mask in [0o077, 0, 0o022, 0o777, 0o027] {
        let expected = [0o666, 0o777, 0o666, 0o666].map(|all| all & !mask);
        assert_eq!(made(&guest, 1, folder.path(), mask), expected, "{mask:o}");
    }
}

#[test]
fn where_a_folder_says_what_its_files_permit_no_mask_does() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    if has_lists(&guest) {
        assert_eq!(made(&guest, 1, folder.path(), 0o077), [0o660, 0o760, 0o660, 0o660]);
        let dir = guest.make_masked(opcode::MKDIR, 1, "dir", [0o777, 0o777]).unwrap();
        assert_eq!(made(&guest, dir.node, &folder.path().join("dir"), 0o022), [0o660, 0o760, 0o660, 0o660]);
    }
}

#[test]
fn a_file_system_without_lists_permits_by_mode_alone() {
    let without = Path::new("/proc/sys");
    let guest = Client::new(Share { attributes: true, ..share(without, false) });
    for name in [ACCESS, DEFAULT] {
        let args = [wide(&[100]), string(name)].concat();
        assert_eq!(guest.call(opcode::GETXATTR, 1, &args), Err(libc::ENODATA));
    }
}

#[test]
fn a_list_permits_in_the_guest_what_it_permits_here() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    let guest = Client::writable(folder.path());
    let file = guest.lookup(1, "file").unwrap().node;
    if !nix::unistd::geteuid().is_root() || guest.set_xattr(file, ACCESS, &list(1234, 4, 0), 0).is_err() {
        println!("skipped: a list's permissions: they take root, and a file system that has lists");
        return;
    }
    mounted(share(folder.path(), true), |mounted| {
        fs::set_permissions(mounted, Permissions::from_mode(0o755)).unwrap();
        let reads = |user: u32| {
            // The program's own folder need not be one that anybody may enter.
            let mut cat = Command::new("cat");
            let cat = cat.arg("file").current_dir(mounted).uid(user).gid(user);
            cat.output().unwrap().status.success()
        };
        assert_eq!([0, 1234, 1235].map(reads), [true, true, false]);
        assert_eq!(mode(&mounted.join("file")), 0o740);
    });
}

#[test]
fn a_list_set_by_who_is_not_in_the_group_takes_its_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    let guest = Client::writable(folder.path());
    let (file, _) = guest.create(1, "program", libc::O_RDWR, 0o755).unwrap();
    if has_lists(&guest) {
        fs::set_permissions(&path, Permissions::from_mode(0o2755)).unwrap();
        guest.set_xattr(file.node, ACCESS, &list(1234, 5, 5), 0).unwrap();
        assert_eq!(mode(&path), 0o2755);
        guest.set_xattr(file.node, ACCESS, &list(1234, 5, 5), flag::SETXATTR_ACL_KILL_SGID).unwrap();
        assert_eq!(mode(&path), 0o755);
    }
}

/// The fields of SETATTR for a mode, or for a size.
fn change(valid: u32, size: u64, mode: u32) -> Vec<u8> {
    let mut args = wide(&[valid.into(), 0, size, 0, 0, 0, 0, 0]);
    [0, mode, 0, 0, 0, 0].iter().for_each(|word| args.u32(*word));
    args
}

#[test]
fn a_guest_leaves_no_program_that_runs_as_its_owner_unless_it_may() {
    for suid in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let guest = Client::new(Share { suid, ..share(folder.path(), true) });
        let mode = |name: &str| mode(&folder.path().join(name));
        let expected = |full: u32, bare: u32| if suid { full } else { bare };
        guest.create(1, "created", libc::O_RDWR, 0o6755).unwrap();
        assert_eq!(mode("created"), expected(0o6755, 0o755));
        guest.make(opcode::MKNOD, 1, "made", libc::S_IFREG | 0o4711).unwrap();
        assert_eq!(mode("made"), expected(0o4711, 0o711));
        let made = guest.lookup(1, "made").unwrap().node;
        guest.call(opcode::SETATTR, made, &change(flag::FATTR_MODE, 0, 0o6775)).unwrap();
        assert_eq!(mode("made"), expected(0o6775, 0o775));
        let (nameless, _) = guest.create_with(opcode::TMPFILE, 1, "", [RW, 0o4755, 0]).unwrap();
        guest.link(nameless.node, 1, "linked").unwrap();
        assert_eq!(mode("linked"), expected(0o4755, 0o755));
        // A folder's bits say whose its files are, and whose they are not.
        let dir = guest.make(opcode::MKDIR, 1, "dir", 0o755).unwrap().node;
        guest.call(opcode::SETATTR, dir, &change(flag::FATTR_MODE, 0, 0o3775)).unwrap();
        assert_eq!(mode("dir"), 0o3775);
        if nix::unistd::geteuid().is_root() {
            // VFS_CAP_REVISION_2, with CAP_NET_RAW permitted.
            let capabilities = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
            let set = guest.set_xattr(made, "security.capability", &capabilities, 0);
            assert_eq!(set, if suid { Ok(()) } else { Err(libc::EPERM) });
        }
    }
}

#[test]
fn a_program_that_runs_as_its_owner_and_is_changed_by_a_guest_does_so_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program");
    fs::write(&path, vec![1; 10_000]).unwrap();
    fs::write(folder.path().join("other"), vec![1; 10_000]).unwrap();
    let guest = Client::new(Share { suid: false, ..share(folder.path(), true) });
    let [file, other] = ["program", "other"].map(|name| guest.lookup(1, name).unwrap().node);
    // Open from before it became one.
    let [handle, from] = [file, other].map(|node| guest.open(node, libc::O_RDWR).unwrap());
    let truncate = u64::from((libc::O_RDWR | libc::O_TRUNC).cast_unsigned());
    let changes: [&dyn Fn(); 5] = [
        &|| _ = guest.write(handle, 0, b"x", 0).unwrap(),
        &|| _ = guest.ask(opcode::FALLOCATE, file, &[handle, 0, 20_000, 0]).unwrap(),
        &|| _ = guest.ask(opcode::COPY_FILE_RANGE, other, &[from, 0, file, handle, 0, 10, 0]).unwrap(),
        &|| _ = guest.call(opcode::SETATTR, file, &change(flag::FATTR_SIZE, 5000, 0)).unwrap(),
        &|| _ = guest.ask(opcode::OPEN, file, &[truncate]).unwrap(),
    ];
    for (number, change) in changes.iter().enumerate() {
        fs::set_permissions(&path, Permissions::from_mode(0o6755)).unwrap();
        guest.open(file, libc::O_RDONLY).unwrap();
        assert_eq!(mode(&path), 0o6755, "who only reads changes nothing");
        change();
        assert_eq!(mode(&path), 0o755, "change {number}");
    }
}
