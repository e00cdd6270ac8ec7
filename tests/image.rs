//! `kite image` with a registry of the distribution project's on this machine (Debian's docker-registry).
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use nix::pty::{Winsize, openpty};
use serde_json::{Value, json};
use sha2::Digest;
use tempfile::TempDir;

/// The registry's program.
const REGISTRY: &str = "/usr/bin/docker-registry";
/// me:secret, as htpasswd(1) writes it.
const ACCOUNT: &str = "me:$2b$04$KDNl/03ltVMy.2kYLi.WAeSbLhAh18rsJhkRx/vXE7rrkkmeTUryi\n";
/// The same as Docker writes it.
const CREDENTIALS: &str = "bWU6c2VjcmV0";
/// The type of an image's manifest.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// What kite ends with when it fails.
const FAILED: i32 = 125;

/// A registry and a user with a cache, until they go.
struct Fixture {
    folder: TempDir,
    registry: Child,
    host: String,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        let _ = self.registry.kill();
        let _ = self.registry.wait();
    }
}

impl Fixture {
    /// A registry that has `team/app:one`; nothing where there is no such program.
    fn new() -> Option<Self> {
        if !Path::new(REGISTRY).exists() {
            println!(
                "skipped: `kite image` with a registry: there is no {REGISTRY}: apt install docker-registry"
            );
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (registry, host) = serve(folder.path(), "");
        let fixture = Self { folder, registry, host };
        fixture.push("one", b"the layer");
        Some(fixture)
    }

    /// Has the registry serve what it has in another way.
    fn again(&mut self, more: &str) {
        self.registry.kill().unwrap();
        self.registry.wait().unwrap();
        (self.registry, self.host) = serve(self.folder.path(), more);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.host)
    }

    fn kite(&self, arguments: &[&str]) -> Command {
        let mut kite = Command::new(env!("CARGO_BIN_EXE_kite"));
        kite.arg("image").args(arguments).env_clear();
        kite.env("PATH", "/usr/bin:/bin").env("HOME", self.folder.path());
        kite.stdin(Stdio::null());
        kite
    }

    fn run(&self, arguments: &[&str]) -> String {
        done(self.kite(arguments).output().unwrap())
    }

    fn fail(&self, arguments: &[&str]) -> String {
        failed(self.kite(arguments).output().unwrap())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// Pushes an image of one layer with one file, by the protocol.
    fn push(&self, tag: &str, content: &[u8]) {
        let layer = tar_with("file", content);
        let [config, manifest] = documents(&layer);
        for bytes in [&layer, &config] {
            let begun = self.send("POST", "/v2/team/app/blobs/uploads/", "", b"");
            let place = begun.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
            let path = place.split_once(&self.host).map_or(place, |(_, path)| path);
            let whole = format!("{path}&digest={}", digest(bytes));
            assert!(self.send("PUT", &whole, "application/octet-stream", bytes).starts_with("HTTP/1.1 201"));
        }
        let path = format!("/v2/team/app/manifests/{tag}");
        let put = self.send("PUT", &path, MANIFEST, &manifest);
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
    }

    fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}

/// Starts a registry in a folder; its process and where it listens.
fn serve(folder: &Path, more: &str) -> (Child, String) {
    let config = folder.join("registry.yml");
    let storage = folder.join("storage");
    let text = format!(
        "version: 0.1\nlog: {{accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: 127.0.0.1:0\n{more}",
        storage.display()
    );
    fs::write(&config, text).unwrap();
    let mut registry = Command::new(REGISTRY);
    registry.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut registry = registry.spawn().unwrap();
    let mut said = BufReader::new(registry.stderr.take().unwrap());
    let mut host = None;
    let mut all = String::new();
    while host.is_none() {
        let mut line = String::new();
        assert_ne!(said.read_line(&mut line).unwrap(), 0, "the registry has ended: {all}");
        host = line.split_once("listening on ").map(|(_, rest)| {
            let end = rest.find(|char: char| !char.is_ascii_digit() && !".:".contains(char)).unwrap();
            rest[..end].to_owned()
        });
        all += &line;
    }
    // It waits for its reader.
    thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    (registry, host.unwrap())
}

fn done(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {error}", output.status);
    // Nothing is shown of progress where there is no terminal.
    assert_eq!(error, "");
    String::from_utf8(output.stdout).unwrap()
}

fn failed(output: Output) -> String {
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(FAILED), "{error}");
    assert!(error.starts_with("kite: ") && error.lines().count() == 1, "{error}");
    error
}

fn digest(bytes: &[u8]) -> String {
    let hash = sha2::Sha256::digest(bytes);
    "sha256:".to_owned() + &hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
}

/// What describes a part of an image of some kind.
fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "size": bytes.len(), "digest": digest(bytes) })
}

/// The configuration and the manifest of an image of one layer.
fn documents(layer: &[u8]) -> [Vec<u8>; 2] {
    let config = json!({ "os": "linux", "architecture": "amd64", "config": { "Cmd": ["cat", "/file"] },
                         "rootfs": { "type": "layers", "diff_ids": [digest(layer)] } });
    let config = config.to_string().into_bytes();
    let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST,
                           "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
                           "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", layer)] });
    [config, manifest.to_string().into_bytes()]
}

/// Makes a folder an OCI layout with an image of one layer.
fn write_layout(folder: &Path, layer: &[u8]) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let [config, manifest] = documents(layer);
    for bytes in [layer, &config, &manifest] {
        fs::write(blobs.join(digest(bytes).trim_start_matches("sha256:")), bytes).unwrap();
    }
    let index = json!({ "schemaVersion": 2, "manifests": [descriptor(MANIFEST, &manifest)] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// All files below a folder, by their paths in it.
fn files(folder: &Path) -> Vec<String> {
    let list = Command::new("find").arg(folder).args(["-mindepth", "1", "-printf", "%P %y %m %s\n"]).output();
    let mut files: Vec<_> = done(list.unwrap()).lines().map(str::to_owned).collect();
    files.sort_unstable();
    files
}

fn tar_with(name: &str, content: &[u8]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, content).unwrap();
    tar.into_inner().unwrap()
}

#[test]
fn an_image_comes_from_a_registry_is_shown_and_goes() {
    let Some(fixture) = Fixture::new() else { return };
    let image = fixture.image("team/app:one");
    let looked = fixture.json(&["inspect", &image, "--json"]);
    assert_eq!((&looked["platform"], &looked["root"]), (&json!("linux/amd64"), &Value::Null));
    let pulled = fixture.run(&["pull", &image]);
    assert_eq!(pulled, format!("{image}  {}\n", looked["manifest"].as_str().unwrap()));
    let by_digest = format!("{}@{}", fixture.image("team/app"), looked["manifest"].as_str().unwrap());
    fixture.run(&["pull", &by_digest]);
    let list = fixture.json(&["list", "--json"]);
    let names: Vec<_> = list["images"].as_array().unwrap().iter().map(|it| it["reference"].clone()).collect();
    assert_eq!(names, [image.as_str(), &by_digest]);
    let root = fixture.json(&["inspect", &image, "--json"])["root"].as_str().unwrap().to_owned();
    let mut file = File::open(&root).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o7777, 0o400);
    // EROFS's number is at byte 1024.
    let mut head = [0; 1028];
    file.read_exact(&mut head).unwrap();
    assert_eq!(head[1024..], 0xe0f5_e1e2_u32.to_le_bytes());
    assert!(fixture.run(&["list"]).contains(&image));
    fixture.run(&["remove", &image]);
    assert!(Path::new(&root).exists(), "the other name has it");
    fixture.run(&["remove", &by_digest]);
    assert!(!Path::new(&root).exists());
    assert!(fixture.fail(&["remove", &image]).contains("kite image list"));
    let absent = fixture.fail(&["pull", &fixture.image("team/app:absent")]);
    assert!(absent.contains("has no such image: 404"), "{absent}");
}

#[test]
fn a_hostile_image_changes_nothing_but_the_cache_that_the_environment_names() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["home", "cache", "target"] {
        fs::create_dir(path(name)).unwrap();
    }
    fs::write(path("target/victim"), "as it was").unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    let mut add = |kind: tar::EntryType, name: &str, link: &Path, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o6777);
        // The crate itself refuses names that lead out.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_link_name_literal(link.as_os_str().as_encoded_bytes()).unwrap();
        header.set_cksum();
        layer.append(&header, content).unwrap();
    };
    let (none, target) = (Path::new(""), path("target"));
    let absolute = target.join("absolute");
    add(tar::EntryType::Regular, "../../../../../../../../escaped", none, b"x");
    add(tar::EntryType::Regular, absolute.to_str().unwrap(), none, b"x");
    add(tar::EntryType::Symlink, "link", &target, b"");
    add(tar::EntryType::Regular, "link/victim", none, b"changed");
    add(tar::EntryType::Regular, "link/.wh.victim", none, b"");
    add(tar::EntryType::Symlink, "up", Path::new("../../../../.."), b"");
    add(tar::EntryType::Regular, "up/up/escaped", none, b"x");
    add(tar::EntryType::Symlink, "loop", Path::new("loop"), b"");
    write_layout(&path("layout"), &layer.into_inner().unwrap());
    let before = files(folder.path());
    let mut kite = Command::new(env!("CARGO_BIN_EXE_kite"));
    kite.args(["image", "pull"]).arg(path("layout")).env_clear().current_dir(&target);
    kite.env("PATH", "/usr/bin:/bin").env("HOME", path("home")).env("XDG_CACHE_HOME", path("cache"));
    done(kite.stdin(Stdio::null()).output().unwrap());
    let (cached, others): (Vec<_>, Vec<_>) =
        files(folder.path()).into_iter().partition(|file| file.starts_with("cache/"));
    assert_eq!(others, before.into_iter().filter(|file| !file.starts_with("cache/")).collect::<Vec<_>>());
    assert!(cached.iter().any(|file| file.starts_with("cache/kite/images/roots/")), "{cached:?}");
    assert_eq!(fs::read_to_string(path("target/victim")).unwrap(), "as it was");
    assert!(!Path::new("/escaped").exists());
}

#[test]
fn who_waits_at_a_terminal_sees_how_far_a_pull_is() {
    let Some(fixture) = Fixture::new() else { return };
    let layer = digest(&tar_with("file", b"the layer"));
    let image = format!("{}/team/app:one", holding(&fixture.host, layer));
    let size = Winsize { ws_row: 24, ws_col: 100, ws_xpixel: 0, ws_ypixel: 0 };
    let terminal = openpty(&size, None).unwrap();
    let mut kite =
        fixture.kite(&["pull", &image]).env("TERM", "xterm").stderr(terminal.slave).spawn().unwrap();
    let (mut master, mut shown) = (File::from(terminal.master), String::new());
    // A bar, and how many bytes there are to come.
    while !(shown.contains("pulling ") && shown.contains("] ") && shown.contains("/2.00 KiB")) {
        let mut buffer = [0; 4096];
        let count = master.read(&mut buffer).unwrap_or(0);
        assert_ne!(count, 0, "it has ended: {shown}");
        shown += &String::from_utf8_lossy(&buffer[..count]);
    }
    kite.kill().unwrap();
    kite.wait().unwrap();
}

#[test]
fn many_pull_the_same_at_a_time_and_get_it() {
    let Some(fixture) = Fixture::new() else { return };
    let image = fixture.image("team/app:one");
    let pulling: Vec<_> = (0..6)
        .map(|_| {
            let mut kite = fixture.kite(&["pull", &image]);
            kite.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    pulling.into_iter().for_each(|kite| drop(done(kite.wait_with_output().unwrap())));
    let images = fixture.path(".cache/kite/images");
    let count = |folder: &str| fs::read_dir(images.join(folder)).unwrap().count();
    assert_eq!((count("roots"), count("making"), count("records")), (1, 0, 1));
}

/// A registry that has what `host` has, and never sends what `held` is in the path of; where it is.
fn holding(host: &str, held: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (own, host) = (listener.local_addr().unwrap().to_string(), host.to_owned());
    thread::spawn(move || {
        let mut open = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            let mut head = String::new();
            while reader.read_line(&mut head).is_ok_and(|length| length > 2) {}
            if head.contains(&held) {
                open.push(stream);
                continue;
            }
            // What is no request is a hello of TLS.
            if head.starts_with("GET ") {
                let mut registry = TcpStream::connect(&host).unwrap();
                let first = head.lines().next().unwrap();
                let accept = head.lines().filter(|line| line.to_ascii_lowercase().starts_with("accept:"));
                let head =
                    [first, "Host: x", "Connection: close"].into_iter().chain(accept).collect::<Vec<_>>();
                registry.write_all((head.join("\r\n") + "\r\n\r\n").as_bytes()).unwrap();
                let _ = std::io::copy(&mut registry, &mut stream);
            }
        }
    });
    own
}

#[test]
fn one_that_is_killed_is_in_nobody_s_way() {
    let Some(fixture) = Fixture::new() else { return };
    let layer = digest(&tar_with("file", b"the layer"));
    let image = format!("{}/team/app:one", holding(&fixture.host, layer));
    let making = fixture.path(".cache/kite/images/making");
    let is_making = || fs::read_dir(&making).is_ok_and(|entries| entries.count() > 0);
    let mut first = fixture.kite(&["pull", &image]).stderr(Stdio::piped()).spawn().unwrap();
    while !is_making() {
        assert!(first.try_wait().unwrap().is_none(), "it has ended");
        thread::sleep(Duration::from_millis(10));
    }
    // What somebody is making is not removed.
    let freed = fixture.json(&["prune", "--json"]);
    assert_eq!((&freed["unfinished"], is_making()), (&json!(0), true));
    first.kill().unwrap();
    first.wait().unwrap();
    // The same layers from a registry that sends them: there is nothing to wait for.
    let image = fixture.image("team/app:one");
    fixture.run(&["pull", &image]);
    assert!(!is_making());
    assert!(fixture.run(&["list"]).contains(&image));
}

#[test]
fn a_disk_that_is_full_is_one_error_and_the_next_try_goes_on() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.push("two", &[7; 300_000]);
    let image = fixture.image("team/app:two");
    let mut full = Command::new("sh");
    // In blocks of 512 bytes; what is behind the limit cannot be written, as on a full disk.
    full.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_kite")]);
    full.args(["image", "pull", &image]).env_clear().env("HOME", fixture.folder.path());
    let refused = failed(full.stdin(Stdio::null()).output().unwrap());
    assert!(refused.contains("cannot write it") && refused.contains("File too large"), "{refused}");
    let images = fixture.path(".cache/kite/images");
    let count = |folder: &str| fs::read_dir(images.join(folder)).unwrap().count();
    assert_eq!((count("roots"), count("making"), count("records")), (0, 1, 0));
    fixture.run(&["pull", &image]);
    assert_eq!((count("roots"), count("making"), count("records")), (1, 0, 1));
}

#[test]
fn a_registry_for_some_is_shown_their_password() {
    let Some(mut fixture) = Fixture::new() else { return };
    fs::write(fixture.path("htpasswd"), ACCOUNT).unwrap();
    let path = fixture.path("htpasswd");
    fixture.again(&format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", path.display()));
    let image = fixture.image("team/app:one");
    let refused = fixture.fail(&["pull", &image]);
    assert!(refused.contains("gives no access: 401") && refused.contains("podman login"), "{refused}");
    fs::create_dir(fixture.path(".docker")).unwrap();
    let config = json!({ "auths": { &fixture.host: { "auth": CREDENTIALS } } }).to_string();
    fs::write(fixture.path(".docker/config.json"), &config).unwrap();
    fixture.run(&["pull", &image]);
    fs::write(fixture.path(".docker/config.json"), config.replace(CREDENTIALS, "bWU6d3Jvbmc=")).unwrap();
    assert!(fixture.fail(&["pull", &image]).contains("gives no access: 401"));
}

#[test]
fn a_registry_with_tls_is_trusted_by_its_certificate() {
    let Some(mut fixture) = Fixture::new() else { return };
    let (key, certificate) = (fixture.path("key.pem"), fixture.path("certificate.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]);
    openssl.args(["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]);
    let made = openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).output();
    match made {
        Ok(made) => assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr)),
        Err(why) => return println!("skipped: a registry with TLS: openssl: {why}: apt install openssl"),
    }
    fixture.again(&format!("  tls: {{certificate: {}, key: {}}}\n", certificate.display(), key.display()));
    let image = fixture.image("team/app:one");
    let refused = fixture.fail(&["pull", &image]);
    assert!(refused.contains("certificate"), "{refused}");
    let trusting = |arguments: &[&str]| {
        done(fixture.kite(arguments).env("SSL_CERT_FILE", &certificate).output().unwrap())
    };
    trusting(&["pull", &image]);
    fixture.run(&["prune", "--all"]);
    fixture.run(&["pull", "--insecure-registry", &image]);
    assert!(fixture.run(&["list"]).contains(&image));
}

#[test]
fn the_least_recently_used_go_when_another_comes() {
    let Some(fixture) = Fixture::new() else { return };
    fixture.push("two", &[7; 300_000]);
    let (one, two) = (fixture.image("team/app:one"), fixture.image("team/app:two"));
    fixture.run(&["pull", &one]);
    let mut pull = fixture.kite(&["pull", &two]);
    done(pull.env("KITE_IMAGE_LIMIT", "300K").output().unwrap());
    let list = fixture.run(&["list"]);
    assert!(!list.contains(&one), "{list}");
    let mut nonsense = fixture.kite(&["prune"]);
    assert!(failed(nonsense.env("KITE_IMAGE_LIMIT", "much").output().unwrap()).contains("$KITE_IMAGE_LIMIT"));
    let freed: Value = fixture.json(&["prune", "--limit", "1K", "--json"]);
    assert!(freed["bytes"].as_u64().is_some());
    assert_eq!(fixture.json(&["list", "--json"])["images"].as_array().map(Vec::len), Some(0));
}
