//! Limits that bite: a machine in a group of its own, as the host sees it. The guests are tiny ones.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use attempt::{Attempt, KITE, NOBODY, no_kvm, not_root, run, skipped};
use image::{elf, elf_of};

#[expect(dead_code, reason = "what only bad input needs")]
#[path = "bad_input/attempt.rs"]
mod attempt;
#[expect(dead_code, reason = "what only bad input needs")]
#[path = "bad_input/image.rs"]
mod image;

/// For ever: `jmp $`.
const SPIN: &[u8] = b"\xeb\xfe";
/// Writes to each page from 8 MiB to 496 MiB, then powers off: `mov edi, 0x800000; 1: mov byte ptr [rdi], 1;
/// add edi, 0x1000; cmp edi, 0x1f000000; jb 1b` and what powers off.
const TOUCH: &[u8] =
    b"\xbf\0\0\x80\0\xc6\x07\x01\x81\xc7\0\x10\0\0\x81\xff\0\0\0\x1f\x72\xef\x66\xba\0\x06\xb0\x34\xee\xf4";
/// What takes this long hangs. No time is asserted anywhere.
const HANG: Duration = Duration::from_secs(60);

/// Says that `test` does not run, if groups with these limits cannot be made here.
fn no_groups(test: &str, limit: &str) -> bool {
    if no_kvm(test) {
        return true;
    }
    let attempt = Attempt::new();
    let kernel = attempt.file("kernel", &elf());
    let end = attempt.end_of(run(KITE, &kernel).args(["--limit", limit]));
    match end.status.code() {
        Some(0) => false,
        _ => {
            skipped(test, end.stderr.trim());
            true
        }
    }
}

/// The folders of groups with this name, wherever they are.
fn folders(name: &str) -> Vec<PathBuf> {
    fn look(folder: &Path, name: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if entry.file_name() == name {
                    found.push(entry.path());
                }
                look(&entry.path(), name, found);
            }
        }
    }
    let mut found = Vec::new();
    look(Path::new("/sys/fs/cgroup"), name, &mut found);
    found
}

/// A name that no other test has.
fn name(test: &str) -> String {
    format!("kite-test-{test}-{}", std::process::id())
}

/// kite with a guest that runs for ever, in a group.
struct Spinning {
    _attempt: Attempt,
    child: std::process::Child,
    group: String,
}

impl Spinning {
    fn start(test: &str, options: &[&str]) -> Self {
        let (attempt, group) = (Attempt::new(), name(test));
        let kernel = attempt.file("kernel", &elf_of(SPIN));
        let mut command = run(KITE, &kernel);
        command.args(["--cgroup", &group]).args(options).stdin(Stdio::null()).stderr(Stdio::piped());
        let this = Self { _attempt: attempt, child: command.spawn().unwrap(), group };
        this.until("a machine in its group", || this.machine().is_some_and(has_vcpu));
        this
    }

    fn until(&self, what: &str, mut happens: impl FnMut() -> bool) {
        let deadline = Instant::now() + HANG;
        while !happens() {
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The process in the group.
    fn machine(&self) -> Option<i32> {
        let folder = folders(&self.group).into_iter().next()?;
        fs::read_to_string(folder.join("cgroup.procs")).ok()?.lines().next()?.parse().ok()
    }

    fn supervisor(&self) -> i32 {
        self.child.id() as i32
    }

    /// The exit code or 1000 + the signal's number, and what was said.
    fn end(mut self) -> (i32, String) {
        use std::os::unix::process::ExitStatusExt;
        let mut status = None;
        let deadline = Instant::now() + HANG;
        while status.is_none() {
            assert!(Instant::now() < deadline, "kite hangs");
            status = self.child.try_wait().unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        let status = status.unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.child.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(folders(&self.group), Vec::<PathBuf>::new());
        (status.code().unwrap_or_else(|| 1000 + status.signal().unwrap()), said)
    }
}

impl Drop for Spinning {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn has_vcpu(process: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    tasks
        .into_iter()
        .any(|task| fs::read_to_string(task.path().join("comm")).is_ok_and(|name| name.starts_with("vcpu")))
}

fn signal(process: i32, signal: Signal) {
    kill(Pid::from_raw(process), signal).unwrap();
}

#[test]
fn a_machine_that_takes_too_much_memory_is_killed_alone_and_told_of() {
    let test = "a_machine_that_takes_too_much_memory_is_killed_alone_and_told_of";
    if no_groups(test, "memory=64M") {
        return;
    }
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
    let test = "a_memory_kill_is_an_error_in_the_results";
    if no_groups(test, "memory=64M") {
        return;
    }
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
    let test = "a_machine_that_takes_too_many_threads_says_what_it_lacks";
    if no_groups(test, "pids=64") {
        return;
    }
    let attempt = Attempt::new();
    let kernel = attempt.file("kernel", &elf());
    attempt.end_of(run(KITE, &kernel).args(["--limit", "pids=2"])).assert_refusal("cannot start a thread");
}

#[test]
fn a_limit_is_in_the_group_s_files_while_the_guest_runs() {
    let test = "a_limit_is_in_the_group_s_files_while_the_guest_runs";
    if no_groups(test, "cpu=1,memory=64M,pids=64") {
        return;
    }
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
fn a_signal_to_either_process_ends_both_and_the_group() {
    let test = "a_signal_to_either_process_ends_both_and_the_group";
    if no_groups(test, "pids=64") {
        return;
    }
    for (name, by, to_machine, expected) in [
        ("term", Signal::SIGTERM, true, 1015),
        ("int", Signal::SIGINT, false, 1002),
        ("kill", Signal::SIGKILL, true, 1009),
    ] {
        let kite = Spinning::start(name, &[]);
        let to = if to_machine { kite.machine().unwrap() } else { kite.supervisor() };
        signal(to, by);
        assert_eq!(kite.end(), (expected, String::new()), "{name}");
    }
}

#[test]
fn a_group_that_a_killed_supervisor_leaves_is_taken_again() {
    let test = "a_group_that_a_killed_supervisor_leaves_is_taken_again";
    if no_groups(test, "pids=64") {
        return;
    }
    let mut kite = Spinning::start("left", &["--limit", "pids=60"]);
    kite.child.kill().unwrap();
    kite.child.wait().unwrap();
    let folder = folders(&kite.group).remove(0);
    kite.until("the machine to follow its supervisor", || {
        fs::read_to_string(folder.join("cgroup.procs")).unwrap().is_empty()
    });
    let attempt = Attempt::new();
    let kernel = attempt.file("kernel", &elf());
    let end = attempt.end_of(run(KITE, &kernel).args(["--cgroup", &kite.group]).args(["--limit", "pids=61"]));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    assert_eq!(folders(&kite.group), Vec::<PathBuf>::new());
}

#[test]
fn a_group_that_is_in_use_is_refused() {
    let test = "a_group_that_is_in_use_is_refused";
    if no_groups(test, "pids=64") {
        return;
    }
    let kite = Spinning::start("taken", &["--limit", "pids=60"]);
    let attempt = Attempt::new();
    let kernel = attempt.file("kernel", &elf());
    let options = ["--cgroup", &kite.group, "--limit", "pids=60"];
    attempt.end_of(run(KITE, &kernel).args(options)).assert_refusal("is in use: choose another --cgroup");
    assert!(kite.machine().is_some());
    signal(kite.supervisor(), Signal::SIGTERM);
    assert_eq!(kite.end().0, 1015);
}

#[test]
fn a_user_who_may_make_no_groups_is_told_what_to_do() {
    let test = "a_user_who_may_make_no_groups_is_told_what_to_do";
    if not_root(test) || no_groups(test, "pids=64") {
        return;
    }
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
    let test = "what_is_planted_in_place_of_a_group_is_never_followed";
    if not_root(test) || no_groups(test, "pids=64") {
        return;
    }
    let attempt = Attempt::new();
    let kernel = attempt.file("kernel", &elf());
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

/// A group of version 2 that is a user's own, as a service manager delegates it, and another in it, which a shell of that
/// user enters before it runs a script.
struct Delegated {
    top: PathBuf,
    group: u32,
}

impl Delegated {
    /// Why not, where it is not to be had.
    fn new(test: &str, top_too: bool) -> Option<Self> {
        use std::os::unix::fs::{MetadataExt, chown};
        const MOUNT: &str = "/sys/fs/cgroup";
        if not_root(test) || no_groups(test, "pids=64") {
            return None;
        }
        let controllers = fs::read_to_string(format!("{MOUNT}/cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|name| name == "pids") {
            skipped(test, "the host's cgroups are not of version 2 alone");
            return None;
        }
        fs::write(format!("{MOUNT}/cgroup.subtree_control"), "+pids +cpu").unwrap();
        let kvm = fs::metadata("/dev/kvm").unwrap();
        if kvm.mode() & 0o060 != 0o060 {
            skipped(test, "the group of /dev/kvm may not use it");
            return None;
        }
        let this = Self { top: Path::new(MOUNT).join(name(test)), group: kvm.gid() };
        fs::create_dir_all(this.top.join("scope")).unwrap();
        let first = if top_too { this.top.clone() } else { this.top.join("scope") };
        for folder in [first, this.top.join("scope")] {
            for file in ["", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"] {
                chown(folder.join(file), Some(NOBODY), None).unwrap();
            }
        }
        Some(this)
    }

    /// Runs a script in which `$0` is kite, `$1` the kernel and `$2` the group's folder.
    fn run(&self, script: &str) -> attempt::End {
        let attempt = Attempt::new();
        let (kite, kernel) = (attempt.kite(), attempt.file("kernel", &elf()));
        let mut command = Command::new("sh");
        let user = "echo 0 >\"$4/cgroup.procs\" && exec setpriv --reuid 65534 --regid \"$3\" --clear-groups \
                    sh -c \"$2\" \"$0\" \"$1\" \"$4\"";
        command.args(["-c", user]).arg(kite).arg(kernel);
        command.args([script, &self.group.to_string()]).arg(self.top.join("scope"));
        attempt.end_of(&mut command)
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for folder in [&self.top.join("scope"), &self.top] {
            let mut tries = 0..1000;
            while fs::remove_dir(folder).is_err() && tries.next().is_some() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

const GUEST: &str = "\"$0\" run --force --memory 64M --kernel \"$1\" --cgroup mine --limit pids=64";

#[test]
fn a_user_s_own_group_is_divided_and_whole_again_afterwards() {
    let Some(delegated) = Delegated::new("a_user_s_own_group_is_divided_and_whole_again_afterwards", false)
    else {
        return;
    };
    let end = delegated.run(&format!("exec {GUEST}"));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    let scope = delegated.top.join("scope");
    assert_eq!(fs::read_to_string(scope.join("cgroup.subtree_control")).unwrap(), "");
    assert!(!fs::read_dir(&scope).unwrap().flatten().any(|entry| entry.path().is_dir()));
}

#[test]
fn a_group_with_other_processes_gets_the_machine_s_beside_it() {
    let Some(delegated) = Delegated::new("a_group_with_other_processes_gets_the_machine_s_beside_it", true)
    else {
        return;
    };
    let end = delegated.run(&format!("{GUEST} --limit cpu=0.5 && cat \"$2/../cgroup.subtree_control\" >&2"));
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), "cpu pids\n"));
    assert_eq!(folders("mine"), Vec::<PathBuf>::new());
}

#[test]
fn a_group_with_other_processes_and_no_right_to_one_beside_it_is_refused() {
    let test = "a_group_with_other_processes_and_no_right_to_one_beside_it_is_refused";
    let Some(delegated) = Delegated::new(test, false) else { return };
    let end = delegated.run(&format!("{GUEST}; exit $?"));
    end.assert_refusal("scope: there are other processes in it; ");
    end.assert_refusal("permission denied: start kite in a group that is yours: systemd-run --user --scope");
}
