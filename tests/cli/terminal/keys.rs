//! What is typed while the guest has the terminal.

use boot::testing::Entry;
use nix::sys::signal::Signal;

use crate::support::child::Running;
use crate::support::guest::Elf;
use crate::support::kvm;
use crate::terminal::session::{Terminal, wait_until_output_is_stuck};

// Echoes what is typed, but for the keys that make it end: P powers off, R resets, C crashes, F floods the
// line without looking whether there is room.
guest!(
    ECHO,
    say!("'>'"),
    "2: mov dx, 0x3fd
     in al, dx
     test al, 1
     jz 2b
     mov dx, 0x3f8
     in al, dx
     cmp al, 'P'
     je 5f
     cmp al, 'R'
     je 6f
     cmp al, 'C'
     je 7f
     cmp al, 'F'
     je 8f
     out dx, al
     jmp 2b
     5:",
    power_off!(),
    "6: mov dx, 0x602
     mov al, 1
     out dx, al
     hlt
     7: ud2
     8: cld
     mov esi, 0x100000
     mov ecx, 0x10000
     rep outsb
     jmp 8b"
);

/// A guest that echoes.
pub fn echo() -> Elf {
    Elf::new(ECHO.code(), Entry::Long)
}

/// A guest that echoes on a raw terminal.
pub fn running(arguments: &[&str]) -> (Terminal, Running) {
    let terminal = Terminal::new();
    let guest = echo();
    let kite = terminal.run(&guest, arguments);
    terminal.wait_until_raw();
    terminal.wait_for(b">");
    (terminal, kite)
}

#[test]
fn every_byte_but_ctrl_a_reaches_the_guest_and_comes_back_unchanged() {
    needs!(kvm());
    let (terminal, kite) = running(&[]);
    let keys: Vec<u8> = (0..=255).filter(|key| !b"\x01PRCF".contains(key)).collect();
    terminal.send(&keys);
    let seen = terminal.wait_for(b"\xfe\xff");
    assert_eq!(seen.escape_ascii().to_string(), [b">", keys.as_slice()].concat().escape_ascii().to_string());
    terminal.send(b"P");
    terminal.assert_left_by(kite, 0);
}

#[test]
fn ctrl_a_x_quits() {
    needs!(kvm());
    for quit in [b"\x01x", b"\x01X"] {
        let (terminal, kite) = running(&["--on-reboot", "restart"]);
        terminal.send(quit);
        terminal.assert_left_by(kite, 0);
    }
}

#[test]
fn ctrl_a_h_lists_the_keys_and_the_guest_sees_none_of_it() {
    needs!(kvm());
    for help in [b"\x01h", b"\x01H"] {
        let (terminal, kite) = running(&[]);
        terminal.send(help);
        let seen = String::from_utf8(terminal.wait_for(b"to the guest\r\n")).unwrap();
        for key in ["Ctrl-A X", "Ctrl-A H", "Ctrl-A Ctrl-A"] {
            assert!(seen.contains(key), "{seen}");
        }
        assert_eq!(seen.matches('\n').count(), seen.matches("\r\n").count(), "{seen:?}");
        terminal.send(b"zP");
        kite.assert_ends_with(0);
        assert!(terminal.wait_for(b"z").ends_with(b"\r\nz"));
    }
}

#[test]
fn ctrl_a_twice_sends_one_and_an_unknown_key_none() {
    needs!(kvm());
    let (terminal, kite) = running(&[]);
    terminal.send(b"a\x01\x01b\x01qc\x01");
    terminal.send(b"\x01dP");
    kite.assert_ends_with(0);
    assert_eq!(terminal.wait_for(b"d").escape_ascii().to_string(), r">a\x01bc\x01d");
}

#[test]
fn keys_work_while_the_guest_takes_none() {
    needs!(kvm());
    let (terminal, guest) = (Terminal::new(), Elf::new(DEAF.code(), Entry::Long));
    let kite = terminal.run(&guest, &[]);
    terminal.wait_until_raw();
    // Ten times what kite keeps for a guest.
    for _ in 0..80 {
        terminal.send(&[b'k'; 1024]);
    }
    terminal.send(b"\x01h");
    terminal.wait_for(b"Ctrl-A X");
    terminal.send(b"\x01x");
    terminal.assert_left_by(kite, 0);
}

guest!(DEAF, say!("'>'"), "2: sti\n hlt\n jmp 2b");

/// Starts a guest that floods a terminal nobody reads.
fn flooded() -> (Terminal, Running) {
    let (terminal, guest) = (Terminal::unread(), echo());
    let kite = terminal.run(&guest, &[]);
    terminal.wait_until_raw();
    terminal.send(b"F");
    wait_until_output_is_stuck(&kite);
    (terminal, kite)
}

#[test]
fn keys_work_while_nobody_reads_the_output() {
    needs!(kvm());
    let (terminal, kite) = flooded();
    terminal.send(b"\x01h\x01x");
    terminal.assert_left_by(kite, 0);
}

#[test]
fn a_signal_ends_kite_while_nobody_reads_the_output() {
    needs!(kvm());
    let (terminal, kite) = flooded();
    kite.signal(Signal::SIGTERM);
    kite.assert_killed_by(Signal::SIGTERM);
    terminal.assert_untouched();
}
