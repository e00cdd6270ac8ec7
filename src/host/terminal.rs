//! The user's terminal: raw while the guest has it, and as it was before on every way out.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Mutex, OnceLock};

use anyhow::Context;
use nix::sys::termios::{self, SetArg, Termios};
use nix::unistd::{getpgrp, read, tcgetpgrp};

use crate::host::exit_code::FAILED;
use crate::host::lock::lock as host_lock;
use crate::host::messages;

/// How the terminal was, while it is raw.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Restores the terminal when dropped. A panic goes through [`restore`] too.
pub struct RawTerminal;

impl RawTerminal {
    /// Makes the terminal on standard input raw: every key goes to the guest. Nothing to do, and nothing returned, if
    /// standard input is no terminal or another job has it.
    ///
    /// # Errors
    /// The terminal does not take the setting.
    pub fn new() -> anyhow::Result<Option<Self>> {
        if !is_ours() {
            return Ok(None);
        }
        let stdin = io::stdin();
        let before = termios::tcgetattr(&stdin).context("cannot read the terminal's settings")?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        *lock() = Some(before);
        let this = Self;
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw).context("cannot make the terminal raw")?;
        Ok(Some(this))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// The terminal as it was, kept by a process that outlives the one that makes it raw, which may have no chance to restore it.
pub struct Saved {
    terminal: OwnedFd,
    settings: libc::termios,
}

impl Saved {
    /// As it is now, whatever becomes of standard input; nothing if it is not ours.
    pub fn now() -> Option<Self> {
        if !is_ours() {
            return None;
        }
        let terminal = io::stdin().as_fd().try_clone_to_owned().ok()?;
        let settings = termios::tcgetattr(&terminal).ok()?.into();
        Some(Self { terminal, settings })
    }

    /// Gives it back so.
    pub fn restore(&self) {
        // A failure has no reader, and there is nothing else to try.
        let _ = termios::tcsetattr(&self.terminal, SetArg::TCSANOW, &self.settings.into());
    }
}

/// Whether standard input is a terminal and no other job has it.
pub fn is_ours() -> bool {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return false;
    }
    let ours = getpgrp();
    match tcgetpgrp(&stdin) {
        // In a PID namespace of its own, a process sees no number of any job outside. What another job has cannot be read,
        // not even nothing of it, with SIGTTIN blocked (termios(3), "Access control").
        Ok(_) if ours.as_raw() == 0 => read(&stdin, &mut []).is_ok(),
        Ok(job) => job == ours,
        Err(_) => false,
    }
}

/// The columns and rows of the user's terminal; zeros if there is none.
pub fn size() -> (u16, u16) {
    terminal_size::terminal_size().map_or((0, 0), |(columns, rows)| (columns.0, rows.0))
}

/// Gives the terminal back as it was. May be called at any time, any number of times.
pub fn restore() {
    if let Some(before) = lock().take() {
        // A failure has no reader, and there is nothing else to try. What was typed ahead is kept; output that nobody reads
        // is not waited for.
        let _ = termios::tcsetattr(io::stdin(), SetArg::TCSANOW, &before);
    }
}

/// What gives the terminal back where this process cannot.
static LEAVE: OnceLock<fn()> = OnceLock::new();

/// Has [`leave`] call `restore`, which a signal's handler may; the first one counts.
pub fn leave_by(restore: fn()) {
    let _ = LEAVE.set(restore);
}

/// Gives the terminal back as this process is about to end in a signal's handler.
pub fn leave() {
    LEAVE.get().into_iter().for_each(|restore| restore());
}

/// Tells the user while the guest runs: one line, also on a terminal that is raw.
pub fn tell(message: &str) {
    line(&format!("kite: {}", messages::printable(message)));
}

/// Writes one line to standard error, also on a terminal that is raw.
pub fn line(text: &str) {
    messages::say(ended(text));
}

/// As [`line()`], but on this thread, which may wait for the reader for ever.
pub fn line_now(text: &str) {
    messages::write_now(&ended(text));
}

/// A line with its end, for a terminal as it is now. In one piece, so that it stays one line among the guest's.
pub fn ended(text: &str) -> Vec<u8> {
    let end = if lock().is_some() { "\r\n" } else { "\n" };
    format!("{text}{end}").into_bytes()
}

/// Writes several whole lines to standard error, also if that is a terminal that is raw, and keeps them together.
pub fn lines(text: &str) {
    let text = if lock().is_some() { text.replace('\n', "\r\n") } else { text.to_owned() };
    messages::say(text.into_bytes());
}

/// From now on a panic in any thread, which is a bug of ours, ends the process as every other failure of kite does,
/// with the terminal as it was.
pub fn end_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        restore();
        print(panic);
        std::process::exit(FAILED.into());
    }));
}

fn lock() -> std::sync::MutexGuard<'static, Option<Termios>> {
    host_lock(&BEFORE)
}
