//! Registries good and bad, on this machine.

mod hostile;
mod login;
pub(in crate::backend::image) mod server;

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::Mutex;

use serde_json::json;

use super::*;
use crate::backend::image::digest::Digest;
use crate::backend::image::manifest::Layer;
use server::{Answer, Asked, Server};

const MANIFEST: &str = MANIFEST_TYPES[0];

/// The contents of a repository by their paths in it.
pub(in crate::backend::image) type Contents = HashMap<String, (String, Vec<u8>)>;

/// A repository with one image of one layer; its layer's content and the contents by path.
pub(in crate::backend::image) fn repository(layer: &[u8]) -> Contents {
    let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes), "size": bytes.len() });
    let config =
        json!({ "os": "linux", "architecture": "amd64", "rootfs": { "diff_ids": [Digest::of(layer)] } });
    let config = config.to_string().into_bytes();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": descriptor("config.v1+json", &config),
                           "layers": [descriptor("layer.v1.tar", layer)] });
    let manifest = manifest.to_string().into_bytes();
    let mut platform = descriptor("manifest.v1+json", &manifest);
    platform["platform"] = json!({ "os": "linux", "architecture": "amd64" });
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX_TYPES[0], "manifests": [platform] });
    let index = index.to_string().into_bytes();
    let by_digest = |folder: &str, bytes: &[u8]| format!("{folder}/{}", Digest::of(bytes));
    HashMap::from([
        ("manifests/one".to_owned(), (MANIFEST.to_owned(), manifest.clone())),
        ("manifests/latest".to_owned(), (INDEX_TYPES[0].to_owned(), index.clone())),
        (by_digest("manifests", &manifest), (MANIFEST.to_owned(), manifest)),
        (by_digest("manifests", &index), (INDEX_TYPES[0].to_owned(), index)),
        (by_digest("blobs", &config), ("application/octet-stream".to_owned(), config)),
        (by_digest("blobs", layer), ("application/octet-stream".to_owned(), layer.to_vec())),
    ])
}

/// What a good registry answers, with the repository `team/app`.
pub(in crate::backend::image) fn good(contents: &Contents, asked: &Asked) -> Answer {
    let path = asked.path.strip_prefix("/v2/team/app/").unwrap_or("");
    match contents.get(path) {
        Some((kind, bytes)) if asked.from() > 0 => {
            let rest = &bytes[asked.from()..];
            let range = format!("bytes {}-{}/{}", asked.from(), bytes.len() - 1, bytes.len());
            Answer::new(206, &[("Content-Type", kind), ("Content-Range", &range)], rest)
        }
        Some((kind, bytes)) => {
            let digest = Digest::of(bytes).to_string();
            Answer::new(200, &[("Content-Type", kind), ("Docker-Content-Digest", &digest)], bytes)
        }
        None => {
            Answer::new(404, &[], br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#)
        }
    }
}

fn open_with(server: &Server, version: &str, files: Files) -> Registry {
    let reference = format!("{}/team/app{version}", server.host).parse().unwrap();
    Registry::with(&reference, false, files, Duration::ZERO).unwrap()
}

fn open(server: &Server, version: &str) -> Registry {
    open_with(server, version, Files::none())
}

/// Gets a layer into an empty file, and gives what was got.
fn download(registry: &Registry, layer: &Layer) -> anyhow::Result<Vec<u8>> {
    let mut file = tempfile::tempfile().unwrap();
    registry.download(layer.digest.as_ref().unwrap(), layer.size, &mut file, &|_| Ok(()))?;
    Ok(content(&mut file))
}

fn content(file: &mut File) -> Vec<u8> {
    use std::io::Seek;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
}

fn error<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn an_image_is_got_by_its_tag_and_by_its_digest() {
    let contents = repository(b"the layer");
    let by_digest = contents.keys().find(|path| path.starts_with("manifests/sha256")).unwrap();
    let by_digest = format!("@{}", by_digest.strip_prefix("manifests/").unwrap());
    let server = Server::start(move |asked| good(&contents, asked));
    for version in ["", ":one", ":latest", &by_digest] {
        let registry = open(&server, version);
        let image = registry.image().unwrap();
        assert_eq!(image.config.platform().to_string(), "linux/amd64");
        assert_eq!(download(&registry, &image.layers[0]).unwrap(), b"the layer");
    }
    let absent = error(open(&server, ":two").image());
    assert!(absent.contains("has no such image: 404 Not Found: manifest unknown"), "{absent}");
    assert!(absent.contains("podman login"), "{absent}");
}

#[test]
fn a_download_that_breaks_off_is_taken_up_where_it_was() {
    let layer: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    let contents = repository(&layer);
    let server = Server::start(move |asked| {
        let answer = good(&contents, asked);
        if !asked.path.contains("/blobs/") || asked.path.ends_with("no") {
            return answer;
        }
        match contents.get(asked.path.strip_prefix("/v2/team/app/").unwrap()) {
            Some((_, bytes)) if bytes.len() > 100_000 => {
                let from = asked.from();
                let rest = &bytes[from..];
                let length = rest.len().to_string();
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                let status = if from > 0 { 206 } else { 200 };
                // Says the rest, and sends half of it.
                let sent = if rest.len() > 1000 { &rest[..rest.len() / 2] } else { rest };
                Answer::new(status, &[("Content-Length", &length), ("Content-Range", &range)], sent)
            }
            _ => answer,
        }
    });
    let registry = open(&server, "");
    let image = registry.image().unwrap();
    assert_eq!(download(&registry, &image.layers[0]).unwrap(), layer);
    let from: Vec<_> = server.asked().iter().map(Asked::from).filter(|from| *from > 0).collect();
    assert!(from.len() > 5 && from.is_sorted(), "{from:?}");
}

#[test]
fn what_is_there_of_a_blob_is_used_if_it_is_right_and_else_got_again() {
    let contents = repository(b"0123456789");
    let server = Server::start(move |asked| good(&contents, asked));
    let registry = open(&server, "");
    let layer = registry.image().unwrap().layers[0].clone();
    for (there, requests) in [("", 1), ("01234", 1), ("0123456789", 0), ("01x34", 2), ("0123456789abc", 1)] {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, there.as_bytes()).unwrap();
        let before = server.asked().len();
        let told = Mutex::new(Vec::new());
        let tell = |done| {
            told.lock().unwrap().push(done);
            Ok(())
        };
        registry.download(layer.digest.as_ref().unwrap(), layer.size, &mut file, &tell).unwrap();
        assert_eq!(content(&mut file), b"0123456789", "{there}");
        assert_eq!(server.asked().len() - before, requests, "{there}");
        assert_eq!(told.lock().unwrap().last(), Some(&10), "{there}");
    }
}

#[test]
fn a_server_without_ranges_sends_all_again() {
    let contents = repository(b"0123456789");
    let server = Server::start(move |asked| good(&contents, &Asked { headers: Vec::new(), ..asked.clone() }));
    let registry = open(&server, "");
    let layer = registry.image().unwrap().layers[0].clone();
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"0123").unwrap();
    registry.download(layer.digest.as_ref().unwrap(), layer.size, &mut file, &|_| Ok(())).unwrap();
    assert_eq!(content(&mut file), b"0123456789");
}

#[test]
fn failures_in_passing_are_tried_again_and_others_are_not() {
    for (status, tries) in [(500, 5), (503, 5), (429, 5), (400, 1), (404, 1), (418, 1)] {
        let server = Server::start(move |_| Answer::new(status, &[("Retry-After", "1000000")], b"{}"));
        let failed = error(open(&server, "").image());
        assert!(failed.contains(&status.to_string()), "{failed}");
        assert_eq!(server.asked().len(), tries, "{status}");
    }
    let contents = repository(b"x");
    let count = Mutex::new(0);
    let server = Server::start(move |asked| {
        let mut count = count.lock().unwrap();
        *count += 1;
        if *count % 3 == 0 { good(&contents, asked) } else { Answer::new(502, &[], b"") }
    });
    let registry = open(&server, "");
    let image = registry.image().unwrap();
    assert_eq!(download(&registry, &image.layers[0]).unwrap(), b"x");
}
