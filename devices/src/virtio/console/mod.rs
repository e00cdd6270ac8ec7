//! The console device (virtio 1.2 §5.3): a console, and named byte streams between guest and host.
//!
//! Port 0 is the console. What the host's side of each port does is in [`Port`]; what goes through the control queues is
//! in `control`.

mod control;
mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{Chain, Error, Queues, Served, Source, VirtioDevice};
use crate::GuestMemory;
use control::{Message, Owed};
pub use port::{Host, INPUT_LIMIT, NAME_LIMIT, OUTPUT_LIMIT, Port};

/// How many named ports a device has at most.
pub const MOST_NAMED: usize = 30;

/// VIRTIO_CONSOLE_F_SIZE: the configuration has the terminal's size.
const SIZE: u64 = 1;
/// VIRTIO_CONSOLE_F_MULTIPORT: there are control queues, and ports beside the first.
const MULTIPORT: u64 = 1 << 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: a driver that has no queue can write a byte all the same.
const EMERG_WRITE: u64 = 1 << 2;

/// What the device has to tell.
const CONTROL_RECEIVE: usize = 2;
/// What the driver has to tell.
const CONTROL_TRANSMIT: usize = 3;
const QUEUE_SIZE: u16 = 64;
/// Where the configuration space has `emerg_wr`.
const EMERGENCY: u64 = 8;

/// The device.
pub struct Console {
    /// By their number. The first may be missing, the others are there.
    ports: Vec<Option<Guest>>,
    queue_sizes: Vec<u16>,
    /// `cols` and `rows`, le16; `max_nr_ports` and `emerg_wr`, le32.
    config: [u8; 12],
    /// The driver knows of ports.
    multiport: bool,
}

/// The guest's end of a port.
struct Guest {
    port: Arc<Port>,
    /// How much of the chain that is first in the ring has been taken.
    taken: usize,
    owed: Owed,
    /// The driver has said that it can use the port.
    ready: bool,
    /// Once it has heard what is owed, the driver thinks that someone is at the host's end.
    connected: bool,
    /// Columns and rows, as the driver knows them or is about to.
    size: (u16, u16),
}

impl Guest {
    fn new(port: Arc<Port>) -> Self {
        let size = port.take_news().size;
        Self { port, taken: 0, owed: Owed::default(), ready: false, connected: false, size }
    }

    /// Notes what the driver has to hear of the host's side; answers whether the size is another.
    fn look(&mut self) -> bool {
        let news = self.port.take_news();
        let resized = self.size != news.size;
        self.size = news.size;
        if !self.ready {
            return resized;
        }
        if resized {
            self.owed.add(Owed::SIZE);
        }
        if news.hung_up && self.connected {
            self.connected = false;
            // Whom the driver has not heard of has not gone either.
            if !self.owed.remove(Owed::OPENED) {
                self.owed.add(Owed::CLOSED);
            }
        }
        if news.connected && !self.connected {
            self.connected = true;
            self.owed.add(Owed::OPENED);
        }
        resized
    }
}

/// The queues of port `id`: what it receives, then what it transmits.
fn queues_of(id: usize) -> [usize; 2] {
    match id {
        0 => [0, 1],
        _ => [2 * id + 2, 2 * id + 3],
    }
}

/// The port of a queue, and whether that transmits. Not for the control queues.
fn port_of(queue: usize) -> (usize, bool) {
    ((queue / 2).saturating_sub(1), queue % 2 == 1)
}

impl Console {
    /// A device with `console`, if any, and `named` ports, [`MOST_NAMED`] at most.
    pub fn new(console: Option<Arc<Port>>, named: Vec<Arc<Port>>) -> Self {
        let ports: Vec<_> = std::iter::once(console.map(Guest::new))
            .chain(named.into_iter().take(MOST_NAMED).map(|port| Some(Guest::new(port))))
            .collect();
        let queue_sizes = vec![QUEUE_SIZE; 2 * ports.len() + 2];
        let mut config = [0; 12];
        config[4..8].copy_from_slice(&(ports.len() as u32).to_le_bytes());
        let mut this = Self { ports, queue_sizes, config, multiport: false };
        this.show_size();
        this
    }

    fn show_size(&mut self) {
        if let Some(console) = self.ports.first().and_then(Option::as_ref) {
            self.config[..2].copy_from_slice(&console.size.0.to_le_bytes());
            self.config[2..4].copy_from_slice(&console.size.1.to_le_bytes());
        }
    }

    fn port(&mut self, id: usize) -> Option<&mut Guest> {
        self.ports.get_mut(id).and_then(Option::as_mut)
    }

    /// Takes output from port `id`, as much as the host has room for.
    fn transmit(&mut self, id: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let mut port = self.port(id);
        queues.each(queues_of(id)[1], |memory, chain| {
            let Some(Guest { port, taken, .. }) = port.as_mut() else { return Served::Used(0) };
            match port.put_output(memory, &chain.readable, taken) {
                true => {
                    *taken = 0;
                    Served::Used(0)
                }
                false => Served::NotYet,
            }
        })
    }

    /// Gives port `id` the input that there is.
    fn receive(&mut self, id: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        match self.port(id) {
            Some(Guest { port, .. }) if port.has_input() => {
                queues.each(queues_of(id)[0], |memory, chain| port.get_input(memory, &chain.writable))
            }
            _ => Ok(()),
        }
    }

    /// Hears a message of the driver. Nonsense is ignored.
    fn hear(&mut self, memory: &GuestMemory, chain: &Chain) {
        let mut bytes = [0; Message::LEN];
        if chain.readable.read(memory, 0, &mut bytes) < Message::LEN {
            return;
        }
        let message = Message::decode(bytes);
        let yes = message.value == 1;
        if message.event == control::DEVICE_READY && yes {
            self.ports.iter_mut().flatten().for_each(|port| port.owed.add(Owed::ADD));
            return;
        }
        let id = message.id as usize;
        let Some(port) = self.port(id) else { return };
        match message.event {
            control::PORT_READY => {
                port.ready = yes;
                port.connected = false;
                port.look();
                if yes {
                    port.owed.add(if id == 0 { Owed::CONSOLE } else { Owed::NAME });
                }
                if yes && id == 0 {
                    port.owed.add(Owed::SIZE);
                }
            }
            control::PORT_OPEN => port.port.set_open(yes),
            _ => {}
        }
    }

    /// Tells the driver what it is owed, as far as it has room.
    fn tell(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        for (id, port) in (0..).zip(&mut self.ports) {
            let Some(port) = port else { continue };
            while let Some(first) = port.owed.first() {
                let Some(chain) = queues.take(CONTROL_RECEIVE)? else { return Ok(()) };
                let message = first.message(id, &port.port, port.size);
                // Half a message says nothing: it waits for a buffer that it fits into.
                let fits = chain.writable.len() >= message.len();
                if fits {
                    chain.writable.write(queues.memory(), 0, &message);
                    port.owed.remove(first);
                }
                let written = if fits { message.len() as u32 } else { 0 };
                queues.complete(CONTROL_RECEIVE, chain.head, written)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn features(&self) -> u64 {
        SIZE | MULTIPORT | EMERG_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (EMERGENCY, Some(byte)) = (offset, data.first())
            && let Some(console) = self.port(0)
        {
            console.port.put_byte(*byte);
        }
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.ports.iter().flatten().map(|guest| Source::readable(guest.port.event())).collect()
    }

    fn activate(&mut self, features: u64) {
        self.multiport = features & MULTIPORT != 0;
        if !self.multiport
            && let Some(console) = self.port(0)
        {
            console.port.set_open(true);
        }
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        match (index, port_of(index)) {
            (CONTROL_RECEIVE.., _) if !self.multiport => Ok(()),
            (CONTROL_RECEIVE, _) => self.tell(queues),
            (CONTROL_TRANSMIT, _) => {
                queues.each(index, |memory, chain| {
                    self.hear(memory, &chain);
                    Served::Used(0)
                })?;
                self.tell(queues)
            }
            (_, (id, true)) => self.transmit(id, queues),
            (_, (id, false)) => self.receive(id, queues),
        }
    }

    fn serve_source(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let first = usize::from(self.ports.first().is_some_and(Option::is_none));
        let id = first + index;
        if let Some(guest) = self.port(id) {
            guest.port.heard();
        }
        // Before the news, since what was written to someone who has gone is thrown away until then.
        self.transmit(id, queues)?;
        let Some(port) = self.port(id) else { return Ok(()) };
        if port.look() && id == 0 {
            self.show_size();
            queues.config_changed();
        }
        self.receive(id, queues)?;
        if self.multiport { self.tell(queues) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.multiport = false;
        for guest in self.ports.iter_mut().flatten() {
            guest.port.reset();
            *guest = Guest::new(guest.port.clone());
        }
        self.show_size();
    }
}
