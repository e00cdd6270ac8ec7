//! More processes in a container: what its guest and those who start them tell each other, over one port for all.
//!
//! A frame is a kind (one byte), the process's number and a length (32 bits each, little-endian), and so many bytes. Each
//! stream of a process has a window: its sender may send so many bytes more than the receiver has said it has taken.
//! So no stream waits for the reader of another, and no side holds more than a window of it.

use std::ffi::OsString;
use std::io::Read;
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::container::ProcessSpec;
use super::wire::Terminal;
use crate::host::lock::lock;

/// The port.
pub const PORT: &str = "kite.processes";
/// The number of the container's own process.
pub const OWN: u32 = 0;
/// How many bytes of a stream may be on their way.
pub const WINDOW: usize = 64 << 10;
/// The most bytes of a stream in a frame.
pub const PIECE: usize = 16 << 10;
/// The longest frame to the guest, which may describe a process.
pub const LONGEST_TO_GUEST: usize = 4 << 20;
/// The longest frame from the guest.
pub const LONGEST_FROM_GUEST: usize = PIECE;
/// How many bytes are read at once.
pub const CHUNK: usize = 32 << 10;
/// The bytes before those of a frame.
const HEADER: usize = 9;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the guest: start a [`GuestProcess`].
    Start = 1,
    /// To the guest: this is for standard input.
    Stdin,
    /// To the guest: standard input has ended.
    StdinEnd,
    /// To the guest: so many bytes of standard output are taken (32 bits).
    TakenStdout,
    /// To the guest: the same of standard error.
    TakenStderr,
    /// To the guest: the process gets this signal (32 bits).
    Signal,
    /// To the guest: the terminal has these columns and rows (16 bits each).
    Resize,
    /// From the guest: the container's own process is started.
    Ready,
    /// From the guest: this is of standard output.
    Stdout,
    /// From the guest: this is of standard error.
    Stderr,
    /// From the guest: so many bytes of standard input are taken (32 bits).
    TakenStdin,
    /// From the guest: how it has ended, an [`End`](super::wire::End). Its output came before.
    Ended,
}

impl Kind {
    const ALL: [Self; 12] = [
        Self::Start,
        Self::Stdin,
        Self::StdinEnd,
        Self::TakenStdout,
        Self::TakenStderr,
        Self::Signal,
        Self::Resize,
        Self::Ready,
        Self::Stdout,
        Self::Stderr,
        Self::TakenStdin,
        Self::Ended,
    ];

    fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which process it is of.
    pub id: u32,
    /// What it says.
    pub payload: Vec<u8>,
}

/// A process to be started in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestProcess {
    /// The program and its arguments.
    pub argv: Vec<OsString>,
    /// The whole of the environment.
    pub env: Vec<(OsString, OsString)>,
    /// The folder to start in.
    pub cwd: OsString,
    /// Who it is, and what it may do.
    pub process: ProcessSpec,
    /// The terminal, if it has one.
    pub terminal: Option<Terminal>,
}

impl Frame {
    /// A frame that says a number.
    pub fn number(kind: Kind, id: u32, number: u32) -> Self {
        Self { kind, id, payload: number.to_le_bytes().to_vec() }
    }

    /// The number that it says; nothing if it says none.
    pub fn as_number(&self) -> Option<u32> {
        Some(u32::from_le_bytes(self.payload.as_slice().try_into().ok()?))
    }

    /// As it travels.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.push(self.kind as u8);
        bytes.extend(self.id.to_le_bytes());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        bytes.extend(&self.payload);
        bytes
    }
}

/// The room in a stream's window: how many bytes its sender may send now.
pub struct Window {
    bytes: Mutex<usize>,
    more: Condvar,
}

impl Default for Window {
    fn default() -> Self {
        Self { bytes: Mutex::new(WINDOW), more: Condvar::new() }
    }
}

impl Window {
    /// Waits until there is room; answers how many bytes of it.
    pub fn wait(&self) -> usize {
        let mut bytes = lock(&self.bytes);
        while *bytes == 0 {
            bytes = self.more.wait(bytes).unwrap_or_else(PoisonError::into_inner);
        }
        *bytes
    }

    /// Takes room for what is sent.
    pub fn take(&self, bytes: usize) {
        let mut room = lock(&self.bytes);
        *room = room.saturating_sub(bytes);
    }

    /// Gives room back for what the receiver has taken, and never more than a window has.
    pub fn give(&self, bytes: usize) {
        let mut room = lock(&self.bytes);
        *room = room.saturating_add(bytes).min(WINDOW);
        self.more.notify_all();
    }
}

/// What has come is no frame: nothing behind it makes sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrame;

/// Cuts what has come into frames.
pub struct Frames {
    bytes: Vec<u8>,
    longest: usize,
}

impl Frames {
    /// Takes no longer frames than this.
    pub fn new(longest: usize) -> Self {
        Self { bytes: Vec::new(), longest }
    }

    /// Takes more bytes.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// The next frame, if all of it has come.
    ///
    /// # Errors
    /// It is none, or too long.
    pub fn take(&mut self) -> Result<Option<Frame>, NoFrame> {
        let Some((header, rest)) = self.bytes.split_first_chunk::<HEADER>() else { return Ok(None) };
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let (kind, id, len) = (Kind::of(header[0]).ok_or(NoFrame)?, word(1), word(5) as usize);
        if len > self.longest {
            return Err(NoFrame);
        }
        let Some(payload) = rest.get(..len).map(<[u8]>::to_vec) else { return Ok(None) };
        self.bytes.drain(..HEADER + len);
        Ok(Some(Frame { kind, id, payload }))
    }

    /// Takes more bytes, and hands `take` each frame that is whole now, until it has had enough.
    ///
    /// # Errors
    /// One is none, or too long.
    pub fn cut(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, NoFrame> {
        self.feed(bytes);
        while let Some(frame) = self.take()? {
            if take(frame).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Hands `take` each frame that comes from `from`, until that ends or `take` has had enough.
    ///
    /// # Errors
    /// One is none, or too long.
    pub fn read(
        mut self,
        mut from: impl Read,
        mut take: impl FnMut(Frame) -> ControlFlow<()>,
    ) -> Result<(), NoFrame> {
        let mut buffer = vec![0; CHUNK];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if self.cut(&buffer[..count], &mut take)?.is_break() {
                break;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_arrive_whole_however_they_are_cut() {
        let sent = [
            Frame { kind: Kind::Start, id: u32::MAX, payload: b"{}".to_vec() },
            Frame { kind: Kind::StdinEnd, id: 0, payload: Vec::new() },
            Frame::number(Kind::Signal, 7, 15),
            Frame { kind: Kind::Stdout, id: 1, payload: vec![0; PIECE] },
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
        for size in [1, 7, 4096, bytes.len()] {
            let (mut frames, mut heard) = (Frames::new(PIECE), Vec::new());
            for part in bytes.chunks(size) {
                frames.feed(part);
                while let Some(frame) = frames.take().unwrap() {
                    heard.push(frame);
                }
            }
            assert_eq!(heard, sent, "in parts of {size}");
        }
        assert_eq!((sent[2].as_number(), sent[1].as_number()), (Some(15), None));
    }

    #[test]
    fn nonsense_and_what_is_too_long_ends_it() {
        for bytes in [[0; HEADER], [13, 0, 0, 0, 0, 0, 0, 0, 0], [9, 0, 0, 0, 0, 1, 64, 0, 0], [9; HEADER]] {
            let mut frames = Frames::new(PIECE);
            frames.feed(&bytes[..HEADER - 1]);
            assert_eq!(frames.take(), Ok(None));
            frames.feed(&bytes[HEADER - 1..]);
            assert_eq!(frames.take(), Err(NoFrame), "{bytes:?}");
        }
    }
}
