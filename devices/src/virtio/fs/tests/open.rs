//! A guest has more open than this process may, and finds all of it as it was.

use std::fs::{self, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use super::super::Share;
use super::super::wire::opcode;
use super::bridge::mounted;
use super::client::{Client, share};
use crate::virtio::testing::{alone, files_and_threads};

const RW: i32 = libc::O_RDWR;
/// The descriptors that these shares may have, of which two thirds are for open files.
const DESCRIPTORS: usize = 60;
/// Much more than that.
const MANY: usize = 500;

fn few(root: &Path) -> Share {
    let mut few = share(root, true);
    few.limits.descriptors = DESCRIPTORS;
    few
}

#[test]
fn more_files_are_open_than_there_are_descriptors() {
    alone("virtio::fs::tests::open::more_files_are_open_than_there_are_descriptors", || {
        let folder = tempfile::tempdir().unwrap();
        let guest = Client::new(few(folder.path()));
        let [before, _] = files_and_threads();
        let fits = |what: &str| {
            let [now, _] = files_and_threads();
            assert!(now <= before + DESCRIPTORS, "{what}: {now} descriptors, {before} of them before");
        };
        let files: Vec<u64> = (0..MANY)
            .map(|number| {
                let (_, handle) = guest.create(1, &format!("file{number}"), RW, 0o644).unwrap();
                assert!(guest.write(handle, 0, format!("content {number}").as_bytes(), 0).is_ok());
                handle
            })
            .collect();
        fits("created");
        for (number, handle) in files.iter().enumerate() {
            assert_eq!(guest.read(*handle, 0, 100).unwrap(), format!("content {number}").as_bytes());
            assert_eq!(guest.write(*handle, 0, b"more", libc::O_APPEND), Ok(4));
            assert_eq!(guest.ask(opcode::FSYNC, guest.node_of(*handle), &[*handle, 0]), Ok(Vec::new()));
        }
        fits("read and written");
        for (number, handle) in files.iter().enumerate() {
            let name = folder.path().join(format!("file{number}"));
            assert_eq!(fs::read(name).unwrap(), format!("content {number}more").as_bytes());
            guest.release(*handle).unwrap();
            assert_eq!(guest.release(*handle), Err(libc::EBADF));
        }
        guest.ask(opcode::DESTROY, 1, &[]).unwrap();
        assert_eq!(files_and_threads()[0], before);
    });
}

#[test]
fn a_folder_that_gave_its_descriptor_back_is_listed_on_from_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..300 {
        fs::write(folder.path().join(format!("a-name-of-some-length-{number}")), "").unwrap();
    }
    fs::create_dir(folder.path().join("many")).unwrap();
    (0..MANY).for_each(|number| fs::write(folder.path().join(format!("many/{number}")), "").unwrap());
    let guest = Client::new(few(folder.path()));
    let many = guest.lookup(1, "many").unwrap().node;
    let handle = guest.open_directory(1).unwrap();
    let (mut position, mut names) = (0, Vec::new());
    let mut number = 0..MANY;
    loop {
        let listed = guest.list(1, handle, position, 1000, false).unwrap();
        let Some(last) = listed.last() else { break };
        position = last.next;
        names.extend(listed.into_iter().map(|it| it.name));
        // All others in turn, so that it has become idle.
        for number in number.by_ref().take(40) {
            guest.open(guest.lookup(many, &number.to_string()).unwrap().node, RW).unwrap();
        }
    }
    names.sort();
    let mut expected: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
    expected.extend([".".into(), "..".into()]);
    expected.sort();
    assert_eq!(names, expected.iter().map(|name| name.to_str().unwrap()).collect::<Vec<_>>());
}

#[test]
fn what_could_not_be_opened_again_keeps_its_descriptor() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::new(few(folder.path()));
    let make = |name: &str| {
        let (file, handle) = guest.create(1, name, RW, 0o644).unwrap();
        guest.write(handle, 0, name.as_bytes(), 0).unwrap();
        (file.node, handle)
    };
    let others = |names: &str| {
        for number in 0..MANY {
            make(&format!("{names}{number}"));
        }
    };
    let names = ["removed", "replaced", "closed to all", "moved", "whole"];
    let files = names.map(make);
    let (_, nameless) = guest.create_with(opcode::TMPFILE, 1, "", [RW as u32, 0o600, 0]).unwrap();
    guest.write(nameless, 0, b"nameless", 0).unwrap();
    others("before");
    // All are given back, but for what has no name.
    guest.remove(opcode::UNLINK, 1, "removed").unwrap();
    make("other");
    guest.rename((1, "other"), (1, "replaced"), 0).unwrap();
    guest.rename((1, "moved"), (1, "elsewhere"), 0).unwrap();
    let mode = 1; // FATTR_MODE
    let mut change = super::client::wide(&[mode, 0, 0, 0, 0, 0, 0, 0]);
    [0_u32, 0, 0, 0, 0, 0].iter().for_each(|word| change.extend(word.to_le_bytes()));
    guest.call(opcode::SETATTR, files[2].0, &change).unwrap();
    others("after");
    for ((_, handle), name) in files.into_iter().zip(names) {
        assert_eq!(guest.read(handle, 0, 100).unwrap(), name.as_bytes(), "{name}");
        assert_eq!(guest.write(handle, 0, b"W", 0), Ok(1), "{name}");
    }
    assert_eq!(guest.read(nameless, 0, 100).unwrap(), b"nameless");
    assert_eq!(fs::read(folder.path().join("elsewhere")).unwrap(), b"Woved");
    assert_eq!(fs::read(folder.path().join("replaced")).unwrap(), b"other");
}

#[test]
fn what_all_must_keep_has_an_end() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::new(few(folder.path()));
    let create = || guest.create_with(opcode::TMPFILE, 1, "", [RW as u32, 0o600, 0]);
    let nameless: Vec<u64> = (0..MANY).map_while(|_| create().ok().map(|(_, handle)| handle)).collect();
    assert_eq!(nameless.len(), DESCRIPTORS - DESCRIPTORS / 3);
    assert_eq!(create().err(), Some(libc::ENFILE));
    assert_eq!(guest.open_directory(1), Err(libc::ENFILE));
    assert_eq!(guest.create(1, "new", RW, 0o644).err(), Some(libc::ENFILE));
    assert!(!folder.path().join("new").exists(), "nothing is made that cannot be opened");
    guest.release(nameless[7]).unwrap();
    let (_, file) = guest.create(1, "new", RW, 0o644).unwrap();
    // That one can be opened again, and is what gives way.
    guest.create(1, "newer", RW, 0o644).unwrap();
    assert_eq!(guest.write(file, 0, b"x", 0), Ok(1));
    // Not if it had to be kept, too.
    for handle in &nameless[8..] {
        guest.release(*handle).unwrap();
    }
    let handles: Vec<u64> = (0..100).map(|n| guest.create(1, &n.to_string(), RW, 0o644).unwrap().1).collect();
    let removed: Vec<_> = (0..100).map(|n| guest.remove(opcode::UNLINK, 1, &n.to_string())).collect();
    let refused = removed.iter().filter(|it| **it == Err(libc::ENFILE)).count();
    assert!(refused > 40 && removed.contains(&Ok(())), "{removed:?}");
    // What has no name any more is closed, and the others are there.
    for (handle, removed) in handles.iter().zip(&removed) {
        if removed.is_ok() {
            assert_eq!(guest.write(*handle, 0, b"still there", 0), Ok(11));
            guest.release(*handle).unwrap();
        }
    }
    for (handle, _) in handles.iter().zip(&removed).filter(|(_, removed)| removed.is_err()) {
        assert_eq!(guest.write(*handle, 0, b"still there", 0), Ok(11));
    }
}

#[test]
fn a_file_that_the_host_takes_away_meanwhile_is_stale_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::new(few(folder.path()));
    let (_, handle) = guest.create(1, "file", RW, 0o644).unwrap();
    for number in 0..MANY {
        guest.create(1, &format!("other{number}"), RW, 0o644).unwrap();
    }
    fs::remove_file(folder.path().join("file")).unwrap();
    fs::write(folder.path().join("file"), "another").unwrap();
    assert_eq!(guest.read(handle, 0, 100), Err(libc::ESTALE));
    assert_eq!(guest.write(handle, 0, b"x", 0), Err(libc::ESTALE));
    guest.release(handle).unwrap();
}

#[test]
fn a_kernel_has_a_thousand_files_open_while_names_move() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    mounted(few(folder.path()), |mounted| {
        fs::create_dir(mounted.join("dir0")).unwrap();
        let open = |number| {
            fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(mounted.join(format!("dir0/{number}")))
                .unwrap()
        };
        let mut files: Vec<_> = (0..1000).map(open).collect();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0.. {
                    let [from, to] = [number, number + 1].map(|it| mounted.join(format!("dir{it}")));
                    fs::rename(from, to).unwrap();
                    if ended.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            for (number, file) in files.iter_mut().enumerate() {
                writeln!(file, "{number}").unwrap();
            }
            for (number, file) in files.iter_mut().enumerate().rev() {
                let mut text = String::new();
                file.seek(SeekFrom::Start(0)).unwrap();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, format!("{number}\n"));
                file.write_all_at(b"!", 0).unwrap();
            }
            ended.store(true, Ordering::Relaxed);
        });
    });
}
