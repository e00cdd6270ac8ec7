//! The console device (virtio 1.2 §5.3): a console, and named byte streams between guest and host.
//!
//! Port 0 is the console. What the host's side of each port does is in [`Port`]; what goes through the control queues is
//! in `control`.

mod control;
mod port;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{Chain, Error, Kind, Queues, Served, Source, VirtioDevice};
use crate::GuestMemory;
use crate::device::{self, State, base64_bytes, check};
use control::{Message, Notices};
pub use port::{Host, INPUT_LIMIT, NAME_LIMIT, OUTPUT_LIMIT, Port};

/// What all console devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_CONSOLE, module: "virtio_console" };
/// How many named ports a device has at most.
pub const MOST_NAMED: usize = 30;

/// VIRTIO_CONSOLE_F_SIZE: the configuration has the terminal's size.
const SIZE: u64 = 1;
/// VIRTIO_CONSOLE_F_MULTIPORT: there are control queues, and ports beside the first.
const MULTIPORT: u64 = 1 << 1;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: a driver that has no queue can write a byte all the same.
const EMERG_WRITE: u64 = 1 << 2;

/// Control messages from the device.
const CONTROL_RECEIVE: usize = 2;
/// Control messages from the driver.
const CONTROL_TRANSMIT: usize = 3;
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
    /// The messages that the driver has yet to get.
    notices: Notices,
    /// The driver has said that it can use the port.
    ready: bool,
    /// Once it has those messages, the driver thinks that the host's end is open.
    connected: bool,
    /// Columns and rows, as the driver knows them or is about to.
    size: (u16, u16),
}

impl Guest {
    fn new(port: Arc<Port>) -> Self {
        let size = port.take_changes().size;
        Self { port, taken: 0, notices: Notices::default(), ready: false, connected: false, size }
    }

    /// Notes what has changed at the host's end; answers whether the size has.
    fn update(&mut self) -> bool {
        let now = self.port.take_changes();
        let resized = self.size != now.size;
        self.size = now.size;
        if !self.ready {
            return resized;
        }
        if resized {
            self.notices.add(Notices::SIZE);
        }
        // A port that another one was loaded from may never have been open at this host's end.
        if (now.hung_up || !now.connected) && self.connected {
            self.connected = false;
            // Unless the driver does not know yet that it was open.
            if !self.notices.remove(Notices::OPENED) {
                self.notices.add(Notices::CLOSED);
            }
        }
        if now.connected && !self.connected {
            self.connected = true;
            self.notices.add(Notices::OPENED);
        }
        resized
    }

    fn save(&self) -> Saved {
        let Self { taken, notices, ready, connected, size, .. } = *self;
        Saved { taken, notices, ready, connected, size, open: self.port.is_open(), input: self.port.input() }
    }

    fn load(&mut self, saved: Saved) -> Result<(), device::Error> {
        check(saved.notices.is_valid(), "control message")?;
        check(saved.input.len() <= INPUT_LIMIT, "length of input")?;
        check(saved.open || saved.input.is_empty(), "input of a closed port")?;
        (self.taken, self.notices) = (saved.taken, saved.notices);
        (self.ready, self.connected, self.size) = (saved.ready, saved.connected, saved.size);
        self.port.set_open(saved.open);
        self.port.set_input(saved.input);
        Ok(())
    }
}

/// The guest-visible state of a port.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    taken: usize,
    notices: Notices,
    ready: bool,
    connected: bool,
    size: (u16, u16),
    /// The guest has the port open.
    open: bool,
    /// What the host has sent and the guest has not taken.
    #[serde(with = "base64_bytes")]
    input: Vec<u8>,
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
        const QUEUE_SIZE: u16 = 64;
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
            if !port.put_output(memory, &chain.readable, taken) {
                return Served::NotYet;
            }
            *taken = 0;
            Served::Used(0)
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

    /// Takes a message of the driver. Nonsense is ignored.
    fn receive_control(&mut self, memory: &GuestMemory, chain: &Chain) {
        let mut bytes = [0; Message::LEN];
        if chain.readable.read(memory, 0, &mut bytes) < Message::LEN {
            return;
        }
        let message = Message::decode(bytes);
        let yes = message.value == 1;
        if message.event == control::DEVICE_READY && yes {
            self.ports.iter_mut().flatten().for_each(|port| port.notices.add(Notices::ADD));
            return;
        }
        let id = message.id as usize;
        let Some(port) = self.port(id) else { return };
        match message.event {
            control::PORT_READY => {
                port.ready = yes;
                port.connected = false;
                port.update();
                if yes {
                    port.notices.add(if id == 0 { Notices::CONSOLE } else { Notices::NAME });
                }
                if yes && id == 0 {
                    port.notices.add(Notices::SIZE);
                }
            }
            control::PORT_OPEN => port.port.set_open(yes),
            _ => {}
        }
    }

    /// Sends the driver its messages, as far as it has room.
    fn send_control(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        for (id, port) in (0..).zip(&mut self.ports) {
            let Some(port) = port else { continue };
            while let Some(first) = port.notices.first() {
                let Some(chain) = queues.take(CONTROL_RECEIVE)? else { return Ok(()) };
                let message = first.message(id, &port.port, port.size);
                // Half a message says nothing: it waits for a buffer that it fits into.
                let fits = chain.writable.len() >= message.len();
                if fits {
                    chain.writable.write(queues.memory(), 0, &message);
                    port.notices.remove(first);
                }
                let written = if fits { message.len() as u32 } else { 0 };
                queues.complete(CONTROL_RECEIVE, chain.head, written)?;
            }
        }
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn name(&self) -> &str {
        "hvc"
    }

    fn kind(&self) -> Kind {
        KIND
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

    fn negotiated(&mut self, features: u64) {
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
            (CONTROL_RECEIVE, _) => self.send_control(queues),
            (CONTROL_TRANSMIT, _) => {
                queues.each(index, |memory, chain| {
                    self.receive_control(memory, &chain);
                    Served::Used(0)
                })?;
                self.send_control(queues)
            }
            (_, (id, true)) => self.transmit(id, queues),
            (_, (id, false)) => self.receive(id, queues),
        }
    }

    fn serve_source(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let first = usize::from(self.ports.first().is_some_and(Option::is_none));
        let id = first + index;
        if let Some(guest) = self.port(id) {
            guest.port.clear_event();
        }
        // Before changes are noted: until then, what was written to a host's end that has closed is thrown away.
        self.transmit(id, queues)?;
        let Some(port) = self.port(id) else { return Ok(()) };
        if port.update() && id == 0 {
            self.show_size();
            queues.config_changed();
        }
        self.receive(id, queues)?;
        if self.multiport { self.send_control(queues) } else { Ok(()) }
    }

    fn reset(&mut self) {
        self.multiport = false;
        for guest in self.ports.iter_mut().flatten() {
            guest.port.reset();
            *guest = Guest::new(guest.port.clone());
        }
        self.show_size();
    }

    /// Output that the host has not taken is not in it: the host's end has it.
    fn save(&self) -> Result<State, device::Error> {
        let ports = self.ports.iter().map(|guest| guest.as_ref().map(Guest::save));
        Ok(State::of(&ports.collect::<Vec<_>>()))
    }

    fn load(&mut self, state: State) -> Result<(), device::Error> {
        let saved: Vec<Option<Saved>> = state.take()?;
        check(saved.len() == self.ports.len(), "number of ports")?;
        for (guest, saved) in self.ports.iter_mut().zip(saved) {
            match (guest, saved) {
                (Some(guest), Some(saved)) => guest.load(saved)?,
                (None, None) => {}
                _ => return Err(device::Error::Invalid("port")),
            }
        }
        self.show_size();
        Ok(())
    }
}
