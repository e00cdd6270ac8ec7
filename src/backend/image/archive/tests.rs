//! Archives as tools write them, and as nobody should.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::*;
use crate::backend::image::layout::Folder;

/// A tar that is being made.
pub(in crate::backend::image) struct Made {
    builder: Builder<Vec<u8>>,
}

impl Made {
    pub(in crate::backend::image) fn new() -> Self {
        Self { builder: Builder::new(Vec::new()) }
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        // Unlike the crate's own calls, which refuse names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.builder.append(&header, content).unwrap();
        self
    }

    pub(in crate::backend::image) fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    fn json(self, name: &str, value: &Value) -> Self {
        self.file(name, value.to_string().as_bytes())
    }

    fn link(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, target, b"")
    }

    pub(in crate::backend::image) fn bytes(self) -> Vec<u8> {
        self.builder.into_inner().unwrap()
    }

    fn open(self) -> anyhow::Result<(TempDir, Archive)> {
        open(&self.bytes())
    }
}

fn open(bytes: &[u8]) -> anyhow::Result<(TempDir, Archive)> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");
    fs::write(&path, bytes).unwrap();
    Ok((folder, Archive::open(&path)?))
}

fn layer(text: &str) -> Vec<u8> {
    Made::new().file("etc/motd", text.as_bytes()).bytes()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({ "Cmd": ["sh"] });
    json!({ "os": "linux", "architecture": "amd64", "config": config, "rootfs": { "diff_ids": diff_ids } })
        .to_string()
        .into_bytes()
}

fn docker(archive: &Archive, tag: Option<&str>) -> anyhow::Result<(Image, Vec<Section>)> {
    match archive {
        Archive::Docker(files) => docker_image(files, tag),
        Archive::Oci(_) => panic!("it is no docker-archive"),
    }
}

fn content(section: &Section) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut section.clone(), &mut bytes).unwrap();
    bytes
}

fn error<T>(result: anyhow::Result<T>) -> String {
    match result {
        Ok(_) => panic!("it was taken"),
        Err(error) => format!("{error:#}"),
    }
}

#[test]
fn an_old_archive_with_links_for_layers_is_read() {
    let layers = [layer("one"), layer("two"), layer("one")];
    let config = config(&layers);
    let name = format!("{}.json", Digest::of(&config).hex());
    let item = json!([{ "Config": name, "RepoTags": ["debian:12", "localhost/x:y"],
                        "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"] }]);
    let made = Made::new()
        .file("a/layer.tar", &layers[0])
        .file("./b/layer.tar", &layers[1])
        .link("c/layer.tar", "../a/layer.tar")
        .file(&name, &config)
        .json("repositories", &json!({}))
        .json("manifest.json", &item);
    let (_folder, archive) = made.open().unwrap();
    for tag in [None, Some("debian:12"), Some("docker.io/library/debian:12"), Some("12"), Some("x:y")] {
        let (image, blobs) = docker(&archive, tag).unwrap();
        assert_eq!(blobs.iter().map(content).collect::<Vec<_>>(), layers);
        assert_eq!(image.config_digest, Digest::of(&config));
        assert_eq!(image.layers[2].diff_id, image.layers[0].diff_id);
        assert_eq!((&image.manifest, &image.layers[0].digest), (&None, &None));
    }
    let none = error(docker(&archive, Some("debian:11")));
    assert_eq!(none, "there is no image 'debian:11', only debian:12, localhost/x:y");
}

#[test]
fn an_archive_of_several_images_needs_a_name() {
    let layers = [layer("one")];
    let config = config(&layers);
    let item = |name: &str| json!({ "Config": "c.json", "RepoTags": [name], "Layers": ["l.tar"] });
    let items = json!([item("a:1"), item("b:1")]);
    let made = Made::new().file("l.tar", &layers[0]).file("c.json", &config).json("manifest.json", &items);
    let (_folder, archive) = made.open().unwrap();
    assert_eq!(error(docker(&archive, None)), "there are several images: name one of a:1, b:1");
    assert_eq!(docker(&archive, Some("b")).unwrap_err().to_string(), "there is no image 'b', only a:1, b:1");
    docker(&archive, Some("b:1")).unwrap();
}

/// The files of an OCI layout with one image of these tags.
fn oci(layers: &[Vec<u8>], tags: &[&str]) -> Vec<(String, Vec<u8>)> {
    let path = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
    let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes), "size": bytes.len() });
    let config = config(layers);
    let blobs: Vec<_> = layers.iter().map(|it| descriptor("layer.v1.tar", it)).collect();
    let manifest =
        json!({ "schemaVersion": 2, "config": descriptor("config.v1+json", &config), "layers": blobs });
    let manifest = manifest.to_string().into_bytes();
    let tagged = |tag: &&str| {
        let mut named = descriptor("manifest.v1+json", &manifest);
        named["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        named
    };
    let index = json!({ "schemaVersion": 2, "manifests": tags.iter().map(tagged).collect::<Vec<_>>() });
    let mut files = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    files.extend(layers.iter().chain([&config, &manifest]).map(|bytes| (path(bytes), bytes.clone())));
    files
}

fn as_tar(files: &[(String, Vec<u8>)]) -> Made {
    files.iter().fold(Made::new(), |made, (name, content)| made.file(name, content))
}

fn as_folder(files: &[(String, Vec<u8>)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    folder
}

#[test]
fn a_layout_is_read_from_a_folder_and_from_a_tar() {
    let layers = [layer("one"), layer("two")];
    let files = oci(&layers, &["a", "b"]);
    let folder = as_folder(&files);
    let layout = Layout::open(Folder::new(folder.path())).unwrap();
    let image = layout.image(Some("a")).unwrap();
    let read: Vec<_> = image.layers.iter().map(|it| content(&layout.layer(it).unwrap())).collect();
    assert_eq!(read, layers);
    assert_eq!(error(layout.image(Some("c"))), "there is no image 'c', only a, b");
    assert_eq!(error(layout.image(None)), "there are several images: name one of a, b");
    // As Docker 25 and later write it: the old form beside it changes nothing.
    let item = json!([{ "Config": "x", "RepoTags": [], "Layers": [] }]);
    let (_folder, archive) = as_tar(&files).json("manifest.json", &item).open().unwrap();
    let Archive::Oci(layout) = archive else { panic!("it is an oci-archive") };
    let image = layout.image(Some("b")).unwrap();
    assert_eq!(content(&layout.layer(&image.layers[1]).unwrap()), layers[1]);
}

#[test]
fn a_layout_s_blob_that_is_another_or_a_link_is_refused() {
    let layers = [layer("one")];
    let files = oci(&layers, &["a"]);
    let folder = as_folder(&files);
    let config = folder.path().join(&files[3].0);
    let manifest = folder.path().join(&files[4].0);
    let image = || Layout::open(Folder::new(folder.path())).unwrap().image(None);
    let layout = Layout::open(Folder::new(folder.path())).unwrap();
    let good = image().unwrap();
    File::options().append(true).open(folder.path().join(&files[2].0)).unwrap().write_all(b"x").unwrap();
    assert!(error(layout.layer(&good.layers[0])).contains("was said to have"));
    let text = String::from_utf8(files[3].1.clone()).unwrap().replace("\"sh\"", "\"id\"");
    fs::write(&config, text).unwrap();
    assert!(error(image()).contains("damaged or forged"));
    fs::remove_file(&manifest).unwrap();
    assert!(error(image()).contains("cannot open"));
    std::os::unix::fs::symlink("/etc/passwd", &manifest).unwrap();
    assert!(error(image()).contains("symbolic link"));
    fs::remove_file(&manifest).unwrap();
    nix::unistd::mkfifo(&manifest, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(error(image()).contains("no regular file"));
}

#[test]
fn a_forged_configuration_is_seen_by_its_name() {
    let layers = [layer("one")];
    let config = config(&layers);
    let name = format!("{}.json", Digest::of(b"other").hex());
    let item = json!([{ "Config": name, "Layers": ["l.tar"] }]);
    let made = Made::new().file("l.tar", &layers[0]).file(&name, &config).json("manifest.json", &item);
    let (_folder, archive) = made.open().unwrap();
    assert!(error(docker(&archive, None)).contains("damaged or forged"));
}

#[test]
fn names_that_lead_out_and_links_in_a_loop_lead_nowhere() {
    let config = config(&[layer("one")]);
    let item = |layer: &str| json!([{ "Config": "c.json", "Layers": [layer] }]);
    let of = |layer: &str| {
        let made = Made::new()
            .link("loop", "./loop")
            .link("a", "b")
            .link("b", "a")
            .link("out", "../../etc/passwd")
            .link("absolute", "/etc/passwd")
            .link("nul", "no/such")
            .file("../escaped", b"x")
            .file("c.json", &config)
            .entry(EntryType::Directory, "folder", "", b"")
            .entry(EntryType::Fifo, "fifo", "", b"")
            .json("manifest.json", &item(layer));
        let (_folder, archive) = made.open().unwrap();
        error(docker(&archive, None))
    };
    for layer in ["loop", "a"] {
        assert!(of(layer).contains("links lead from one to the next"), "{layer}");
    }
    for layer in [
        "out",
        "absolute",
        "nul",
        "../escaped",
        "escaped",
        "folder",
        "fifo",
        "/etc/passwd",
        "../../../etc/passwd",
        "",
    ] {
        assert!(of(layer).contains("has no file"), "{layer}: {}", of(layer));
    }
}

#[test]
fn long_names_of_both_kinds_and_large_sizes_are_understood() {
    let long = format!("{}/layer.tar", "d".repeat(200));
    let layers = [layer("one")];
    let config = config(&layers);
    let item = json!([{ "Config": "c.json", "Layers": [long] }]);
    let mut gnu = Made::new().file("c.json", &config).json("manifest.json", &item);
    gnu = gnu.entry(EntryType::GNULongName, "././@LongLink", "", format!("{long}\0").as_bytes());
    let pax = {
        let record = format!(" path={long}\n");
        let record = format!("{}{record}", record.len() + 3);
        let size = format!("13 size={}\n", layers[0].len());
        let made = Made::new().file("c.json", &config).json("manifest.json", &item);
        made.entry(EntryType::XHeader, "pax", "", format!("{record}{size}").as_bytes())
    };
    for made in [gnu, pax] {
        let (_folder, archive) = made.file("short", &layers[0]).open().unwrap();
        assert_eq!(content(&docker(&archive, None).unwrap().1[0]), layers[0]);
    }
}

#[test]
fn damaged_archives_and_bombs_are_refused_in_one_line() {
    let whole = Made::new().file("manifest.json", b"[]").file("a", &[0; 2000]).bytes();
    let cut = open(&whole[..1024 + 512 + 100]);
    assert!(error(cut).contains("cut off"));
    let mut flipped = whole.clone();
    flipped[1024] ^= 1;
    assert!(error(open(&flipped)).contains("header at byte 1024 makes no sense"));
    let lying =
        Made::new().entry(EntryType::XHeader, "x", "", b"29 size=18446744073709551615\n").file("a", b"");
    assert!(error(lying.open()).contains("makes no sense"));
    let name = Made::new().entry(EntryType::GNULongName, "x", "", &[b'x'; 70_000]).file("a", b"");
    assert!(error(name.open()).contains("makes no sense"));
    let mut many = Made::new();
    for _ in 0..20_001 {
        many = many.file("a", b"");
    }
    assert!(error(many.open()).contains("more than 20000 files"));
    assert!(error(open(b"")).contains("no archive of an image"));
    assert!(error(open(&[b'x'; 5000])).contains("makes no sense"));
    assert!(error(Made::new().file("repositories", b"{}").open()).contains("before 1.10"));
    assert!(error(Made::new().file("etc/passwd", b"").open()).contains("no archive of an image"));
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let whole = Made::new().file("manifest.json", b"[]").link("a", "b").file("a/b", &[7; 600]).bytes();
    let mut random: u32 = 1;
    for _ in 0..2_000 {
        let mut bytes = whole.clone();
        for _ in 0..3 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let at = (random >> 8) as usize % bytes.len();
            bytes[at] = random as u8;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let _ = TarFiles::index(Arc::new(file)).map(|files| files.has("a"));
    }
}

#[test]
fn a_path_that_is_no_archive_says_so() {
    let path = PathBuf::from("/no/such/archive.tar");
    assert!(error(Archive::open(&path)).contains("cannot open /no/such/archive.tar"));
}
