//! The sandbox of a machine that runs, from outside: what /proc tells of its process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::process::Kite;
use crate::support::{kvm, until};

guest!(FOR_EVER, say!("'r'"), "2: pause\n jmp 2b");
guest!(ONCE, say!("'r'"), power_off!());

/// A field of `/proc/PID/status`.
fn field(folder: &Path, name: &str) -> String {
    let status = fs::read_to_string(folder.join("status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

/// What a process has open, as links that lead there.
fn descriptors(process: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(process.join("fd")).unwrap().map(|entry| entry.unwrap().path())
}

/// Which file is at the end of a path, whatever mount it is on.
fn identity(path: &Path) -> (u64, u64) {
    let metadata = fs::metadata(path).unwrap();
    (metadata.dev(), metadata.ino())
}

fn tasks(process: &Path) -> Vec<PathBuf> {
    fs::read_dir(process.join("task")).unwrap().map(|task| task.unwrap().path()).collect()
}

/// A machine whose guest runs, and its process.
fn running(arguments: &[&str]) -> (Kite, PathBuf) {
    let mut kite = Kite::run(&FOR_EVER, arguments);
    kite.expect(b"r");
    let process = PathBuf::from(format!("/proc/{}", kite.id()));
    (kite, process)
}

/// Ends it as a user would.
fn terminate(kite: Kite) {
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

/// Whether KVM can be used, and user namespaces made, which a container may forbid.
fn user_namespaces() -> Result<(), String> {
    kvm()?;
    let forbidden = nix::unistd::geteuid().is_root() && field(Path::new("/proc/self"), "CapEff").len() < 16;
    let refused = std::process::Command::new("unshare").args(["-Ur", "true"]).output();
    if forbidden || !refused.is_ok_and(|output| output.status.success()) {
        return Err("this host makes no user namespaces".to_owned());
    }
    Ok(())
}

#[test]
fn a_machine_has_nothing_of_the_host_when_its_guest_runs() {
    needs!(user_namespaces());
    let (kite, process) = running(&["--sandbox", "require"]);
    for namespace in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let of = |process: &Path| fs::read_link(process.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&process), of(Path::new("/proc/self")), "{namespace}");
    }
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(&process, set), "0".repeat(16), "{set}");
    }
    assert_eq!(field(&process, "NoNewPrivs"), "1");
    assert_eq!(fs::read_dir(process.join("root")).unwrap().count(), 0);
    assert_eq!(fs::read_to_string(process.join("mountinfo")).unwrap().lines().count(), 1);
    assert!(fs::read(process.join("environ")).unwrap().iter().all(|byte| *byte == 0));
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().filter(|word| *word == "0").count(), 2, "{core}");
    terminate(kite);
}

#[test]
fn every_thread_of_a_machine_is_confined() {
    needs!(user_namespaces());
    let folder = tempfile::tempdir().unwrap();
    let (disk, socket) = (folder.path().join("disk"), folder.path().join("socket"));
    fs::write(&disk, [0; 4096]).unwrap();
    let port = format!("agent={}", socket.display());
    let arguments =
        ["--sandbox", "require", "--cpus", "2", "--disk", disk.to_str().unwrap(), "--port", &port];
    let (kite, process) = running(&arguments);
    let names: Vec<_> = tasks(&process)
        .iter()
        .map(|task| {
            assert_eq!((field(task, "Seccomp"), field(task, "NoNewPrivs")), ("2".into(), "1".into()));
            assert_eq!(field(task, "CapEff"), "0".repeat(16));
            field(task, "Name")
        })
        .collect();
    for name in ["kite", "vcpu0", "vcpu1", "disk0", "hvc", "virtio", "console", "ports"] {
        assert!(names.iter().any(|it| it == name), "no {name} in {names:?}");
    }
    assert!(socket.exists());
    terminate(kite);
    assert!(!socket.exists(), "the socket's name is left");
}

/// The supervisor.
fn supervisor(machine: &Path) -> PathBuf {
    PathBuf::from(format!("/proc/{}", field(machine, "PPid")))
}

#[test]
fn the_supervisor_is_confined_to_its_chores() {
    needs!(user_namespaces());
    let root = nix::unistd::geteuid().is_root();
    // CAP_DAC_OVERRIDE and CAP_FOWNER, for root to write in folders of others.
    let folders = if root { 0b1010 } else { 0 };
    // Outside of a user namespace an ordinary user may take nothing from it, and nothing comes of it with no_new_privs.
    let bounding = if root { "0".repeat(16) } else { field(Path::new("/proc/self"), "CapBnd") };
    let folder = tempfile::tempdir().unwrap();
    let (socket, stats) =
        (folder.path().join("socket"), format!("--stats={}/stats", folder.path().display()));
    let port = format!("agent={}", socket.display());
    for (arguments, capabilities) in [(&[][..], 0), (&["--port", &port, &stats], folders)] {
        let (kite, machine) = running(&[&["--sandbox", "require"], arguments].concat());
        let supervisor = supervisor(&machine);
        assert_ne!(supervisor, Path::new("/proc/self").canonicalize().unwrap());
        for task in tasks(&supervisor) {
            assert_eq!((field(&task, "Seccomp"), field(&task, "NoNewPrivs")), ("2".into(), "1".into()));
            for (set, expected) in [("CapEff", capabilities), ("CapPrm", capabilities), ("CapInh", 0)] {
                assert_eq!(field(&task, set), format!("{expected:016x}"), "{set}");
            }
            assert_eq!(field(&task, "CapBnd"), bounding);
        }
        terminate(kite);
        assert_eq!((socket.exists(), folder.path().join("stats").exists()), (false, !arguments.is_empty()));
    }
}

#[test]
fn the_supervisor_has_the_descriptors_that_it_needs_and_no_other() {
    needs!(user_namespaces());
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let redirection = format!("--sandbox require --disk {} 9</etc/passwd", disk.display());
    let kite = Kite::redirected(&FOR_EVER, &redirection);
    kite.expect_more_than(0);
    let supervisor = supervisor(&PathBuf::from(format!("/proc/{}", kite.id())));
    let mut targets: Vec<_> = fs::read_dir(supervisor.join("fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().to_string_lossy().into_owned())
        .map(|target| target.split(':').next().unwrap().to_owned())
        .collect();
    targets.sort();
    // Signals, standard error and the channel; and nothing in place of standard input and output.
    assert_eq!(targets, ["/dev/null", "/dev/null", "anon_inode", "pipe", "socket"]);
    terminate(kite);
}

#[test]
fn a_signal_to_the_machine_s_process_ends_kite_once() {
    needs!(kvm());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (kite, machine) = running(&[]);
        let id = machine.file_name().unwrap().to_str().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), signal).unwrap();
        kite.end().assert_killed_by(signal);
    }
}

#[test]
fn who_ignores_the_end_of_children_is_told_of_the_machine_s() {
    needs!(kvm());
    let kite = Kite::by(&["env", "--ignore-signal=CHLD"], &FOR_EVER, &[]);
    kite.expect_more_than(0);
    terminate(kite);
}

#[test]
fn a_machine_has_the_descriptors_that_it_needs_and_no_other() {
    needs!(user_namespaces());
    // The shell leaves one of its own open for kite.
    let kite = Kite::redirected(&FOR_EVER, "--sandbox require 9</etc/passwd");
    kite.expect_more_than(0);
    let process = PathBuf::from(format!("/proc/{}", kite.id()));
    let own = [kite.image(), Path::new(crate::support::KITE)].map(identity);
    // By its number: the device's node may be a mount of its own.
    let device = |path: &Path| fs::metadata(path).unwrap().rdev();
    let devices = ["/dev/kvm", "/dev/null"].map(|path| device(Path::new(path)));
    let mut sockets = 0;
    for path in descriptors(&process) {
        let target = fs::read_link(&path).unwrap().to_string_lossy().into_owned();
        // The channel to the supervisor.
        if target.starts_with("socket:") {
            sockets += 1;
            continue;
        }
        let anonymous = ["anon_inode:", "pipe:", "/memfd:"].iter().any(|kind| target.starts_with(kind));
        let known = anonymous || own.contains(&identity(&path)) || devices.contains(&device(&path));
        assert!(known, "{target}");
        let info = process.join("fdinfo").join(path.file_name().unwrap());
        let flags = fs::read_to_string(info).unwrap();
        let flags = flags.lines().find_map(|line| line.strip_prefix("flags:")).unwrap().trim();
        assert_ne!(u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000, 0, "{target} outlives an exec");
    }
    assert_eq!(sockets, 1);
    terminate(kite);
}

#[test]
fn what_a_machine_only_reads_is_open_where_nothing_can_be_changed() {
    needs!(user_namespaces());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let names = ["readonly", "ephemeral", "initrd"];
    names.iter().for_each(|name| fs::write(path(name), [1; 4096]).unwrap());
    let disks = [("readonly", "readonly,queues=1"), ("ephemeral", "ephemeral")];
    let disks = disks.map(|(name, how)| format!("--disk=path={},{how}", path(name).display()));
    let initrd = format!("--initrd={}", path("initrd").display());
    let (kite, process) = running(&["--sandbox", "require", &disks[0], &disks[1], &initrd]);
    for path in names.map(path).iter().map(PathBuf::as_path).chain([kite.image()]) {
        let open: Vec<_> = descriptors(&process).filter(|it| identity(it) == identity(path)).collect();
        assert!(!open.is_empty(), "{path:?}");
        for descriptor in open {
            let flags = nix::sys::statvfs::statvfs(&descriptor).unwrap().flags();
            assert!(flags.contains(nix::sys::statvfs::FsFlags::ST_RDONLY), "{path:?}");
        }
    }
    // The disks are locked as they were before: nobody writes to them.
    for name in ["readonly", "ephemeral"] {
        let spec = format!("--disk={}", path(name).display());
        let other = Kite::run(&ONCE, &["--sandbox", "require", &spec]).end();
        assert_eq!(other.status.code(), Some(125), "{name}");
        assert!(other.stderr.contains("another machine or program uses it"), "{}", other.stderr);
    }
    terminate(kite);
}

#[test]
fn neither_half_outlives_the_other() {
    needs!(kvm());
    let (kite, machine) = running(&[]);
    kite.signal(Signal::SIGKILL);
    until("the machine's process to end", || !machine.join("exe").exists());
    kite.end().assert_killed_by(Signal::SIGKILL);
    let (kite, machine) = running(&[]);
    let id = machine.file_name().unwrap().to_str().unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGKILL).unwrap();
    kite.end().assert_killed_by(Signal::SIGKILL);
}

#[test]
fn a_kite_that_is_killed_leaves_a_socket_s_name_to_the_next_one() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let port = format!("--port=agent={}", socket.display());
    let (kite, machine) = running(&[&port]);
    kite.signal(Signal::SIGKILL);
    kite.end().assert_killed_by(Signal::SIGKILL);
    until("the machine's process to end", || !machine.join("exe").exists());
    assert!(socket.exists());
    let (kite, _) = running(&[&port]);
    let other = Kite::run(&FOR_EVER, &[&port]).end();
    assert_eq!(other.status.code(), Some(125));
    assert!(
        other.stderr.contains("there is something at that path, or somebody listens"),
        "{}",
        other.stderr
    );
    std::os::unix::net::UnixStream::connect(&socket).unwrap();
    terminate(kite);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_signal_that_somebody_sends_is_not_told_as_a_refused_call() {
    needs!(user_namespaces());
    for half in ["machine", "supervisor"] {
        let (kite, machine) = running(&["--sandbox", "require"]);
        let half = if half == "machine" { machine } else { supervisor(&machine) };
        let id = half.file_name().unwrap().to_str().unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), Signal::SIGSYS).unwrap();
        let said = "kite: ended by a signal SIGSYS that was sent; no system call was refused\n";
        kite.end().assert(125, "r", said);
    }
}

#[test]
fn a_layer_is_left_out_by_name() {
    needs!(user_namespaces());
    let (kite, process) = running(&["--sandbox", "require,no-seccomp,no-landlock"]);
    assert!(tasks(&process).iter().all(|task| field(task, "Seccomp") == "0"));
    assert_eq!(field(&process, "CapEff"), "0".repeat(16));
    terminate(kite);
    let (kite, process) = running(&["--sandbox", "none"]);
    assert_eq!((field(&process, "NoNewPrivs"), field(&process, "Seccomp")), ("0".into(), "0".into()));
    terminate(kite);
}

#[test]
fn where_the_host_allows_less_auto_goes_on_and_require_names_a_way_to() {
    needs!(user_namespaces());
    let few = "echo 0 >/proc/sys/user/max_user_namespaces && exec \"$@\"";
    let few = (&["unshare", "-Urm", "sh", "-c", few, "sh"][..], "user.max_user_namespaces=");
    let nameless = (&["setpriv", "--bounding-set=-setfcap", "--inh-caps=-setfcap"][..], "SETFCAP");
    let root = nix::unistd::geteuid().is_root();
    for (host, fix) in [few].into_iter().chain(root.then_some(nameless)) {
        let kite = |sandbox: &str| Kite::by(host, &ONCE, &["--verbose", "--sandbox", sandbox]).end();
        let auto = kite("auto");
        let lacks: Vec<_> = auto.stderr.lines().filter(|line| line.contains("no sandbox layer")).collect();
        assert_eq!((auto.status.code(), &auto.stdout[..]), (Some(0), &b"r"[..]), "{}", auto.stderr);
        assert!(
            lacks.iter().any(|line| line.contains("layer namespaces: ") && line.contains(fix)),
            "{lacks:?}"
        );
        let require = kite("require");
        assert_eq!((require.status.code(), &require.stdout[..]), (Some(125), &b""[..]), "{}", require.stderr);
        let (why, way) = require.stderr.split_once("--sandbox=").unwrap();
        assert!(why.contains("the sandbox is required") && why.contains(fix), "{why}");
        let way = kite(way.trim());
        assert_eq!((way.status.code(), &way.stdout[..]), (Some(0), &b"r"[..]), "{}", way.stderr);
    }
}

#[test]
fn the_environment_names_the_sandbox_where_no_option_does() {
    needs!(user_namespaces());
    for (variable, option, filtered) in [
        ("none", "", false),
        ("auto,no-seccomp", "", false),
        ("require", "", true),
        ("", "", true),
        ("none", "--sandbox require", true),
        ("require", "--sandbox none", false),
        ("nonsense", "--sandbox none", false),
    ] {
        let kite = Kite::in_shell(&FOR_EVER, &format!("KITE_SANDBOX={variable}"), option);
        kite.expect_more_than(0);
        let process = PathBuf::from(format!("/proc/{}", kite.id()));
        assert_eq!(field(&process, "Seccomp") == "2", filtered, "{variable:?} {option:?}");
        terminate(kite);
    }
}

#[test]
fn a_job_that_is_stopped_stops_its_machine_and_both_go_on() {
    needs!(kvm());
    let (kite, machine) = running(&[]);
    let is_stopped = |process: &Path| field(process, "State").starts_with('T');
    kite.signal(Signal::SIGTSTP);
    // Whether kite itself stops is up to its group: one that nobody would let go on does not.
    let supervisor = supervisor(&machine);
    for _ in 0..100 {
        if is_stopped(&supervisor) {
            until("the machine to stop", || is_stopped(&machine));
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    kite.signal(Signal::SIGCONT);
    until("the machine to go on", || !is_stopped(&machine));
    // Long enough for a wait of its main thread to end.
    std::thread::sleep(std::time::Duration::from_millis(1200));
    terminate(kite);
}
