//! kite's exit codes, which `kite --help` documents.

/// The guest powered off or rebooted, or the user quit.
pub const DONE: u8 = 0;
/// kite or the host failed, or was asked for something impossible.
pub const FAILED: u8 = 125;
/// The host killed the machine for want of memory.
pub const OUT_OF_MEMORY: u8 = 123;
/// A command took longer than it may.
pub const TIMED_OUT: u8 = 124;
/// The user quit a command.
pub const QUIT: u8 = 130;
/// A command cannot be executed.
pub const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
pub const NOT_FOUND: u8 = 127;
/// The guest crashed.
pub const CRASHED: u8 = 255;

/// What a process that a signal killed ends with: 128 and the signal's number, whatever a guest says that is.
pub fn of_signal(signal: i32) -> u8 {
    128 | (signal & 0x7f) as u8
}
