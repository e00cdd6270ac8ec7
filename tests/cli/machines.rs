//! Commands for machines that run, where none does, and where their folder is not the user's alone.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::support::attempt::Attempt;
use crate::support::{NOBODY, root};

#[test]
fn names_that_machines_cannot_have_are_refused() {
    let attempt = Attempt::new();
    let long = "x".repeat(65);
    for name in ["", ".", ".a", "-a", "a/b", "a b", &long] {
        let option = format!("--id={name}");
        attempt.refused(["run", &option], "--id");
    }
    attempt.refused(["screenshot", "../a", "a.png"], "ID");
}

#[test]
fn a_machine_that_does_not_run_is_named() {
    let attempt = Attempt::new();
    let id = format!("cli-{}", std::process::id());
    let path = attempt.path("a.png");
    let path = path.to_str().unwrap();
    attempt.refused(["screenshot", &id, path], &format!("no machine named {id} runs: `kite list`"));
    attempt.refused(["screenshot", &id, "/missing/a.png"], "there is no folder /missing");
    attempt.refused(["screenshot"], "FILE");
    for command in ["pause", "resume", "stop"] {
        attempt.refused([command, &id], &format!("no machine named {id} runs: `kite list`"));
        attempt.refused([command], "ID");
    }
    attempt.refused(["stop", &id, "--timeout=soon"], "--timeout");
}

#[test]
fn a_folder_of_machines_that_others_can_use_is_refused_and_a_link_not_followed() {
    needs!(root());
    let attempt = Attempt::new();
    let kite = attempt.kite();
    let runtime = tempfile::tempdir().unwrap();
    fs::set_permissions(runtime.path(), Permissions::from_mode(0o755)).unwrap();
    let folder = runtime.path().join("kite");
    let list = || {
        let mut command = Command::new(&kite);
        command.arg("list").env("XDG_RUNTIME_DIR", runtime.path()).uid(NOBODY).gid(NOBODY);
        attempt.end_of(&mut command)
    };
    let empty = "ID  PID  SINCE  STATE  SCREEN  COMMAND OR KERNEL\n";
    list().assert(0, empty, "");
    DirBuilder::new().mode(0o700).create(&folder).unwrap();
    list().assert_refusal("Permission denied");
    chown(&folder, Some(NOBODY), Some(NOBODY)).unwrap();
    list().assert(0, empty, "");
    fs::set_permissions(&folder, Permissions::from_mode(0o750)).unwrap();
    list().assert_refusal("others can use it");
    fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
    fs::rename(&folder, runtime.path().join("own")).unwrap();
    symlink("own", &folder).unwrap();
    list().assert_refusal("is no folder, or a link: remove it");
}
