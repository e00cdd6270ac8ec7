//! A pseudo-terminal with a session of its own on it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, open};
use nix::pty::{PtyMaster, Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr,
    tcsetattr,
};
use nix::unistd::{Pid, setsid};

use crate::guest::Elf;

pub const KITE: &str = env!("CARGO_BIN_EXE_kite");
/// The key that interrupts programs on the tests' terminals, Ctrl-G.
pub const INTERRUPT: u8 = 7;
/// What takes this long hangs. No time is asserted anywhere.
const HANG: Duration = Duration::from_secs(60);

/// The user's end of a pseudo-terminal.
pub struct Terminal {
    /// What the user's window holds.
    pub master: PtyMaster,
    /// The programs' end.
    slave: OwnedFd,
    before: Termios,
    seen: Arc<(Mutex<Vec<u8>>, Condvar)>,
}

impl Terminal {
    /// A terminal whose output is read.
    pub fn new() -> Self {
        let terminal = Self::unread();
        let mut master = File::from(terminal.master.as_fd().try_clone_to_owned().unwrap());
        let seen = terminal.seen.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(got @ 1..) = master.read(&mut buffer) {
                seen.0.lock().unwrap().extend_from_slice(&buffer[..got]);
                seen.1.notify_all();
            }
        });
        terminal
    }

    /// A terminal whose output nobody reads.
    pub fn unread() -> Self {
        // Closed on exec from the start: a child of another test must not hold this terminal open.
        let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let master = posix_openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave = open(ptsname_r(&master).unwrap().as_str(), flags, Mode::empty()).unwrap();
        let mut settings = tcgetattr(&slave).unwrap();
        settings.control_chars[SpecialCharacterIndices::VINTR as usize] = INTERRUPT;
        settings.control_chars[SpecialCharacterIndices::VMIN as usize] = 3;
        settings.local_flags ^= LocalFlags::ECHOK;
        settings.input_flags |= InputFlags::IXANY;
        tcsetattr(&slave, SetArg::TCSANOW, &settings).unwrap();
        ioctl(&slave, libc::TIOCSWINSZ, &mut SIZE.clone());
        let before = tcgetattr(&slave).unwrap();
        Self { master, slave, before, seen: Arc::default() }
    }

    /// Its other end, for a child.
    pub fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Runs `command` on this terminal, as the leader of a new session. Standard streams that are not set are the
    /// terminal.
    pub fn spawn(&self, command: &mut Command) -> Session {
        command.stdin(self.stdio());
        let setup = || {
            setsid()?;
            // SAFETY: the request takes no pointer.
            if unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) } != 0 {
                return Err(std::io::Error::last_os_error());
            }
            // Some of the signals that end kite would leave a core file.
            Ok(setrlimit(Resource::RLIMIT_CORE, 0, 0)?)
        };
        // SAFETY: makes system calls only.
        unsafe { command.pre_exec(setup) };
        Session(command.spawn().unwrap())
    }

    /// Runs a guest.
    pub fn run(&self, guest: &Elf, arguments: &[&str]) -> Session {
        self.spawn(kite(guest, arguments).stdout(self.stdio()).stderr(self.stdio()))
    }

    /// Types `keys`.
    pub fn send(&self, keys: &[u8]) {
        (&self.master).write_all(keys).unwrap();
    }

    fn settings(&self) -> Termios {
        tcgetattr(&self.slave).unwrap()
    }

    /// Waits until the terminal is raw.
    pub fn wait_until_raw(&self) {
        until("raw mode", || !self.settings().local_flags.contains(LocalFlags::ICANON));
        let now = self.settings();
        let local = LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ISIG | LocalFlags::IEXTEN;
        assert!(!now.local_flags.intersects(local), "{now:?}");
        let input =
            InputFlags::ICRNL | InputFlags::INLCR | InputFlags::IGNCR | InputFlags::IXON | InputFlags::ISTRIP;
        assert!(!now.input_flags.intersects(input), "{now:?}");
        assert!(!now.output_flags.contains(OutputFlags::OPOST), "{now:?}");
        assert!(now.control_flags.contains(ControlFlags::CS8), "{now:?}");
        assert_eq!(now.control_chars[SpecialCharacterIndices::VMIN as usize], 1);
    }

    /// Whether its settings are those of before.
    pub fn is_restored(&self) -> bool {
        self.settings() == self.before
    }

    /// Fails the test unless the terminal is as it was before.
    #[track_caller]
    pub fn assert_untouched(&self) {
        assert_eq!(self.settings(), self.before);
        let mut size = Winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
        ioctl(&self.slave, libc::TIOCGWINSZ, &mut size);
        assert_eq!((size.ws_row, size.ws_col), (SIZE.ws_row, SIZE.ws_col));
    }

    /// Waits until the user has seen `text`, and returns all that was seen.
    #[track_caller]
    pub fn wait_for(&self, text: &[u8]) -> Vec<u8> {
        let deadline = Instant::now() + HANG;
        let mut seen = self.seen.0.lock().unwrap();
        while !seen.windows(text.len()).any(|window| window == text) {
            assert!(Instant::now() < deadline, "no {} in {}", text.escape_ascii(), seen.escape_ascii());
            seen = self.seen.1.wait_timeout(seen, Duration::from_millis(100)).unwrap().0;
        }
        seen.clone()
    }

    /// Waits until there is output that nobody has read.
    pub fn wait_for_unread_output(&self) {
        until("output", || {
            let mut count: libc::c_int = 0;
            ioctl(&self.master, libc::FIONREAD, &mut count);
            count > 0
        });
    }
}

/// One of the requests of `ioctl_tty(2)` that read or write a `T`.
fn ioctl<T>(terminal: &impl AsRawFd, request: libc::c_ulong, argument: &mut T) {
    // SAFETY: the argument is what the request wants, and outlives the call.
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The window's size.
const SIZE: Winsize = Winsize { ws_row: 33, ws_col: 77, ws_xpixel: 0, ws_ypixel: 0 };

/// The command that runs a guest.
pub fn kite(guest: &Elf, arguments: &[&str]) -> Command {
    let mut command = Command::new(KITE);
    command.args(["run", "--memory", "64M", "--kernel"]).arg(&guest.path).args(arguments);
    command
}

/// What `write(2)` begins with in `proc_pid_syscall(5)`.
const WRITE: &str = "1 ";

/// The leader of a terminal's session, which never outlives its test.
pub struct Session(pub Child);

impl Session {
    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
    }

    /// Waits until kite's output thread has been writing for a while, the same bytes all the time: so long that a guest
    /// has filled the serial port's buffer, too, and lost some.
    pub fn wait_until_output_is_stuck(&self) {
        let (mut last, mut same) = (String::new(), 0);
        until("the output to be stuck", || {
            std::thread::sleep(Duration::from_millis(20));
            let now = self.console_call();
            same = if now == last && now.starts_with(WRITE) { same + 1 } else { 0 };
            last = now;
            same == 200
        });
    }

    /// The system call that kite's output thread is in, with its arguments (`proc_pid_syscall(5)`).
    fn console_call(&self) -> String {
        let text = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
        let tasks = std::fs::read_dir(format!("/proc/{}/task", machine(self.0.id()))).unwrap();
        let console = tasks.flatten().find(|task| text(task.path().join("comm")).trim() == "console");
        console.map(|task| text(task.path().join("syscall"))).unwrap_or_default()
    }

    /// Waits for the end.
    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        let mut status = None;
        until("the end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// Waits for the end and fails the test unless it is this exit code.
    #[track_caller]
    pub fn assert_ends_with(self, code: i32) {
        let status = self.end();
        assert_eq!(status.code(), Some(code), "{status}");
    }

    /// Waits for the end and fails the test unless this signal made it.
    #[track_caller]
    pub fn assert_killed_by(self, signal: Signal) {
        let status = self.end();
        assert_eq!(status.signal(), Some(signal as i32), "{status}");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The machine's process, which the kite with this id has started in its sandbox.
pub fn machine(kite: u32) -> u32 {
    let children = std::fs::read_to_string(format!("/proc/{kite}/task/{kite}/children")).unwrap_or_default();
    children.split_whitespace().next().map_or(kite, |child| child.parse().unwrap())
}

/// Waits for something that ought to happen.
#[track_caller]
pub fn until(what: &str, mut happens: impl FnMut() -> bool) {
    let deadline = Instant::now() + HANG;
    while !happens() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
