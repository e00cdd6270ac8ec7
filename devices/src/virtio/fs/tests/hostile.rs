//! Requests that no kernel makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::wire::{Append, Args, IN_HEADER, OUT_HEADER, opcode};
use super::client::{Client, share, string, wide};
use crate::testing::Random;
use crate::virtio::testing::watched;

/// More than there are.
const OPCODES: u32 = 64;

/// A reply is none, or a header that says its length and an error, and what belongs to that.
fn assert_well_formed(reply: &[u8], what: &str) {
    if reply.is_empty() {
        return;
    }
    assert!(reply.len() >= OUT_HEADER, "{what}: {} bytes", reply.len());
    let mut header = Args(reply);
    let (len, error) = (header.u32().unwrap() as usize, header.u32().unwrap().cast_signed());
    assert_eq!(len, reply.len(), "{what}");
    assert!((-4095..=0).contains(&error) && (error == 0 || len == OUT_HEADER), "{what}: {error}");
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("dir")).unwrap();
    fs::write(folder.path().join("file"), "content").unwrap();
    symlink("file", folder.path().join("link")).unwrap();
    folder
}

#[test]
fn a_request_cut_off_anywhere_is_answered_or_dropped() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let node = guest.lookup(1, "file").unwrap().node;
    for code in 0..OPCODES {
        let whole = guest.request(code, node, &[0; 120]);
        for len in 0..whole.len() {
            // Cut off, and saying so or not.
            let mut request = whole[..len].to_vec();
            assert_well_formed(&guest.raw(&request, 300), &format!("{code}, {len} bytes"));
            if len >= 4 {
                request[..4].copy_from_slice(&(len as u32).to_le_bytes());
                assert_well_formed(&guest.raw(&request, 300), &format!("{code}, {len} bytes told"));
            }
        }
    }
}

#[test]
fn a_reply_without_room_is_none_and_costs_nothing() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let cases = [
        (opcode::LOOKUP, string("file")),
        (opcode::MKDIR, [wide(&[0o755]), string("made")].concat()),
        (opcode::CREATE, [wide(&[2, 0]), string("made")].concat()),
        (opcode::OPENDIR, wide(&[0])),
        (opcode::GETATTR, wide(&[0, 0])),
        (opcode::STATFS, Vec::new()),
    ];
    for (code, args) in cases {
        for room in 0..96 {
            let reply = guest.raw(&guest.request(code, 1, &args), room);
            assert_well_formed(&reply, &format!("{code} in {room}"));
            assert!(reply.len() <= OUT_HEADER || [opcode::STATFS, opcode::OPENDIR].contains(&code));
        }
    }
    assert!(!folder.path().join("made").exists(), "what cannot be told is not done");
}

#[test]
fn random_requests_do_no_harm() {
    watched("random requests", || {
        let folder = folder();
        let guest = Client::writable(folder.path());
        let mut random = Random::new(3);
        let names = ["file", "dir", "link", "new", "..", "a/b", ""];
        for round in 0..6_000 {
            let code = random.below(OPCODES.into()) as u32;
            let mut args = Vec::new();
            for _ in 0..random.below(12) {
                let small = random.below(8);
                args.u64(match random.below(4) {
                    0 => small,
                    1 => small << 32 | random.below(8),
                    2 => 1 << random.below(64),
                    _ => random.next(),
                });
            }
            if random.below(2) == 0 {
                args.extend(string(names[random.below(names.len() as u64) as usize]));
                args.extend(string(names[random.below(names.len() as u64) as usize]));
            }
            let node = random.below(10) | random.below(2) << 32;
            let room = [0, 16, 100, 4096, 70_000][random.below(5) as usize];
            let reply = guest.raw(&guest.request(code, node, &args), room);
            assert_well_formed(&reply, &format!("round {round}, {code}"));
        }
        assert!(Client::writable(folder.path()).attributes(1).is_ok());
    });
}

#[test]
fn a_node_or_handle_that_is_no_more_is_refused() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let entry = guest.lookup(1, "file").unwrap();
    let handle = guest.open(entry.node, libc::O_RDWR).unwrap();
    guest.release(handle).unwrap();
    let newer = guest.open(entry.node, libc::O_RDONLY).unwrap();
    assert_ne!(handle, newer, "a handle is not used again");
    for bad in [handle, handle ^ 1 << 40, u64::MAX, newer + 1] {
        assert_eq!(guest.read(bad, 0, 10), Err(libc::EBADF));
        assert_eq!(guest.write(bad, 0, b"x", 0), Err(libc::EBADF));
        assert_eq!(guest.release(bad), Err(libc::EBADF));
        for (code, fields) in uses(bad) {
            assert_eq!(guest.ask(code, entry.node, &fields), Err(libc::EBADF), "{code}");
        }
        let copy = [newer, 0, entry.node, bad, 0, 1, 0];
        assert_eq!(guest.ask(opcode::COPY_FILE_RANGE, entry.node, &copy), Err(libc::EBADF));
    }
    guest.release(newer).unwrap();
    guest.forget(entry.node, u64::MAX);
    for bad in [entry.node, 0, u64::MAX, entry.node + 1, 1 << 32 | 1] {
        assert_eq!(guest.attributes(bad), Err(libc::ESTALE));
        assert_eq!(guest.open(bad, libc::O_RDONLY), Err(libc::ESTALE));
        assert_eq!(guest.lookup(bad, "file"), Err(libc::ESTALE));
        assert_eq!(guest.remove(opcode::UNLINK, bad, "file"), Err(libc::ESTALE));
        assert_eq!(guest.rename((1, "file"), (bad, "file"), 0), Err(libc::ESTALE));
        assert_eq!(guest.link(bad, 1, "new"), Err(libc::ESTALE));
        guest.forget(bad, 3);
    }
    let again = guest.lookup(1, "file").unwrap();
    assert_ne!(again.node, entry.node);
    guest.ask(opcode::DESTROY, 1, &[]).unwrap();
    guest.begin();
    assert_eq!(guest.attributes(again.node), Err(libc::ESTALE));
    assert!(guest.attributes(1).is_ok());
}

/// A request of each kind that names a handle.
fn uses(handle: u64) -> Vec<(u32, Vec<u64>)> {
    let set_size = 1 << 3 | 1 << 6;
    vec![
        (opcode::READ, vec![handle, 0, 10, 0, 0]),
        (opcode::WRITE, vec![handle, 0, 0, 0, 0]),
        (opcode::FSYNC, vec![handle, 0]),
        (opcode::FSYNCDIR, vec![handle, 0]),
        (opcode::READDIR, vec![handle, 0, 4096, 0, 0]),
        (opcode::READDIRPLUS, vec![handle, 0, 4096, 0, 0]),
        (opcode::LSEEK, vec![handle, 0, libc::SEEK_DATA as u64]),
        (opcode::FALLOCATE, vec![handle, 0, 1, 0]),
        (opcode::GETATTR, vec![1, handle]),
        (opcode::SETATTR, vec![set_size, handle, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (opcode::COPY_FILE_RANGE, vec![handle, 0, 1, handle, 0, 1, 0]),
        (opcode::RELEASE, vec![handle, 0, 0]),
        (opcode::RELEASEDIR, vec![handle, 0, 0]),
    ]
}

#[test]
fn a_handle_of_another_node_is_none() {
    let folder = folder();
    fs::write(folder.path().join("other"), "secret").unwrap();
    let guest = Client::writable(folder.path());
    let [file, other, dir] = ["file", "other", "dir"].map(|name| guest.lookup(1, name).unwrap().node);
    let handles = [
        guest.open(file, libc::O_RDWR).unwrap(),
        guest.open_directory(dir).unwrap(),
        guest.open_directory(1).unwrap(),
    ];
    for (handle, own) in handles.into_iter().zip([file, dir, 1]) {
        for node in [file, other, dir, 1, 99, 0].into_iter().filter(|node| *node != own) {
            for (code, fields) in uses(handle) {
                assert_eq!(guest.ask(code, node, &fields), Err(libc::EBADF), "{code} of {node}");
            }
        }
        // Either end of a copy.
        let copy = [handle, 0, other, handle, 0, 1, 0];
        assert_eq!(guest.ask(opcode::COPY_FILE_RANGE, own, &copy), Err(libc::EBADF));
    }
    assert_eq!(guest.read(handles[0], 0, 100).unwrap(), b"content", "none was closed");
    assert_eq!(fs::read(folder.path().join("file")).unwrap(), b"content");
}

#[test]
fn a_session_has_none_of_the_nodes_and_handles_of_the_one_before() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let (mut nodes, mut handles) = (Vec::new(), Vec::new());
    for session in 0..5 {
        let file = guest.lookup(1, "file").unwrap().node;
        for _ in 0..=session {
            handles.push(guest.open(file, libc::O_RDONLY).unwrap());
            handles.push(guest.open_directory(1).unwrap());
            let passing = guest.lookup(1, "dir").unwrap().node;
            guest.forget(passing, 1);
            nodes.push(passing);
        }
        nodes.push(file);
        if session % 2 == 0 {
            guest.ask(opcode::DESTROY, 1, &[]).unwrap();
        }
        guest.begin();
        let (file, dir) = (guest.lookup(1, "file").unwrap().node, guest.lookup(1, "dir").unwrap().node);
        guest.open(file, libc::O_RDWR).unwrap();
        guest.open_directory(dir).unwrap();
        for old in &handles {
            for (code, fields) in uses(*old) {
                for node in [1, file, dir] {
                    assert_eq!(guest.ask(code, node, &fields), Err(libc::EBADF), "{code}");
                }
            }
        }
        for old in &nodes {
            assert_eq!(guest.attributes(*old), Err(libc::ESTALE));
        }
    }
}

#[test]
fn nothing_is_answered_before_a_session_or_after_it() {
    let folder = folder();
    let guest = Client::without_session(share(folder.path(), true));
    let before = picture(folder.path());
    let refuses_all = |handle: u64| {
        for code in (0..OPCODES).filter(|code| *code != opcode::INIT) {
            let args = [wide(&[handle, 0, 0]), string("file"), string("new")].concat();
            for args in [args.clone(), string("file"), wide(&[0o755]), string("new")] {
                let reply = guest.raw(&guest.request(code, 1, &args), 4096);
                let silent = [opcode::FORGET, opcode::BATCH_FORGET, opcode::INTERRUPT].contains(&code);
                assert_eq!(reply.len(), if silent { 0 } else { OUT_HEADER }, "{code}");
                assert!(silent || reply[4..8] == (-libc::EIO).to_le_bytes(), "{code}: {reply:?}");
            }
        }
    };
    refuses_all(0);
    // One that is refused is none, and one that a newer guest is to begin anew has not begun.
    for major in [6, 8] {
        let mut args = Vec::new();
        [major, 0, 0, 0].iter().for_each(|it| args.u32(*it));
        assert_eq!(guest.call(opcode::INIT, 0, &args).is_ok(), major == 8);
        refuses_all(0);
    }
    guest.begin();
    let handle = guest.open_directory(1).unwrap();
    guest.ask(opcode::DESTROY, 1, &[]).unwrap();
    refuses_all(handle);
    assert_eq!(picture(folder.path()), before);
}

#[test]
fn a_handle_outlives_a_node_that_the_guest_forgot_too_early() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let entry = guest.lookup(1, "file").unwrap();
    let handle = guest.open(entry.node, libc::O_RDWR).unwrap();
    guest.forget(entry.node, 1);
    guest.forget(1, 1_000_000);
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"content");
    guest.release(handle).unwrap();
    assert_eq!(guest.attributes(entry.node), Err(libc::ESTALE));
}

#[test]
fn a_list_of_forgotten_nodes_may_say_anything() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    let entry = guest.lookup(1, "file").unwrap();
    for (count, entries) in [(u32::MAX, 1), (0, 2), (1, 0), (2, 1)] {
        let mut args = wide(&[count.into()]);
        (0..entries).for_each(|_| args.extend(wide(&[entry.node, 0])));
        assert_eq!(guest.raw(&guest.request(opcode::BATCH_FORGET, 0, &args), 100), b"");
    }
    assert!(guest.attributes(entry.node).is_ok());
    let args = wide(&[2, 1, 9, entry.node, 1]);
    guest.raw(&guest.request(opcode::BATCH_FORGET, 0, &args), 0);
    assert!(guest.attributes(entry.node).is_err());
}

#[test]
fn a_session_of_another_protocol_is_refused() {
    let folder = folder();
    let guest = Client::writable(folder.path());
    for (major, minor) in [(6, 40), (7, 0), (7, 30)] {
        let mut args = Vec::new();
        [major, minor, 0, 0].iter().for_each(|it| args.u32(*it));
        assert_eq!(guest.call(opcode::INIT, 0, &args), Err(libc::EPROTO));
    }
    let mut args = Vec::new();
    [8, 0, 0, 0].iter().for_each(|it| args.u32(*it));
    let reply = guest.call(opcode::INIT, 0, &args).unwrap();
    assert_eq!(Args(&reply).u32(), Ok(7), "a newer one is told which it is");
}

/// What `folder` has: paths, modes, sizes, contents.
fn picture(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|it| it.unwrap().path()).collect();
    names.sort();
    let tell = |path: &Path| {
        let stat = fs::symlink_metadata(path).unwrap();
        let content = if stat.is_file() { fs::read(path).unwrap() } else { Vec::new() };
        format!("{path:?} {:?} {:?} {content:?}", stat.permissions(), stat.modified())
    };
    names.iter().map(|path| tell(path)).collect()
}

#[test]
fn a_share_that_is_read_only_refuses_every_change() {
    let folder = folder();
    let guest = Client::read_only(folder.path());
    let before = picture(folder.path());
    let file = guest.lookup(1, "file").unwrap().node;
    let refused = Some(libc::EROFS);
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC, libc::O_ACCMODE] {
        assert_eq!(guest.open(file, flags).err(), refused, "{flags:#x}");
        assert_eq!(guest.create(1, "new", flags, 0o644).err(), refused, "{flags:#x}");
    }
    let handle = guest.open(file, libc::O_RDONLY | libc::O_APPEND | libc::O_CREAT).unwrap();
    assert_eq!(guest.write(handle, 0, b"x", 0).err(), refused);
    assert_eq!(guest.make(opcode::MKDIR, 1, "new", 0o755).err(), refused);
    assert_eq!(guest.make(opcode::MKNOD, 1, "new", libc::S_IFREG).err(), refused);
    assert_eq!(guest.symlink(1, "new", "x").err(), refused);
    assert_eq!(guest.link(file, 1, "new").err(), refused);
    assert_eq!(guest.remove(opcode::UNLINK, 1, "file").err(), refused);
    assert_eq!(guest.remove(opcode::RMDIR, 1, "dir").err(), refused);
    assert_eq!(guest.rename((1, "file"), (1, "new"), 0).err(), refused);
    assert_eq!(
        guest.call(opcode::RENAME, 1, &[wide(&[1]), string("file"), string("x")].concat()).err(),
        refused
    );
    for valid in 0..12 {
        let args = [1 << valid, handle, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(guest.ask(opcode::SETATTR, file, &args).err(), refused);
    }
    assert_eq!(guest.ask(opcode::FALLOCATE, file, &[handle, 0, 100, 0]).err(), refused);
    assert_eq!(guest.ask(opcode::COPY_FILE_RANGE, file, &[handle, 0, file, handle, 0, 1, 0]).err(), refused);
    let value = [wide(&[1]), string("user.a"), vec![1]].concat();
    assert_eq!(guest.call(opcode::SETXATTR, file, &value).err(), refused);
    assert_eq!(guest.call(opcode::REMOVEXATTR, file, &string("user.a")).err(), refused);
    assert_eq!(guest.read(handle, 0, 100).unwrap(), b"content");
    assert_eq!(picture(folder.path()), before);
    // By the number of every request, known or not.
    for code in 0..OPCODES {
        let args = [wide(&[handle, 0, 0, 0, 0]), string("new"), string("newer")].concat();
        assert_well_formed(&guest.raw(&guest.request(code, 1, &args), 500), "any");
        assert_well_formed(&guest.raw(&guest.request(code, file, &args[IN_HEADER..]), 500), "any");
    }
    assert_eq!(picture(folder.path()), before);
}
