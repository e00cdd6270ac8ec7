//! Floods and dams: more input than the guest takes, more output than the reader takes.

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use boot::testing::{Code, Entry};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::process::Kite;
use crate::support::guest::printed_in_a_hurry;
use crate::support::{kvm, until};

/// What Linux gives a pipe at least, in bytes.
const SMALL_PIPE: i32 = 4096;

/// How much PATIENT and IMPATIENT print, in bytes: more than kite and a small pipe hold.
const PRINTED: usize = 0x2_5000;

/// A megabyte that is 0, 1, 2 and so on in 32-bit words.
fn megabyte() -> Vec<u8> {
    (0..1u32 << 18).flat_map(u32::to_le_bytes).collect()
}

/// Prints that from the start, until RSI is at the end: four words at a time, then a wait for the transmitter, as long
/// as it takes.
macro_rules! print_patiently {
    ($end:literal) => {
        concat!(
            "cld
             mov edi, 0x200000
             xor eax, eax
             2: stosd
             inc eax
             cmp edi, ",
            $end,
            "
             jne 2b
             mov esi, 0x200000
             3: mov dx, 0x3fd
             in al, dx
             test al, 0x20
             jz 3b
             mov dx, 0x3f8
             mov ecx, 4
             rep outsd
             cmp esi, ",
            $end,
            "
             jne 3b"
        )
    };
}

guest!(MEGABYTE, print_patiently!("0x300000"), power_off!());
guest!(PATIENT, print_patiently!("0x225000"), power_off!());

#[test]
fn a_megabyte_of_output_arrives_whole() {
    needs!(kvm());
    let end = Kite::run(&MEGABYTE, &[]).end();
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    assert!(end.stdout == megabyte(), "{} bytes, and not the right ones", end.stdout.len());
}

guest!(HURRY_OFF, print_in_a_hurry!(), power_off!());
guest!(HURRY_RESET, print_in_a_hurry!(), "mov al, 0xfe\n out 0x64, al\n 2: hlt\n jmp 2b");
guest!(HURRY_FAULT, print_in_a_hurry!(), "ud2");

#[test]
fn output_is_complete_and_in_order_with_writes_coalesced_however_the_guest_ends() {
    needs!(kvm());
    for (guest, code) in [(&HURRY_OFF, 0), (&HURRY_RESET, 0), (&HURRY_FAULT, 255)] {
        let end = Kite::run(guest, &[]).end();
        end.assert(code, printed_in_a_hurry(), &end.stderr);
    }
}

/// A small pipe, to be read later or never.
fn small_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SMALL_PIPE)).unwrap();
    (reader.into(), writer.into())
}

/// A guest whose output goes into a small pipe, and the pipe's other end, when nothing more goes into it.
fn blocked(guest: &'static Code) -> (Kite, OwnedFd) {
    let (reader, writer) = small_pipe();
    let kite = Kite::start(guest, Entry::Long, &[], Stdio::null(), writer.into());
    wait_until_stuck(&reader);
    (kite, reader)
}

#[test]
fn output_waits_for_a_reader_that_is_late() {
    needs!(kvm());
    let (mut kite, reader) = blocked(&PATIENT);
    assert!(kite.has_thread("vcpu0"), "the guest ended with most of its output in nobody's hands");
    kite.read_from(reader);
    let end = kite.end();
    assert_eq!((end.status.code(), end.stderr.as_str()), (Some(0), ""));
    assert!(end.stdout == megabyte()[..PRINTED], "{} bytes, and not the right ones", end.stdout.len());
}

/// Waits until nothing more goes into a pipe.
fn wait_until_stuck(reader: &OwnedFd) {
    let waiting = || {
        let mut waiting = 0;
        // SAFETY: FIONREAD writes one int, which `waiting` is.
        let result = unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut waiting) };
        assert_eq!(result, 0);
        waiting
    };
    until("a pipe that nothing more goes into", || {
        let before = waiting();
        thread::sleep(Duration::from_millis(300));
        before > 0 && waiting() == before
    });
}

guest!(
    IMPATIENT,
    // As PATIENT, but gives up on the transmitter after a few looks, as Linux does.
    "cld
     mov edi, 0x200000
     xor eax, eax
     2: stosd
     inc eax
     cmp edi, 0x225000
     jne 2b
     mov esi, 0x200000
     3: mov ecx, 2
     4: mov dx, 0x3fd
     in al, dx
     test al, 0x20
     jnz 5f
     loop 4b
     5: mov dx, 0x3f8
     mov ecx, 4
     rep outsd
     cmp esi, 0x225000
     jne 3b",
    power_off!()
);

#[test]
fn a_blocked_reader_stalls_no_guest_and_finds_what_fitted() {
    needs!(kvm());
    let (mut kite, reader) = blocked(&IMPATIENT);
    until("the guest to end", || !kite.has_thread("vcpu0"));
    kite.read_from(reader);
    let end = kite.end();
    assert_eq!(end.status.code(), Some(0));
    let printed = &megabyte()[..PRINTED];
    let lost = printed.len() - end.stdout.len();
    let message = "bytes of the guest's output were lost: standard output took none, and the guest went on";
    assert_eq!(end.stderr, format!("kite: {lost} {message}\n"));
    // What came first came through, and no less than kite and the pipe hold between them.
    assert!(end.stdout.len() > 64 << 10, "{}", end.stdout.len());
    assert!(printed.starts_with(&end.stdout), "what arrived is not what was printed first");
}

#[test]
fn a_blocked_reader_does_not_hold_up_a_signal() {
    needs!(kvm());
    for (guest, until_ended) in [(&PATIENT, false), (&IMPATIENT, true)] {
        let (kite, _reader) = blocked(guest);
        if until_ended {
            until("the guest to end", || !kite.has_thread("vcpu0"));
        }
        kite.signal(Signal::SIGTERM);
        let end = kite.end();
        assert_eq!(end.status.signal(), Some(Signal::SIGTERM as i32));
    }
}

guest!(DEAF, say!("'d'"), "2: sti\n hlt\n jmp 2b");

/// Far more than anybody holds.
const FLOOD: usize = 10 << 20;
/// What a pipe and kite's own buffer hold at most.
const HELD: usize = (64 << 10) + (8 << 10);

#[test]
fn a_flood_of_input_to_a_deaf_guest_waits_outside() {
    needs!(kvm());
    let mut kite = Kite::typed_to(&DEAF, &[]);
    kite.expect(b"d");
    let mut stdin = kite.stdin();
    fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    let before = most_memory(&kite);
    let mut sent = 0;
    while sent < FLOOD {
        match stdin.write(&[b'x'; 4096]) {
            Ok(more) => sent += more,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(Errno::EAGAIN as i32), "{error}");
                let mut room = [PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut room, PollTimeout::from(500u16)).unwrap() == 0 {
                    break;
                }
            }
        }
    }
    assert!(sent <= HELD, "kite took {sent} bytes for a guest that takes none");
    // The program's own pages that are read for the first time count too, so the bound is not HELD.
    // Linux counts each CPU's share apart and reads it roughly, so a peak may be read as less than it was before.
    let grown = most_memory(&kite).saturating_sub(before);
    assert!(grown < FLOOD / 4, "kite's memory grew by {grown} bytes");
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

#[test]
fn a_large_file_as_input_is_not_read_ahead() {
    needs!(kvm());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![b'x'; FLOOD]).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    let mut kite = Kite::start(&DEAF, Entry::Long, &[], file.into(), Stdio::piped());
    kite.expect(b"d");
    let position = || {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/0", kite.id())).unwrap();
        info.lines().find_map(|line| line.strip_prefix("pos:")).unwrap().trim().parse::<usize>().unwrap()
    };
    until("the first input", || position() > 0);
    thread::sleep(Duration::from_millis(100));
    assert!(position() <= HELD, "kite read {} bytes for a guest that takes none", position());
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

/// The most of the host's memory that kite has had so far, its guest's and its program's included, in bytes.
fn most_memory(kite: &Kite) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", kite.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
