//! What commands of the runtime ask a container's monitor, over the socket in its folder: a line of JSON, and one in
//! answer. Behind a process that joins come its frames.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::state::{Folder, SOCKET, Status};
use crate::spec::frames::GuestProcess;

/// The longest request in bytes.
const LONGEST: u64 = 4 << 20;
/// How long either side may take to say its line. The monitor may have to wait for the guest.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// What a monitor is asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Is it there?
    Ping,
    /// Start the machine; the answer comes once the container's process has begun.
    Start,
    /// Send this signal to the container's process; SIGKILL ends the machine.
    Signal(i32),
    /// Stop the machine where it is.
    Pause,
    /// Let it go on.
    Resume,
    /// Start a process that joins the container.
    Exec(Box<GuestProcess>),
}

/// What it answers.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// It is not, for this reason.
    Failed(String),
}

/// An error that says that a container has stopped, in the words that engines look for.
#[derive(Debug)]
pub struct NotRunning;

impl std::fmt::Display for NotRunning {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("container not running")
    }
}

impl std::error::Error for NotRunning {}

/// The path of the monitor's socket, which fits whatever the folder's path is (unix(7)).
fn path(folder: &Folder) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", folder.handle.as_raw_fd())
}

/// Listens for requests.
///
/// # Errors
/// Somebody does already, or the folder has gone.
pub fn listen(folder: &Folder) -> anyhow::Result<UnixListener> {
    UnixListener::bind(path(folder)).context("cannot listen for requests")
}

/// Asks; answers with the connection, for what follows.
///
/// # Errors
/// [`NotRunning`] of a container that has stopped, also while it was asked: its monitor ends with it, and may not come to
/// an answer. Else the monitor is not there, does not answer, or refuses.
pub fn ask(folder: &Folder, request: &Request) -> anyhow::Result<UnixStream> {
    let (stream, reply) = exchange(folder, request).map_err(|error| {
        let has_stopped = folder.record().is_ok_and(|record| record.status == Status::Stopped);
        if has_stopped { NotRunning.into() } else { error }
    })?;
    match reply {
        Reply::Done => Ok(stream),
        Reply::Failed(why) => bail!(why),
    }
}

/// Sends a request and receives its answer.
fn exchange(folder: &Folder, request: &Request) -> anyhow::Result<(UnixStream, Reply)> {
    let mut stream = UnixStream::connect(path(folder)).context("cannot ask the container's monitor")?;
    // What a guest needs to boot is not known; the connection ends with the monitor.
    let limit = Some(PATIENCE).filter(|_| !matches!(request, Request::Start));
    stream.set_read_timeout(limit)?;
    send(&mut stream, request)?;
    let reply = receive(&stream)?;
    Ok((stream, reply))
}

/// Sends a line.
///
/// # Errors
/// The peer has gone.
pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> anyhow::Result<()> {
    let mut line = serde_json::to_vec(message).context("a message cannot be written as JSON")?;
    line.push(b'\n');
    stream.write_all(&line).context("the peer has gone")
}

/// Receives a line, and not a byte of what follows.
///
/// # Errors
/// The peer has gone, says nothing, too much, or nonsense.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> anyhow::Result<T> {
    let mut line = Vec::new();
    // What is behind the line is for others to read.
    let mut one = BufReader::with_capacity(1, stream.take(LONGEST + 1));
    one.read_until(b'\n', &mut line).context("the peer does not answer")?;
    ensure!(line.ends_with(b"\n"), "the peer has gone or says too much");
    serde_json::from_slice(&line).context("the peer makes no sense")
}
