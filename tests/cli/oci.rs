//! `kite oci` from outside: the life of containers whose machines never begin, errors as engines read them, and what is
//! left behind, on any host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{KITE, until};

/// A root and a bundle.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bundle/rootfs")).unwrap();
        let place = Self { folder };
        place.write(&config());
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, config: &Value) {
        fs::write(self.path("bundle/config.json"), config.to_string()).unwrap();
    }

    fn oci(&self, arguments: &[&str]) -> Output {
        let mut kite = Command::new(KITE);
        kite.args(["oci", "--log-format", "json", "--log"])
            .arg(self.path("log"))
            .arg("--root")
            .arg(self.path("root"));
        kite.args(arguments).output().unwrap()
    }

    fn create(&self, id: &str) -> Output {
        let (bundle, pid) = (self.path("bundle"), self.path("pid"));
        // A file, as the monitor that stays has the streams, too.
        let stderr = fs::File::create(self.path("stderr")).unwrap();
        let mut kite = Command::new(KITE);
        kite.args(["oci", "--log-format", "json", "--log"])
            .arg(self.path("log"))
            .arg("--root")
            .arg(self.path("root"));
        kite.args(["create", "--bundle"]).arg(bundle).arg("--pid-file").arg(pid).arg(id);
        let status =
            kite.stdout(fs::File::create(self.path("stdout")).unwrap()).stderr(stderr).status().unwrap();
        Output { status, stdout: Vec::new(), stderr: fs::read(self.path("stderr")).unwrap() }
    }

    fn state(&self, id: &str) -> Value {
        serde_json::from_slice(&done(self.oci(&["state", id])).stdout).unwrap()
    }

    fn pid(&self) -> u32 {
        fs::read_to_string(self.path("pid")).unwrap().parse().unwrap()
    }

    /// The last line of the log.
    fn logged(&self) -> Value {
        serde_json::from_str(fs::read_to_string(self.path("log")).unwrap().lines().last().unwrap()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.path("root")).into_iter().flatten().flatten() {
            self.oci(&["delete", "--force", entry.file_name().to_str().unwrap()]);
        }
    }
}

fn config() -> Value {
    json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
        "annotations": {"a": "b"},
    })
}

#[track_caller]
fn done(output: Output) -> Output {
    assert!(output.status.success(), "{output:?}");
    output
}

#[track_caller]
fn refused(output: &Output, why: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(why) && stderr.lines().count() == 1, "{stderr}");
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_container_is_created_killed_and_deleted() {
    let place = Place::new();
    done(place.create("a"));
    let state = place.state("a");
    assert_eq!((&state["status"], &state["pid"]), (&json!("created"), &json!(place.pid())));
    assert_eq!((&state["annotations"]["a"], &state["ociVersion"]), (&json!("b"), &json!("1.2.0")));
    assert_eq!(fs::metadata(place.path("root/a")).unwrap().permissions().mode() & 0o777, 0o700);
    refused(&place.create("a"), "already exists");
    refused(&place.oci(&["delete", "a"]), "created");
    refused(&place.oci(&["exec", "a", "true"]), "not running");
    refused(&place.oci(&["resume", "a"]), "created");
    let pids = done(place.oci(&["ps", "--format", "json", "a"]));
    assert_eq!(serde_json::from_slice::<Value>(&pids.stdout).unwrap(), json!([place.pid()]));
    done(place.oci(&["kill", "a", "KILL"]));
    let pid = place.pid();
    until("the monitor's end", || !is_alive(pid));
    let state = place.state("a");
    assert_eq!((&state["status"], &state["pid"]), (&json!("stopped"), &json!(0)));
    refused(&place.oci(&["kill", "a", "TERM", "--all"]), "container not running");
    assert_eq!(place.logged()["msg"], "container not running");
    done(place.oci(&["delete", "a"]));
    refused(&place.oci(&["delete", "a"]), "does not exist");
    done(place.oci(&["delete", "--force", "a"]));
    assert_eq!(fs::read_dir(place.path("root")).unwrap().count(), 0);
}

#[test]
fn a_killed_monitor_leaves_what_delete_removes() {
    let place = Place::new();
    for force in [false, true] {
        done(place.create("a"));
        let pid = place.pid();
        if !force {
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL)
                .unwrap();
            until("the monitor's end", || !is_alive(pid));
            assert_eq!(place.state("a")["status"], "stopped");
        }
        done(place.oci(if force { &["delete", "--force", "a"] } else { &["delete", "a"] }));
        assert!(!is_alive(pid) && !place.path("root/a").exists());
    }
}

#[test]
fn a_machine_that_cannot_begin_ends_the_container_with_kite_s_status() {
    let place = Place::new();
    let mut config = config();
    config["annotations"] = json!({"kite.kernel": "/no/such/kernel"});
    place.write(&config);
    let output = place.oci(&["run", "--bundle", place.path("bundle").to_str().unwrap(), "a"]);
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("/no/such/kernel"), "{output:?}");
    assert!(!place.path("root/a").exists());
    done(place.create("a"));
    done(place.oci(&["start", "a"]));
    let pid = place.pid();
    until("the machine's end", || !is_alive(pid));
    assert_eq!(place.state("a")["status"], "stopped");
    refused(&place.oci(&["start", "a"]), "stopped");
    done(place.oci(&["delete", "a"]));
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line_and_leaves_nothing() {
    let place = Place::new();
    for (id, change, why) in [
        ("..", json!({}), "ID"),
        ("a/b", json!({}), "ID"),
        ("a", json!({"ociVersion": "2.0"}), "versions 1.x"),
        ("a", json!({"root": {"path": "none"}}), "not a folder"),
        ("a", json!({"process": {"args": [], "cwd": "/"}}), "args is empty"),
        ("a", json!({"process": {"args": ["x"], "cwd": "/", "terminal": true}}), "--console-socket"),
        ("a", json!({"mounts": [{"destination": "/x", "type": "bind", "source": "/none"}]}), "/none"),
        ("a", json!({"hooks": {"prestart": [{"path": "/bin/false"}]}}), "hook /bin/false"),
    ] {
        let mut config = config();
        config.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        place.write(&config);
        let output = place.create(id);
        refused(&output, why);
        let logged = place.logged();
        assert_eq!(logged["level"], "error");
        assert!(
            String::from_utf8_lossy(&output.stderr).contains(logged["msg"].as_str().unwrap()),
            "{logged}"
        );
        assert!(logged["time"].as_str().is_some_and(|time| time.ends_with('Z')));
        assert_eq!(fs::read_dir(place.path("root")).map_or(0, Iterator::count), 0, "{change}");
    }
    fs::write(place.path("bundle/config.json"), "[".repeat(1 << 20)).unwrap();
    refused(&place.create("a"), "config.json");
    fs::remove_file(place.path("bundle/config.json")).unwrap();
    nix::unistd::mkfifo(&place.path("bundle/config.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    refused(&place.create("a"), "not a regular file");
}

#[test]
fn a_planted_state_is_not_believed() {
    let place = Place::new();
    fs::create_dir_all(place.path("root")).unwrap();
    fs::create_dir(place.path("precious")).unwrap();
    fs::write(place.path("precious/state.json"), "{}").unwrap();
    symlink(place.path("precious"), place.path("root/a")).unwrap();
    for arguments in [&["state", "a"][..], &["kill", "a"], &["delete", "--force", "a"]] {
        assert_eq!(place.oci(arguments).status.code(), Some(1), "{arguments:?}");
    }
    assert!(place.path("precious/state.json").exists());
    fs::remove_file(place.path("root/a")).unwrap();
}

#[test]
fn a_link_named_kite_oci_is_the_runtime() {
    let place = Place::new();
    let link = place.path("kite-oci");
    symlink(KITE, &link).unwrap();
    let output = done(Command::new(&link).arg("features").output().unwrap());
    let features: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(features["ociVersionMax"], "1.2.0");
    let output = Command::new(&link)
        .args(["--root", place.path("root").to_str().unwrap(), "state", "x"])
        .output()
        .unwrap();
    refused(&output, "container 'x' does not exist");
}
