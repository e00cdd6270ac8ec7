//! The move to the virtio console, once its driver is up: a byte over the serial port costs an exit, a page over a ring
//! costs one.
#![expect(unsafe_code, reason = "the kernel's log is read through libc")]

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// The virtio console's terminal.
const TERMINAL: &str = "/dev/hvc0";
/// Whether the kernel itself prints to the serial port: it stops when `N` is written (Linux
/// `Documentation/ABI/testing/sysfs-tty`).
const SERIAL_CONSOLE: &str = "/sys/class/tty/ttyS0/console";
/// How long the driver may take to make the terminal. Without one the serial port stays.
const PATIENCE: Duration = Duration::from_secs(2);
/// SYSLOG_ACTION_READ (syslog(2)): takes the oldest records out of the log.
const READ: libc::c_int = 2;
/// SYSLOG_ACTION_SIZE_UNREAD: how many bytes it would take.
const UNREAD: libc::c_int = 9;

/// Whether the kernel's command line wants the virtio console.
pub fn is_wanted(command_line: &str) -> bool {
    command_line.split_ascii_whitespace().any(|word| word == "console=hvc0")
}

/// Takes what has been printed out of the kernel's log: a new console prints all of that once more. To be called before the
/// driver is loaded.
pub fn forget_what_was_printed() {
    let mut buffer = [0u8; 4096];
    // Bounded: a log has at most so much.
    for _ in 0..1024 {
        // SAFETY: asks for a number, and takes no pointer.
        if unsafe { libc::klogctl(UNREAD, std::ptr::null_mut(), 0) } <= 0 {
            return;
        }
        // SAFETY: the kernel writes at most as many bytes as the buffer has.
        let got = unsafe { libc::klogctl(READ, buffer.as_mut_ptr().cast(), buffer.len() as libc::c_int) };
        if got <= 0 {
            return;
        }
    }
}

/// Moves standard input and output, and what the kernel prints from here on, to the virtio console if there is one.
pub fn take() {
    let start = Instant::now();
    while !Path::new(TERMINAL).exists() {
        if start.elapsed() > PATIENCE {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let Ok(terminal) = File::options().read(true).write(true).open(TERMINAL) else { return };
    let _ = dup2_stdin(&terminal).and_then(|()| dup2_stdout(&terminal)).and_then(|()| dup2_stderr(&terminal));
    // Kernels before 5.7 print to both.
    let _ = fs::write(SERIAL_CONSOLE, "N");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_virtio_console_itself_is_wanted_by_name() {
        assert!(is_wanted("console=ttyS0 console=hvc0 panic=-1\n"));
        assert!(!is_wanted("console=ttyS0 xconsole=hvc0 console=hvc01\n"));
    }
}
