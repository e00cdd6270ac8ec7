//! Defaults in files.

use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

use crate::support::attempt::Attempt;
use crate::support::{KITE, NOBODY, root};

/// Puts this into `kite.toml`.
fn with(attempt: &Attempt, text: &str) {
    attempt.file("kite.toml", text.as_bytes());
}

#[test]
fn files_of_defaults_that_are_wrong_are_named_with_the_line() {
    let attempt = Attempt::new();
    for (text, expected) in [
        ("\nmemroy = '1G'\n", "/kite.toml:2: there is no option '--memroy'; do you mean '--memory'?"),
        ("memory = '512'\n", "/kite.toml:1: invalid value '512' for '--memory <SIZE>': 512 is bytes"),
        ("memory = \n", "/kite.toml:1: "),
        (
            "net = 'user'\n",
            "/kite.toml:1: 'net' is not a project's to set, as it gives the guest a network; it belongs on",
        ),
        ("cpus = 1\nshare = '.:rw'\n", "/kite.toml:2: 'share' is not a project's to set"),
    ] {
        with(&attempt, text);
        attempt.refused(["run", "--kernel", "none"], expected);
        attempt.refused(["run", "--kernel", "none", "--", "true"], expected);
        // Only `kite run` reads it, and only where it may.
        attempt.refused(["run", "--no-config", "--kernel", "none"], "cannot boot none");
        attempt.refused(["matrix", "none"], "cannot read none");
    }
    attempt.file("kite.toml", b"\xff");
    attempt.refused(["run"], "kite.toml: it is not UTF-8");
    attempt.sparse("kite.toml", b"", 1 << 30);
    attempt.refused(["run"], "it is longer than 64 KiB");
}

#[test]
fn the_command_line_comes_before_the_environment_then_the_project_then_the_user() {
    let attempt = Attempt::new();
    attempt.file("config/kite/config.toml", b"kernel = './of-user'\nno-balloon = true\nnet = 'user'\n");
    attempt.refused(["run"], "/config/kite/./of-user: ");
    with(&attempt, "kernel = './of-project'\n");
    attempt.refused(["run"], "/./of-project: ");
    let mut command = Command::new("env");
    command.args(["KITE_KERNEL=of-environment", KITE, "run"]);
    attempt.end_of(&mut command).assert_refusal("of-environment: ");
    attempt.refused(["run", "-k", "of-line"], "of-line: ");
    attempt.refused(["run", "--no-config", "-k", "of-line"], "of-line: ");
    let mut command = Command::new("env");
    command.args(["KITE_KERNEL=of-environment", KITE, "run", "-k", "of-line"]);
    attempt.end_of(&mut command).assert_refusal("of-line: ");
}

#[test]
fn defaults_of_a_boot_do_not_stand_in_the_way_of_a_command() {
    let attempt = Attempt::new();
    with(
        &attempt,
        "console = 'serial'\non-reboot = 'restart'\nno-acpi = true\ninitrd = 'x'\ntest-devices = true\n",
    );
    attempt.refused(["run", "-k", "none", "--", "true"], "cannot boot none");
    attempt.refused(["run", "-k", "none", "--disk", "none"], "cannot boot none");
}

#[test]
fn the_nearest_project_above_is_this_one() {
    let attempt = Attempt::new();
    with(&attempt, "kernel = 'a/outer'\n");
    fs::create_dir_all(attempt.path("sub/folder")).unwrap();
    let below = || {
        let mut command = Command::new("sh");
        command.args(["-c", "cd sub/folder && exec \"$0\" run", KITE]);
        command
    };
    attempt.end_of(&mut below()).assert_refusal("/a/outer: ");
    attempt.file("sub/kite.toml", b"kernel = 'b/inner'\n");
    attempt.end_of(&mut below()).assert_refusal("/sub/b/inner: ");
}

#[test]
fn a_project_that_is_a_link_to_nothing_is_reported() {
    let attempt = Attempt::new();
    std::os::unix::fs::symlink("/nowhere", attempt.path("kite.toml")).unwrap();
    let end = attempt.end_of(Command::new(KITE).args(["run", "-k", "none"]));
    assert!(end.stderr.contains("/kite.toml: is a link to no file, and is not read\n"), "{}", end.stderr);
}

#[test]
fn another_user_s_project_is_not_read() {
    needs!(root());
    let attempt = Attempt::new();
    with(&attempt, "kernel = 'a/planted'\n");
    chown(attempt.path("kite.toml"), Some(NOBODY), None).unwrap();
    let run = |variable: &str| {
        let mut command = Command::new("env");
        command.args([variable, KITE, "run", "--module", "x"]);
        attempt.end_of(&mut command)
    };
    let end = run("X=");
    assert!(end.stderr.contains("/kite.toml: is another user's, and is not read\n"), "{}", end.stderr);
    assert!(!end.stderr.contains("planted"), "{}", end.stderr);
    // Who has become root by sudo has left it there.
    run(&format!("SUDO_UID={NOBODY}")).assert_refusal("/a/planted: ");
}
