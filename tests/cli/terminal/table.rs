//! kite's own table on a terminal that the guest has.

use nix::sys::signal::Signal;

use crate::support::kvm;
use crate::terminal::keys::running;

#[test]
fn a_table_that_is_asked_for_is_whole_lines_on_a_raw_terminal_too() {
    needs!(kvm());
    let (terminal, kite) = running(&["--stats"]);
    // By the time that it answers, it has looked for what is typed, and has been counted.
    terminal.send(b"z");
    terminal.wait_for(b"z");
    kite.signal(Signal::SIGUSR1);
    let seen = terminal.wait_for(b"serial console: ");
    let text = String::from_utf8(seen).unwrap();
    assert!(text.contains("0x3fd read 1           serial"), "{text}");
    assert_eq!(text.matches('\n').count(), text.matches("\r\n").count(), "{text:?}");
    terminal.send(b"P");
    kite.assert_ends_with(0);
    // The last one comes when the terminal is as it was. On a busy machine what the port takes is too little for words.
    let text = String::from_utf8(terminal.wait_for(b"0x600 write 1 ")).unwrap();
    assert_eq!(text.matches("exits to kite in ").count(), 2, "{text}");
    terminal.assert_untouched();
}
