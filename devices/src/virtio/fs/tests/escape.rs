//! Nothing that a guest asks for leads out of the share, whatever is in it and whatever the host moves meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::{RenameFlags, renameat2};
use tempfile::TempDir;

use super::super::wire::opcode;
use super::client::{Client, string};
use crate::testing::Random;
use crate::virtio::testing::watched;

const SECRET: &str = "not the guest's";

/// A folder with `share/` and, beside it, what is not the guest's.
fn folder() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir_all(at("share/dir/deep")).unwrap();
    fs::create_dir_all(at("outside/deep")).unwrap();
    for secret in ["secret", "outside/file", "outside/deep/file"] {
        fs::write(at(secret), SECRET).unwrap();
    }
    for file in ["share/file", "share/dir/file", "share/dir/deep/file"] {
        fs::write(at(file), "the guest's").unwrap();
    }
    folder
}

/// Nothing outside has changed.
fn assert_intact(folder: &Path) {
    for secret in ["secret", "outside/file", "outside/deep/file"] {
        assert_eq!(fs::read_to_string(folder.join(secret)).unwrap(), SECRET, "{secret}");
    }
    let names = |at: &str| fs::read_dir(folder.join(at)).unwrap().count();
    assert_eq!([names(""), names("outside"), names("outside/deep")], [3, 2, 1]);
}

#[test]
fn a_name_that_is_a_path_or_a_dot_is_refused_by_every_request() {
    let folder = folder();
    let guest = Client::writable(&folder.path().join("share"));
    let file = guest.lookup(1, "file").unwrap().node;
    let dir = guest.lookup(1, "dir").unwrap().node;
    for name in ["", ".", "..", "/", "../secret", "dir/file", "/etc/passwd", "./file", "../outside", "dir/"] {
        for parent in [1, dir] {
            let refused = Some(libc::EINVAL);
            assert_eq!(guest.lookup(parent, name).err(), refused, "{name}");
            assert_eq!(guest.create(parent, name, libc::O_RDWR, 0o644).err(), refused, "{name}");
            assert_eq!(guest.make(opcode::MKDIR, parent, name, 0o755).err(), refused, "{name}");
            assert_eq!(guest.make(opcode::MKNOD, parent, name, libc::S_IFREG).err(), refused, "{name}");
            assert_eq!(guest.symlink(parent, name, "x").err(), refused, "{name}");
            assert_eq!(guest.link(file, parent, name).err(), refused, "{name}");
            assert_eq!(guest.remove(opcode::UNLINK, parent, name).err(), refused, "{name}");
            assert_eq!(guest.remove(opcode::RMDIR, parent, name).err(), refused, "{name}");
            assert_eq!(guest.rename((parent, name), (1, "x"), 0).err(), refused, "{name}");
            assert_eq!(guest.rename((1, "file"), (parent, name), 0).err(), refused, "{name}");
        }
    }
    assert_intact(folder.path());
}

#[test]
fn a_symbolic_link_is_read_and_never_followed() {
    let folder = folder();
    let share = folder.path().join("share");
    symlink("../secret", share.join("link")).unwrap();
    symlink("../outside", share.join("dirlink")).unwrap();
    symlink("/proc/self/root/etc", share.join("proc")).unwrap();
    let guest = Client::writable(&share);
    for (name, target) in [("link", "../secret"), ("dirlink", "../outside"), ("proc", "/proc/self/root/etc")]
    {
        let entry = guest.lookup(1, name).unwrap();
        assert_eq!(entry.mode & libc::S_IFMT, libc::S_IFLNK);
        assert_eq!(guest.call(opcode::READLINK, entry.node, &[]).unwrap(), target.as_bytes());
        assert_eq!(guest.open(entry.node, libc::O_RDWR), Err(libc::ENXIO));
        assert_eq!(guest.open_directory(entry.node), Err(libc::ENOTDIR));
        assert_eq!(guest.lookup(entry.node, "file"), Err(libc::ENOTDIR));
        assert_eq!(guest.create(entry.node, "new", libc::O_RDWR, 0o644).err(), Some(libc::ENOTDIR));
        assert_eq!(guest.create(1, name, libc::O_RDWR, 0o644).err(), Some(libc::ENXIO));
        assert_eq!(guest.remove(opcode::UNLINK, entry.node, "file"), Err(libc::ENOTDIR));
        // Changing its owner or times changes its own; a size it has not.
        let size = [(1 << 3), 0, 5, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(guest.ask(opcode::SETATTR, entry.node, &size).err(), Some(libc::ENXIO));
    }
    let escape = guest.symlink(1, "made", "../../../../etc/passwd").unwrap();
    assert_eq!(guest.open(escape.node, libc::O_RDONLY), Err(libc::ENXIO));
    assert_intact(folder.path());
}

#[test]
fn a_fifo_a_socket_and_a_device_are_not_opened() {
    let folder = folder();
    let guest = Client::writable(&folder.path().join("share"));
    for kind in [libc::S_IFIFO, libc::S_IFSOCK] {
        let made = guest.make(opcode::MKNOD, 1, "special", kind | 0o666).unwrap();
        assert_eq!(made.mode & libc::S_IFMT, kind);
        for flags in [libc::O_RDONLY, libc::O_WRONLY, libc::O_RDWR | libc::O_TRUNC] {
            assert_eq!(guest.open(made.node, flags), Err(libc::ENXIO));
            assert_eq!(guest.create(1, "special", flags, 0o644).err(), Some(libc::ENXIO));
        }
        guest.remove(opcode::UNLINK, 1, "special").unwrap();
    }
    let dev = Client::read_only(Path::new("/dev"));
    let null = dev.lookup(1, "null").unwrap();
    assert_eq!(null.mode & libc::S_IFMT, libc::S_IFCHR);
    assert_eq!(dev.open(null.node, libc::O_RDONLY), Err(libc::ENXIO));
}

#[test]
fn the_words_of_the_hosts_kernel_are_not_read() {
    let proc = Client::writable(Path::new("/proc"));
    let version = proc.lookup(1, "version").unwrap();
    for flags in [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
        assert_eq!(proc.open(version.node, flags), Err(libc::EACCES));
        assert_eq!(proc.create(1, "version", flags, 0o644).err(), Some(libc::EACCES));
    }
    let cwd = proc.walk("self/cwd");
    assert_eq!(cwd.err(), Some(libc::ENOTDIR), "what leads out of it leads nowhere");
}

#[test]
fn what_the_hosts_kernel_has_mounted_of_its_words_is_empty() {
    let root = Client::writable(Path::new("/"));
    let proc = root.lookup(1, "proc").unwrap();
    assert_eq!(proc.mode & libc::S_IFMT, libc::S_IFDIR);
    assert_eq!(root.lookup(proc.node, "version"), Err(libc::ENOENT));
    assert_eq!(root.make(opcode::MKDIR, proc.node, "new", 0o755), Err(libc::ENOENT));
    assert_eq!(root.create(proc.node, "version", libc::O_WRONLY, 0o644).err(), Some(libc::ENOENT));
    assert_eq!(root.rename((proc.node, "version"), (1, "x"), 0), Err(libc::ENOENT));
    assert_eq!(
        root.ask(opcode::SETATTR, proc.node, &[1, 0, 0, 0, 0, 0, 0, 0, 0o777 << 32, 0, 0]),
        Err(libc::ENOENT)
    );
    let handle = root.open_directory(proc.node).unwrap();
    for plus in [false, true] {
        assert_eq!(root.list(proc.node, handle, 0, 4096, plus).unwrap().len(), 0);
    }
}

#[test]
fn a_folder_that_was_moved_out_of_the_share_leads_only_to_itself() {
    let folder = folder();
    let guest = Client::writable(&folder.path().join("share"));
    let dir = guest.lookup(1, "dir").unwrap();
    let deep = guest.lookup(dir.node, "deep").unwrap();
    fs::rename(folder.path().join("share/dir"), folder.path().join("outside/dir")).unwrap();
    assert_eq!(guest.lookup(deep.node, ".."), Err(libc::EINVAL));
    assert_eq!(guest.lookup(dir.node, "../file"), Err(libc::EINVAL));
    assert_eq!(guest.lookup(1, "dir"), Err(libc::ENOENT));
}

#[test]
fn a_node_whose_name_leads_to_another_file_is_stale() {
    let folder = folder();
    let share = folder.path().join("share");
    let guest = Client::writable(&share);
    let file = guest.lookup(1, "file").unwrap();
    fs::remove_file(share.join("file")).unwrap();
    symlink("../secret", share.join("file")).unwrap();
    assert_eq!(guest.open(file.node, libc::O_RDWR), Err(libc::ESTALE));
    assert_eq!(guest.attributes(file.node), Err(libc::ESTALE));
    assert_eq!(
        guest.ask(opcode::SETATTR, file.node, &[1, 0, 0, 0, 0, 0, 0, 0, 0o777 << 32, 0, 0]),
        Err(libc::ESTALE)
    );
    fs::remove_file(share.join("file")).unwrap();
    fs::hard_link(folder.path().join("secret"), share.join("file")).unwrap();
    assert_eq!(guest.open(file.node, libc::O_RDWR), Err(libc::ESTALE));
    assert_eq!(
        guest.call(opcode::GETXATTR, file.node, &[&[0; 8][..], &string("user.x")].concat()),
        Err(libc::ESTALE)
    );
}

/// Stops a thread when the test ends, well or badly.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Swaps two names of `dir` until `stop`.
fn swap(dir: &File, one: &str, other: &str, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        renameat2(dir, one, dir, other, RenameFlags::RENAME_EXCHANGE).unwrap();
    }
}

/// The host swaps directories of the share with links out of it, as fast as it can.
#[test]
fn a_host_that_swaps_directories_meanwhile_opens_no_way_out() {
    watched("swapping", || {
        let folder = folder();
        let share = folder.path().join("share");
        symlink("../outside", share.join("out")).unwrap();
        symlink("../../outside/deep", share.join("dir/out")).unwrap();
        let mut limited = super::client::share(&share, true);
        // So few that ways are walked again and again.
        limited.limits.descriptors = 16;
        let guest = Client::new(limited);
        let (top, dir) = (File::open(&share).unwrap(), File::open(share.join("dir")).unwrap());
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Stop(&stop);
            scope.spawn(|| swap(&top, "dir", "out", &stop));
            scope.spawn(|| swap(&dir, "deep", "out", &stop));
            let mut random = Random::new(1);
            let mut reached = 0;
            for _ in 0..3_000 {
                let mut either = |one, other| if random.below(2) == 0 { one } else { other };
                let Ok(dir) = guest.lookup(1, either("dir", "out")) else { continue };
                let Ok(deep) = guest.lookup(dir.node, either("deep", "out")) else { continue };
                let Ok(file) = guest.lookup(deep.node, "file") else { continue };
                if let Ok(handle) = guest.open(file.node, libc::O_RDWR) {
                    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"the guest's");
                    guest.release(handle).unwrap();
                    reached += 1;
                }
                if let Ok((made, handle)) = guest.create(deep.node, "new", libc::O_RDWR, 0o644) {
                    guest.release(handle).unwrap();
                    guest.forget(made.node, 1);
                }
                let _ = guest.remove(opcode::UNLINK, deep.node, "new");
                guest.forget(file.node, 1);
            }
            assert!(reached > 0, "nothing was ever opened");
        });
        assert_intact(folder.path());
    });
}
