//! The lock by which no two machines write to one image.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::fcntl::{FcntlArg, fcntl};

/// How long a lock that another holds is waited for. The kernel takes an io_uring down after the process that had it, and
/// closes its files with it, which took 400 ms: by then the next command's machine opens the disk.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(10);

/// Locks the whole file, alone for writing. The lock is the open file's: it goes with it, however kite ends.
pub(super) fn lock(file: &File, writable: bool) -> anyhow::Result<()> {
    let kind = if writable { libc::F_WRLCK } else { libc::F_RDLCK };
    let whole = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let started = Instant::now();
    loop {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)) {
            Ok(_) => return Ok(()),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) if started.elapsed() < PATIENCE => {
                thread::sleep(PAUSE);
            }
            Err(nix::Error::EAGAIN | nix::Error::EACCES) if writable => bail!(
                "another machine or program uses it; stop that first, or use 'readonly' or 'ephemeral' in all of them"
            ),
            Err(nix::Error::EAGAIN | nix::Error::EACCES) => {
                bail!("another machine or program has it open for writing; stop that first, or use a copy")
            }
            Err(error) => return Err(error).context("cannot lock it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn a_disk_that_the_machine_before_is_about_to_leave_is_waited_for() {
        let disk = tempfile::NamedTempFile::new().unwrap();
        let open = || OpenOptions::new().read(true).write(true).open(disk.path()).unwrap();
        let before = open();
        lock(&before, true).unwrap();
        let before = thread::spawn(move || {
            thread::sleep(Duration::from_millis(100));
            drop(before);
        });
        lock(&open(), false).unwrap();
        before.join().unwrap();
        let other = open();
        lock(&other, true).unwrap();
        let error = lock(&open(), true).unwrap_err().to_string();
        assert!(error.contains("another machine or program uses it"), "{error}");
    }
}
