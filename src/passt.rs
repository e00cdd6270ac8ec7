//! passt(1), which gives a guest the host's network without privileges: one process a machine, at the other end of a
//! socket. It ends when that is closed, so it goes with kite, whatever ends kite.

use std::io::{self, BufRead, BufReader, PipeReader, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, anyhow, bail};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{Mode, fchmod};

use crate::net::Forward;

/// The stack of the thread that waits for passt, in bytes; the host gives what is touched of it.
const STACK: usize = 128 << 10;
/// What passt says of itself in any case, when all is well.
const CHATTER: [&str; 2] = ["Don't run as root", "to syslog"];

/// Starts passt and waits until it is ready; returns the socket to talk to it.
///
/// # Errors
/// There is no passt, or it doesn't start: with what it says.
pub fn start(forwards: &[Forward]) -> anyhow::Result<UnixStream> {
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let (ready, tell) = io::pipe().context("cannot make a pipe")?;
    // Started by root it opens the pipe as nobody.
    fchmod(&tell, Mode::from_bits_truncate(0o622)).context("cannot let passt write to a pipe")?;
    let mut command = Command::new("passt");
    command.args(["--foreground", "--quiet", "--no-map-gw"]);
    command.args(["--fd", &theirs.as_raw_fd().to_string()]);
    command.args(["--pid", &format!("/dev/fd/{}", tell.as_raw_fd())]);
    command.args(["--tcp-ports", &ports(forwards, false), "--udp-ports", &ports(forwards, true)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    inherit(theirs.as_fd())?;
    inherit(tell.as_fd())?;
    let started = command.spawn();
    drop((theirs, tell));
    let mut child = started.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            anyhow!("cannot find passt, which `--net user` needs; install it with `apt install passt`")
        }
        _ => anyhow!(error).context("cannot start passt"),
    })?;
    wait_until_ready(ready, &mut child)?;
    watch(child)?;
    Ok(ours)
}

/// Leaves `file` open in programs that kite starts from here on. It is closed here when passt has it.
fn inherit(file: BorrowedFd<'_>) -> anyhow::Result<()> {
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot hand passt a file")?;
    Ok(())
}

/// passt's list of forwarded ports.
fn ports(forwards: &[Forward], udp: bool) -> String {
    let ports = forwards.iter().filter(|forward| forward.udp == udp);
    let list: Vec<_> = ports.map(|forward| format!("{}:{}", forward.host, forward.guest)).collect();
    if list.is_empty() { "none".to_owned() } else { list.join(",") }
}

/// passt writes its process id when it is ready. If it ends instead, there is nothing to read.
fn wait_until_ready(mut ready: PipeReader, child: &mut Child) -> anyhow::Result<()> {
    let mut id = [0; 1];
    if ready.read(&mut id).context("cannot hear from passt")? > 0 {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.take(4096).read_to_string(&mut said).context("cannot read what passt says")?;
    }
    child.wait().context("cannot wait for passt")?;
    let said: Vec<_> = said.lines().filter(|line| is_news(line)).map(str::trim).collect();
    bail!("passt doesn't start: {}", said.join("; "))
}

fn is_news(line: &str) -> bool {
    !line.trim().is_empty() && !CHATTER.iter().any(|known| line.contains(known))
}

/// Logs what passt says and that it ends, and takes its exit status, so that nothing is left of it.
fn watch(mut child: Child) -> anyhow::Result<()> {
    let run = move || {
        if let Some(stderr) = child.stderr.take() {
            let lines = BufReader::new(stderr).lines().map_while(Result::ok);
            lines.filter(|line| is_news(line)).for_each(|line| log::warn!("passt: {line}"));
        }
        match child.wait() {
            Ok(status) if status.success() => {}
            Ok(status) => log::warn!("passt ended: {status}"),
            Err(error) => log::warn!("cannot wait for passt: {error}"),
        }
    };
    let thread = thread::Builder::new().name("passt".to_owned()).stack_size(STACK);
    thread.spawn(run).map(drop).context("cannot start a thread")
}
