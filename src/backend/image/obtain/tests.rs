//! Images from registries and folders to the cache, merged by a stand-in that writes the blobs one behind the other.

use std::io::{Read, Write};
use std::sync::Mutex;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::backend::image::registry::tests::server::{Answer, Asked, Server};
use crate::backend::image::registry::tests::{Contents, good, repository};

const OPTIONS: Options = Options { is_insecure: false, is_refreshed: false, is_shown: false, limit: 1 << 30 };

fn cache() -> (TempDir, Cache) {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path()).unwrap();
    (folder, cache)
}

/// Writes the blobs' content, and refuses it where it is not what it is said to be.
fn concatenate(
    layers: &mut dyn Iterator<Item = anyhow::Result<(Layer, Section)>>,
    mut file: &File,
    progress: &dyn Fn(u64),
) -> anyhow::Result<()> {
    for layer in layers {
        let (layer, mut section) = layer?;
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes)?;
        layer.diff_id.check(&bytes)?;
        file.write_all(&bytes)?;
        progress(bytes.len() as u64);
    }
    Ok(())
}

fn content(obtained: &Obtained) -> String {
    fs::read_to_string(obtained.root.path()).unwrap()
}

/// A repository with one image of these layers.
fn with_layers(layers: &[&str]) -> Contents {
    let mut contents = repository(b"unused");
    let diff_ids: Vec<_> = layers.iter().map(|it| Digest::of(it.as_bytes())).collect();
    let config =
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": diff_ids } }).to_string();
    let descriptor = |kind: &str, bytes: &str| {
        json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "size": bytes.len(),
                "digest": Digest::of(bytes.as_bytes()) })
    };
    let of_layers: Vec<_> = layers.iter().map(|it| descriptor("layer.v1.tar", it)).collect();
    let manifest =
        json!({ "schemaVersion": 2, "config": descriptor("config.v1+json", &config), "layers": of_layers });
    let kind = "application/vnd.oci.image.manifest.v1+json".to_owned();
    contents.insert("manifests/latest".to_owned(), (kind, manifest.to_string().into_bytes()));
    for blob in layers.iter().copied().chain([config.as_str()]) {
        let path = format!("blobs/{}", Digest::of(blob.as_bytes()));
        contents.insert(path, (String::new(), blob.as_bytes().to_vec()));
    }
    contents
}

#[test]
fn an_image_is_got_once_and_then_without_a_registry() {
    let (_folder, cache) = cache();
    let contents = with_layers(&["one", "two", "one", "three", "four", "five"]);
    let server = Server::start(move |asked| good(&contents, asked));
    let text = format!("{}/team/app", server.host);
    let first = obtain_by(&cache, &text, &OPTIONS, &concatenate).unwrap();
    assert_eq!(content(&first), "onetwoonethreefourfive");
    let paths = server.paths();
    // Each blob once, also the one that two layers have: five and the configuration.
    assert_eq!(paths.iter().filter(|path| path.contains("/blobs/")).count(), 6, "{paths:?}");
    assert_eq!(fs::read_dir(cache.folder().join("making")).unwrap().count(), 0);
    let again = obtain_by(&cache, &text, &OPTIONS, &|_, _, _| panic!("it is there")).unwrap();
    assert_eq!((content(&again), server.paths().len()), (content(&first), paths.len()));
    let asked = Options { is_refreshed: true, ..OPTIONS };
    obtain_by(&cache, &text, &asked, &|_, _, _| panic!("it is there")).unwrap();
    // The manifest and the configuration, and no layer.
    assert_eq!(server.paths().len(), paths.len() + 2);
    assert_eq!(look_at(&cache, &text, false).unwrap().reference, format!("{text}:latest"));
}

#[test]
fn a_tag_that_moves_on_is_got_anew_when_the_registry_is_asked() {
    let (_folder, cache) = cache();
    let contents = Arc::new(Mutex::new(with_layers(&["old"])));
    let served = contents.clone();
    let server = Server::start(move |asked| good(&served.lock().unwrap(), asked));
    let text = format!("{}/team/app", server.host);
    let get = |is_refreshed| {
        content(&obtain_by(&cache, &text, &Options { is_refreshed, ..OPTIONS }, &concatenate).unwrap())
    };
    assert_eq!(get(false), "old");
    *contents.lock().unwrap() = with_layers(&["new"]);
    assert_eq!(get(false), "old");
    assert_eq!(get(true), "new");
    assert_eq!(get(false), "new");
    assert_eq!((cache.records().unwrap().len(), cache.stored().unwrap().len()), (1, 2));
}

#[test]
fn what_was_got_before_a_failure_is_not_got_again() {
    let (_folder, cache) = cache();
    let contents = with_layers(&["one", "two"]);
    let bad = format!("blobs/{}", Digest::of(b"two"));
    let is_bad = Arc::new(AtomicBool::new(true));
    let broken = is_bad.clone();
    let server = Server::start(move |asked: &Asked| {
        match broken.load(Ordering::SeqCst) && asked.path.ends_with(&bad) {
            true => Answer::new(200, &[], b"too"),
            false => good(&contents, asked),
        }
    });
    let text = format!("{}/team/app", server.host);
    let error = obtain_by(&cache, &text, &OPTIONS, &concatenate).unwrap_err();
    assert!(format!("{error:#}").contains("damaged or forged"), "{error:#}");
    assert!(cache.stored().unwrap().is_empty() && cache.records().unwrap().is_empty());
    is_bad.store(false, Ordering::SeqCst);
    let before = server.paths().len();
    assert_eq!(content(&obtain_by(&cache, &text, &OPTIONS, &concatenate).unwrap()), "onetwo");
    // Manifest, configuration, and the one layer that was bad: what was there of it was wrong, and so it came again.
    assert_eq!(server.paths().len() - before, 3);
}

#[test]
fn a_merger_that_fails_ends_the_downloads() {
    let (_folder, cache) = cache();
    let layers: Vec<_> = (0..20).map(|it| format!("layer {it}")).collect();
    let contents = with_layers(&layers.iter().map(String::as_str).collect::<Vec<_>>());
    let last = format!("blobs/{}", Digest::of(b"layer 1"));
    // The second layer never ends.
    let server = Server::start(move |asked| match asked.path.ends_with(&last) {
        true => Answer::new(200, &[("Content-Length", "7")], b"lay"),
        false => good(&contents, asked),
    });
    let text = format!("{}/team/app", server.host);
    let failed = obtain_by(&cache, &text, &OPTIONS, &|layers, _, _| {
        layers.next().context("there is a layer")??;
        bail!("the layer is nonsense")
    });
    assert!(format!("{:#}", failed.unwrap_err()).contains("the layer is nonsense"));
}

#[test]
fn an_image_that_the_disk_has_no_room_for_is_refused_before_it_comes() {
    let (_folder, cache) = cache();
    let mut contents = with_layers(&["one", "two"]);
    let (kind, manifest) = contents["manifests/latest"].clone();
    let mut manifest: Value = serde_json::from_slice(&manifest).unwrap();
    manifest["layers"][0]["size"] = (1_u64 << 60).into();
    contents.insert("manifests/latest".to_owned(), (kind.clone(), manifest.to_string().into_bytes()));
    let server = Server::start(move |asked| good(&contents, asked));
    let text = format!("{}/team/app", server.host);
    let error = format!("{:#}", obtain_by(&cache, &text, &OPTIONS, &concatenate).unwrap_err());
    assert!(error.contains("kite image prune"), "{error}");
    assert!(!server.paths().iter().any(|path| path.ends_with(Digest::of(b"one").as_str())));
}

#[test]
fn one_blob_of_two_lengths_is_refused() {
    let layer = |size| Layer { digest: Some(Digest::of(b"x")), size, diff_id: Digest::of(b"x") };
    let (_folder, cache) = cache();
    let contents = with_layers(&["one", "one"]);
    let server = Server::start(move |asked| good(&contents, asked));
    let text = format!("{}/team/app", server.host);
    let mut image = find(&Target::of(&text).unwrap(), false).unwrap().0;
    assert_eq!(blobs(&image).unwrap().len(), 1);
    image.layers = vec![layer(1), layer(2)];
    assert!(blobs(&image).unwrap_err().to_string().contains("is said to have 1 bytes, and 2 too"));
    assert!(cache.records().unwrap().is_empty());
}

#[test]
fn a_folder_is_looked_at_each_time_and_merged_once() {
    let (_folder, cache) = cache();
    let layout = tempfile::tempdir().unwrap();
    let contents = with_layers(&["one", "two"]);
    let manifest = contents["manifests/latest"].1.clone();
    let write = |name: &str, bytes: &[u8]| {
        let path = layout.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let blobs =
        contents.iter().filter_map(|(path, (_, bytes))| Some((path.strip_prefix("blobs/sha256:")?, bytes)));
    blobs.for_each(|(hex, bytes)| write(&format!("blobs/sha256/{hex}"), bytes));
    write(&format!("blobs/sha256/{}", Digest::of(&manifest).hex()), &manifest);
    write("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let descriptor = json!({ "mediaType": kind, "digest": Digest::of(&manifest), "size": manifest.len() });
    write("index.json", json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string().as_bytes());
    let text = layout.path().to_str().unwrap();
    assert_eq!(content(&obtain_by(&cache, text, &OPTIONS, &concatenate).unwrap()), "onetwo");
    let again = obtain_by(&cache, text, &OPTIONS, &|_, _, _| panic!("it is there")).unwrap();
    let name = fs::canonicalize(layout.path()).unwrap();
    assert_eq!(again.record.reference, name.to_str().unwrap());
    // A changed layer is seen when it is merged, not before.
    write("index.json", b"{}");
    assert!(obtain_by(&cache, text, &OPTIONS, &concatenate).is_err());
}
