//! The fields of JSON outputs: that `json.md` has those that kite writes, and that kite writes those that it has.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::source;
use crate::support::attempt::Attempt;
use crate::support::child::Running;
use crate::support::image::{POWER_OFF, elf_of};
use crate::support::{KITE, kvm};
use crate::table::rows;

/// The fields of a schema: their types, and whether a document had them.
struct Schema(BTreeMap<String, (Vec<String>, bool)>);

impl Schema {
    /// The one below this heading.
    fn of(heading: &str) -> Self {
        let text = source("resources/doc/json.md");
        let section = text.split("\n## ").find(|section| section.lines().next() == Some(heading)).unwrap();
        let row = |row: Vec<String>| {
            let types = row[1].split(" or ").map(str::to_owned).collect();
            Some((row[0].strip_prefix('`')?.strip_suffix('`')?.to_owned(), (types, false)))
        };
        Self(rows(section).into_iter().filter_map(row).collect())
    }

    /// Notes the fields of a document, each of which has to have a row.
    fn visit(&mut self, path: &str, value: &Value) {
        let kind = match value {
            Value::Null => "null",
            Value::Bool(_) => "bool",
            Value::Number(_) => "number",
            Value::String(_) => "string",
            Value::Array(_) => "list",
            Value::Object(_) => "object",
        };
        let fits = |row: &str| match row.strip_suffix(".*") {
            Some(parent) => path.strip_prefix(parent).is_some_and(|name| name.starts_with('.')),
            None => path == row,
        };
        let mut fitting =
            self.0.iter_mut().filter(|(row, (types, _))| fits(row) && types.iter().any(|it| it == kind));
        if let Some((_, (_, is_found))) = fitting.next() {
            *is_found = true;
            return;
        }
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.visit(&format!("{path}[]"), value)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    self.visit(&path, value);
                }
            }
            _ => panic!("json.md has no {kind} '{path}': {value}"),
        }
    }

    /// Fails the test if the documents lacked a field that is never absent.
    fn end(self) {
        let missing: Vec<_> = self
            .0
            .into_iter()
            .filter(|(_, (types, is_found))| !is_found && !types.iter().any(|it| it == "absent"))
            .map(|(path, _)| path)
            .collect();
        assert!(missing.is_empty(), "no document has {missing:?}");
    }
}

/// Fails the test unless these documents have the fields of a schema, and no others.
fn check(heading: &str, documents: &[String]) {
    let mut schema = Schema::of(heading);
    for document in documents {
        schema.visit("", &serde_json::from_str(document).unwrap());
    }
    schema.end();
}

/// What kite prints, whatever its status is.
fn printed(arguments: &[&str]) -> String {
    let end = Attempt::new().run(arguments);
    assert!(
        matches!(end.status.code(), Some(0 | 1)) && end.stderr.is_empty(),
        "{arguments:?}: {}",
        end.stderr
    );
    end.text().to_owned()
}

#[test]
fn the_doctor_s_report_has_the_fields_of_the_page() {
    check("doctor/1", &[printed(&["doctor", "--json"])]);
}

#[test]
fn a_spec_has_the_fields_of_the_page() {
    let all = "--cpus=2 --append=a --cmdline=b --kernel=6.12 --modules=m --module=n --force --cgroup=c \
               --limit=cpu=1,memory=1M,pids=9,io=8:0:rbps=1:wbps=2:riops=3:wiops=4 --disk=path=d,readonly,queues=1,id=x \
               --net=tap=t0,mac=02:00:00:00:00:01,mtu=1500,ip=192.0.2.7/24,gw=192.0.2.1,dns=192.0.2.2 \
               --net=user,forward=1:2/udp --port=a=b --share=/x:/y:rw,suid --root=r --cwd=/ --env=A=b --env=B \
               --clear-env --user=u:g --timeout=5 --idle-timeout=5 --junit=j --kernel-log=k --stats=s \
               --stats-interval=5s --trace=t --verbose -- true";
    let more = ["--initrd=i --net=tap=t0 --sandbox=auto,no-seccomp", "--net=tap=t0,ip=none -- true"];
    let disk = "--root=disk --disk=d -- true";
    let image = "--image=i --entrypoint=e --insecure-registry --pull -- true";
    let vnc = "--screen --vnc=unix:a --vnc-password-file=p --novnc=n --screenshot-on-failure=s";
    let lines = [all, disk, image, vnc, "--screen --id=a --vnc=127.0.0.1:5901"].into_iter().chain(more);
    let print = |line: &str| {
        printed(&["run", "--print-spec"].into_iter().chain(line.split_whitespace()).collect::<Vec<_>>())
    };
    check("Specs", &lines.map(print).collect::<Vec<_>>());
}

#[test]
fn the_list_of_system_calls_has_the_fields_of_the_page() {
    check("calls/1", &[printed(&["inspect", "--calls", "--json"])]);
}

#[test]
fn what_inspect_prints_has_the_fields_of_the_page() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    // jmp $
    fs::write(&kernel, elf_of(b"\xeb\xfe")).unwrap();
    let mut command = Command::new(KITE);
    command.args(["run", "--no-config", "--force", "--memory", "64M", "--kernel"]).arg(&kernel);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut kite = Running::spawn(&mut command);
    let pid = kite.child_id().to_string();
    let document = loop {
        let document = printed(&["inspect", "--json", &pid]);
        if document.contains("\"vcpu0\"") {
            break document;
        }
        assert!(!kite.has_ended(), "kite has ended");
        std::thread::sleep(Duration::from_millis(20));
    };
    check("inspect/1", &[document]);
}

#[test]
fn what_list_prints_has_the_fields_of_the_page() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let kernel = folder.path().join("kernel");
    // jmp $
    fs::write(&kernel, elf_of(b"\xeb\xfe")).unwrap();
    let id = format!("docs-{}", std::process::id());
    let mut command = Command::new(KITE);
    command.args(["run", "--no-config", "--force", "--memory", "64M", "--id", &id, "--kernel"]).arg(&kernel);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut kite = Running::spawn(&mut command);
    let document = loop {
        let document = printed(&["list", "--json"]);
        if document.contains(&id) {
            break document;
        }
        assert!(!kite.has_ended(), "kite has ended");
        std::thread::sleep(Duration::from_millis(20));
    };
    // Commands need Linux.
    let with_command = r#"{"machines": [{"command": "true"}]}"#;
    check("list/1", &[document, with_command.to_owned()]);
}

/// A folder with an OCI layout of one image, whose one layer is an empty archive.
fn layout(folder: &Path) {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let blob = |kind: &str, bytes: &[u8]| {
        let hash = Sha256::digest(bytes);
        let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(blobs.join(&hex), bytes).unwrap();
        let kind = format!("application/vnd.oci.image.{kind}");
        json!({ "mediaType": kind, "size": bytes.len(), "digest": format!("sha256:{hex}") })
    };
    let layer = blob("layer.v1.tar", &[0; 1024]);
    let rootfs = json!({ "type": "layers", "diff_ids": [&layer["digest"]] });
    let config = json!({ "os": "linux", "architecture": "amd64", "rootfs": rootfs });
    let config = blob("config.v1+json", config.to_string().as_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] });
    let manifest = blob("manifest.v1+json", manifest.to_string().as_bytes());
    let index = json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(folder.join("index.json"), index.to_string()).unwrap();
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

#[test]
fn what_kite_says_of_images_has_the_fields_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    layout(folder.path());
    let path = folder.path().to_str().unwrap();
    let image = |arguments: &[&str]| {
        let mut kite = Command::new(KITE);
        let output = kite.arg("image").args(arguments).env("XDG_CACHE_HOME", path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let before = image(&["inspect", path, "--json"]);
    image(&["pull", path]);
    check("image-inspect/1", &[before, image(&["inspect", path, "--json"])]);
    check("image-list/1", &[image(&["list", "--json"])]);
    check("image-prune/1", &[image(&["prune", "--all", "--json"])]);
}

#[test]
fn statistics_and_traces_have_the_fields_of_the_page() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    // mov dx, 0x3f8; mov al, 'h'; out dx, al
    fs::write(path("kernel"), elf_of(&[b"\x66\xba\xf8\x03\xb0h\xee", POWER_OFF].concat())).unwrap();
    let stats = format!("--stats={}", path("stats"));
    let arguments =
        ["run", "--force", "--memory", "64M", "--kernel", &path("kernel"), &stats, "--trace", &path("trace")];
    // The folder of the attempt is kite's current one: it has no files of defaults.
    assert_eq!(printed(&arguments), "h");
    check("kite-stats", &[fs::read_to_string(path("stats")).unwrap()]);
    check("Traces", &[fs::read_to_string(path("trace")).unwrap()]);
}

#[test]
fn reports_of_benchmarks_have_the_fields_of_the_page() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    printed(&["bench", "exits", "--only", "pio.out.1", "--time", "100ms", "--json", &path("exits")]);
    check("exits/1", &[fs::read_to_string(path("exits")).unwrap()]);
    printed(&["bench", "exits", "--only", "cpuid", "--payload", &path("guest")]);
    printed(&["bench", "boot", "--kernel", &path("guest"), "--runs", "3", "--json", &path("boot")]);
    check("boot/1", &[fs::read_to_string(path("boot")).unwrap()]);
}
