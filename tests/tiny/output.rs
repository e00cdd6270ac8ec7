//! What kite itself says while a guest runs: where nobody reads it, where a guest makes it say much, and where it cannot be
//! written.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use boot::testing::{Code, Entry};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::Kite;
use crate::support::child::Running;
use crate::support::guest::Elf;
use crate::support::kvm;

/// Finds the entropy device, at RBX, and over and over takes it over, makes it an offer that breaks the rules of the ring,
/// and waits until the device asks for a reset: each time kite has something to say. Prints what comes next once more than
/// ten times, and goes on for as often as it is to.
macro_rules! breaks_the_rules {
    ($times:literal) => {
        concat!(
            find_device!(4),
            "mov esi, 0x221000
             mov dword ptr [rsi], 0x10000
             mov dword ptr [rsi + 4], 999
             xor ebp, ebp
             3: mov dword ptr [rbx + 0x70], 0
             ",
            take_over!(2),
            "
             mov dword ptr [rbx + 0x50], 0
             4: pause
             test dword ptr [rbx + 0x70], 0x40
             jz 4b
             inc ebp
             cmp ebp, 20
             jne 5f
             mov dx, 0x3f8
             mov al, 'x'
             out dx, al
             5: cmp ebp, ",
            $times,
            "
             jb 3b"
        )
    };
}

guest!(COMPLAINED_OF, map_apics!(), breaks_the_rules!("500"), power_off!(), "8:", say!("'N'"), power_off!());
guest!(
    COMPLAINED_OF_FOR_EVER,
    map_apics!(),
    breaks_the_rules!("0xffffffff"),
    power_off!(),
    "8:",
    power_off!()
);
guest!(DEAF_WITH_ITS_MACHINE, say!("'r'"), "2: pause\n jmp 2b");
guest!(PRINTS_ONE, say!("'p'"), power_off!());

#[test]
fn a_device_whose_guest_breaks_the_rules_again_and_again_has_ten_lines_and_a_sum() {
    needs!(kvm());
    let end = Kite::run(&COMPLAINED_OF, &[]).end();
    let lines: Vec<&str> = end.stderr.lines().collect();
    assert_eq!((lines.len(), end.status.code(), &end.stdout[..]), (11, Some(0), &b"x"[..]), "{}", end.stderr);
    assert!(lines[..9].iter().all(|line| line.ends_with("it waits for a reset")), "{}", end.stderr);
    assert!(lines[9].ends_with("it waits for a reset; and so on"), "{}", end.stderr);
    assert!(lines[10].ends_with("rng: 490 more lines like these were left out"), "{}", end.stderr);
}

/// A pipe that is full, and that nobody reads.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, mut writer) = io::pipe().unwrap();
    let flags = |flags| fcntl(&writer, FcntlArg::F_SETFL(flags)).unwrap();
    flags(OFlag::O_NONBLOCK);
    while writer.write(&[b'.'; 4096]).is_ok() {}
    let _ = fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader.into(), writer.into())
}

/// A command that runs a guest, and the guest's file.
fn command(guest: &'static Code, arguments: &[&str]) -> (Command, Elf) {
    let elf = Elf::new(guest.code(), Entry::Long);
    let mut command = elf.command(arguments);
    command.stdin(Stdio::null());
    (command, elf)
}

#[test]
fn a_guest_that_makes_kite_complain_to_a_full_pipe_keeps_no_signal_from_it() {
    needs!(kvm());
    for sandbox in ["auto", "none"] {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGQUIT] {
            let (_reader, writer) = full_pipe();
            let (mut command, _elf) = command(&COMPLAINED_OF_FOR_EVER, &["--sandbox", sandbox]);
            let (mut stdout, printed) = io::pipe().unwrap();
            let stderr = writer.as_fd().try_clone_to_owned().unwrap();
            let kite = Running::spawn(command.stdout(printed).stderr(stderr));
            drop(command);
            // It has gone on after more than ten complaints.
            io::Read::read_exact(&mut stdout, &mut [0]).unwrap();
            kite.signal(signal);
            assert_eq!(kite.end().status.signal(), Some(signal as i32), "{sandbox}");
        }
    }
}

#[test]
fn a_machine_that_does_not_end_by_the_signal_that_was_handed_on_is_killed() {
    needs!(kvm());
    let mut kite = Kite::run(&DEAF_WITH_ITS_MACHINE, &[]);
    kite.expect(b"r");
    kill(Pid::from_raw(kite.id() as i32), Signal::SIGSTOP).unwrap();
    kite.signal(Signal::SIGTERM);
    let end = kite.end();
    assert_eq!(end.stderr, "kite: the machine did not end within 10 s of SIGTERM, and was killed\n");
    assert_eq!(end.status.signal(), Some(Signal::SIGTERM as i32), "{}", end.status);
}

#[test]
fn statistics_that_cannot_be_written_are_a_failure() {
    needs!(kvm());
    let (mut command, _elf) = command(&PRINTS_ONE, &["--stats"]);
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(command.stderr(full).output().unwrap().status.code(), Some(125));
}

/// Runs a guest that prints, its files limited to nothing, as the shell would.
fn without_room(options: &str) -> crate::support::child::End {
    Kite::in_shell(&PRINTS_ONE, "ulimit -c 0; ulimit -f 0;", options).end()
}

#[test]
fn a_file_that_may_not_grow_is_a_failure_that_is_told_and_no_signal() {
    needs!(kvm());
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    std::fs::write(path("disk"), [0; 4096]).unwrap();
    for (options, why) in [
        (format!("--disk path={},ephemeral", path("disk").display()), "kite: cannot open disk "),
        (format!("--trace {}", path("trace").display()), "kite: cannot write "),
        (format!("--stats={}", path("stats").display()), "kite: cannot write "),
        (format!("> {}", path("out").display()), "kite: cannot write the guest's output to standard output"),
    ] {
        let end = without_room(&options);
        assert_eq!(end.status.code(), Some(125), "{options}: {}: {}", end.status, end.stderr);
        let said = end.stderr.starts_with(why) && end.stderr.contains("File too large");
        assert!(said && end.stderr.lines().count() == 1, "{options}: {}", end.stderr);
    }
}
