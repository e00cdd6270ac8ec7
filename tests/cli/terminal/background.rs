//! When the terminal is another job's, or the user wants kite to go on without one.

use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::child::Running;
use crate::support::{KITE, kvm, until, vm_process};
use crate::terminal::keys::echo;
use crate::terminal::session::Terminal;

/// Runs a guest from a shell script in which `$kite` is the command.
fn from_shell(terminal: &Terminal, script: &str) -> (Running, tempfile::TempPath) {
    let guest = tempfile::NamedTempFile::new().unwrap().into_temp_path();
    std::fs::copy(echo().path, &guest).unwrap();
    let mut shell = Command::new("sh");
    let script = format!("kite=\"$0 run --memory 64M --kernel $1\"; {script}");
    shell.args(["-c", &script, KITE]).arg(&guest).stdout(terminal.stdio()).stderr(terminal.stdio());
    (terminal.spawn(&mut shell), guest)
}

/// What the scripts print as `<pid>`.
fn pid(terminal: &Terminal) -> Pid {
    let seen = String::from_utf8(terminal.wait_for(b"]")).unwrap();
    let (_, rest) = seen.split_once('[').unwrap();
    Pid::from_raw(rest.split(']').next().unwrap().parse().unwrap())
}

#[test]
fn a_background_job_leaves_the_terminal_alone_and_is_not_stopped_by_its_keys() {
    needs!(kvm());
    let terminal = Terminal::new();
    let (shell, _guest) = from_shell(&terminal, "set -m; $kite & echo \"[$!]\"; wait $!; echo \"<$?>\"");
    let kite = pid(&terminal);
    terminal.wait_for(b">");
    terminal.assert_untouched();
    terminal.send(b"for another job\n");
    // Reading stops nobody; what was typed stays for whom it was meant.
    until("kite to look at the input and leave it", || input_is_closed(kite));
    terminal.assert_untouched();
    kill(kite, Signal::SIGTERM).unwrap();
    terminal.wait_for(b"<143>");
    terminal.assert_left_by(shell, 0);
}

/// Whether kite waits for three things only: standard input is not among them any more. The first file descriptors
/// of the fields are poll's arguments (`proc_pid_syscall(5)`).
fn input_is_closed(kite: Pid) -> bool {
    let machine = vm_process(kite.as_raw() as u32);
    let call = std::fs::read_to_string(format!("/proc/{machine}/syscall")).unwrap();
    let fields: Vec<_> = call.split(' ').collect();
    (fields[0] == "7" || fields[0] == "271") && fields[2] == "0x3"
}

#[test]
fn a_signal_that_is_ignored_at_the_start_stays_ignored() {
    needs!(kvm());
    let terminal = Terminal::new();
    let (kite, _guest) = from_shell(&terminal, "trap '' HUP INT QUIT; exec $kite");
    terminal.wait_until_raw();
    terminal.wait_for(b">");
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
        kite.signal(signal);
    }
    terminal.send(b"zP");
    kite.assert_ends_with(0);
    assert_eq!(terminal.wait_for(b"z"), b">z");
    terminal.assert_untouched();
}

#[test]
fn without_a_terminal_on_standard_input_none_is_touched() {
    needs!(kvm());
    let terminal = Terminal::new();
    let (kite, _guest) = from_shell(&terminal, "printf 'zP' | $kite");
    kite.assert_ends_with(0);
    terminal.wait_for(b">z");
    terminal.assert_untouched();
}
