//! `kite oci` from outside: the life of containers whose machines never begin, errors as engines read them, and what is
//! left behind, on any host.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{KITE, root, until};

/// A root and a bundle.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("bundle/rootfs")).unwrap();
        // As much of Linux as can be seen without running it: it halts.
        let kernel = boot::testing::kernel(b"\xf4\xeb\xfdLinux version 6.1.0 (", boot::testing::Entry::Long);
        fs::write(folder.path().join("kernel"), kernel).unwrap();
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

    fn command(&self, arguments: &[&str]) -> Command {
        let mut kite = Command::new(KITE);
        kite.args(["oci", "--log-format", "json", "--log"]).arg(self.path("log"));
        kite.arg("--root").arg(self.path("root")).args(arguments).env("KITE_KERNEL", self.path("kernel"));
        kite
    }

    fn oci(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn create(&self, id: &str) -> Output {
        let (bundle, pid) = (self.path("bundle"), self.path("pid"));
        // A file, as the monitor that stays has the streams, too.
        let stderr = fs::File::create(self.path("stderr")).unwrap();
        let mut kite = self.command(&["create", "--bundle"]);
        kite.arg(bundle).arg("--pid-file").arg(pid).arg(id);
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
fn a_container_whose_process_cannot_begin_is_not_started() {
    let place = Place::new();
    done(place.create("a"));
    let output = place.oci(&["start", "a"]);
    refused(&output, "");
    assert_eq!(place.logged()["msg"].as_str().map(|it| it.contains('\n')), Some(false));
    let pid = place.pid();
    until("the machine's end", || !is_alive(pid));
    assert_eq!(place.state("a")["status"], "stopped");
    refused(&place.oci(&["start", "a"]), "stopped");
    done(place.oci(&["delete", "a"]));
    let output = place.oci(&["run", "--bundle", place.path("bundle").to_str().unwrap(), "a"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(!place.path("root/a").exists());
}

#[test]
fn a_signal_to_run_leaves_no_container() {
    let place = Place::new();
    let (waits, go) = (place.path("waits"), place.path("go"));
    let script = format!("touch {}; until test -e {}; do sleep 0.01; done", waits.display(), go.display());
    let mut config = config();
    config["hooks"] = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
    place.write(&config);
    let mut run = place.command(&["run", "--bundle", place.path("bundle").to_str().unwrap(), "--pid-file"]);
    let mut run = run.arg(place.path("pid")).arg("a").stderr(std::process::Stdio::null()).spawn().unwrap();
    until("the hook", || waits.exists());
    let pid = nix::unistd::Pid::from_raw(run.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    fs::write(go, "").unwrap();
    assert!(run.wait().unwrap().code().is_some_and(|code| code != 0), "it ends by itself");
    assert!(!is_alive(place.pid()));
    assert_eq!(fs::read_dir(place.path("root")).unwrap().count(), 0);
}

#[test]
fn a_monitor_is_in_the_group_that_the_engine_names_and_delete_removes_that() {
    let place = Place::new();
    let name = format!("kite-test-{}", std::process::id());
    let mut config = config();
    config["linux"] = json!({"cgroupsPath": format!("/{name}/a"), "resources": {"cpu": {"shares": 1024}}});
    place.write(&config);
    done(place.create("a"));
    let groups = || fs::read_to_string(format!("/proc/{}/cgroup", place.pid())).unwrap();
    if place.path("log").exists() {
        // A host without the hierarchy, or another user's.
        let logged = place.logged();
        assert!(
            logged["level"] == "warning" && logged["msg"].as_str().unwrap().contains("cgroupsPath"),
            "{logged}"
        );
        assert!(!groups().contains(&name));
    } else {
        assert!(groups().lines().any(|line| line == format!("0::/{name}/a")), "{}", groups());
        refused(&place.create("b"), "in use");
    }
    done(place.oci(&["delete", "--force", "a"]));
    let mut groups = walk("/sys/fs/cgroup".into());
    assert!(!groups.any(|path| path.file_name().is_some_and(|it| *it == *name)));
}

/// The folders of a folder, and theirs.
fn walk(path: PathBuf) -> Box<dyn Iterator<Item = PathBuf>> {
    let below = move |path: &PathBuf| {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_type().is_ok_and(|it| it.is_dir()))
            .map(|it| it.path())
            .collect::<Vec<_>>()
    };
    let first = below(&path);
    let second: Vec<_> = first.iter().flat_map(below).collect();
    Box::new(first.into_iter().chain(second))
}

#[test]
fn a_container_has_the_network_namespace_that_its_document_names() {
    needs!(root());
    let place = Place::new();
    let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/net")).unwrap();
    let mut config = config();
    config["linux"] = json!({"namespaces": [{"type": "network"}]});
    place.write(&config);
    done(place.create("a"));
    let first = place.pid();
    let own = namespace(&first.to_string());
    assert_ne!(own, namespace("self"));
    config["linux"] = json!({"namespaces": [{"type": "network", "path": format!("/proc/{first}/ns/net")}]});
    place.write(&config);
    done(place.create("b"));
    assert_eq!(namespace(&place.pid().to_string()), own);
    config["linux"] = json!({"namespaces": [{"type": "network", "path": "/none"}]});
    place.write(&config);
    refused(&place.create("c"), "cannot join network namespace /none");
}

fn bind(number: usize) -> Value {
    json!({"destination": format!("/{number}"), "type": "bind", "source": "/tmp", "options": ["rbind"]})
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
        ("a", json!({"annotations": {"kite.kernel": "/no/such/kernel"}}), "/no/such/kernel"),
        ("a", json!({"annotations": {"kite.kernel": "/bin/sh"}}), "/bin/sh"),
        ("a", json!({"mounts": (0..17).map(bind).collect::<Vec<_>>()}), "there is room for 15"),
        ("a", json!({"linux": {"cgroupsPath": "/../x"}}), "linux.cgroupsPath"),
        ("a", json!({"linux": {"resources": {"cpu": {"cpus": "x"}}}}), "cpu.cpus"),
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
