//! A guest whose device is saved and loaded with a share mounted and files open.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use super::super::Share;
use super::super::wire::opcode;
use super::client::{Client, share};
use crate::device::State;
use crate::virtio::testing::{alone, files_and_threads};

const RW: i32 = libc::O_RDWR;

/// What a server saves, as data.
fn saved(guest: &Client) -> Value {
    guest.server.save().unwrap().take().unwrap()
}

#[test]
fn nodes_and_handles_are_the_same_in_the_loaded_device() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir_all(folder.path().join("a/b/c")).unwrap();
    fs::write(folder.path().join("a/b/c/file"), "content").unwrap();
    symlink("a/b", folder.path().join("link")).unwrap();
    let guest = Client::writable(folder.path());
    let (file, link) = (guest.walk("a/b/c/file").unwrap(), guest.lookup(1, "link").unwrap());
    let (reader, writer) =
        (guest.open(file.node, libc::O_RDONLY).unwrap(), guest.open(file.node, libc::O_WRONLY).unwrap());
    let second = guest.open(file.node, libc::O_RDONLY).unwrap();
    // Numbers that are free, between others and behind them.
    let gone = guest.walk("a/b").unwrap().node;
    guest.release(guest.open(file.node, RW).unwrap()).unwrap();
    guest.remove(opcode::UNLINK, 1, "link").unwrap();
    guest.forget(link.node, 1);
    let before = saved(&guest);
    let guest = guest.reloaded(share(folder.path(), true));
    assert_eq!(saved(&guest), before);
    assert_eq!(guest.attributes(file.node).unwrap().ino, file.ino);
    assert_eq!(guest.attributes(link.node), Err(libc::ESTALE));
    assert_eq!(guest.read(reader, 0, 100).unwrap(), b"content");
    assert_eq!(guest.write(writer, 7, b" and more", 0), Ok(9));
    assert_eq!(guest.read(second, 0, 100).unwrap(), b"content and more");
    assert_eq!(guest.read(writer, 0, 1), Err(libc::EBADF), "it was opened to be written");
    for handle in [reader, writer, second] {
        guest.release(handle).unwrap();
        assert_eq!(guest.release(handle), Err(libc::EBADF));
    }
    // Lookups are counted on, and numbers are not used twice.
    let again = guest.walk("a/b/c/file").unwrap();
    assert_eq!(again.node, file.node);
    guest.forget(file.node, 2);
    assert_eq!(guest.attributes(file.node), Err(libc::ESTALE));
    assert!(guest.attributes(gone).is_ok());
    let new = guest.walk("a/b/c/file").unwrap().node;
    assert!(![file.node, link.node].contains(&new));
    let newest = guest.open(new, libc::O_RDONLY).unwrap();
    assert!(![reader, writer, second].contains(&newest));
}

#[test]
fn a_directory_is_listed_on_from_where_the_guest_was() {
    let folder = tempfile::tempdir().unwrap();
    let names: BTreeSet<String> = (0..200).map(|number| format!("name-{number}")).collect();
    names.iter().for_each(|name| fs::write(folder.path().join(name), "").unwrap());
    let mut guest = Client::writable(folder.path());
    let handle = guest.open_directory(1).unwrap();
    let (mut position, mut listed) = (0, BTreeSet::new());
    loop {
        let part = guest.list(1, handle, position, 1500, false).unwrap();
        let Some(last) = part.last() else { break };
        position = last.next;
        for name in part.into_iter().map(|it| it.name).filter(|name| !name.starts_with('.')) {
            assert!(listed.insert(name), "twice");
        }
        guest = guest.reloaded(share(folder.path(), true));
    }
    assert!(listed == names);
}

#[test]
fn files_that_have_changed_places_meanwhile_are_found_by_their_names() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    ["same", "other", "away", "dir"].iter().for_each(|name| fs::write(at(name), name).unwrap());
    let guest = Client::writable(folder.path());
    let nodes = ["same", "other", "away", "dir"].map(|name| guest.lookup(1, name).unwrap().node);
    let handles = nodes.map(|node| guest.open(node, libc::O_RDONLY).unwrap());
    let state = guest.server.save().unwrap();
    fs::rename(at("other"), at("kept")).unwrap();
    fs::write(at("other"), "another file").unwrap();
    fs::remove_file(at("away")).unwrap();
    fs::remove_file(at("dir")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    guest.server.load(state).unwrap();
    let read = handles.map(|handle| guest.read(handle, 0, 100));
    let bytes = |text: &str| Ok(text.as_bytes().to_vec());
    let gone = Err(libc::EBADF);
    assert_eq!(read, [bytes("same"), bytes("another file"), gone.clone(), gone]);
    assert_eq!(nodes.map(|node| guest.attributes(node).err())[2..], [Some(libc::ESTALE); 2]);
    assert!(guest.lookup(1, "dir").is_ok());
}

#[test]
fn an_open_file_without_a_name_cannot_be_saved() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    let (_, handle) = guest.create(1, "file", RW, 0o644).unwrap();
    guest.server.save().unwrap();
    guest.remove(opcode::UNLINK, 1, "file").unwrap();
    let refused = guest.server.save().unwrap_err().to_string();
    assert!(refused.contains("\"file\" of share \"test\""), "{refused}");
    guest.release(handle).unwrap();
    guest.server.save().unwrap();
    let nameless = guest.create_with(opcode::TMPFILE, 1, "", [RW.cast_unsigned(), 0o600, 0]);
    if let Ok((_, handle)) = nameless {
        guest.server.save().unwrap_err();
        guest.release(handle).unwrap();
        guest.server.save().unwrap();
    }
}

#[test]
fn a_share_that_is_read_only_now_has_nothing_open_to_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let guest = Client::writable(folder.path());
    guest.create(1, "file", RW, 0o644).unwrap();
    let state = guest.server.save().unwrap();
    Client::read_only(folder.path()).server.load(state).unwrap_err();
}

/// A guest whose state names files by `change`d parts of it, loaded into a share beside which there is a secret.
fn load_hostile(change: impl FnOnce(&mut Value)) -> (tempfile::TempDir, Client, bool) {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir_all(shared.join("dir")).unwrap();
    fs::write(shared.join("file"), "content").unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink("../secret", shared.join("link")).unwrap();
    let guest = Client::writable(&shared);
    let file = guest.lookup(1, "file").unwrap().node;
    guest.lookup(1, "dir").unwrap();
    guest.open(file, RW).unwrap();
    let mut state = saved(&guest);
    change(&mut state);
    let loaded = guest.server.load(State::of(&state)).is_ok();
    (folder, guest, loaded)
}

#[test]
fn no_name_in_a_saved_state_leads_out_of_the_share() {
    use base64::Engine;
    for name in ["..", ".", "", "/", "../secret", "dir/../../secret", "link", "a\0b", "/etc/passwd", "dir"] {
        let (_folder, guest, loaded) = load_hostile(|state| {
            state["nodes"][0]["name"] = json!(base64::prelude::BASE64_STANDARD.encode(name));
        });
        assert!(loaded, "{name:?}: it is a node that is not found");
        let handles: Vec<u64> = saved(&guest)["handles"].as_array().unwrap().iter().map(|_| 0).collect();
        assert!(handles.is_empty(), "{name:?}");
        assert_eq!(guest.attributes(2), Err(libc::ESTALE), "{name:?}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_and_cost_little() {
    type Change = fn(&mut Value);
    let refused: [Change; 7] = [
        |state| state["nodes"][0]["id"] = json!(0xffff_ffffu64),
        |state| state["nodes"][0]["id"] = json!(0),
        |state| state["nodes"][0]["id"] = json!(1),
        |state| state["nodes"][1]["id"] = state["nodes"][0]["id"].clone(),
        |state| state["nodes"][0]["kind"] = json!(16),
        |state| state["handles"][0]["number"] = json!(1u64 << 20),
        |state| state["handles"][0]["access"] = json!(3),
    ];
    for (index, change) in refused.into_iter().enumerate() {
        assert!(!load_hostile(change).2, "change {index}");
    }
    let taken: [Change; 6] = [
        |state| state["nodes"][0]["parent"] = state["nodes"][0]["id"].clone(),
        |state| state["nodes"][0]["parent"] = json!(u64::MAX),
        |state| state["nodes"][0]["lookups"] = json!(u64::MAX),
        |state| state["handles"][0]["node"] = json!(u32::MAX),
        |state| state["handles"][0]["directory"] = json!(true),
        |state| state["node_generation"] = json!(u32::MAX),
    ];
    for (index, change) in taken.into_iter().enumerate() {
        let (folder, guest, loaded) = load_hostile(change);
        // A directory is not opened to be written.
        assert_eq!(loaded, index != 4, "change {index}");
        guest.begin();
        assert!(guest.lookup(1, "file").is_ok());
        drop(folder);
    }
}

#[test]
fn loading_opens_nothing_that_the_guest_does_not_use() {
    alone("virtio::fs::tests::state::loading_opens_nothing_that_the_guest_does_not_use", || {
        let folder = tempfile::tempdir().unwrap();
        let mut few: Share = share(folder.path(), true);
        few.limits.descriptors = 60;
        let guest = Client::new(few);
        let made: Vec<_> =
            (0..300).map(|number| guest.create(1, &format!("{number}"), RW, 0o644).unwrap()).collect();
        let state = guest.server.save().unwrap();
        guest.server.clear();
        let before = files_and_threads();
        guest.server.load(state.clone()).unwrap();
        assert_eq!(files_and_threads(), before);
        assert_eq!(guest.server.save().unwrap(), state);
        for (number, (_, handle)) in made.iter().enumerate() {
            guest.write(*handle, 0, format!("{number}").as_bytes(), 0).unwrap();
        }
        assert_eq!(fs::read(folder.path().join("299")).unwrap(), b"299");
    });
}
