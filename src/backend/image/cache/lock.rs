//! flock(2), which belongs to an open file, and so to every process that has it open.

use std::fs::File;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::fcntl::FlockArg;

/// Locks a file together with others, and waits for who has it alone.
pub(super) fn shared(file: &File) -> nix::Result<()> {
    lock(file, FlockArg::LockShared)
}

/// Locks a file alone, and waits for all who have it.
pub(super) fn alone(file: &File) -> nix::Result<()> {
    lock(file, FlockArg::LockExclusive)
}

/// Locks a file alone, unless another has it. Returns whether it did.
pub(super) fn try_alone(file: &File) -> nix::Result<bool> {
    match lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(()) => Ok(true),
        Err(Errno::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

#[expect(deprecated, reason = "its successor unlocks when it is dropped: also for a process forked before")]
fn lock(file: &File, how: FlockArg) -> nix::Result<()> {
    loop {
        match nix::fcntl::flock(file.as_raw_fd(), how) {
            Err(Errno::EINTR) => {}
            done => return done,
        }
    }
}
