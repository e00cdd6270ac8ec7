//! A guest that forgets and closes nothing takes no more of the host than it may.

use std::fs;
use std::sync::Arc;

use super::super::host::{self, Identity};
use super::super::inode_table::{InodeTable, Limits};
use super::super::wire::opcode;
use super::client::{Client, share, string, wide};
use crate::virtio::testing::{alone, files_and_threads, heap};

/// The descriptors that these shares may have.
const DESCRIPTORS: usize = 256;

#[test]
fn a_million_lookups_without_a_forget_take_few_descriptors() {
    alone("virtio::fs::tests::bounds::a_million_lookups_without_a_forget_take_few_descriptors", || {
        let folder = tempfile::tempdir().unwrap();
        for dir in 0..100 {
            for sub in 0..50 {
                fs::create_dir_all(folder.path().join(format!("{dir}/{sub}"))).unwrap();
            }
        }
        let mut limited = share(folder.path(), true);
        limited.limits.descriptors = DESCRIPTORS;
        let guest = Client::new(limited);
        let [before, _] = files_and_threads();
        let ((), peak) = heap::peak(|| {
            for round in 0..1_000_000 / 5_100 + 1 {
                for dir in 0..100 {
                    let entry = guest.lookup(1, &dir.to_string()).unwrap();
                    assert!(round == 0 || entry.nlink > 0);
                    for sub in 0..50 {
                        guest.lookup(entry.node, &sub.to_string()).unwrap();
                    }
                }
                let [now, _] = files_and_threads();
                assert!(now <= before + DESCRIPTORS, "{now} descriptors, {before} of them before");
            }
        });
        assert!(peak < 3 << 20, "{peak} bytes for 5,100 nodes");
        guest.ask(opcode::DESTROY, 1, &[]).unwrap();
        assert_eq!(files_and_threads()[0], before, "a session that ended has closed everything");
    });
}

/// A table of at most `nodes`, and the identity of its root.
fn table(nodes: usize) -> (InodeTable, Identity) {
    let root = Arc::new(fs::File::open("/").unwrap().into());
    let identity = host::stat(&root).unwrap().identity;
    (InodeTable::new(identity, root, Limits { descriptors: 64, nodes }), identity)
}

#[test]
fn a_million_nodes_take_less_than_128_bytes_each_and_are_given_back() {
    const COUNT: u64 = 1_000_000;
    let (mut table, root) = table(2_000_000);
    let before = heap::live();
    let file = |ino| Identity { ino, kind: libc::S_IFREG, ..root };
    let nodes: Vec<u64> =
        (0..COUNT).map(|n| table.found(1, c"a-usual-name.rs", file(1 << 40 | n)).unwrap().0).collect();
    let each = (heap::live() - before) as u64 / COUNT - 8;
    assert!(each < 128, "{each} bytes");
    for node in &nodes {
        table.forget(*node, 1);
        assert!(table.identity(*node).is_err());
    }
    let (again, _) = table.found(1, c"x", file(7)).unwrap();
    assert!(!nodes.contains(&again), "a number that was forgotten is not used again");
}

#[test]
fn more_nodes_than_there_may_be_are_refused_and_the_others_still_work() {
    let folder = tempfile::tempdir().unwrap();
    for name in 0..20 {
        fs::write(folder.path().join(name.to_string()), "x").unwrap();
    }
    let mut limited = share(folder.path(), true);
    limited.limits.nodes = 10;
    let guest = Client::new(limited);
    let found: Vec<_> = (0..20).map(|name| guest.lookup(1, &name.to_string())).collect();
    let nodes: Vec<u64> = found.iter().flatten().map(|it| it.node).collect();
    assert_eq!(nodes.len(), 9);
    assert!(found[9..].iter().all(|it| *it == Err(libc::ENFILE)));
    let handle = guest.open_directory(1).unwrap();
    let listed = guest.list(1, handle, 0, 64 << 10, true).unwrap();
    assert_eq!(listed.len(), 22);
    assert_eq!(listed.iter().filter(|it| it.entry.node != 0).count(), 9);
    nodes.iter().for_each(|node| guest.forget(*node, 2));
    assert!(guest.lookup(1, "19").is_ok());
}

#[test]
fn a_file_that_is_open_a_thousand_times_to_be_read_is_open_once() {
    alone("virtio::fs::tests::bounds::a_file_that_is_open_a_thousand_times_to_be_read_is_open_once", || {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "content").unwrap();
        let mut limited = share(folder.path(), true);
        limited.limits.descriptors = 64;
        let guest = Client::new(limited);
        let file = guest.lookup(1, "file").unwrap().node;
        let [before, _] = files_and_threads();
        let handles: Vec<u64> = (0..1000).map(|_| guest.open(file, libc::O_RDONLY).unwrap()).collect();
        assert_eq!(files_and_threads()[0], before + 1);
        let writer = guest.open(file, libc::O_RDWR).unwrap();
        assert_eq!(guest.write(handles[0], 0, b"x", 0), Err(libc::EBADF));
        guest.write(writer, 0, b"C", 0).unwrap();
        for handle in &handles[1..] {
            guest.release(*handle).unwrap();
            assert_eq!(guest.read(*handle, 0, 100), Err(libc::EBADF));
        }
        assert_eq!(guest.read(handles[0], 0, 100).unwrap(), b"Content");
        guest.release(handles[0]).unwrap();
        guest.release(writer).unwrap();
        assert_eq!(files_and_threads()[0], before);
    });
}

#[test]
fn a_folder_deeper_than_any_path_is_an_error_and_not_an_endless_walk() {
    let folder = tempfile::tempdir().unwrap();
    let mut limited = share(folder.path(), true);
    limited.limits.descriptors = 32;
    let guest = Client::new(limited);
    fs::create_dir(folder.path().join("other")).unwrap();
    (0..20).for_each(|n| fs::create_dir(folder.path().join(format!("other/{n}"))).unwrap());
    let mut node = 1;
    let mut way = vec![1];
    for _ in 0..3000 {
        node = guest.make(opcode::MKDIR, node, "d", 0o755).unwrap().node;
        way.push(node);
    }
    // What is kept of the way is needed for others.
    let other = guest.lookup(1, "other").unwrap().node;
    (0..20).for_each(|n| _ = guest.open_directory(guest.lookup(other, &n.to_string()).unwrap().node));
    assert_eq!(guest.attributes(node).map(|it| it.node), Err(libc::ENAMETOOLONG));
    assert_eq!(guest.attributes(way[1000]).map(|it| it.node), Ok(way[1000]));
    for parent in way.iter().rev().skip(1) {
        // Kept again, a piece at a time, from above.
        let _too_deep = guest.remove(opcode::RMDIR, *parent, "d");
    }
}

#[test]
fn names_and_lengths_without_measure_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let longest = "n".repeat(255);
    let (made, handle) = guest.create(1, &longest, libc::O_RDWR, 0o644).unwrap();
    assert_eq!(guest.lookup(1, &longest).unwrap().node, made.node);
    for len in [256, 4096, 60_000, 200_000] {
        let name = "n".repeat(len);
        let refused = guest.lookup(1, &name).err();
        assert!([Some(libc::ENAMETOOLONG), Some(libc::EINVAL)].contains(&refused), "{len}: {refused:?}");
        assert!(guest.make(opcode::MKDIR, 1, &name, 0o755).is_err(), "{len}");
        assert!(guest.symlink(1, "link", &name.repeat(20)).is_err(), "{len}");
        assert!(guest.rename((1, &longest), (1, &name), 0).is_err(), "{len}");
        let args = [wide(&[len as u64]), string("user.long"), vec![1; len]].concat();
        let set = guest.call(opcode::SETXATTR, made.node, &args);
        assert!(set.is_ok() || len > 255, "{len}: {set:?}");
    }
    for size in [1 << 20, 1 << 24, u32::MAX] {
        assert_eq!(guest.read(handle, 0, size).unwrap(), b"");
        assert!(guest.list(1, handle, 0, size, true).is_err());
        let args = [wide(&[handle, 0, size.into(), 0, 0]), vec![1; 100]].concat();
        assert_eq!(guest.call(opcode::WRITE, made.node, &args), Err(libc::EINVAL), "{size}");
    }
    for offset in [1 << 62, i64::MAX as u64, 1 << 63, u64::MAX] {
        assert!(guest.write(handle, offset, b"far", 0).is_err(), "{offset:#x}");
        assert!(guest.read(handle, offset, 10).map_or(true, |got| got.is_empty()), "{offset:#x}");
        assert!(guest.ask(opcode::LSEEK, made.node, &[handle, offset, 3]).is_err());
        assert!(guest.ask(opcode::FALLOCATE, made.node, &[handle, offset, offset, 0]).is_err());
        let set_size = [1 << 3 | 1 << 6, handle, offset, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(guest.ask(opcode::SETATTR, made.node, &set_size).is_err() || offset == 1 << 62);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}
