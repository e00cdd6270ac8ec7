//! A machine with limits is another process: the terminal, its signals and its streams are as without.

use std::io::Read;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cgroup::group::groups;
use crate::support::child::Running;
use crate::support::until;
use crate::terminal::keys::{echo, running};
use crate::terminal::session::Terminal;

const LIMITS: [&str; 2] = ["--limit", "pids=100"];

/// The process in the group.
fn machine(kite: &Running) -> Pid {
    let id = kite.child_id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

#[test]
fn keys_reach_a_machine_with_limits() {
    needs!(groups("pids=100"));
    let (terminal, kite) = running(&LIMITS);
    terminal.send(b"z");
    assert_eq!(terminal.wait_for(b"z"), b">z");
    terminal.send(b"\x01x");
    terminal.assert_left_by(kite, 0);
}

#[test]
fn a_machine_that_is_killed_leaves_the_terminal_as_it_was() {
    needs!(groups("pids=100"));
    let (terminal, kite) = running(&LIMITS);
    kill(machine(&kite), Signal::SIGKILL).unwrap();
    kite.assert_killed_by(Signal::SIGKILL);
    terminal.assert_untouched();
}

#[test]
fn a_signal_to_the_supervisor_ends_it_as_it_would_have_ended_kite() {
    needs!(groups("pids=100"));
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
        let (terminal, kite) = running(&LIMITS);
        kite.signal(signal);
        kite.assert_killed_by(signal);
        terminal.assert_untouched();
    }
}

#[test]
fn the_supervisor_holds_no_stream_that_the_machine_has_let_go_of() {
    needs!(groups("pids=100"));
    let (terminal, guest) = (Terminal::new(), echo());
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = guest.command(&LIMITS);
    let kite = terminal.spawn(command.stdout(writer).stderr(terminal.stdio()));
    drop(command);
    reader.read_exact(&mut [0]).unwrap();
    for stream in [0, 1] {
        let link = format!("/proc/{}/fd/{stream}", kite.child_id());
        until("nothing in place of a stream", || {
            std::fs::read_link(&link).unwrap() == Path::new("/dev/null")
        });
    }
    kite.signal(Signal::SIGKILL);
    kite.assert_killed_by(Signal::SIGKILL);
    // The machine has gone with it.
    assert_eq!(reader.read(&mut [0]).unwrap(), 0);
}
