//! `kite doctor` from outside: what it prints and its exit status, on this machine and on poorer ones.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::pty::openpty;
use serde_json::Value;

use crate::support::{KITE, root};

/// Runs in a new mount namespace: an empty `/dev` with a copy of kite ($0) that everybody may execute.
const EMPTY_DEV: &str = "mount -t tmpfs -o mode=755 none /dev && cp \"$0\" /dev/kite && ";

fn doctor(arguments: &[&str]) -> Output {
    Command::new(KITE).arg("doctor").args(arguments).output().unwrap()
}

/// What `script` prints that has a `/dev` of its own, or why that cannot be.
fn doctor_after(script: &str) -> Result<Output, String> {
    let root = nix::unistd::geteuid().is_root();
    let namespace: &[&str] = if root { &["-m"] } else { &["-r", "-m"] };
    let shell = |script: &str| {
        let script = [EMPTY_DEV, script].concat();
        Command::new("unshare").args(namespace).args(["sh", "-c", &script, KITE]).output()
    };
    match shell("true") {
        Ok(probe) if probe.status.success() => Ok(shell(script).unwrap()),
        Ok(probe) => Err(String::from_utf8_lossy(&probe.stderr).trim().to_owned()),
        Err(error) => Err(format!("unshare: {error}")),
    }
}

fn json(output: &Output) -> Value {
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    report["checks"].as_array().unwrap().iter().find(|check| check["name"] == name).unwrap()
}

/// What holds for every report on every machine.
fn assert_consistent(output: &Output) -> Value {
    let report = json(output);
    assert_eq!(report["schema"], "doctor/1");
    let checks = report["checks"].as_array().unwrap();
    for check in checks {
        assert!(check["found"].as_str().is_some_and(|found| !found.is_empty()), "{check}");
        let fixed = check["fix"].as_str().is_some_and(|fix| !fix.is_empty());
        match check["status"].as_str().unwrap() {
            "ok" => assert!(check["fix"].is_null(), "{check}"),
            "warn" => assert!(fixed && check["needed"] == false, "{check}"),
            "fail" => assert!(fixed && check["needed"] == true, "{check}"),
            other => panic!("status {other}"),
        }
    }
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(report["ok"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    report
}

#[test]
fn the_exit_status_says_whether_a_needed_check_fails() {
    assert_consistent(&doctor(&["--json"]));
}

#[test]
fn the_names_are_stable() {
    let report = json(&doctor(&["--json"]));
    let names: Vec<_> =
        report["checks"].as_array().unwrap().iter().map(|check| check["name"].clone()).collect();
    let expected = [
        "/dev/kvm",
        "kvm-capabilities",
        "kvm-extras",
        "kvm-vcpus",
        "kvm-vm",
        "virtualisation",
        "stock-kernels",
        "tun",
        "passt",
        "io-uring",
        "huge-pages",
        "user-namespaces",
        "cgroup",
        "landlock",
        "seccomp",
        "kernel",
        "modules",
    ];
    assert_eq!(names, expected);
}

#[test]
fn the_text_has_the_same_checks_in_plain_lines() {
    let (text, report) = (doctor(&[]), json(&doctor(&["--json"])));
    assert_eq!(text.status.code(), Some(i32::from(report["ok"] == false)));
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(!text.contains('\x1b'));
    let (fixes, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("      fix: "));
    let heads = lines.iter().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>());
    let checks = report["checks"].as_array().unwrap();
    let expected =
        checks.iter().map(|check| vec![check["status"].as_str().unwrap(), check["name"].as_str().unwrap()]);
    assert!(heads.eq(expected), "{text}");
    assert_eq!(fixes.len(), checks.iter().filter(|check| !check["fix"].is_null()).count());
}

#[test]
fn colour_is_for_terminals_whose_user_wants_it() {
    let on_terminal = |no_color: &str| {
        let terminal = openpty(None, None).unwrap();
        let mut command = Command::new(KITE);
        command.arg("doctor").env("TERM", "xterm").env("NO_COLOR", no_color).stdout(terminal.slave);
        let mut child = command.spawn().unwrap();
        drop(command); // and with it our copy of the terminal's other end
        let mut seen = Vec::new();
        // A terminal that everybody has left ends in EIO.
        let _ = File::from(terminal.master).read_to_end(&mut seen);
        assert!(child.wait().unwrap().code().is_some_and(|code| code < 2));
        String::from_utf8(seen).unwrap()
    };
    assert!(on_terminal("").contains("\x1b[32mok  \x1b[0m  "));
    let plain = on_terminal("1");
    assert!(plain.contains("ok    ") && !plain.contains('\x1b'), "{plain}");
}

#[test]
fn a_reader_that_is_gone_is_no_failure() {
    for arguments in [&["doctor"][..], &["doctor", "--json"]] {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let output =
            Command::new(KITE).args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), doctor(&[]).status.code());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(KITE).arg("doctor").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(String::from_utf8_lossy(&output.stderr).lines().count(), 1);
}

#[test]
fn a_missing_kvm_device_fails() {
    let output = needs!(doctor_after("exec /dev/kite doctor --json"));
    let report = assert_consistent(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(check(&report, "/dev/kvm")["found"], "missing");
    assert_eq!(check(&report, "kvm-capabilities")["status"], "fail");
    assert_eq!(check(&report, "tun")["found"], "missing");
}

#[test]
fn a_file_in_place_of_the_kvm_device_fails() {
    let script = ": > /dev/kvm; exec /dev/kite doctor --json";
    let output = needs!(doctor_after(script));
    let report = assert_consistent(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(check(&report, "/dev/kvm")["found"], "not KVM's device");
}

#[test]
fn a_forbidden_device_or_kernel_is_fixed_by_its_permissions() {
    needs!(root());
    let script =
        "mknod -m 660 /dev/kvm c 10 232 && chgrp 54321 /dev/kvm && mkdir /dev/net && mknod -m 600 /dev/net/tun c 10 200 &&
        : > /dev/kernel && chmod 600 /dev/kernel && export KITE_KERNEL=/dev/kernel &&
        exec setpriv --reuid 65534 --regid 65534 --clear-groups /dev/kite doctor --json";
    let output = needs!(doctor_after(script));
    let report = assert_consistent(&output);
    assert_eq!(output.status.code(), Some(1));
    // Inside a container there are no logins.
    let contained = ["/.dockerenv", "/run/.containerenv"].iter().any(|mark| Path::new(mark).exists());
    let fix = match contained {
        true => "run the container with --group-add \"$(stat -c %g /dev/kvm)\"",
        false => "usermod -aG 54321 $USER, then log in again",
    };
    assert_eq!(check(&report, "/dev/kvm")["fix"], fix);
    assert_eq!(check(&report, "tun")["fix"], "chmod 0666 /dev/net/tun");
    assert_eq!(check(&report, "kernel")["found"], "/dev/kernel: permission denied");
    assert!(check(&report, "kernel")["fix"].as_str().unwrap().starts_with("chmod +r /dev/kernel"));
}

#[test]
fn an_unusable_kernel_in_the_environment_is_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let text = folder.path().join("text\x1b[2J");
    std::fs::write(&text, "no kernel").unwrap();
    std::fs::set_permissions(&text, PermissionsExt::from_mode(0o644)).unwrap();
    let with = |path: &Path, arguments: &[&str]| {
        Command::new(KITE).arg("doctor").args(arguments).env("KITE_KERNEL", path).output().unwrap()
    };
    let report = assert_consistent(&with(&text, &["--json"]));
    assert_eq!(check(&report, "kernel")["status"], "warn");
    assert_eq!(check(&report, "modules")["status"], "warn");
    assert!(check(&report, "kernel")["found"].as_str().unwrap().starts_with(text.to_str().unwrap()));
    let plain = String::from_utf8(with(&text, &[]).stdout).unwrap();
    assert!(plain.contains("text\\u{1b}[2J"), "{plain}");
}
