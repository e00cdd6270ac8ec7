//! Every way out leaves the terminal as it was.

use std::io::{self, Read};
use std::process::{Command, Stdio};

use boot::testing::Entry;
use nix::sys::signal::Signal;

use crate::support::guest::Elf;
use crate::support::{KITE, kvm, until};
use crate::terminal::keys::{echo, running};
use crate::terminal::session::{INTERRUPT, Terminal};

/// Has a guest end by this key, which leaves the terminal as it was.
#[track_caller]
fn ends_by(key: &[u8], status: i32) -> Terminal {
    let (terminal, kite) = running(&[]);
    terminal.send(key);
    terminal.assert_left_by(kite, status);
    terminal
}

#[test]
fn a_power_off_restores_the_terminal() {
    needs!(kvm());
    ends_by(b"P", 0);
}

#[test]
fn a_reboot_restores_the_terminal() {
    needs!(kvm());
    ends_by(b"R", 0);
}

#[test]
fn the_terminal_stays_with_a_guest_that_boots_again() {
    needs!(kvm());
    let (terminal, kite) = running(&["--on-reboot", "restart"]);
    terminal.send(b"R");
    terminal.wait_for(b">>");
    terminal.wait_until_raw();
    terminal.send(b"\rz");
    assert_eq!(terminal.wait_for(b"z"), b">>\rz");
    terminal.send(b"P");
    terminal.assert_left_by(kite, 0);
}

#[test]
fn a_crash_restores_the_terminal_and_is_told_after_that() {
    needs!(kvm());
    let terminal = ends_by(b"C", 255);
    // Line breaks are the terminal's business again.
    terminal.wait_for(b"kite: the guest crashed: triple fault on vCPU 0\r\n");
}

#[test]
fn a_failure_restores_the_terminal() {
    needs!(kvm());
    let (terminal, guest) = (Terminal::new(), echo());
    let (mut reader, writer) = io::pipe().unwrap();
    let kite = terminal.spawn(guest.command(&[]).stdout(writer).stderr(terminal.stdio()));
    terminal.wait_until_raw();
    reader.read_exact(&mut [0]).unwrap();
    drop(reader);
    terminal.send(b"k");
    terminal.assert_left_by(kite, 125);
    terminal.wait_for(b"standard output: EPIPE: Broken pipe\r\n");
}

#[test]
fn a_failure_before_the_guest_runs_leaves_the_terminal_alone() {
    let terminal = Terminal::new();
    let mut command = Command::new(KITE);
    command.args(["run", "--kernel", "/"]).stdout(terminal.stdio()).stderr(terminal.stdio());
    terminal.spawn(&mut command).assert_ends_with(125);
    terminal.assert_untouched();
    terminal.wait_for(b"or another folder\r\n");
}

#[test]
fn a_signal_restores_the_terminal_and_ends_kite_as_it_would_have() {
    needs!(kvm());
    for signal in kite::host::signals::ENDING {
        let (terminal, kite) = running(&["--on-reboot", "restart"]);
        kite.signal(signal);
        kite.assert_killed_by(signal);
        terminal.assert_untouched();
    }
}

#[test]
fn a_window_that_closes_ends_kite() {
    needs!(kvm());
    let (terminal, guest) = (Terminal::unread(), echo());
    let kite = terminal.run(&guest, &[]);
    terminal.wait_until_raw();
    // Output that comes when the terminal has gone is a failure of its own.
    terminal.wait_for_unread_output();
    drop(terminal);
    kite.assert_killed_by(Signal::SIGHUP);
}

// Waits for a key, and prints more than a pipe holds.
guest!(
    LOUD,
    "2: mov dx, 0x3fd
     in al, dx
     test al, 1
     jz 2b
     cld
     mov esi, 0x100000
     mov ecx, 100000
     mov dx, 0x3f8
     rep outsb",
    power_off!()
);

#[test]
fn waiting_for_who_reads_the_last_output_can_be_interrupted_from_the_keyboard() {
    needs!(kvm());
    let (terminal, guest) = (Terminal::new(), Elf::new(LOUD.code(), Entry::Long));
    let (_reader, writer) = io::pipe().unwrap();
    let kite = terminal.spawn(guest.command(&[]).stdout(writer).stderr(Stdio::null()));
    terminal.wait_until_raw();
    terminal.send(b"k");
    until("the guest to end", || terminal.is_restored());
    terminal.send(&[INTERRUPT]);
    kite.assert_killed_by(Signal::SIGINT);
    terminal.assert_untouched();
}

/// Set in the child of the test below.
const CHILD: &str = "KITE_TEST_PANIC";

#[test]
fn a_panic_in_any_thread_restores_the_terminal_and_is_a_failure() {
    const NAME: &str = "terminal::ways_out::a_panic_in_any_thread_restores_the_terminal_and_is_a_failure";
    if std::env::var_os(CHILD).is_some() {
        panic_on_a_key();
    }
    let terminal = Terminal::new();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", NAME, "--nocapture"]).env(CHILD, "1");
    let child = terminal.spawn(command.stdout(terminal.stdio()).stderr(terminal.stdio()));
    terminal.wait_until_raw();
    terminal.send(b"k");
    terminal.assert_left_by(child, 125);
    terminal.wait_for(b"panicked at ");
}

/// Does what kite does on a terminal, and has a bug.
fn panic_on_a_key() -> ! {
    kite::host::terminal::end_on_panic();
    let _raw = kite::host::terminal::RawTerminal::new().unwrap().expect("a terminal");
    let reader = std::thread::spawn(|| {
        io::stdin().read_exact(&mut [0]).unwrap();
        panic!("a bug");
    });
    let _ = reader.join();
    unreachable!("the panic ended the process");
}
