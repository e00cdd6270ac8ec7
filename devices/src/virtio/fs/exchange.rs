//! A descriptor chain as an exchange: data goes straight between files and the guest's memory.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::server::Exchange;
use crate::GuestMemory;
use crate::virtio::{Buffers, Chain, Copies, vectored};

/// A request in a chain, and the room for its reply.
pub struct Request<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// The chain.
    pub chain: &'a Chain,
    /// The copies of the guest's memory.
    pub copies: &'a Copies,
}

/// The `len` bytes of `buffers` from `offset` on.
fn part(buffers: &Buffers, offset: usize, len: usize) -> Buffers {
    let mut part = buffers.clone().split_off(offset);
    part.truncate(len);
    part
}

impl Exchange for Request<'_> {
    fn asked(&self) -> usize {
        self.chain.readable.len()
    }

    fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        self.chain.readable.read(self.memory, offset, into)
    }

    fn room(&self) -> usize {
        self.chain.writable.len()
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.copies.write(|| self.chain.writable.write(self.memory, offset, bytes));
    }

    fn fill(
        &mut self,
        offset: usize,
        len: usize,
        file: &OwnedFd,
        from: u64,
        wait: bool,
    ) -> io::Result<usize> {
        let room = part(&self.chain.writable, offset, len);
        let flags = if wait { 0 } else { libc::RWF_NOWAIT };
        loop {
            let before = self.copies.count();
            let got = vectored::read_at_as(file.as_fd(), self.memory, &room, from, flags)?;
            if self.copies.write(|| self.copies.count()) == before {
                return Ok(got);
            }
        }
    }

    fn drain(&self, offset: usize, len: usize, file: &OwnedFd, to: u64, append: bool) -> io::Result<usize> {
        let data = part(&self.chain.readable, offset, len);
        let flags = if append { libc::RWF_APPEND } else { 0 };
        vectored::write_at_as(file.as_fd(), self.memory, &data, to, flags)
    }
}
