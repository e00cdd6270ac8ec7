//! A UNIX stream socket as the backend, in the framing of QEMU's `-netdev stream` and of passt(1): the length of a frame
//! in four bytes, big endian, then the frame. There are no headers and no offloads. The peer isn't trusted.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Backend, HEADER, Room, SHORTEST_FRAME, scatter};
use crate::GuestMemory;
use crate::virtio::vectored::Gather;
use crate::virtio::{Chain, Source, retry};

/// Bytes of a frame's length.
const LENGTH: usize = 4;
/// The longest frame.
const LONGEST_FRAME: usize = 65535;
/// Bytes that are received at once: a few of the longest frames.
const INCOMING: usize = 256 << 10;
/// What passt's frames have room for, in whole words (§5.1.4 `mtu`).
const MTU: u16 = 65520;

/// A socket that carries frames.
pub struct Stream {
    socket: UnixStream,
    mtu: u16,
    state: Arc<Mutex<State>>,
}

/// What is on its way in or out.
struct State {
    /// What has been received: frames, the last perhaps not whole.
    incoming: Box<[u8]>,
    start: usize,
    end: usize,
    /// The rest of a frame that is sent in part: another may only follow it.
    outgoing: Vec<u8>,
}

impl Stream {
    /// Sends and receives over `socket`, which is connected. The guest should send no packets longer than `mtu`, or than
    /// what frames have room for.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn new(socket: UnixStream, mtu: Option<u16>) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let incoming = vec![0; INCOMING].into_boxed_slice();
        let state = State { incoming, start: 0, end: 0, outgoing: Vec::new() };
        Ok(Self { socket, mtu: mtu.unwrap_or(MTU), state: Arc::new(Mutex::new(state)) })
    }

    /// The same connection for the next machine, which goes on in the middle of a frame if need be. Of one connection there
    /// is one in use at a time.
    ///
    /// # Errors
    /// The process has no descriptor left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, mtu: self.mtu, state: self.state.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes the next whole frame from what has been received: where it lies.
    fn next_frame(&mut self) -> io::Result<Option<std::ops::Range<usize>>> {
        let received = &self.incoming[self.start..self.end];
        let Some((length, rest)) = received.split_first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(SHORTEST_FRAME..=LONGEST_FRAME).contains(&length) {
            let what = format!("the peer sends a frame of {length} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if rest.len() < length {
            return Ok(None);
        }
        let frame = self.start + LENGTH;
        self.start = frame + length;
        Ok(Some(frame..frame + length))
    }

    /// Receives more. What was received of a frame moves to the front, so that there is room for all of it.
    fn fill(&mut self, mut socket: &UnixStream) -> io::Result<()> {
        self.incoming.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = &mut self.incoming[self.end..];
        match retry(|| socket.read(room))? {
            0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer has gone")),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }

    /// Keeps the rest of a frame of which `sent` bytes are sent, its length among them; false if it isn't begun.
    fn keep_rest(&mut self, memory: &GuestMemory, chain: &Chain, sent: usize) -> bool {
        if sent > 0 {
            let len = frame_len(chain);
            self.outgoing.extend((len as u32).to_be_bytes());
            self.outgoing.resize(LENGTH + len, 0);
            chain.readable.read(memory, HEADER, &mut self.outgoing[LENGTH..]);
            self.outgoing.drain(..sent);
        }
        sent > 0
    }
}

impl Backend for Stream {
    fn features(&self) -> u64 {
        0
    }

    fn mtu(&self) -> Option<u16> {
        Some(self.mtu)
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source { fd: self.socket.as_fd(), writable: true }]
    }

    fn receive(&mut self, _pair: usize, room: Room<'_>) -> io::Result<usize> {
        let mut state = self.state();
        let frame = loop {
            match state.next_frame()? {
                Some(frame) => break &state.incoming[frame],
                None => state.fill(&self.socket)?,
            }
        };
        scatter(room.memory, room.chains, 0, &[0; HEADER]);
        let rest = &frame[scatter(room.memory, room.chains, HEADER, frame)..];
        room.beyond[..rest.len()].copy_from_slice(rest);
        Ok(HEADER + frame.len())
    }

    fn flush(&mut self) -> io::Result<bool> {
        let (mut state, mut socket) = (self.state(), &self.socket);
        while !state.outgoing.is_empty() {
            match retry(|| socket.write(&state.outgoing)) {
                Ok(count) => drop(state.outgoing.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn send(&mut self, _pair: usize, memory: &GuestMemory, chains: &[Chain]) -> io::Result<usize> {
        let lengths: Vec<_> = chains.iter().map(|chain| (frame_len(chain) as u32).to_be_bytes()).collect();
        let mut done = 0;
        while done < chains.len() {
            let mut gather = Gather::new(memory);
            let mut end = done;
            while let (Some(chain), Some(length)) = (chains.get(end), lengths.get(end))
                && (chain.readable.is_empty() || gather.push(length, &chain.readable, HEADER))
            {
                end += 1;
            }
            let mut sent = match gather.send(self.socket.as_fd()) {
                Ok(sent) => sent,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(done),
                Err(error) => return Err(error),
            };
            for chain in &chains[done..end] {
                let whole = if chain.readable.is_empty() { 0 } else { LENGTH + frame_len(chain) };
                if sent < whole {
                    let begun = self.state().keep_rest(memory, chain, sent);
                    return Ok(done + usize::from(begun));
                }
                sent -= whole;
                done += 1;
            }
        }
        Ok(done)
    }
}

/// The length of the frame that the driver sends.
fn frame_len(chain: &Chain) -> usize {
    chain.readable.len().saturating_sub(HEADER)
}
