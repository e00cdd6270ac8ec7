//! The guest's half of processes that join a container, with the test in the place of kite's monitor: the first process of a PID
//! namespace, as in a guest, at the other end of a socket that is its port.

use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{self, Child, Command, Stdio};

use nix::mount::{MsFlags, mount};
use tempfile::TempDir;

use super::super::wait_for;
use super::*;
use crate::spec::container::ProcessSpec;
use crate::spec::frames::LONGEST_FROM_GUEST;

/// Set for the guest's half: where the port is.
const SOCKET: &str = "KITE_PROCESSES_SOCKET";
/// And where a file system is mounted that never answers.
const HANGS: &str = "KITE_PROCESSES_HANGS";
/// The test that is the guest's half.
const GUEST: &str = "guest::command::container::processes::tests::the_guest_s_half";
/// What anything may take.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_guest_s_half() {
    let (Some(socket), Ok(hangs)) = (std::env::var_os(SOCKET), std::env::var(HANGS)) else { return };
    assert_eq!(process::id(), 1, "it reaps all that it sees");
    let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options =
        format!("fd={},rootmode=40000,user_id=0,group_id=0", std::os::fd::AsRawFd::as_raw_fd(&fuse));
    mount(Some("hangs"), hangs.as_str(), Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let own = Command::new("sleep").arg("1000").spawn().unwrap();
    let own = Pid::from_raw(own.id() as i32);
    let port = File::from(OwnedFd::from(UnixStream::connect(socket).unwrap()));
    let processes = Processes::start(port, own).unwrap();
    let end = wait_for(&processes).unwrap();
    processes.wait_until_ready();
    process::exit(if end == End::Signalled(libc::SIGTERM) { 15 } else { 1 })
}

/// The monitor's half.
struct Guest {
    child: Child,
    port: UnixStream,
    frames: Frames,
    folder: TempDir,
}

impl Guest {
    /// A guest whose own process runs; nothing where the host has no namespaces or no FUSE.
    fn start(test: &str) -> Option<Self> {
        let unshare = ["--pid", "--fork", "--kill-child", "--mount"];
        let can = Command::new("unshare").args(unshare).arg("true").output();
        if !nix::unistd::geteuid().is_root() || !can.is_ok_and(|it| it.status.success()) {
            println!("skipped: {test}: it takes root and namespaces");
            return None;
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
            println!("skipped: {test}: /dev/fuse: {error}");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let (socket, hangs) = (folder.path().join("port"), folder.path().join("hangs"));
        std::fs::create_dir(&hangs).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let mut guest = Command::new("unshare");
        guest.args(unshare).arg(std::env::current_exe().unwrap()).args(["--exact", GUEST, "--nocapture"]);
        guest.env(SOCKET, socket).env(HANGS, hangs).stdin(Stdio::null()).stdout(Stdio::null());
        let child = guest.spawn().unwrap();
        let (port, _) = listener.accept().unwrap();
        port.set_read_timeout(Some(LIMIT)).unwrap();
        let mut this = Self { child, port, frames: Frames::new(LONGEST_FROM_GUEST), folder };
        assert_eq!(this.next().kind, Kind::Ready);
        Some(this)
    }

    fn next(&mut self) -> Frame {
        let mut buffer = [0; CHUNK];
        loop {
            if let Some(frame) = self.frames.take().unwrap() {
                return frame;
            }
            let count = self.port.read(&mut buffer).unwrap();
            assert!(count > 0, "the guest has ended");
            self.frames.feed(&buffer[..count]);
        }
    }

    fn send(&mut self, frame: &Frame) {
        self.port.write_all(&frame.encode()).unwrap();
    }

    fn begin(&mut self, id: u32, argv: &[&str], cwd: &str) {
        let spec = GuestProcess {
            argv: argv.iter().map(Into::into).collect(),
            env: vec![("PATH".into(), "/usr/bin:/bin".into())],
            cwd: cwd.into(),
            process: ProcessSpec::default(),
            terminal: None,
        };
        self.send(&Frame { kind: Kind::Start, id, payload: serde_json::to_vec(&spec).unwrap() });
    }

    /// How a process ends, and what it has written to its output and then, whenever that came, to its error output.
    fn end(&mut self, id: u32) -> (End, String) {
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        loop {
            let frame = self.next();
            match frame.kind {
                Kind::Ended if frame.id == id => {
                    let end = serde_json::from_slice(&frame.payload).unwrap();
                    return (end, String::from_utf8([output, errors].concat()).unwrap());
                }
                Kind::Stdout if frame.id == id => output.extend(frame.payload),
                Kind::Stderr if frame.id == id => errors.extend(frame.payload),
                _ => {}
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_file_system_that_hangs_holds_up_its_own_process_alone() {
    let Some(mut guest) = Guest::start("a_file_system_that_hangs_holds_up_its_own_process_alone") else {
        return;
    };
    let hangs = guest.folder.path().join("hangs").display().to_string();
    guest.begin(1, &["true"], &hangs);
    guest.begin(2, &[&format!("{hangs}/program")], "/");
    for id in 3..6 {
        guest.begin(id, &["sh", "-c", "cat; echo error >&2; exit 7"], "/");
        guest.send(&Frame { kind: Kind::Stdin, id, payload: b"input\n".to_vec() });
        guest.send(&Frame { kind: Kind::StdinEnd, id, payload: Vec::new() });
        assert_eq!(guest.end(id), (End::Exited(7), "input\nerror\n".to_owned()));
    }
    guest.send(&Frame::number(Kind::Signal, OWN, libc::SIGTERM as u32));
    assert_eq!(guest.child.wait().unwrap().code(), Some(15), "the container's own process gets signals");
}

#[test]
fn what_comes_before_a_process_is_started_waits_for_it() {
    let Some(mut guest) = Guest::start("what_comes_before_a_process_is_started_waits_for_it") else { return };
    for id in 1..40 {
        guest.begin(id, &["sleep", "1000"], "/");
        guest.send(&Frame::number(Kind::Signal, id, libc::SIGKILL as u32));
    }
    for _ in 1..40 {
        let frame = guest.next();
        assert_eq!(frame.kind, Kind::Ended);
        assert_eq!(serde_json::from_slice::<End>(&frame.payload).unwrap(), End::Signalled(libc::SIGKILL));
    }
}

#[test]
fn programs_that_cannot_be_started_are_not_confused_with_those_that_end() {
    let test = "programs_that_cannot_be_started_are_not_confused_with_those_that_end";
    let Some(mut guest) = Guest::start(test) else { return };
    for id in 1..60 {
        guest.begin(id, if id % 2 == 0 { &["/no/such"] } else { &["true"] }, "/");
    }
    for _ in 1..60 {
        let frame = guest.next();
        assert_eq!(frame.kind, Kind::Ended);
        let end: End = serde_json::from_slice(&frame.payload).unwrap();
        let is_right =
            if frame.id % 2 == 0 { matches!(end, End::NotFound(_)) } else { end == End::Exited(0) };
        assert!(is_right, "{}: {end:?}", frame.id);
    }
}
