//! The cache, used by one and by several at a time.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::*;
use crate::backend::image::manifest::Image;

const NO_PATIENCE: Duration = Duration::ZERO;

fn cache() -> (TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path()).unwrap();
    (folder, cache)
}

fn chain(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn make(cache: &Cache, name: &str, content: &[u8]) -> Root {
    cache.root_or_make(&chain(name), || (), |_, mut file| Ok(file.write_all(content)?)).unwrap()
}

fn image(layer: &str) -> Image {
    let config =
        format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{{"diff_ids":["{}"]}}}}"#, chain(layer));
    Image::new(Some(chain("manifest")), config.into_bytes(), vec![(Some(chain("blob")), 7)]).unwrap()
}

fn record(name: &str, is_remote: bool, layer: &str) -> Record {
    Record::new(name.to_owned(), is_remote, &image(layer))
}

/// Has `remove` free images until as many have gone. A process that another test is about to start has this process's
/// descriptors, and so its locks, until it is another program.
fn freed(expected: usize, remove: impl Fn() -> anyhow::Result<Freed>) -> u64 {
    let (mut images, mut bytes) = (0, 0);
    for _ in 0..500 {
        let freed = remove().unwrap_or_default();
        (images, bytes) = (images + freed.images, bytes + freed.bytes);
        if images == expected {
            return bytes;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("{images} images have gone, not {expected}")
}

fn text(root: &Root) -> String {
    let mut text = String::new();
    root.file().try_clone().unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_root_is_made_once_and_found_again() {
    let (_folder, cache) = cache();
    assert!(cache.root(&chain("a")).unwrap().is_none());
    assert_eq!(text(&make(&cache, "a", b"one")), "one");
    let again = cache.root_or_make(&chain("a"), || (), |_, _| panic!("it is there")).unwrap();
    assert_eq!(text(&again), "one");
    assert_eq!(fs::metadata(again.path()).unwrap().mode() & 0o7777, 0o400);
    assert_eq!(fs::read_dir(cache.folder().join(MAKING)).unwrap().count(), 0);
}

#[test]
fn many_who_want_the_same_at_a_time_have_one_make_it() {
    let (_folder, cache) = cache();
    let makers = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let root = cache.root_or_make(
                    &chain("a"),
                    || (),
                    |_, mut file| {
                        makers.fetch_add(1, Ordering::SeqCst);
                        thread::sleep(Duration::from_millis(20));
                        Ok(file.write_all(b"one")?)
                    },
                );
                assert_eq!(text(&root.unwrap()), "one");
            });
        }
    });
    assert_eq!(makers.into_inner(), 1);
}

#[test]
fn one_that_fails_leaves_its_blobs_to_the_next_and_no_root() {
    let (_folder, cache) = cache();
    let fail = |making: &Making, mut file: &File| {
        file.write_all(b"half")?;
        making.blob(&chain("blob"))?.write_all(b"some")?;
        bail!("as if killed")
    };
    let failed = cache.root_or_make(&chain("a"), || (), fail);
    assert!(failed.unwrap_err().to_string().contains("as if killed"));
    assert!(cache.root(&chain("a")).unwrap().is_none());
    let folder = cache.folder().join("making").join(chain("a").hex());
    assert_eq!(names(&folder).unwrap(), [chain("blob").hex()]);
    let go_on = |making: &Making, mut file: &File| {
        let mut blob = String::new();
        making.blob(&chain("blob"))?.read_to_string(&mut blob)?;
        assert_eq!((blob.as_str(), file.metadata()?.len()), ("some", 0));
        Ok(file.write_all(b"whole")?)
    };
    let root = cache.root_or_make(&chain("a"), || panic!("nobody has it"), go_on);
    assert_eq!(text(&root.unwrap()), "whole");
}

#[test]
fn one_that_fails_without_blobs_leaves_nothing() {
    let (_folder, cache) = cache();
    let failed = cache.root_or_make(
        &chain("a"),
        || (),
        |_, mut file| {
            file.write_all(b"half")?;
            bail!("the disk is full")
        },
    );
    assert!(failed.is_err());
    assert!(names(&cache.folder().join("making")).unwrap().is_empty());
}

#[test]
fn the_least_recently_used_go_at_the_limit_but_none_in_use() {
    let (_folder, cache) = cache();
    let large = vec![7; 64 << 10];
    for (age, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let root = make(&cache, name, &large);
        let used = SystemTime::now() - Duration::from_secs(1000 - age as u64);
        root.file().set_modified(used).unwrap();
        cache.put(&record(name, false, name)).unwrap();
    }
    let all: u64 = cache.stored().unwrap().iter().map(|it| it.size).sum();
    assert!(all >= 4 * (64 << 10));
    // The oldest is in use, also once only another descriptor of it is open; the next was used just now.
    let root = cache.root(&chain("a")).unwrap().unwrap();
    root.file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
    let in_use = root.file().as_fd().try_clone_to_owned().unwrap();
    drop(root);
    drop(cache.root(&chain("b")).unwrap());
    assert_eq!(freed(2, || cache.make_room(all / 2, NO_PATIENCE)), all / 2);
    let is_there = |name| cache.root(&chain(name)).unwrap().is_some();
    assert_eq!(["a", "b", "c", "d"].map(is_there), [true, true, false, false]);
    let records: Vec<_> = cache.records().unwrap().into_iter().map(|it| it.reference).collect();
    assert_eq!(records, ["a", "b"]);
    drop(in_use);
    freed(2, || cache.make_room(0, NO_PATIENCE));
    assert!(cache.records().unwrap().is_empty());
}

#[test]
fn what_is_removed_while_it_is_being_opened_is_made_again() {
    let (_folder, cache) = cache();
    for _ in 0..200 {
        thread::scope(|scope| {
            let opened = scope.spawn(|| text(&make(&cache, "a", b"one")));
            let removed = scope.spawn(|| cache.make_room(0, NO_PATIENCE).unwrap());
            assert_eq!(opened.join().unwrap(), "one");
            removed.join().unwrap();
        });
    }
}

#[test]
fn a_name_is_known_until_it_is_removed() {
    let (_folder, cache) = cache();
    let debian = "docker.io/library/debian:12";
    cache.put(&record(debian, true, "a")).unwrap();
    cache.put(&record("/some/layout:tag", false, "a")).unwrap();
    assert!(cache.known(debian).unwrap().is_none(), "it has no root");
    drop(make(&cache, "a", b"one"));
    let (known, root) = cache.known(debian).unwrap().unwrap();
    assert_eq!(known.config().unwrap().platform().to_string(), "linux/amd64");
    for called in ["debian:12", debian] {
        assert_eq!(cache.called(called).unwrap().reference, debian);
    }
    let both = cache.called(&chain("a").hex()[..12]).unwrap_err().to_string();
    assert!(both.contains("is each of /some/layout:tag, docker.io"), "{both}");
    assert!(cache.called("debian:11").unwrap_err().to_string().contains("kite image list"));
    assert!(cache.called("12").is_err());
    // Both have the same root, which goes with the second, and not while it is in use.
    assert_eq!(cache.remove(&known).unwrap().images, 0);
    let other = cache.called("/some/layout:tag").unwrap();
    assert!(cache.remove(&other).unwrap_err().to_string().contains("in use"));
    drop(root);
    freed(1, || cache.remove(&other));
    assert!(cache.records().unwrap().is_empty() && cache.stored().unwrap().is_empty());
}

#[test]
fn a_record_that_makes_no_sense_is_none() {
    let (_folder, cache) = cache();
    cache.put(&record("a", false, "a")).unwrap();
    let path = cache.folder().join(RECORDS).join(format!("{}.json", chain("a").hex()));
    for content in ["", "{", "[]", r#"{"schema":"image/99"}"#] {
        fs::write(&path, content).unwrap();
        assert!(cache.record("a").unwrap().is_none());
        assert!(cache.records().unwrap().is_empty());
    }
    cache.put(&record("a", false, "a")).unwrap();
    assert!(cache.record("a").unwrap().is_some());
}

#[test]
fn what_nobody_goes_on_to_make_is_removed_and_what_is_being_made_is_not() {
    let (_folder, cache) = cache();
    let blob = |making: &Making| making.blob(&chain("blob"))?.write_all(&[7; 8192]).context("cannot write");
    let dead = |making: &Making, _: &File| blob(making).and_then(|()| bail!("killed"));
    assert!(cache.root_or_make(&chain("dead"), || (), dead).is_err());
    let alive = |making: &Making, mut file: &File| {
        blob(making)?;
        assert_eq!(cache.make_room(u64::MAX, Duration::from_secs(3600))?, Freed::default());
        let freed = cache.make_room(u64::MAX, NO_PATIENCE)?;
        assert_eq!((freed.images, freed.unfinished), (0, 1));
        assert!(freed.bytes >= 8192);
        Ok(file.write_all(b"one")?)
    };
    assert_eq!(text(&cache.root_or_make(&chain("alive"), || (), alive).unwrap()), "one");
}

#[test]
fn a_folder_that_others_may_write_to_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let kite = folder.path().join("kite");
    fs::create_dir(&kite).unwrap();
    fs::set_permissions(&kite, Permissions::from_mode(0o777)).unwrap();
    let error = Cache::at(folder.path()).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
    fs::set_permissions(&kite, Permissions::from_mode(0o755)).unwrap();
    Cache::at(folder.path()).unwrap();
    assert_eq!(fs::metadata(&kite).unwrap().mode() & 0o777, 0o700);
    if !geteuid().is_root() {
        return println!("skipped: a folder of another user: it takes root to give a folder away");
    }
    std::os::unix::fs::chown(&kite, Some(12_345), None).unwrap();
    let error = Cache::at(folder.path()).unwrap_err().to_string();
    assert!(error.contains("belongs to user 12345"), "{error}");
}

#[test]
fn links_in_the_cache_are_not_followed() {
    let (folder, cache) = cache();
    let precious = folder.path().join("precious");
    fs::write(&precious, "kept").unwrap();
    std::os::unix::fs::symlink(&precious, cache.root_path(&chain("a"))).unwrap();
    assert!(cache.root(&chain("a")).is_err());
    let making = cache.folder().join(MAKING).join(chain("b").hex());
    fs::create_dir(&making).unwrap();
    std::os::unix::fs::symlink(&precious, making.join("root")).unwrap();
    assert!(cache.root_or_make(&chain("b"), || (), |_, _| Ok(())).is_err());
    assert_eq!(fs::read_to_string(&precious).unwrap(), "kept");
}
