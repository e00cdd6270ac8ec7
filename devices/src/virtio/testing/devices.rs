//! Devices that only tests have: they do as little as shows what the core makes of a driver.

use std::collections::VecDeque;
use std::io::{PipeReader, pipe};
use std::os::fd::AsFd;

use crate::GuestMemory;
use crate::device::{self, State};
use crate::virtio::{Chain, Error, Kind, Queues, Served, Source, VirtioDevice};

/// What one chain is answered with at most, in bytes.
const MOST: usize = 4096;

/// Copies what can be read of a chain into what can be written; returns how much that was.
fn echo(memory: &GuestMemory, chain: &Chain) -> u32 {
    let mut bytes = [0; MOST];
    let read = chain.readable.read(memory, 0, &mut bytes);
    chain.writable.write(memory, 0, &bytes[..read]) as u32
}

/// Answers at once, on two queues; its configuration space is what the driver wrote there.
#[derive(Debug, Default)]
pub struct Echo {
    config: [u8; 12],
}

impl VirtioDevice for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn kind(&self) -> Kind {
        Kind { id: 0x1001, module: "none" }
    }

    fn features(&self) -> u64 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256, 16]
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        self.config.iter_mut().skip(offset).zip(data).for_each(|(to, from)| *to = *from);
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        queues.each(index, |memory, chain| Served::Used(echo(memory, &chain)))
    }

    fn save(&self) -> Result<State, device::Error> {
        Ok(State::of(&self.config))
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        self.config = state.take()?;
        Ok(())
    }
}

/// Holds every chain of its two queues until its source is served, and answers in reverse then.
#[derive(Debug)]
pub struct Later {
    held: VecDeque<(usize, Chain)>,
    source: PipeReader,
}

impl Later {
    /// A device that holds nothing.
    pub fn new() -> Self {
        let (source, _other_end) = pipe().expect("the host has files");
        Self { held: VecDeque::new(), source }
    }

    fn complete(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        while let Some((index, chain)) = self.held.pop_back() {
            let written = echo(queues.memory(), &chain);
            queues.complete(index, chain.head, written)?;
        }
        Ok(())
    }
}

impl Default for Later {
    fn default() -> Self {
        Self::new()
    }
}

impl VirtioDevice for Later {
    fn name(&self) -> &str {
        "later"
    }

    fn kind(&self) -> Kind {
        Kind { id: 0x1002, module: "none" }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64, 8]
    }

    fn sources(&self) -> Vec<Source<'_>> {
        vec![Source::readable(self.source.as_fd())]
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        while let Some(chain) = queues.take(index)? {
            self.held.push_back((index, chain));
        }
        Ok(())
    }

    fn serve_source(&mut self, _index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.complete(queues)
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.complete(queues)
    }

    fn reset(&mut self) {
        self.held.clear();
    }
}
