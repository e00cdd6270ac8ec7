//! The sandbox from inside: what a thread of each kind tries when a guest has taken it over, and what becomes of it.
//!
//! Each try is a process of its own that locks itself in. As kite's, it has one thread then, and no test harness.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "makes system calls that no safe interface would")]

use std::fs;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Output, exit};
use std::sync::OnceLock;

use devices::virtio::fs::Share;
use kite::sandbox::{self, Entry, Inherited, Needs, Side, Thread};

/// What a child of a test is to do: a thread's kind and an act, by their names.
const ACT: &str = "KITE_TEST_ACT";
/// Where the shared folders are, of which the second is read-only.
const FOLDER: &str = "KITE_TEST_FOLDER";

const KINDS: [(&str, Thread); 4] =
    [("vcpu", Thread::Vcpu), ("io", Thread::Io), ("share", Thread::Share), ("main", Thread::Main)];

static SHARES: OnceLock<[OwnedFd; 2]> = OnceLock::new();

/// Something forbidden; answers a call's result.
type Act = fn() -> i64;

/// Acts that end the process, by the call that is refused.
const REFUSED: [(&str, Act); 10] = [
    ("execve", || call(libc::SYS_execve, [text(c"/bin/true"), 0, 0, 0])),
    ("ptrace", || call(libc::SYS_ptrace, [libc::PTRACE_ATTACH.into(), 1, 0, 0])),
    ("open", || call(libc::SYS_open, [text(c"/etc/passwd"), 0, 0, 0])),
    ("socket", || call(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0, 0])),
    ("mmap", || map(libc::PROT_READ | libc::PROT_EXEC)),
    ("mprotect", || {
        let page = map(libc::PROT_READ | libc::PROT_WRITE);
        call(libc::SYS_mprotect, [page, 4096, (libc::PROT_READ | libc::PROT_EXEC).into(), 0])
    }),
    ("clone", || call(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0])),
    ("mount", || call(libc::SYS_mount, [text(c"x"), text(c"/"), text(c"proc"), 0])),
    ("kill", || call(libc::SYS_kill, [1, 0, 0, 0])),
    ("ioctl", || call(libc::SYS_ioctl, [0, libc::TIOCSTI as i64, text(c"x"), 0])),
];

/// Acts of the one kind that opens files, which fail.
const FAILING: [(&str, Act); 6] = [
    ("passwd", || open(libc::AT_FDCWD, c"/etc/passwd", libc::O_RDONLY)),
    ("create", || open(libc::AT_FDCWD, c"/file", libc::O_CREAT | libc::O_WRONLY)),
    ("above", || open(share(0), c"../outside", libc::O_RDONLY)),
    ("link", || open(share(0), c"link", libc::O_RDONLY)),
    ("readonly", || open(share(1), c"new", libc::O_CREAT | libc::O_WRONLY)),
    ("readonly-old", || open(share(1), c"file", libc::O_WRONLY)),
];

/// Acts of the one kind that opens files, which succeed: or else nothing would be known of those that fail.
const ALLOWED: [(&str, Act); 4] = [
    // There is nothing above a share: this is in it.
    ("above-write", || open(share(0), c"../new", libc::O_CREAT | libc::O_WRONLY)),
    ("read", || open(share(1), c"file", libc::O_RDONLY)),
    ("write", || open(share(0), c"new", libc::O_CREAT | libc::O_WRONLY)),
    ("down", || open(share(0), c"folder/../file", libc::O_RDONLY)),
];

fn text(text: &'static std::ffi::CStr) -> i64 {
    text.as_ptr().addr() as i64
}

fn call(number: i64, [a, b, c, d]: [i64; 4]) -> i64 {
    // SAFETY: what the kernel reads are strings that last for ever, and it writes nothing; a mapping that is made is at an
    // address of its choice. Should a call that is to be refused be carried out, it ends a process that is there for it.
    unsafe { libc::syscall(number, a, b, c, d, -1, 0) }
}

fn map(protection: i32) -> i64 {
    call(libc::SYS_mmap, [0, 4096, protection.into(), (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).into()])
}

fn open(folder: i32, path: &'static std::ffi::CStr, flags: i32) -> i64 {
    call(libc::SYS_openat, [folder.into(), text(path), flags.into(), 0o600])
}

fn share(index: usize) -> i32 {
    SHARES.get().unwrap()[index].as_raw_fd()
}

/// In a child of a test, locks itself in, acts on a thread of that kind, and ends.
fn act_if_told() {
    let (Some(told), Some(folder)) = (std::env::var_os(ACT), std::env::var_os(FOLDER)) else { return };
    let (told, folder) = (told.into_string().unwrap(), PathBuf::from(folder));
    let (kind, name) = told.split_once(' ').unwrap();
    let kind = KINDS.into_iter().find(|it| it.0 == kind).unwrap().1;
    let act = REFUSED.iter().chain(&FAILING).chain(&ALLOWED).find(|it| it.0 == name).unwrap().1;
    let options = sandbox::parse("require").unwrap();
    let mut inside = match sandbox::split(options, Inherited::now()).unwrap() {
        Side::Outside(outside) => match outside.attend().unwrap() {
            sandbox::End::Exited(code) => exit(code.into()),
            sandbox::End::Signalled(signal) => exit(128 + signal),
        },
        Side::Inside(inside) => inside,
    };
    let paths = ["rw", "ro"].map(|name| folder.join(name));
    let [mut rw, mut ro] = [&paths[0], &paths[1]]
        .map(|path| Share::new("x", fs::File::open(path).unwrap().into(), path.ends_with("rw")));
    inside.part_shares(vec![&mut rw, &mut ro], &paths);
    let all = Needs {
        disks: true,
        networks: true,
        ports: true,
        shares: Some(true),
        streams: true,
        threads: 16,
        ..Needs::default()
    };
    if let Err(error) = inside.lock(all) {
        eprintln!("{error:#}");
        exit(125);
    }
    SHARES.set([rw.root, ro.root]).unwrap();
    let entry = Entry::new();
    let run = move || {
        entry.confine(kind);
        let result = act();
        let line: &[u8] = if result < 0 { b"failed\n" } else { b"done\n" };
        let _ = std::io::stderr().write_all(line);
    };
    std::thread::spawn(run).join().unwrap();
    exit(0);
}

/// A folder with a file, and in it two folders to share.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::create_dir_all(path.join("rw/folder")).unwrap();
    fs::create_dir(path.join("ro")).unwrap();
    for file in ["outside", "rw/file", "ro/file"] {
        fs::write(path.join(file), "x").unwrap();
    }
    std::os::unix::fs::symlink("../outside", path.join("rw/link")).unwrap();
    folder
}

/// Has a child act.
fn act(kind: &str, name: &str) -> (Output, tempfile::TempDir) {
    let folder = folder();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.env(ACT, format!("{kind} {name}")).env(FOLDER, folder.path());
    (child.output().unwrap(), folder)
}

/// Why this host allows less than all, if it does: a container may.
fn forbidden() -> Option<String> {
    let (output, _folder) = act("share", "read");
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.contains("this host allows it in part").then_some(text)
}

fn main() {
    act_if_told();
    let tests: [(&str, fn()); 2] = [
        ("no_thread_of_any_kind_gets_out_by_a_system_call", no_thread_of_any_kind_gets_out_by_a_system_call),
        ("files_outside_a_share_are_out_of_reach", files_outside_a_share_are_out_of_reach),
    ];
    // As the usual harness: a word picks tests by their names.
    let word = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let chosen: Vec<_> = tests.into_iter().filter(|(name, _)| name.contains(&word)).collect();
    for (name, test) in &chosen {
        if let Some(why) = forbidden() {
            println!("skipped: {name}: {why}");
            continue;
        }
        test();
        println!("test {name} ... ok");
    }
    // Those that were skipped are among them, as they are elsewhere.
    println!("test result: ok. {} passed; 0 failed", chosen.len());
}

fn no_thread_of_any_kind_gets_out_by_a_system_call() {
    for (kind, _) in KINDS {
        for (call, _) in REFUSED {
            let (output, _folder) = act(kind, call);
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(125), "{kind}: {call}: {text}");
            assert!(text.contains(&format!("system call {call} (")), "{kind}: {call}: {text}");
        }
    }
}

fn files_outside_a_share_are_out_of_reach() {
    for (name, _) in FAILING {
        let (output, folder) = act("share", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.ends_with("failed\n"), "{name}: {text}");
        assert!(!folder.path().join("new").exists() && !folder.path().join("ro/new").exists());
    }
    for (name, _) in ALLOWED {
        let (output, folder) = act("share", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.ends_with("done\n"), "{name}: {text}");
        assert!(!folder.path().join("new").exists(), "{name} leaves the share");
    }
    for (kind, _) in KINDS.into_iter().filter(|(kind, _)| *kind != "share") {
        let (output, _folder) = act(kind, "read");
        assert_eq!(output.status.code(), Some(125), "{kind} opens files");
    }
}
