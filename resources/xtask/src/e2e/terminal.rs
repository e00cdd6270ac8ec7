//! A command on a terminal: it has one of its own, of the same size, and keys reach it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::pty::{OpenptyResult, Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::command::kite;
use super::{Fixture, kernel};

/// What any one thing may take to be seen.
const LIMIT: Duration = Duration::from_secs(120);
/// When something is typed again.
const AGAIN: Duration = Duration::from_secs(2);
/// Tells of its terminal, of each new size, of SIGINT, and of what is typed.
const SCRIPT: &str = "trap 'echo resized $(stty size)' WINCH; trap 'echo interrupted' INT
test -t 0 && test -t 1 && test -t 2 && echo \"terminal $(stty size)\"
while read -r line; do echo \"heard $line\"; test \"$line\" = end && exit 9; done
while read -r line; do echo \"heard $line\"; test \"$line\" = end && exit 9; done
while read -r line; do echo \"heard $line\"; test \"$line\" = end && exit 9; done";

nix::ioctl_write_ptr_bad!(set_size, libc::TIOCSWINSZ, Winsize);

/// A person at a terminal.
pub(super) struct Person {
    child: Child,
    terminal: File,
    shown: Receiver<Vec<u8>>,
    text: String,
}

impl Person {
    pub fn new(mut command: Command, rows: u16, columns: u16) -> Result<Self> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).context("making a terminal")?;
        let copy = || slave.try_clone().map(Stdio::from).context("sharing a terminal");
        command.stdin(copy()?).stdout(copy()?).stderr(copy()?);
        own_terminal(&mut command);
        let child = command.spawn().context("starting kite")?;
        drop((command, slave));
        let terminal = File::from(master);
        let mut screen = terminal.try_clone().context("sharing a terminal")?;
        let (tell, shown) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // The terminal's end is an error.
            while let Ok(count @ 1..) = screen.read(&mut bytes) {
                if tell.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, terminal, shown, text: String::new() })
    }

    /// Types again and again until the screen shows this.
    pub fn types_until(&mut self, keys: &str, wanted: &str) -> Result<()> {
        let start = Instant::now();
        loop {
            self.types(keys)?;
            match self.sees_within(wanted, AGAIN) {
                Err(error) if start.elapsed() > LIMIT => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits until the screen shows this, behind what was waited for before.
    pub fn sees(&mut self, wanted: &str) -> Result<()> {
        self.sees_within(wanted, LIMIT)
    }

    fn sees_within(&mut self, wanted: &str, limit: Duration) -> Result<()> {
        let start = Instant::now();
        loop {
            if let Some(at) = self.text.find(wanted) {
                self.text.drain(..at + wanted.len());
                return Ok(());
            }
            match self.shown.recv_timeout(limit.saturating_sub(start.elapsed())) {
                Ok(bytes) => self.text += &String::from_utf8_lossy(&bytes),
                Err(RecvTimeoutError::Timeout) => bail!("{wanted:?} is not shown: {:?}", self.text),
                Err(RecvTimeoutError::Disconnected) => bail!("ended before {wanted:?}: {:?}", self.text),
            }
        }
    }

    pub fn types(&mut self, keys: &str) -> Result<()> {
        self.terminal.write_all(keys.as_bytes()).context("typing")
    }

    #[expect(unsafe_code, reason = "an ioctl")]
    pub fn resizes(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: the size is read and outlives the call.
        unsafe { set_size(self.terminal.as_raw_fd(), &raw const size) }.context("resizing")?;
        Ok(())
    }

    /// kite's exit code.
    pub fn ends(&mut self) -> Result<Option<i32>> {
        let start = Instant::now();
        while start.elapsed() < LIMIT {
            if let Some(status) = self.child.try_wait().context("waiting for kite")? {
                return Ok(status.code());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("kite does not end")
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// Makes standard input the terminal of a session of the child's own.
#[expect(unsafe_code, reason = "a child leads a session before it is the command")]
fn own_terminal(command: &mut Command) {
    let lead = || {
        nix::unistd::setsid()?;
        // SAFETY: takes no pointer.
        match unsafe { libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec there are two system calls, and nothing is allocated or locked.
    unsafe { command.pre_exec(lead) };
}

/// A whole session.
pub fn session(fixture: &Fixture, name: &str) -> Result<String> {
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--", "bash", "-c", SCRIPT]);
    let mut person = Person::new(command, 33, 111)?;
    person.sees("terminal 33 111")?;
    person.types("hello\n")?;
    person.sees("heard hello")?;
    person.resizes(44, 122)?;
    // kite's own terminal tells it; and bash tells of a signal once it has read a line, which goes another way than the
    // signal and may come first.
    person.types_until("\n", "resized 44 122")?;
    person.types("\x03")?;
    person.sees("interrupted")?;
    person.types("end\n")?;
    person.sees("heard end")?;
    ensure!(person.ends()? == Some(9), "the session's status is another");
    Ok(String::new())
}

/// Ways out that are not the command's end.
pub fn ways_out(fixture: &Fixture, name: &str) -> Result<String> {
    quit(fixture, name)?;
    hung_up(fixture, name)?;
    Ok(String::new())
}

/// Ctrl-A X ends a guest that does not listen.
fn quit(fixture: &Fixture, name: &str) -> Result<()> {
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--", "sh", "-c", "stty raw; echo up; exec sleep 1000"]);
    let mut person = Person::new(command, 24, 80)?;
    person.sees("up")?;
    person.types("\x01x")?;
    ensure!(person.ends()? == Some(130), "Ctrl-A X did not end kite with 130");
    Ok(())
}

/// The terminal goes, and kite with it.
fn hung_up(fixture: &Fixture, name: &str) -> Result<()> {
    let mut command = kite(fixture, &kernel(name)?)?;
    command.args(["--", "sh", "-c", "echo up; exec sleep 1000"]);
    let mut person = Person::new(command, 24, 80)?;
    person.sees("up")?;
    // What the kernel does when the last of the other side is closed; the reading thread still has it here.
    kill(Pid::from_raw(person.child.id() as i32), Signal::SIGHUP).context("hanging up")?;
    ensure!(person.ends()?.is_none(), "a hangup did not end kite by its signal");
    Ok(())
}
