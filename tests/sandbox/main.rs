//! The sandbox from inside: what a thread of each kind tries when a guest has taken it over, and what becomes of it.
//!
//! Each try is a process of its own that locks itself in. As kite's, it has one thread then, and no test harness.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(unsafe_code, reason = "makes system calls that no safe interface would")]

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Output, exit};
use std::sync::OnceLock;

use devices::virtio::fs::Share;
use kite::host::atomic_file;
use kite::sandbox::{self, Chores, Cleanup, Entry, Fork, InheritedFds, Needs, Thread};

/// What a child of a test is to do: a thread's kind and an act, by their names.
const ACT: &str = "KITE_TEST_ACT";
/// The layers that a child of a test is locked in with.
const LAYERS: &str = "KITE_TEST_LAYERS";
/// Where the shared folders are, of which the second is read-only.
const FOLDER: &str = "KITE_TEST_FOLDER";

const KINDS: [(&str, Thread); 7] = [
    ("vcpu", Thread::Vcpu),
    ("io", Thread::Io),
    ("share", Thread::Share),
    ("read-only-share", Thread::ReadOnlyShare),
    ("vnc", Thread::Vnc),
    ("main", Thread::Main),
    ("supervisor", Thread::Supervisor),
];

static SHARES: OnceLock<[OwnedFd; 2]> = OnceLock::new();

/// Something forbidden; answers a call's result.
type Act = fn() -> i64;

/// Acts that end the process, by the call that is refused.
const REFUSED: [(&str, Act); 11] = [
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
    // By a number of i386's: getpid(2).
    ("unknown", || {
        let result: i64;
        // SAFETY: this call reads and writes no memory; some kernels change these registers.
        unsafe {
            std::arch::asm!("int 0x80", inout("rax") 20_i64 => result, out("r8") _, out("r9") _, out("r10") _, out("r11") _);
        }
        result
    }),
];

/// Acts of the one kind that opens files, which fail.
const FAILING: [(&str, Act); 6] = [
    ("passwd", || open(libc::AT_FDCWD, c"/etc/passwd", libc::O_RDONLY)),
    ("create", || open(libc::AT_FDCWD, c"/file", NEW)),
    ("above", || open(share(0), c"../outside", libc::O_RDONLY)),
    ("link", || open(share(0), c"link", libc::O_RDONLY)),
    ("readonly", || open(share(1), c"new", libc::O_CREAT | libc::O_WRONLY)),
    ("readonly-old", || open(share(1), c"file", libc::O_WRONLY)),
];

/// Acts of the one kind that opens files, which succeed: or else nothing would be known of those that fail.
const ALLOWED: [(&str, Act); 5] = [
    // There is nothing above a share: this is in it.
    ("above-write", || open(share(0), c"../new", libc::O_CREAT | libc::O_WRONLY)),
    ("read", || open(share(1), c"file", libc::O_RDONLY)),
    ("write", || open(share(0), c"new", libc::O_CREAT | libc::O_WRONLY)),
    ("down", || open(share(0), c"folder/../file", libc::O_RDONLY)),
    // As when a guest closes a file of another machine's.
    ("flush", || call(libc::SYS_close, [call(libc::SYS_dup, [share(0).into(), 0, 0, 0]), 0, 0, 0])),
];

/// Acts of the one kind that changes files on one that is only read, such as a disk's image or kite's own program: they fail
/// because nothing can be changed there, and for no other reason.
const CHANGING: [(&str, Act); 4] = [
    ("chmod", || {
        changed(|| call(libc::SYS_fchmodat, [descriptors(), READ_ALONE.get().unwrap().1, 0o4777, 0]))
    }),
    ("chown", || {
        let of = [image(), text(c""), -1, -1];
        changed(|| call_with(libc::SYS_fchownat, of, libc::AT_EMPTY_PATH.into()))
    }),
    ("utimes", || changed(|| call(libc::SYS_utimensat, [image(), 0, 0, 0]))),
    ("setxattr", || {
        let folder = call(libc::SYS_fchdir, [descriptors(), 0, 0, 0]);
        let attribute = [READ_ALONE.get().unwrap().1, text(c"user.x"), text(c"x"), 1];
        folder.min(changed(|| call_with(libc::SYS_setxattr, attribute, 0)))
    }),
];

/// The result of an act, but that what fails for another reason than a read-only file system counts as done.
fn changed(act: impl FnOnce() -> i64) -> i64 {
    let result = act();
    let why = std::io::Error::last_os_error();
    if result < 0 && why.raw_os_error() != Some(libc::EROFS) {
        eprintln!("{why}");
        return 0;
    }
    result
}

/// A file that is open for reading alone, its number as a text, and the folder of such texts.
static READ_ALONE: OnceLock<(fs::File, i64, fs::File)> = OnceLock::new();

fn image() -> i64 {
    READ_ALONE.get().unwrap().0.as_raw_fd().into()
}

fn descriptors() -> i64 {
    READ_ALONE.get().unwrap().2.as_raw_fd().into()
}

/// Acts against the supervisor, by way of what it reads and of the folder that it writes to.
const SENDING: [(&str, Act); 6] = [
    // To have the terminal restored, over and over.
    ("flood", || (0..1_000_000).map(|_| send(&[1])).max().unwrap()),
    ("forge", || send(&[9, 0, 0])),
    ("forge-signal", || send(&[2, libc::SIGKILL as u8])),
    // A file without a descriptor.
    ("forge-file", || send(&[3, 0])),
    ("send", || 0),
    ("send-elsewhere", || {
        let names = [share(0).into(), text(c"results"), share(0).into(), text(c"moved")];
        let moved = call_with(libc::SYS_renameat2, names, 0);
        moved.min(call(libc::SYS_symlinkat, [text(c"../precious"), share(0).into(), text(c"results"), 0]))
    }),
];

/// Sends a message to the supervisor, by whatever is open: nothing else takes it.
fn send(message: &[u8]) -> i64 {
    let write = |descriptor| {
        call(libc::SYS_write, [descriptor, message.as_ptr().addr() as i64, message.len() as i64, 0])
    };
    (3..64).map(write).max().unwrap()
}

/// Writes where there is no memory.
const FAULT: (&str, Act) = ("fault", || {
    // SAFETY: there is not, and the process ends.
    unsafe { std::hint::black_box(std::ptr::without_provenance_mut::<u8>(8)).write_volatile(0) };
    0
});

/// How the supervisor makes files.
const NEW: i32 = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_NOFOLLOW | libc::O_CLOEXEC;

fn text(text: &'static std::ffi::CStr) -> i64 {
    text.as_ptr().addr() as i64
}

fn call(number: i64, arguments: [i64; 4]) -> i64 {
    call_with(number, arguments, -1)
}

fn call_with(number: i64, [a, b, c, d]: [i64; 4], fifth: i64) -> i64 {
    // SAFETY: what the kernel reads are strings that last for ever, and it writes nothing; a mapping that is made is at an
    // address of its choice. Should a call that is to be refused be carried out, it ends a process that is there for it.
    unsafe { libc::syscall(number, a, b, c, d, fifth, 0) }
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
    let inherited = InheritedFds::now();
    let (told, folder) = (told.into_string().unwrap(), PathBuf::from(folder));
    let (kind, name) = told.split_once(' ').unwrap();
    let kind = KINDS.into_iter().find(|it| it.0 == kind).unwrap().1;
    let acts =
        REFUSED.iter().chain(&FAILING).chain(&ALLOWED).chain(&CHANGING).chain(&SENDING).chain([&FAULT]);
    let act = acts.into_iter().find(|it| it.0 == name).unwrap().1;
    let options = kite::spec::sandbox::parse(&std::env::var(LAYERS).unwrap()).unwrap();
    let report = folder.join("rw/results/report");
    atomic_file::expect(&report).unwrap();
    let image = fs::File::open(folder.join("outside")).unwrap();
    let mut process = match sandbox::fork(options, inherited, &mut Cleanup::default()).unwrap() {
        Fork::Supervisor(mut supervisor) => {
            let rw = fs::File::open(folder.join("rw")).unwrap();
            // All that it may have to do.
            let chores = Chores { names: vec![rw.as_fd()], groups: vec![rw.as_fd()] };
            supervisor.lock(&chores);
            if kind == Thread::Supervisor {
                act_as(kind, act);
            }
            match supervisor.attend() {
                Ok(sandbox::ProcessEnd::Exited(code)) => exit(code.into()),
                Ok(sandbox::ProcessEnd::Signalled(signal)) => exit(128 + signal),
                Ok(sandbox::ProcessEnd::OutOfMemory(_)) => exit(76),
                Err(error) => {
                    eprintln!("{error:#}");
                    exit(77);
                }
            }
        }
        Fork::Vm(process) => process,
    };
    let paths = ["rw", "ro"].map(|name| folder.join(name));
    let [mut rw, mut ro] = [&paths[0], &paths[1]]
        .map(|path| Share::new("x", fs::File::open(path).unwrap().into(), path.ends_with("rw")));
    process.part_shares(vec![&mut rw, &mut ro], &paths);
    process.part_files();
    let number = std::ffi::CString::new(image.as_raw_fd().to_string()).unwrap();
    let descriptors = fs::File::open("/proc/self/fd").unwrap();
    READ_ALONE.set((image, number.into_raw().addr() as i64, descriptors)).unwrap();
    let all = Needs {
        disks: true,
        networks: true,
        ports: true,
        shares: Some(true),
        vnc: true,
        streams: true,
        test_devices: true,
        threads: 16,
        ..Needs::default()
    };
    if let Err(error) = process.lock(all) {
        eprintln!("{error:#}");
        exit(125);
    }
    SHARES.set([rw.root, ro.root]).unwrap();
    if kind != Thread::Supervisor {
        act_as(kind, act);
    }
    if name == "send" || name == "send-elsewhere" {
        atomic_file::write(&report, |file| file.write_all(b"whole")).unwrap();
    }
    exit(0);
}

/// Acts on a thread of that kind.
fn act_as(kind: Thread, act: Act) {
    let entry = Entry::new();
    let run = move || {
        entry.confine(kind);
        let result = act();
        let line: &[u8] = if result < 0 { b"failed\n" } else { b"done\n" };
        let _ = std::io::stderr().write_all(line);
    };
    std::thread::spawn(run).join().unwrap();
}

/// A folder with a file, and in it two folders to share.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    for folder in ["rw/folder", "rw/results", "ro", "precious"] {
        fs::create_dir_all(path.join(folder)).unwrap();
    }
    for file in ["outside", "rw/file", "ro/file"] {
        fs::write(path.join(file), "x").unwrap();
    }
    std::os::unix::fs::symlink("../outside", path.join("rw/link")).unwrap();
    folder
}

/// Has a child act, locked in with everything.
fn act(kind: &str, name: &str) -> (Output, tempfile::TempDir) {
    act_in("require", kind, name)
}

/// Has a child act.
fn act_in(layers: &str, kind: &str, name: &str) -> (Output, tempfile::TempDir) {
    let folder = folder();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.env(LAYERS, layers).env(ACT, format!("{kind} {name}")).env(FOLDER, folder.path());
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
    let tests: [(&str, fn()); 9] = [
        ("a_machine_that_lies_to_its_supervisor_is_ended", a_machine_that_lies_to_its_supervisor_is_ended),
        ("a_file_that_is_only_read_cannot_be_changed", a_file_that_is_only_read_cannot_be_changed),
        (
            "a_share_that_is_only_read_has_no_call_to_change_it",
            a_share_that_is_only_read_has_no_call_to_change_it,
        ),
        (
            "files_are_out_of_reach_where_there_are_no_namespaces",
            files_are_out_of_reach_where_there_are_no_namespaces,
        ),
        ("a_memory_fault_ends_the_process_as_one", a_memory_fault_ends_the_process_as_one),
        ("no_thread_of_any_kind_gets_out_by_a_system_call", no_thread_of_any_kind_gets_out_by_a_system_call),
        ("files_outside_a_share_are_out_of_reach", files_outside_a_share_are_out_of_reach),
        (
            "the_supervisor_has_no_file_but_those_that_were_named",
            the_supervisor_has_no_file_but_those_that_were_named,
        ),
        (
            "a_file_is_written_where_it_was_named_and_nowhere_else",
            a_file_is_written_where_it_was_named_and_nowhere_else,
        ),
    ];
    // As the usual harness: words pick tests by their names.
    let words: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let is_chosen = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let chosen: Vec<_> = tests.into_iter().filter(|(name, _)| is_chosen(name)).collect();
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
            let killed = [output.status.signal(), output.status.code().map(|code| code - 128)];
            if call == "unknown" && killed.contains(&Some(libc::SIGSEGV)) {
                println!("skipped: no_thread_of_any_kind (32-bit call): this kernel has none");
                continue;
            }
            assert_eq!(output.status.code(), Some(125), "{kind}: {call}: {text}");
            assert!(text.contains(&format!("system call {call} (")), "{kind}: {call}: {text}");
        }
    }
}

fn a_memory_fault_ends_the_process_as_one() {
    for (kind, thread) in KINDS {
        let (output, _folder) = act(kind, FAULT.0);
        let text = String::from_utf8_lossy(&output.stderr);
        // Its own end, or what the supervisor makes of it.
        let (signal, code) = (output.status.signal(), output.status.code());
        let expected = match thread {
            Thread::Supervisor => (Some(libc::SIGSEGV), None),
            _ => (None, Some(128 + libc::SIGSEGV)),
        };
        assert_eq!(((signal, code), text.as_ref()), (expected, ""), "{kind}");
    }
}

fn a_file_that_is_only_read_cannot_be_changed() {
    for (name, _) in CHANGING {
        let (output, folder) = act("share", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.as_ref()), (Some(0), "failed\n"), "{name}");
        let mode = fs::metadata(folder.path().join("outside")).unwrap().permissions().mode();
        assert_eq!(mode & 0o7000, 0, "{name}");
    }
}

fn a_share_that_is_only_read_has_no_call_to_change_it() {
    for (name, call) in
        CHANGING.map(|it| it.0).into_iter().zip(["fchmodat", "fchownat", "utimensat", "setxattr"])
    {
        let (output, _folder) = act("read-only-share", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(&format!("system call {call} (")), "{name}: {text}");
        assert_eq!(output.status.code(), Some(125), "{name}");
    }
}

/// Has a thread that serves shares act, which ends with this word and changes nothing outside of what may be changed.
fn act_on_files(layers: &str, name: &str, end: &str) {
    let (output, folder) = act_in(layers, "share", name);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.ends_with(end), "{layers}: {name}: {text}");
    let [outside, read_only] = ["new", "ro/new"].map(|path| folder.path().join(path).exists());
    assert!(!outside && !read_only, "{layers}: {name} leaves the share, or changes one that is read-only");
}

fn files_outside_a_share_are_out_of_reach() {
    FAILING.iter().for_each(|(name, _)| act_on_files("require", name, "failed\n"));
    ALLOWED.iter().for_each(|(name, _)| act_on_files("require", name, "done\n"));
    for (kind, _) in
        KINDS.into_iter().filter(|(kind, _)| !["share", "read-only-share", "supervisor"].contains(kind))
    {
        let (output, _folder) = act(kind, "read");
        assert_eq!(output.status.code(), Some(125), "{kind} opens files");
    }
}

fn files_are_out_of_reach_where_there_are_no_namespaces() {
    const WITHOUT: &str = "require,no-namespaces,no-root";
    FAILING.iter().for_each(|(name, _)| act_on_files(WITHOUT, name, "failed\n"));
    // There is a way above a share then, and nothing may be made there.
    for (name, end) in
        [("above-write", "failed\n"), ("read", "done\n"), ("write", "done\n"), ("down", "done\n")]
    {
        act_on_files(WITHOUT, name, end);
    }
}

fn the_supervisor_has_no_file_but_those_that_were_named() {
    for (name, end, code) in [("create", "failed\n", 0), ("passwd", "report it\n", 125)] {
        let (output, _folder) = act("supervisor", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.ends_with(end) && output.status.code() == Some(code), "{name}: {text}");
    }
}

fn a_machine_that_lies_to_its_supervisor_is_ended() {
    for (name, lie) in [
        ("flood", "messages without end"),
        ("forge", "message 9, which there is not"),
        ("forge-signal", "a signal that ends nothing, 9"),
        ("forge-file", "no descriptor where one belongs to a message"),
    ] {
        let (output, folder) = act("io", name);
        let text = String::from_utf8_lossy(&output.stderr);
        let why = format!("the VM process sends {lie}, as if the guest had taken it over: it was killed\n");
        assert!(output.status.code() == Some(77) && text.ends_with(&why), "{name}: {text}");
        assert_eq!(fs::read_dir(folder.path().join("rw/results")).unwrap().count(), 0, "{name}");
    }
}

fn a_file_is_written_where_it_was_named_and_nowhere_else() {
    for (name, place) in [("send", "rw/results"), ("send-elsewhere", "rw/moved")] {
        let (output, folder) = act("share", name);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), text.as_ref()), (Some(0), "done\n"), "{name}");
        let files = |of: &str| fs::read_dir(folder.path().join(of)).unwrap().count();
        assert_eq!(files("precious"), 0, "{name}");
        assert_eq!(fs::read_to_string(folder.path().join(place).join("report")).unwrap(), "whole");
        assert_eq!(files(place), 1, "{name}");
    }
}
