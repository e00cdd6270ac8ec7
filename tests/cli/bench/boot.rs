//! `kite bench boot`: that a guest's boots are rows or have a reason, and that what makes no sense is refused.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::bench::folder::Folder;
use crate::support::attempt::Attempt;
use crate::support::child::End;
use crate::support::child::Running;
use crate::support::image;
use crate::support::{KITE, kvm};

/// Runs `kite bench boot`.
fn boot(arguments: &[&str]) -> End {
    Attempt::new().run([&["bench", "boot"], arguments].concat())
}

impl Folder {
    /// A guest that prints and powers off.
    fn guest(&self, name: &str) -> String {
        let path = self.path(name);
        let made = Attempt::new().run(["bench", "exits", "--only", "cpuid", "--payload", &path]);
        assert_eq!(made.status.code(), Some(0), "{}", made.stderr);
        path
    }
}

fn refused(arguments: &[&str], word: &str) {
    boot(arguments).assert_refusal(word);
}

/// A folder with a kernel in it, and the kernel's path.
fn with_kernel(kernel: &[u8]) -> (Folder, String) {
    let folder = Folder::new();
    let path = folder.path("kernel");
    std::fs::write(&path, kernel).unwrap();
    (folder, path)
}

#[test]
fn what_makes_no_sense_is_refused_in_one_line() {
    let folder = Folder::new();
    let guest = folder.guest("guest");
    let junk = folder.path("junk");
    std::fs::write(&junk, "no kernel").unwrap();
    refused(&["--runs", "0"], "--runs");
    refused(&["--runs", "2"], "--runs");
    refused(&["--timeout", "0"], "--timeout");
    refused(&["--kernel", "/nonexistent"], "/nonexistent");
    refused(&["--kernel", "/"], "/ holds no kernel");
    refused(&["--kernel", &guest, "--kernel", &junk], &junk);
    refused(&["--kernel", &guest, "--kernel", &guest], "twice");
    refused(&["--kernel", &guest, "--append", "one\ntwo"], "line break");
    refused(&["--kernel", &guest, "--json", "/nonexistent/file.json"], "/nonexistent");
    refused(&["--kernel", &guest, "--html", "/nonexistent/file.html"], "/nonexistent");
    refused(&["--kernel", &guest, "--compare", "/nonexistent/old.json"], "/nonexistent/old.json");
    refused(&["--from", "/nonexistent/new.json"], "/nonexistent/new.json");
}

#[test]
fn a_report_of_another_version_or_benchmark_is_refused_before_anything_is_booted() {
    let folder = Folder::new();
    for (text, word) in [
        (r#"{"schema":"boot/9"}"#, "boot/9"),
        (r#"{"schema":"exits/1"}"#, "exits/1"),
        (r#"{"schema":"boot/1"}"#, "damaged"),
        ("[]", "no report of `kite bench boot --json`"),
        ("", "no report"),
    ] {
        std::fs::write(folder.path("old.json"), text).unwrap();
        refused(&["--compare", &folder.path("old.json")], word);
        refused(&["--from", &folder.path("old.json")], word);
    }
}

#[test]
fn peers_without_qemu_are_refused() {
    let folder = Folder::new();
    let guest = folder.guest("guest");
    let mut command = Command::new(KITE);
    command.args(["bench", "boot", "--peers", "--kernel", &guest]).env("PATH", folder.0.path());
    Attempt::new().end_of(&mut command).assert_refusal("no qemu-system-x86_64 in $PATH");
}

#[test]
fn each_stage_is_a_row_or_has_a_reason_and_can_be_told_again() {
    needs!(kvm());
    let folder = Folder::new();
    let guests = [folder.guest("one"), folder.guest("other")];
    let (new, page) = (folder.path("new.json"), folder.path("new.html"));
    let what = ["--kernel", &guests[0], "--kernel", &guests[1], "--runs", "3"];
    let end = boot(&[&what[..], &["--json", &new, "--html", &page]].concat());
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{}", end.text());
    let report = folder.json("new.json");
    assert_eq!((&report["schema"], &report["run"]["runs"]), (&"boot/1".into(), &3.into()));
    for guest in &guests {
        let of = |list: &str| -> Vec<Value> {
            let list = report[list].as_array().unwrap();
            list.iter().filter(|it| it["id"] == guest.as_str()).cloned().collect()
        };
        let rows = of("results");
        let stages: Vec<_> = rows.iter().map(|row| row["stage"].as_str().unwrap()).collect();
        assert_eq!(stages, ["first_instruction", "first_output", "power_off"]);
        let medians: Vec<_> = rows.iter().map(|row| row["p50"].as_f64().unwrap()).collect();
        assert!(medians[0] > 0.0 && medians.is_sorted(), "{medians:?}");
        for row in &rows {
            let number = |field: &str| row[field].as_f64().unwrap();
            assert!(number("min") <= number("p50") && number("p50") <= number("max"), "{row}");
            assert_eq!((&row["n"], row["blocks"].as_array().unwrap().len()), (&3.into(), 3), "{row}");
            assert_eq!((&row["path"], &row["unit"]), (&"kite".into(), &"ns".into()));
        }
        // Of one boot, what comes later took longer.
        for boot in 0..3 {
            let times: Vec<_> = rows.iter().map(|row| row["blocks"][boot]["p50"].as_f64().unwrap()).collect();
            assert!(times.is_sorted(), "{times:?}");
        }
        let skipped = of("skipped");
        assert_eq!((skipped.len(), &skipped[0]["stage"]), (1, &"user_space".into()));
        assert!(skipped[0]["reason"].as_str().unwrap().contains("no Linux"));
    }

    // The same run again, from its file: compared with itself nothing is slower.
    let again = boot(&["--from", &new, "--compare", &new, "--html", &folder.path("again.html")]);
    assert_eq!(again.status.code(), Some(0), "{}", again.stderr);
    assert!(again.text().starts_with(end.text()), "{}\n{}", end.text(), again.text());
    assert!(again.text().contains("6 rows in both") && again.text().contains("no row has changed"));
    assert_eq!(folder.text("new.html"), folder.text("again.html"));

    // And a slower one is named.
    let mut slower = report.clone();
    let row = &mut slower["results"][2];
    let twice = |value: &mut Value| *value = (value.as_f64().unwrap() * 20.0).into();
    twice(&mut row["p50"]);
    row["blocks"].as_array_mut().unwrap().iter_mut().for_each(|block| twice(&mut block["p50"]));
    std::fs::write(folder.path("slower.json"), slower.to_string()).unwrap();
    let end = boot(&["--from", &folder.path("slower.json"), "--compare", &new]);
    assert_eq!(end.status.code(), Some(1), "{}", end.stderr);
    assert!(end.text().contains(&format!("REGRESSION {} kite power_off", guests[0])), "{}", end.text());
}

/// The stages that are rows, and why the power-off is none; nothing is both or neither.
fn stages_and_end(report: &Value) -> (Vec<&str>, &str) {
    let (rows, skipped) = (report["results"].as_array().unwrap(), report["skipped"].as_array().unwrap());
    assert_eq!(rows.len() + skipped.len(), 4, "{report}");
    let off = skipped.iter().find(|it| it["stage"] == "power_off").unwrap();
    (rows.iter().map(|row| row["stage"].as_str().unwrap()).collect(), off["reason"].as_str().unwrap())
}

#[test]
fn a_guest_that_dies_keeps_the_stages_that_it_came_to() {
    needs!(kvm());
    // Its first instruction is undefined.
    let (folder, kernel) = with_kernel(&image::elf_of(b"\x0f\x0b"));
    let json = folder.path("new.json");
    let end = boot(&["--force", "--kernel", &kernel, "--runs", "3", "--json", &json]);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{}", end.text());
    let report = folder.json("new.json");
    assert_eq!(stages_and_end(&report).0, ["first_instruction"]);
    let why = stages_and_end(&report).1;
    assert!(why.contains("status 255: kite: the guest crashed"), "{why}");
}

/// A jump to itself.
const JUMP: &[u8] = b"\xeb\xfe";

#[test]
fn a_guest_that_never_ends_is_ended() {
    needs!(kvm());
    let (folder, kernel) = with_kernel(&image::elf_of(JUMP));
    let json = folder.path("new.json");
    let more = ["--runs", "3", "--timeout", "300ms", "--json", &json];
    let end = boot(&[&["--force", "--kernel", &kernel][..], &more].concat());
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{}", end.text());
    let report = folder.json("new.json");
    assert_eq!(stages_and_end(&report).0, ["first_instruction"]);
    let why = stages_and_end(&report).1;
    assert!(why.contains("300ms"), "{why}");
}

#[test]
fn a_signal_ends_the_guest_and_leaves_nothing() {
    needs!(kvm());
    let (_folder, kernel) = with_kernel(&image::elf_of(JUMP));
    let scratch = Folder::new();
    let mut command = Command::new(KITE);
    command.args(["bench", "boot", "--force", "--kernel", &kernel]).env("TMPDIR", scratch.0.path());
    let child = Running::spawn(command.stdout(Stdio::null()));
    let bench = child.child_id();
    // Its guest's process is there.
    let children = format!("/proc/{bench}/task/{bench}/children");
    let guest = loop {
        let found = std::fs::read_to_string(&children).unwrap();
        if let Some(guest) = found.split_whitespace().next() {
            break guest.to_owned();
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    child.signal(Signal::SIGTERM);
    child.assert_killed_by(Signal::SIGTERM);
    assert!(!Path::new("/proc").join(guest).exists());
    assert_eq!(std::fs::read_dir(scratch.0.path()).unwrap().count(), 0);
}

/// A `qemu-system-x86_64` that says what it was told, prints and ends.
fn pretended_qemu(folder: &Path) {
    let path = folder.join("qemu-system-x86_64");
    let script = "#!/bin/sh\n[ \"$1\" = --version ] && { echo QEMU pretended; exit; }\n\
        echo \"$@\" >> \"$(dirname \"$0\")/told\"\necho hello\n";
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_peer_gets_the_same_guest_as_often_as_kite() {
    needs!(kvm());
    let folder = Folder::new();
    let guest = folder.guest("guest");
    pretended_qemu(folder.0.path());
    let path = format!("{}:{}", folder.0.path().display(), std::env::var("PATH").unwrap());
    let mut command = Command::new(KITE);
    command.args(["bench", "boot", "--peers", "--runs", "3", "--append", "two words"]);
    command.args(["--kernel", &guest, "--json", &folder.path("new.json")]).env("PATH", path);
    let end = Attempt::new().end_of(&mut command);
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""), "{}", end.text());
    let report = folder.json("new.json");
    assert_eq!(report["run"]["qemu"], "QEMU pretended");
    let qemu = report["results"].as_array().unwrap().iter().filter(|row| row["path"] == "qemu");
    let stages: Vec<_> = qemu.map(|row| (row["stage"].as_str().unwrap(), row["n"].as_u64())).collect();
    assert_eq!(stages, [("first_output", Some(3)), ("power_off", Some(3))]);
    let derived = report["derived"].as_array().unwrap();
    assert!(
        derived.iter().all(|it| it["metric"] == "qemu_minus_kite_p50") && derived.len() == 2,
        "{derived:?}"
    );
    let told = folder.text("told");
    // Once more to warm up.
    assert_eq!(told.lines().count(), 4);
    let cmdline = report["run"]["kernels"][0]["cmdline"].as_str().unwrap();
    assert!(told.lines().all(|line| line.contains(&format!("-kernel {guest} -append {cmdline}"))), "{told}");
    assert!(cmdline.ends_with("two words"), "{cmdline}");
}
