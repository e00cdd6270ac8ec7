//! The serial port on standard input and output: what is typed, what is printed, and what becomes of an idle guest.

use std::fs::File;
use std::io;
use std::process::Stdio;

use boot::testing::Entry;
use nix::sys::signal::Signal;

use crate::process::Kite;
use crate::support::kvm;

guest!(
    ECHO,
    // As start-up code does: one LSR read in a row too few to be taken for polling, and what is in RBR thrown away.
    "mov dx, 0x3fd
     in al, dx
     mov dx, 0x3f8
     in al, dx",
    say!("'>'"),
    "2: mov dx, 0x3fd
     in al, dx
     in al, dx
     test al, 1
     jz 2b
     mov dx, 0x3f8
     in al, dx
     mov bl, al
     3: mov dx, 0x3fd
     in al, dx
     test al, 0x20
     jz 3b
     mov dx, 0x3f8
     mov al, bl
     out dx, al
     cmp al, '.'
     jne 2b",
    power_off!()
);

/// A guest that echoes, and has begun to.
fn echoing() -> Kite {
    let mut kite = Kite::typed_to(&ECHO, &[]);
    kite.expect(b">");
    kite
}

#[test]
fn a_guest_that_polls_echoes_what_is_typed_as_it_comes() {
    needs!(kvm());
    let mut kite = echoing();
    kite.send(b"a");
    kite.expect(b">a");
    kite.send(b"bc\r\n\0\xff");
    kite.expect(b">abc\r\n\0\xff");
    kite.send(b".");
    kite.end().assert(0, b">abc\r\n\0\xff.", "");
}

#[test]
fn all_input_arrives_however_much_comes_at_once() {
    needs!(kvm());
    let mut input: Vec<u8> = (0..10_000u32).map(|index| b'a' + (index % 23) as u8).collect();
    input.push(b'.');
    let mut kite = Kite::typed_to(&ECHO, &[]);
    let mut stdin = kite.stdin();
    let expected = [b">", input.as_slice()].concat();
    let typist = std::thread::spawn(move || io::Write::write_all(&mut stdin, &input).unwrap());
    kite.end().assert(0, expected, "");
    typist.join().unwrap();
}

#[test]
fn input_may_come_from_a_file() {
    needs!(kvm());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "from a file.").unwrap();
    let stdin = file.reopen().unwrap().into();
    Kite::start(&ECHO, Entry::Long, &[], stdin, Stdio::piped()).end().assert(0, ">from a file.", "");
}

guest!(IDLE, say!("'i'"), "2: sti\n hlt\n jmp 2b");

#[test]
fn a_signal_ends_kite_by_that_signal_whatever_the_guest_does() {
    needs!(kvm());
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        let mut kite = Kite::run(&IDLE, &["--cpus", "2"]);
        kite.expect(b"i");
        kite.signal(signal);
        kite.end().assert_killed_by(signal);
    }
    let kite = echoing();
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

#[test]
fn the_end_of_input_ends_nothing() {
    needs!(kvm());
    let mut kite = echoing();
    kite.send(b"ab");
    drop(kite.stdin());
    kite.expect(b">ab");
    kite.signal(Signal::SIGTERM);
    kite.end().assert_killed_by(Signal::SIGTERM);
}

guest!(HELLO, say!("'h'"), say!("'i'"), power_off!());

#[test]
fn closed_and_empty_standard_streams_are_no_error() {
    needs!(kvm());
    for redirection in ["</dev/null", "<&-", "</", "0>/dev/null"] {
        Kite::redirected(&HELLO, redirection).end().assert(0, "hi", "");
    }
    Kite::redirected(&HELLO, ">&-").end().assert(0, "", "");
    Kite::redirected(&HELLO, "<&- >&- 2>&-").end().assert(0, "", "");
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    needs!(kvm());
    let stderr = |reason| format!("kite: cannot write the guest's output to standard output: {reason}\n");
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    // The guest would never end on its own.
    for (stdout, reason) in [
        (
            Stdio::from(File::options().write(true).open("/dev/full").unwrap()),
            "ENOSPC: No space left on device",
        ),
        (Stdio::from(writer), "EPIPE: Broken pipe"),
    ] {
        let end = Kite::start(&IDLE, Entry::Long, &[], Stdio::null(), stdout).end();
        end.assert(125, "", &stderr(reason));
    }
}
