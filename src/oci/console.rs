//! A container's terminal: the engine gets its one end over a socket (runc's `docs/terminals.md`), this process the other.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::Context;
use nix::fcntl::{OFlag, open};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::sys::stat::Mode;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Makes a terminal this process's own, which leads a session, on its standard streams; who listens at `socket` gets the
/// other end.
///
/// # Errors
/// The host has no terminal left, or no engine listens.
pub fn take(socket: &Path) -> anyhow::Result<()> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .context("there is no terminal left")?;
    grantpt(&master).and_then(|()| unlockpt(&master)).context("cannot use a new terminal")?;
    let name = ptsname_r(&master).context("a new terminal has no name")?;
    // The first terminal that the leader of a session opens is the session's.
    let slave = open(name.as_str(), OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .context("cannot open a new terminal")?;
    let stream = UnixStream::connect(socket).context("cannot connect")?;
    let (name, descriptors) = (name.into_bytes(), [master.as_raw_fd()]);
    let message = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&name)], &message, MsgFlags::empty(), None)
        .context("cannot hand over a terminal")?;
    dup2_stdin(&slave).and_then(|()| dup2_stdout(&slave)).and_then(|()| dup2_stderr(&slave))?;
    Ok(())
}
