//! The guest's half of a command's session, with the test in kite's place: the first process of a PID namespace, as in a
//! guest, at the other ends of sockets that are its ports.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{self, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::child::{self, Process};
use super::ports::{Control, Ports};
use crate::spec::wire::{
    self, End, GuestCommand, Messages, MissingCwd, Order, Output, Report, Root, Terminal, User,
};

/// Set for the guest's half: where kite's is.
const SOCKET: &str = "KITE_SESSION_SOCKET";
/// And what it is to do.
const COMMAND: &str = "KITE_SESSION_COMMAND";
/// The test that is the guest's half.
const GUEST: &str = "guest::command::tests::the_guest_s_half";
/// What anything may take.
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn the_guest_s_half() {
    let (Some(socket), Some(command)) = (std::env::var_os(SOCKET), std::env::var(COMMAND).ok()) else {
        return;
    };
    // It ends all processes that it sees.
    assert_eq!(process::id(), 1);
    let command: GuestCommand = serde_json::from_str(&command).unwrap();
    let port = || File::from(OwnedFd::from(UnixStream::connect(&socket).unwrap()));
    let (orders, stdin, outputs) = (port(), port(), [port(), port()]);
    let control = Arc::new(Control::new(orders.try_clone().unwrap()));
    let ports = Ports { control: control.clone(), orders, stdin, outputs };
    let end = Process::of(&command).and_then(|process| child::run(&command, process, ports));
    control.tell(&Report::Ended(end.unwrap_or_else(|error| End::Failed(format!("{error:#}")))));
    process::exit(0)
}

/// Kite's half.
struct Session {
    guest: process::Child,
    control: UnixStream,
    stdin: UnixStream,
    outputs: [UnixStream; 2],
    messages: Messages,
    reports: Vec<Report>,
    /// What was read of standard output already.
    first: Vec<u8>,
}

/// What came of a session.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    end: End,
    stdout: String,
    stderr: String,
}

fn command(argv: &[&str]) -> GuestCommand {
    GuestCommand {
        argv: argv.iter().map(OsString::from).collect(),
        env: vec![("PATH".into(), "/usr/bin:/bin".into()), ("A".into(), "b c".into())],
        cwd: "/usr".into(),
        missing_cwd: MissingCwd::Fail,
        user: User::Numbers { uid: 0, gid: 0, groups: Vec::new() },
        umask: 0o027,
        limits: Vec::new(),
        root: Root::Disk { readonly: true },
        shares: Vec::new(),
        networks: Vec::new(),
        terminal: None,
        container: None,
    }
}

impl Session {
    fn start(command: &GuestCommand) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("ports");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut guest = Command::new("unshare");
        guest.args(["--pid", "--fork", "--kill-child"]).arg(std::env::current_exe().unwrap());
        guest.args(["--exact", GUEST, "--nocapture"]).env(SOCKET, &socket);
        guest.env(COMMAND, serde_json::to_string(command).unwrap());
        let guest = guest.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let port = || {
            let (port, _) = listener.accept().unwrap();
            port.set_read_timeout(Some(LIMIT)).unwrap();
            port.set_write_timeout(Some(LIMIT)).unwrap();
            port
        };
        let (control, stdin, outputs) = (port(), port(), [port(), port()]);
        Self {
            guest,
            control,
            stdin,
            outputs,
            messages: Messages::default(),
            reports: Vec::new(),
            first: Vec::new(),
        }
    }

    /// Waits for so many bytes of standard output.
    fn first(&mut self, len: usize) {
        self.first.resize(len, 0);
        self.outputs[0].read_exact(&mut self.first).unwrap();
    }

    fn order(&mut self, order: &Order) {
        self.control.write_all(&wire::encode(order)).unwrap();
    }

    /// Waits for a report.
    fn report(&mut self, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut buffer = [0; 4096];
        loop {
            if let Some(report) = self.reports.iter().find(|it| wanted(it)) {
                return report.clone();
            }
            let count = self.control.read(&mut buffer).unwrap();
            assert!(count > 0, "no more reports than {:?}", self.reports);
            let reports = &mut self.reports;
            self.messages.feed(&buffer[..count], |report| reports.push(report));
        }
    }

    /// What comes until the end, with this as standard input.
    fn end(mut self, input: &[u8]) -> Came {
        let outputs = Mutex::new([String::new(), String::new()]);
        let mut stdin = self.stdin.try_clone().unwrap();
        let Report::Ended(end) = thread::scope(|scope| {
            scope.spawn(move || {
                // Whether it is read is the command's affair.
                let _ = stdin.write_all(input).and_then(|()| stdin.shutdown(Shutdown::Write));
            });
            for (index, output) in self.outputs.iter().enumerate() {
                let (mut output, outputs) = (output.try_clone().unwrap(), &outputs);
                let mut bytes = if index == 0 { self.first.clone() } else { Vec::new() };
                scope.spawn(move || {
                    output.read_to_end(&mut bytes).unwrap();
                    outputs.lock().unwrap()[index] = String::from_utf8(bytes).unwrap();
                });
            }
            self.report(|report| matches!(report, Report::Ended(_)))
        }) else {
            unreachable!("it was waited for")
        };
        self.guest.wait().unwrap();
        let [stdout, stderr] = outputs.into_inner().unwrap();
        for (output, text) in Output::ALL.into_iter().zip([&stdout, &stderr]) {
            let told = self.reports.iter().find_map(|report| match report {
                Report::Closed { output: of, bytes } if *of == output => Some(*bytes),
                _ => None,
            });
            // An output that was hung up is nobody's.
            assert!(told.is_none_or(|bytes| bytes == text.len() as u64), "{told:?} bytes of {}", text.len());
        }
        Came { end, stdout, stderr }
    }
}

/// Whether a test cannot make namespaces and become any user.
fn not_root(test: &str) -> bool {
    let why = match nix::unistd::geteuid().is_root() {
        false => "not root".to_owned(),
        true => match Command::new("unshare").args(["--pid", "--fork", "true"]).output() {
            Ok(output) if output.status.success() => return false,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => format!("unshare: {error}"),
        },
    };
    println!("skipped: {test}: {why}");
    true
}

fn came(end: End, stdout: &str, stderr: &str) -> Came {
    Came { end, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
}

#[test]
fn orphans_of_a_command_leave_no_zombies() {
    if not_root("orphans_of_a_command_leave_no_zombies") {
        return;
    }
    // One that has ended is in /proc until it is waited for.
    let script = "(sh -c 'read pid rest </proc/self/stat; echo $pid' &) |
        { read pid; while test -e /proc/$pid; do sleep 0.01; done; echo gone; }";
    let come = Session::start(&command(&["sh", "-c", script])).end(b"");
    assert_eq!(come, came(End::Exited(0), "gone\n", ""));
}

#[test]
fn a_command_s_streams_and_end_are_told_whole() {
    if not_root("a_command_s_streams_and_end_are_told_whole") {
        return;
    }
    let run = |argv: &[&str], input: &[u8]| Session::start(&command(argv)).end(input);
    let shell = |script: &str, input: &[u8]| run(&["sh", "-c", script], input);
    assert_eq!(run(&["true"], b""), came(End::Exited(0), "", ""));
    assert_eq!(shell("echo out; echo err >&2; exit 7", b""), came(End::Exited(7), "out\n", "err\n"));
    assert_eq!(run(&["cat"], b"in\0put"), came(End::Exited(0), "in\0put", ""));
    assert_eq!(shell("kill -TERM $$", b""), came(End::Signalled(15), "", ""));
    let left = shell("sleep 1000 & echo left", b"");
    assert_eq!(left, came(End::Exited(0), "left\n", ""));
    let none = shell("test -t 0 || test -t 1 || echo none; pwd; echo $A; umask", b"");
    assert_eq!(none, came(End::Exited(0), "none\n/usr\nb c\n0027\n", ""));
    let much = "x".repeat(1 << 20);
    assert_eq!(run(&["cat"], much.as_bytes()), came(End::Exited(0), &much, ""));
}

#[test]
fn a_program_that_cannot_be_started_is_told_as_such() {
    if not_root("a_program_that_cannot_be_started_is_told_as_such") {
        return;
    }
    let end = |argv: &[&str]| Session::start(&command(argv)).end(b"").end;
    let lacks = end(&["no-such-command"]);
    assert_eq!(lacks, End::NotFound("no-such-command: not found in the guest".to_owned()));
    assert!(matches!(end(&["/etc/passwd"]), End::NotExecutable(why) if why.starts_with("/etc/passwd: ")));
    let nowhere = GuestCommand { cwd: "/no/such".into(), ..command(&["true"]) };
    let end = Session::start(&nowhere).end(b"").end;
    assert!(matches!(&end, End::Failed(why) if why.contains("has no folder /no/such")), "{end:?}");
    let root = GuestCommand { missing_cwd: MissingCwd::Root, ..nowhere };
    assert_eq!(Session::start(&root).end(b"").end, End::Exited(0));
}

#[test]
fn a_command_that_closes_its_input_says_so_and_one_whose_output_nobody_reads_ends() {
    const NAME: &str = "a_command_that_closes_its_input_says_so_and_one_whose_output_nobody_reads_ends";
    if not_root(NAME) {
        return;
    }
    let mut session =
        Session::start(&command(&["sh", "-c", "head -c 1 >/dev/null; exec <&-; sleep 1; echo on"]));
    session.stdin.write_all(b"much").unwrap();
    thread::sleep(Duration::from_millis(100));
    let mut writer = session.stdin.try_clone().unwrap();
    // What it has not read yet is in a pipe.
    let wrote = thread::spawn(move || while writer.write_all(&[0; 1 << 16]).is_ok() {});
    session.report(|report| *report == Report::Unread);
    assert_eq!(session.end(b"").stdout, "on\n");
    wrote.join().unwrap();
    let mut session = Session::start(&command(&["yes"]));
    session.first(2);
    session.order(&Order::HangUp(Output::Stdout));
    let came = session.end(b"");
    assert!(came.stdout.starts_with("y\ny") && came.end == End::Signalled(13), "{:?}", came.end);
}

#[test]
fn a_command_is_who_it_is_to_be_at_a_terminal_that_changes_its_size() {
    if not_root("a_command_is_who_it_is_to_be_at_a_terminal_that_changes_its_size") {
        return;
    }
    let user = User::Numbers { uid: 1234, gid: 42, groups: vec![43] };
    let who = GuestCommand { user, ..command(&["sh", "-c", "id -u; id -g; id -G"]) };
    assert_eq!(Session::start(&who).end(b""), came(End::Exited(0), "1234\n42\n42 43\n", ""));
    let script = "trap 'stty size; exit 9' WINCH; stty size; while true; do sleep 0.05; done";
    let terminal = Some(Terminal { columns: 111, rows: 33, stderr: true });
    let mut session = Session::start(&GuestCommand { terminal, ..command(&["sh", "-c", script]) });
    session.first(8);
    session.order(&Order::Resize { columns: 122, rows: 44 });
    assert_eq!(session.end(b""), came(End::Exited(9), "33 111\r\n44 122\r\n", ""));
}

#[test]
fn a_signal_reaches_the_command_and_no_other_process() {
    if not_root("a_signal_reaches_the_command_and_no_other_process") {
        return;
    }
    let script = "trap 'echo usr1; exit 5' USR1; sleep 1000 & echo on; while true; do wait; done";
    let mut session = Session::start(&command(&["sh", "-c", script]));
    session.first(3);
    session.order(&Order::Signal(10));
    assert_eq!(session.end(b""), came(End::Exited(5), "on\nusr1\n", ""));
    let mut session = Session::start(&command(&["sleep", "1000"]));
    session.report(|report| *report == Report::Started);
    // A real-time signal has no name, and ends a program that does not know it.
    session.order(&Order::Signal(40));
    assert_eq!(session.end(b"").end, End::Signalled(40));
}

#[test]
fn a_container_s_command_has_its_folder_made_and_a_home() {
    if not_root("a_container_s_command_has_its_folder_made_and_a_home") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cwd = folder.path().join("a/b");
    let user = User::Container { user: "0".to_owned(), group: None };
    let spec = GuestCommand {
        cwd: cwd.clone().into(),
        missing_cwd: MissingCwd::Make,
        user,
        ..command(&["sh", "-c", "pwd; echo $HOME $HOSTNAME"])
    };
    let expected = format!("{}\n/root kite\n", cwd.display());
    assert_eq!(Session::start(&spec).end(b""), came(End::Exited(0), &expected, ""));
    let set = GuestCommand { env: vec![("HOME".into(), "/x".into())], ..spec };
    let set = GuestCommand { argv: ["/bin/sh", "-c", "echo $HOME"].map(Into::into).into(), ..set };
    assert_eq!(Session::start(&set).end(b"").stdout, "/x\n");
}
