//! Requests that no kernel makes.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::super::protocol::{Append, Args, IN_HEADER, OUT_HEADER, opcode};
use super::client::{Client, string, wide};
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
        assert_eq!(guest.ask(opcode::FSYNC, 1, &[bad, 0]), Err(libc::EBADF));
        assert_eq!(guest.ask(opcode::GETATTR, 1, &[1, bad]), Err(libc::EBADF));
        assert!(guest.list(1, bad, 0, 4096, false).is_err());
        assert_eq!(guest.ask(opcode::COPY_FILE_RANGE, 1, &[newer, 0, 1, bad, 0, 1, 0]), Err(libc::EBADF));
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
    assert_eq!(guest.attributes(again.node), Err(libc::ESTALE));
    assert!(guest.attributes(1).is_ok());
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
        assert_eq!(guest.raw(&guest.request(opcode::BATCH_FORGET, 0, &args), 100), []);
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
    assert_eq!(guest.ask(opcode::FALLOCATE, 1, &[handle, 0, 100, 0]).err(), refused);
    assert_eq!(guest.ask(opcode::COPY_FILE_RANGE, 1, &[handle, 0, 1, handle, 0, 1, 0]).err(), refused);
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
