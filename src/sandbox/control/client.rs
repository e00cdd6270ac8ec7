//! A command's side of the control socket.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use devices::screen::{PixelMemory, Size, Surface};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::message::{Description, Reply, Request, decode, encode};
use super::server::TO_ANSWER;
use super::{Folder, absent, folder};
use crate::sandbox::channel::{Packet, Socket};
use crate::spec::id::MachineId;

/// How long a supervisor may take to describe its machine.
const TO_DESCRIBE: Duration = Duration::from_secs(2);
/// How much longer than the VM process a supervisor may take.
const MARGIN: Duration = Duration::from_secs(5);

/// The machines of this user that run, in the order of their names; and the names of those that do not answer.
///
/// # Errors
/// The folder of their sockets is not this user's alone, or cannot be read.
pub fn list() -> anyhow::Result<(Vec<Description>, Vec<MachineId>)> {
    let (mut machines, mut silent) = (Vec::new(), Vec::new());
    let Some(folder) = folder()? else { return Ok((machines, silent)) };
    for id in folder.ids()? {
        // One that was killed has left its socket, which the next of its name takes over.
        let Ok(Some(connection)) = Connection::new(&folder, &id) else { continue };
        match connection.ask(&Request::Describe, TO_DESCRIBE) {
            Ok((Reply::Description(machine), _)) => machines.push(machine),
            _ => silent.push(id),
        }
    }
    Ok((machines, silent))
}

/// A picture that the VM process has sent, in memory that it may change.
pub struct Picture {
    size: Size,
    content: File,
}

/// Takes a picture of a machine's screen.
///
/// # Errors
/// No such machine runs, it has no screen, or it does not answer.
pub fn screenshot(id: &MachineId) -> anyhow::Result<Picture> {
    match ask(id, &Request::Screenshot)? {
        (Reply::Picture(size), Some(content)) => Picture::new(size, content),
        _ => bail!("machine {id} makes no sense"),
    }
}

impl Picture {
    pub(super) fn new(size: Size, content: OwnedFd) -> anyhow::Result<Self> {
        let size = Size::new(size.width, size.height).context("the picture has a size that there is not")?;
        Ok(Self { size, content: content.into() })
    }

    /// The picture as it is now.
    ///
    /// # Errors
    /// There is less of it than its size says, or no memory for it.
    pub fn surface(&self) -> anyhow::Result<Surface> {
        let Size { width, height } = self.size;
        let pixels = PixelMemory::new(self.size.area()).context("no memory for the picture")?;
        let mut row = vec![0; width as usize * 4];
        for y in 0..height as usize {
            let offset = (y * row.len()) as u64;
            self.content
                .read_exact_at(&mut row, offset)
                .context("the machine has sent a part of the picture")?;
            let (words, _) = row.as_chunks();
            pixels.write(y * width as usize, words.iter().map(|word| u32::from_le_bytes(*word)));
        }
        Ok(Surface::new(self.size, 0, width as usize, Arc::new(pixels)))
    }
}

/// Pauses a machine, or lets it go on.
///
/// # Errors
/// No such machine runs, or it cannot or does not answer.
pub fn pause(id: &MachineId, pause: bool) -> anyhow::Result<()> {
    match ask(id, if pause { &Request::Pause } else { &Request::Resume })? {
        (Reply::Done, None) => Ok(()),
        _ => bail!("machine {id} makes no sense"),
    }
}

/// Ends a machine as SIGTERM does, and waits until it has ended; its supervisor kills it after `timeout`.
///
/// # Errors
/// No such machine runs, or it does not end.
pub fn stop(id: &MachineId, timeout: Duration) -> anyhow::Result<()> {
    let folder = folder()?.ok_or_else(|| absent(id))?;
    let connection = Connection::new(&folder, id)?.ok_or_else(|| absent(id))?;
    let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let timeout = Duration::from_millis(milliseconds.into());
    match connection.ask_for_packet(&Request::Stop(milliseconds), timeout + TO_ANSWER + MARGIN)? {
        None => Ok(()),
        Some((Reply::Failed(why), _)) => bail!(why),
        Some(_) => bail!("machine {id} makes no sense"),
    }
}

/// Asks a machine's supervisor for something.
fn ask(id: &MachineId, request: &Request) -> anyhow::Result<(Reply, Option<OwnedFd>)> {
    let folder = folder()?.ok_or_else(|| absent(id))?;
    let connection = Connection::new(&folder, id)?.ok_or_else(|| absent(id))?;
    match connection.ask(request, TO_ANSWER + MARGIN)? {
        (Reply::Failed(why), _) => bail!(why),
        answer => Ok(answer),
    }
}

pub(super) fn connect_to(path: &Path) -> nix::Result<Socket> {
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
    connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// A connection to a machine's supervisor.
struct Connection {
    id: MachineId,
    socket: Socket,
}

impl Connection {
    /// Connects; nothing if no such machine runs.
    fn new(folder: &Folder, id: &MachineId) -> anyhow::Result<Option<Self>> {
        match connect_to(&folder.way_to(id)) {
            Ok(socket) => Ok(Some(Self { id: id.clone(), socket })),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot connect to machine {id}")),
        }
    }

    /// Asks, and waits so long for the answer.
    fn ask(&self, request: &Request, patience: Duration) -> anyhow::Result<(Reply, Option<OwnedFd>)> {
        let answer = self.ask_for_packet(request, patience)?;
        answer.with_context(|| format!("machine {} has ended", self.id))
    }

    /// Asks, and waits so long for the answer; nothing if the supervisor ends instead.
    fn ask_for_packet(
        &self,
        request: &Request,
        patience: Duration,
    ) -> anyhow::Result<Option<(Reply, Option<OwnedFd>)>> {
        let id = &self.id;
        self.socket.send_now(&encode(request), None).map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => absent(id),
            _ => anyhow!(error).context(format!("cannot ask machine {id}")),
        })?;
        let until = Instant::now() + patience;
        loop {
            match self.socket.receive(false) {
                Ok(Packet::Of(bytes, content)) => {
                    let reply = decode(&bytes).with_context(|| format!("machine {id} makes no sense"))?;
                    return Ok(Some((reply, content)));
                }
                Ok(Packet::Nothing) => {}
                Ok(Packet::End) => return Ok(None),
                Err(lie) => bail!("machine {id} sends {lie}"),
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("machine {id} does not answer");
            }
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
            match poll(&mut fds, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for an answer"),
            }
        }
    }
}
