//! A command's side of the control socket.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use devices::screen::{PixelMemory, Size, Surface};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr};

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
        match connection.describe() {
            Ok(machine) => machines.push(machine),
            Err(_) => silent.push(id),
        }
    }
    Ok((machines, silent))
}

/// Connects to a machine's supervisor.
///
/// # Errors
/// No such machine runs, or the folder of sockets is not this user's alone.
pub fn connect(id: &MachineId) -> anyhow::Result<Connection> {
    let folder = folder()?.ok_or_else(|| absent(id))?;
    Connection::new(&folder, id)?.ok_or_else(|| absent(id))
}

/// A picture that the VM process has sent, in memory that it may change.
pub struct Picture {
    size: Size,
    content: File,
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
        const PART: &str = "the machine has sent a part of the picture";
        let Size { width, height } = self.size;
        let len = self.content.metadata().context(PART)?.len();
        // Less than that is worth no memory.
        ensure!(len >= 4 * self.size.area() as u64, PART);
        let pixels = PixelMemory::new(self.size.area()).context("no memory for the picture")?;
        let mut row = vec![0; width as usize * 4];
        for y in 0..height as usize {
            let offset = (y * row.len()) as u64;
            self.content.read_exact_at(&mut row, offset).context(PART)?;
            let (words, _) = row.as_chunks();
            pixels.write(y * width as usize, words.iter().map(|word| u32::from_le_bytes(*word)));
        }
        Ok(Surface::new(self.size, 0, width as usize, Arc::new(pixels)))
    }
}

pub(super) fn connect_to(path: &Path) -> nix::Result<Socket> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(socket.into())
}

/// A connection to a machine's supervisor, which answers one question.
pub struct Connection {
    id: MachineId,
    socket: Socket,
}

impl Connection {
    /// The connection to the supervisor of machine `id` that `socket` is.
    pub fn over(id: MachineId, socket: OwnedFd) -> Self {
        Self { id, socket: socket.into() }
    }

    /// Connects; nothing if no such machine runs.
    fn new(folder: &Folder, id: &MachineId) -> anyhow::Result<Option<Self>> {
        match connect_to(&folder.way_to(id)) {
            Ok(socket) => Ok(Some(Self { id: id.clone(), socket })),
            Err(Errno::ENOENT | Errno::ECONNREFUSED) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot connect to machine {id}")),
        }
    }

    /// What the machine is and does.
    ///
    /// # Errors
    /// The supervisor does not answer.
    pub fn describe(self) -> anyhow::Result<Description> {
        match self.ask(&Request::Describe, TO_DESCRIBE)? {
            (Reply::Description(machine), _) => Ok(machine),
            _ => Err(self.senseless()),
        }
    }

    /// Takes a picture of the machine's screen.
    ///
    /// # Errors
    /// It has no screen, or it does not answer.
    pub fn screenshot(self) -> anyhow::Result<Picture> {
        match self.ask(&Request::Screenshot, TO_ANSWER + MARGIN)? {
            (Reply::Picture(size), Some(content)) => Picture::new(size, content),
            _ => Err(self.senseless()),
        }
    }

    /// Pauses the machine, or lets it go on.
    ///
    /// # Errors
    /// It cannot, or does not answer.
    pub fn pause(self, pause: bool) -> anyhow::Result<()> {
        let request = if pause { Request::Pause } else { Request::Resume };
        match self.ask(&request, TO_ANSWER + MARGIN)? {
            (Reply::Done, None) => Ok(()),
            _ => Err(self.senseless()),
        }
    }

    /// Ends the machine as SIGTERM does, and waits until it has ended; its supervisor kills it after `timeout`.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(self, timeout: Duration) -> anyhow::Result<()> {
        let milliseconds = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
        let timeout = Duration::from_millis(milliseconds.into());
        match self.ask_for_packet(&Request::Stop(milliseconds), timeout + TO_ANSWER + MARGIN)? {
            None => Ok(()),
            Some(_) => Err(self.senseless()),
        }
    }

    fn senseless(&self) -> anyhow::Error {
        anyhow!("machine {} makes no sense", self.id)
    }

    /// Asks, and waits so long for the answer.
    fn ask(&self, request: &Request, patience: Duration) -> anyhow::Result<(Reply, Option<OwnedFd>)> {
        let answer = self.ask_for_packet(request, patience)?;
        answer.with_context(|| format!("machine {} has ended", self.id))
    }

    /// Asks, and waits so long for the answer, which a failure is not; nothing if the supervisor ends instead.
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
                    return match decode(&bytes) {
                        Some(Reply::Failed(why)) => bail!(why),
                        Some(reply) => Ok(Some((reply, content))),
                        None => Err(self.senseless()),
                    };
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
