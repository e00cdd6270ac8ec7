//! Limits that bite: a machine in a group of its own, as the host sees it. The guests are tiny ones.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::Signal;

use crate::cgroup::group::{folders, groups, name};
use crate::cgroup::spinning::{Spinning, children, signal};
use crate::support::attempt::{Attempt, run};
use crate::support::image::{elf, elf_of};
use crate::support::{KITE, NOBODY, root, skipped, until};

mod delegated;
pub mod group;
pub mod spinning;

/// Writes to each page from 8 MiB to 496 MiB, then powers off: `mov edi, 0x800000; 1: mov byte ptr [rdi], 1;
/// add edi, 0x1000; cmp edi, 0x1f000000; jb 1b` and what powers off.
const TOUCH: &[u8] =
    b"\xbf\0\0\x80\0\xc6\x07\x01\x81\xc7\0\x10\0\0\x81\xff\0\0\0\x1f\x72\xef\x66\xba\0\x06\xb0\x34\xee\xf4";

#[test]
fn a_machine_that_takes_too_much_memory_is_killed_alone_and_told_of() {
    needs!(groups("memory=64M"));
    let (attempt, group) = (Attempt::new(), name("memory"));
    let kernel = attempt.file("kernel", &elf_of(TOUCH));
    let arguments = ["run", "--memory", "512M", "--cgroup", &group, "--kernel", kernel.to_str().unwrap()];
    let free = attempt.run(arguments);
    assert_eq!((free.status.code(), free.stderr.as_str()), (Some(0), ""));
    let end = attempt.run(arguments.into_iter().chain(["--limit", "memory=64M"]));
    let line = "kite: the host killed the machine: it took more than the 64 MiB that --limit memory allows\n";
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(123), line));
    assert_eq!(folders(&group), Vec::<PathBuf>::new());
}

#[test]
fn a_memory_kill_is_an_error_in_the_results() {
    needs!(groups("memory=64M"));
    // kite itself is too much, so that no guest is needed which runs commands.
    let (attempt, results) = (Attempt::new(), tempfile::NamedTempFile::new().unwrap());
    let kernel = attempt.file("kernel", &elf());
    let mut command = run(KITE, &kernel);
    command.args(["--limit", "memory=64K", "--junit"]).arg(results.path()).args(["--", "true"]);
    let end = attempt.end_of(&mut command);
    assert_eq!(end.status.code(), Some(123), "{}", end.stderr);
    let results = fs::read_to_string(results.path()).unwrap();
    assert!(results.contains("<error") && results.contains("the host killed the machine"), "{results}");
}

#[test]
fn a_machine_that_takes_too_many_threads_says_what_it_lacks() {
    needs!(groups("pids=64"));
    let (attempt, kernel) = Attempt::with(&elf());
    attempt
        .end_of(run(KITE, &kernel).args(["--limit", "pids=1"]))
        .assert_refusal("--limit pids=1 is too few");
}

#[test]
fn a_limit_is_in_the_group_s_files_while_the_guest_runs() {
    needs!(groups("cpu=1,memory=64M,pids=64"));
    let kite = Spinning::start("files", &["--limit", "cpu=0.5,memory=96M", "--limit", "pids=50"]);
    let expected = [
        (["cpu.max", "cpu.cfs_quota_us"], ["50000 100000", "50000"]),
        (["memory.max", "memory.limit_in_bytes"], ["100663296"; 2]),
        (["pids.max", "pids.max"], ["50"; 2]),
    ];
    let folders = folders(&kite.group);
    for (files, values) in expected {
        let texts = folders.iter().flat_map(|folder| files.map(|file| fs::read_to_string(folder.join(file))));
        let texts: Vec<_> = texts.flatten().map(|text| text.trim().to_owned()).collect();
        assert!(values.iter().any(|value| texts.iter().any(|text| text == value)), "{files:?}: {texts:?}");
    }
    let (machine, supervisor) = (kite.machine().unwrap(), kite.supervisor());
    assert_ne!(machine, supervisor);
    signal(supervisor, Signal::SIGTERM);
    assert_eq!(kite.end(), (1015, String::new()));
}

#[test]
fn a_limit_of_io_is_the_whole_disk_s_that_a_file_is_on() {
    needs!(groups("pids=64"));
    // What tests are built in is more often on a disk than /tmp is.
    let limit = format!("io={}:rbps=10M:wiops=100", env!("CARGO_MANIFEST_DIR"));
    let (attempt, kernel) = Attempt::with(&elf());
    let end = attempt.end_of(run(KITE, &kernel).args(["--limit", &limit]));
    if end.stderr.contains("no block device") || end.stderr.contains("limits no I/O") {
        return skipped(test_name!(), end.stderr.trim());
    }
    let kite = Spinning::start("io", &["--limit", &limit]);
    let folder = folders(&kite.group).remove(0);
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default().trim().to_owned();
    let v1 = [read("blkio.throttle.read_bps_device"), read("blkio.throttle.write_iops_device")];
    let (device, told) = match read("io.max").split_once(' ') {
        Some((device, rates)) => (device.to_owned(), rates == "rbps=10485760 wbps=max riops=max wiops=100"),
        None => {
            let (device, bytes) = v1[0].split_once(' ').unwrap();
            (device.to_owned(), bytes == "10485760" && v1[1] == format!("{device} 100"))
        }
    };
    assert!(told, "{folder:?} {v1:?} {}", read("io.max"));
    assert!(!Path::new(&format!("/sys/dev/block/{device}/partition")).exists(), "{device}");
    signal(kite.supervisor(), Signal::SIGTERM);
    assert_eq!(kite.end().0, 1015);
}

#[test]
fn a_signal_to_either_process_ends_both_and_the_group() {
    needs!(groups("pids=64"));
    for (name, by, to_machine, expected, options) in [
        ("term", Signal::SIGTERM, true, 1015, &[][..]),
        ("int", Signal::SIGINT, false, 1002, &[]),
        ("kill", Signal::SIGKILL, true, 1009, &[]),
        ("none", Signal::SIGTERM, true, 1015, &["--sandbox", "none"]),
        ("none-int", Signal::SIGINT, false, 1002, &["--sandbox", "none"]),
    ] {
        let kite = Spinning::start(name, options);
        let to = if to_machine { kite.machine().unwrap() } else { kite.supervisor() };
        signal(to, by);
        assert_eq!(kite.end(), (expected, String::new()), "{name}");
    }
}

#[test]
fn a_machine_in_a_group_and_a_sandbox_has_one_supervisor() {
    needs!(groups("pids=64"));
    for (name, options) in [("both", &[][..]), ("alone", &["--sandbox", "none"])] {
        let kite = Spinning::start(name, options);
        let (supervisor, machine) = (kite.supervisor(), kite.machine().unwrap());
        assert_eq!((children(supervisor), children(machine)), (vec![machine], vec![]), "{name}");
        signal(supervisor, Signal::SIGTERM);
        assert_eq!(kite.end(), (1015, String::new()));
    }
}

#[test]
fn a_program_that_a_device_needs_is_in_the_group_and_kite_is_not() {
    needs!(groups("pids=64"));
    if Command::new("passt").arg("--version").output().is_err() {
        return skipped(test_name!(), "passt isn't installed");
    }
    let kite = Spinning::start("passt", &["--net", "user"]);
    let supervisor = kite.supervisor();
    let is_in =
        |process: i32| fs::read_to_string(format!("/proc/{process}/cgroup")).unwrap().contains(&kite.group);
    let children = children(supervisor);
    assert_eq!((children.len(), children.into_iter().all(is_in), is_in(supervisor)), (2, true, false));
    signal(supervisor, Signal::SIGTERM);
    assert_eq!(kite.end(), (1015, String::new()));
}

#[test]
fn a_group_that_a_killed_supervisor_leaves_is_taken_again() {
    needs!(groups("pids=64"));
    let mut kite = Spinning::start("left", &["--limit", "pids=60"]);
    kite.child.kill();
    kite.child.wait();
    let folder = folders(&kite.group).remove(0);
    until("the machine to follow its supervisor", || {
        fs::read_to_string(folder.join("cgroup.procs")).unwrap().is_empty()
    });
    let (attempt, kernel) = Attempt::with(&elf());
    let end = attempt.end_of(run(KITE, &kernel).args(["--cgroup", &kite.group]).args(["--limit", "pids=61"]));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    assert_eq!(folders(&kite.group), Vec::<PathBuf>::new());
}

#[test]
fn a_group_without_a_name_of_its_own_is_seen_to_by_the_next() {
    needs!(groups("pids=64"));
    let gone = {
        let mut child = Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    };
    let own = format!("kite-{}", std::process::id());
    let (attempt, kernel) = Attempt::with(&elf());
    // Where kite makes one, another can be made.
    let place = {
        let kite = Spinning::start("place", &["--limit", "pids=60"]);
        let place = folders(&kite.group)[0].parent().unwrap().to_owned();
        signal(kite.supervisor(), Signal::SIGTERM);
        assert_eq!(kite.end().0, 1015);
        place
    };
    let left = place.join(format!("kite-{gone}"));
    for folder in [&left, &place.join(&own)] {
        fs::create_dir(folder).unwrap();
    }
    let end = attempt.end_of(run(KITE, &kernel).args(["--limit", "pids=60"]));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    assert!(!left.exists(), "it is left over");
    assert!(place.join(&own).exists(), "its process lives");
    fs::remove_dir(place.join(&own)).unwrap();
}

#[test]
fn a_group_that_is_in_use_is_refused() {
    needs!(groups("pids=64"));
    let kite = Spinning::start("taken", &["--limit", "pids=60"]);
    let (attempt, kernel) = Attempt::with(&elf());
    let options = ["--cgroup", &kite.group, "--limit", "pids=60"];
    attempt.end_of(run(KITE, &kernel).args(options)).assert_refusal("is in use: choose another --cgroup");
    // Nor is it shared by one that would only have counted.
    let options = ["--cgroup", &kite.group];
    attempt.end_of(run(KITE, &kernel).args(options)).assert_refusal("is in use: choose another --cgroup");
    assert!(kite.machine().is_some());
    signal(kite.supervisor(), Signal::SIGTERM);
    assert_eq!(kite.end().0, 1015);
}

#[test]
fn a_group_without_limits_is_made_or_the_reason_told() {
    needs!(root());
    needs!(groups("pids=64"));
    let kite = Spinning::start("counted", &[]);
    assert!(!folders(&kite.group).is_empty());
    signal(kite.supervisor(), Signal::SIGTERM);
    assert_eq!(kite.end().0, 1015);
    let attempt = Attempt::new();
    let (kite, kernel) = (attempt.kite(), attempt.file("kernel", &elf()));
    let mut run = run(&kite, &kernel);
    let by_nobody = std::os::unix::process::CommandExt::uid(&mut run, NOBODY);
    attempt.end_of(by_nobody.args(["--cgroup", &name("nobody")])).assert_refusal("permission denied");
}

#[test]
fn a_user_who_may_make_no_groups_is_told_what_to_do() {
    needs!(root());
    needs!(groups("pids=64"));
    let attempt = Attempt::new();
    let (kite, kernel) = (attempt.kite(), attempt.file("kernel", &elf()));
    let end =
        attempt.end_of(std::os::unix::process::CommandExt::uid(&mut run(&kite, &kernel), NOBODY).args([
            "--cgroup",
            &name("nobody"),
            "--limit",
            "pids=60",
        ]));
    end.assert_refusal("permission denied");
    assert!(
        end.stderr.contains("systemd-run --user") || end.stderr.contains("run kite as root"),
        "{}",
        end.stderr
    );
}

/// Runs in a mount namespace of its own, after a script; `$0` is kite and `$1` the kernel.
fn in_namespace(script: &str, kernel: &Path) -> Command {
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", script, KITE]).arg(kernel);
    command
}

#[test]
fn what_is_planted_in_place_of_a_group_is_never_followed() {
    needs!(root());
    needs!(groups("pids=64"));
    let (attempt, kernel) = Attempt::with(&elf());
    let run = "exec \"$0\" run --force --memory 64M --kernel \"$1\" --cgroup planted --limit pids=64";
    // The kernel's own list of mounts still names what is below.
    let planted =
        "mkdir t && mount -t tmpfs none t && mkdir t/real && ln -s real t/planted && : >t/cgroup.procs";
    let over = "for it in pids unified .; do
        test ! -e /sys/fs/cgroup/$it/cgroup.procs || mount --bind t /sys/fs/cgroup/$it || exit
    done";
    for (over, expected) in
        [(over, "something else is mounted there"), ("umount -l /sys/fs/cgroup", "is not mounted here")]
    {
        let script = format!("{planted} && {over} && {run}");
        let outside = tempfile::tempdir().unwrap();
        let mut command = in_namespace(&format!("cd {} && {script}", outside.path().display()), &kernel);
        attempt.end_of(&mut command).assert_refusal(expected);
    }
}
