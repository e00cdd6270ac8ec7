//! A pseudo-terminal with a session of its own on it.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::pty::{PtyMaster, Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::Mode;
use nix::sys::termios::{
    ControlFlags, InputFlags, LocalFlags, OutputFlags, SetArg, SpecialCharacterIndices, Termios, tcgetattr,
    tcsetattr,
};
use nix::unistd::setsid;

use crate::support::child::{Running, Seen};
use crate::support::guest::Elf;
use crate::support::until;

/// The key that interrupts programs on the tests' terminals, Ctrl-G.
pub const INTERRUPT: u8 = 7;

/// The user's end of a pseudo-terminal.
pub struct Terminal {
    /// What the user's window holds.
    pub master: PtyMaster,
    /// The programs' end.
    slave: OwnedFd,
    before: Termios,
    seen: Seen,
}

impl Terminal {
    /// A terminal whose output is read.
    pub fn new() -> Self {
        let terminal = Self::unread();
        terminal.seen.read(File::from(terminal.master.as_fd().try_clone_to_owned().unwrap()));
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
        Self { master, slave, before, seen: Seen::default() }
    }

    /// Its other end, for a child.
    pub fn stdio(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Runs `command` on this terminal, as the leader of a new session. Standard streams that are not set are the
    /// terminal.
    pub fn spawn(&self, command: &mut Command) -> Running {
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
        Running::spawn(command)
    }

    /// Runs a guest.
    pub fn run(&self, guest: &Elf, arguments: &[&str]) -> Running {
        self.spawn(guest.command(arguments).stdout(self.stdio()).stderr(self.stdio()))
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

    /// Fails the test unless kite ends with this status and the terminal is as it was before.
    #[track_caller]
    pub fn assert_left_by(&self, kite: Running, status: i32) {
        kite.assert_ends_with(status);
        self.assert_untouched();
    }

    /// Waits until the user has seen `text`, and returns all that was seen.
    #[track_caller]
    pub fn wait_for(&self, text: &[u8]) -> Vec<u8> {
        let has = |seen: &[u8]| seen.windows(text.len()).any(|window| window == text);
        let seen = self.seen.wait_while(|seen| !has(seen));
        assert!(has(&seen), "no {} in {}", text.escape_ascii(), seen.escape_ascii());
        seen
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

/// What `write(2)` begins with in `proc_pid_syscall(5)`.
const WRITE: &str = "1 ";

/// Waits until kite's output thread has been writing for a while, the same bytes all the time: so long that a guest has
/// filled the serial port's buffer, too, and lost some.
pub fn wait_until_output_is_stuck(kite: &Running) {
    let (mut last, mut same) = (String::new(), 0);
    until("the output to be stuck", || {
        std::thread::sleep(Duration::from_millis(20));
        let now = console_call(kite);
        same = if now == last && now.starts_with(WRITE) { same + 1 } else { 0 };
        last = now;
        same == 200
    });
}

/// The system call that kite's output thread is in, with its arguments (`proc_pid_syscall(5)`).
fn console_call(kite: &Running) -> String {
    let text = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let tasks = std::fs::read_dir(format!("/proc/{}/task", kite.id())).unwrap();
    let console = tasks.flatten().find(|task| text(task.path().join("comm")).trim() == "console");
    console.map(|task| text(task.path().join("syscall"))).unwrap_or_default()
}
