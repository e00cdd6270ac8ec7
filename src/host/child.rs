//! One child process: followed to its end, or ended.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, getpid, getppid};

use super::atomic_file;

/// How long a child may take to end once it was asked to.
const GRACE: Duration = Duration::from_secs(10);
/// How much is read at once, and how often once a child has ended: more than its pipes hold.
const PIECE: usize = 16 << 10;
const LAST_PIECES: usize = 128;

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// How it ended.
pub(crate) enum End {
    /// By itself.
    Status(ExitStatus),
    /// A stop was requested.
    Stopped,
    /// It was still there when its time was over.
    Late,
}

/// Runs a command to its end and gives `take` what it prints. It reads `input` and no more, is a process group of its own,
/// and ends with the calling thread. Once `stop` is readable or `limit` is over, it is asked to end, and then made to.
///
/// # Errors
/// The command cannot be started or followed.
pub(crate) fn run(
    command: &mut Command,
    input: &[u8],
    stop: Option<BorrowedFd<'_>>,
    limit: Option<Duration>,
    take: &mut dyn FnMut(Stream, &[u8]),
) -> anyhow::Result<End> {
    let stdin = if input.is_empty() { Stdio::null() } else { memory_with(input)?.into() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    end_with_this_thread(command);
    let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let mut following = Following::new(child)?;
    following.follow(stop, limit, take)
}

/// A file that has no name and holds these bytes: a pipe may hold fewer.
fn memory_with(bytes: &[u8]) -> anyhow::Result<File> {
    let write = || {
        let mut memory = atomic_file::memory()?;
        memory.write_all(bytes)?;
        memory.rewind()?;
        io::Result::Ok(memory)
    };
    write().context("cannot hold a program's input in memory")
}

/// The child of a thread that is gone is ended by the kernel, as no thread would.
#[expect(unsafe_code, reason = "std can do neither, and other code may not run between fork and exec")]
fn end_with_this_thread(command: &mut Command) {
    let parent = getpid();
    let prepare = move || {
        SigSet::empty().thread_set_mask()?;
        set_pdeathsig(Signal::SIGTERM)?;
        // It may have gone before it could have been noticed.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: three system calls without memory of their own, which a child of a process with threads may make.
    unsafe { command.pre_exec(prepare) };
}

/// A child that is there, reaped or not.
struct Following {
    child: Child,
    group: Pid,
    exited: OwnedFd,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    reaped: bool,
}

impl Following {
    fn new(mut child: Child) -> anyhow::Result<Self> {
        let group = Pid::from_raw(i32::try_from(child.id()).context("a process id too great")?);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let exited = pidfd(group);
        if exited.is_err() {
            // Without it no thread would wait for the child.
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait();
        }
        let exited = exited.context("cannot watch a process")?;
        let this = Self { child, group, exited, stdout, stderr, reaped: false };
        for pipe in this.pipes().into_iter().flatten() {
            fcntl(pipe, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot set up a pipe")?;
        }
        Ok(this)
    }

    fn pipes(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [self.stdout.as_ref().map(AsFd::as_fd), self.stderr.as_ref().map(AsFd::as_fd)]
    }

    fn follow(
        &mut self,
        stop: Option<BorrowedFd<'_>>,
        limit: Option<Duration>,
        take: &mut dyn FnMut(Stream, &[u8]),
    ) -> anyhow::Result<End> {
        let mut why = None;
        let mut deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        loop {
            let ready = self.wait(stop.filter(|_| why.is_none()), deadline)?;
            if ready.exited {
                let status = self.reap(take)?;
                return Ok(why.unwrap_or(End::Status(status)));
            }
            if ready.output {
                self.read(take);
            }
            let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            if why.is_none() && (ready.stop || over) {
                why = Some(if ready.stop { End::Stopped } else { End::Late });
                deadline = Instant::now().checked_add(GRACE);
                // It is not reaped, so the number is still its own.
                let _ = killpg(self.group, Signal::SIGTERM);
            } else if over {
                deadline = None;
                let _ = killpg(self.group, Signal::SIGKILL);
            }
        }
    }

    /// Waits for something to do.
    fn wait(&self, stop: Option<BorrowedFd<'_>>, deadline: Option<Instant>) -> anyhow::Result<Ready> {
        let mut fds = vec![PollFd::new(self.exited.as_fd(), PollFlags::POLLIN)];
        fds.extend(stop.map(|stop| PollFd::new(stop, PollFlags::POLLIN)));
        fds.extend(self.pipes().into_iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::POLLIN)));
        let timeout = deadline.map_or(PollTimeout::NONE, |deadline| {
            // Rounded up; what is too long for one wait takes several.
            let left = deadline.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait for a process"),
        }
        let ready: Vec<_> = fds.iter().map(|fd| fd.any().unwrap_or(false)).collect();
        let pipes = 1 + usize::from(stop.is_some());
        let output = ready.iter().skip(pipes).any(|ready| *ready);
        Ok(Ready { exited: ready[0], stop: stop.is_some() && ready[1], output })
    }

    /// Reads a piece of each stream; `false` if there was none.
    fn read(&mut self, take: &mut dyn FnMut(Stream, &[u8])) -> bool {
        let stdout = read_from(&mut self.stdout, Stream::Stdout, take);
        let stderr = read_from(&mut self.stderr, Stream::Stderr, take);
        stdout || stderr
    }

    /// Takes what is left of an ended child, and ends what it has left behind.
    fn reap(&mut self, take: &mut dyn FnMut(Stream, &[u8])) -> anyhow::Result<ExitStatus> {
        // Nobody is left in most cases.
        let _ = killpg(self.group, Signal::SIGKILL);
        for _ in 0..LAST_PIECES {
            if !self.read(take) {
                break;
            }
        }
        self.reaped = true;
        self.child.wait().context("cannot wait for a process")
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        if !self.reaped {
            // An error came first, and no one else ends the child.
            let _ = killpg(self.group, Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

struct Ready {
    exited: bool,
    stop: bool,
    output: bool,
}

/// Reads once; a pipe at its end is closed. `true` if something came.
fn read_from<R: Read>(pipe: &mut Option<R>, stream: Stream, take: &mut dyn FnMut(Stream, &[u8])) -> bool {
    let mut piece = [0; PIECE];
    let Some(open) = pipe else { return false };
    match open.read(&mut piece) {
        Ok(0) => *pipe = None,
        Ok(len) => {
            take(stream, &piece[..len]);
            return true;
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
        Err(_) => *pipe = None,
    }
    false
}

/// Readable once the process has ended.
#[expect(unsafe_code, reason = "nix has no pidfd_open")]
fn pidfd(process: Pid) -> Result<OwnedFd, Errno> {
    // SAFETY: takes two numbers and gives a new file descriptor.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: it is open, and owned here alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether a file descriptor is readable now.
pub(crate) fn is_readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
