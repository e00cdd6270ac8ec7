//! The network device (virtio 1.2 §5.1): packets between the guest and a [`Backend`], a [`Tap`] or a [`Stream`].
//!
//! Queues are pairs, receive and transmit, and then the control queue (§5.1.2).

mod control;
mod receive;
mod stream;
mod tap;
#[cfg(test)]
mod tests;

use std::io;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use super::{Buffers, Chain, Error, Kind, Queues, Source, VirtioDevice, vectored};
use crate::GuestMemory;
use crate::device::{self, State, check};
use receive::Receiver;
pub use stream::Stream;
pub use tap::Tap;

/// What all network devices have in common.
pub const KIND: Kind = Kind { id: VIRTIO_ID_NET, module: "virtio_net" };
/// The length of the header before each packet, in bytes (§5.1.6).
pub const HEADER: usize = 12;
/// The shortest frame: an Ethernet header.
const SHORTEST_FRAME: usize = 14;
/// The longest packet with its header, in bytes (§5.1.6.3.1).
const LONGEST: usize = 65562;
/// Entries of a queue for packets.
const QUEUE_SIZE: u16 = 256;

/// A feature's bit.
const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// Where a packet is received to.
pub struct Room<'a> {
    /// The guest's memory.
    pub memory: &'a GuestMemory,
    /// The driver's buffers.
    pub chains: &'a [Chain],
    /// Takes what is too long for the buffers.
    pub beyond: &'a mut [u8],
}

/// Where packets go to and come from. Each has the header of §5.1.6 before it.
///
/// An error other than EAGAIN is the end of the link: nothing is sent or received after it.
pub trait Backend: Send {
    /// The feature bits that this backend brings.
    fn features(&self) -> u64;

    /// How many queue pairs there are at most.
    fn pairs(&self) -> u16 {
        1
    }

    /// The largest packet that the guest should send, in bytes, its Ethernet header not counted.
    fn mtu(&self) -> Option<u16> {
        None
    }

    /// The files to wait for: that of pair `n` is the `n`-th.
    fn sources(&self) -> Vec<Source<'_>>;

    /// The driver accepted `features`, none of them after a reset. Called from a vCPU thread: it must not wait.
    fn activate(&mut self, _features: u64) {}

    /// Packets come to the first `count` pairs only.
    ///
    /// # Errors
    /// The host refuses.
    fn set_pairs(&mut self, _count: u16) -> io::Result<()> {
        Ok(())
    }

    /// Receives one packet; returns its length.
    ///
    /// # Errors
    /// EAGAIN if there is none.
    fn receive(&mut self, pair: usize, room: Room<'_>) -> io::Result<usize>;

    /// Sends the rest of an earlier packet; answers whether all of it is sent.
    ///
    /// # Errors
    /// The link is down.
    fn flush(&mut self) -> io::Result<bool> {
        Ok(true)
    }

    /// Sends packets, the readable parts of `chains` that aren't empty, after [`Self::flush`] said that all is sent.
    /// Returns how many of the chains are done with: the others have to be given again when the file can be written.
    ///
    /// # Errors
    /// The link is down.
    fn send(&mut self, pair: usize, memory: &GuestMemory, chains: &[Chain]) -> io::Result<usize>;
}

/// A network device.
pub struct Net {
    name: String,
    backend: Box<dyn Backend>,
    config: [u8; 12],
    queue_sizes: Vec<u16>,
    receivers: Vec<Receiver>,
    /// What the driver accepted.
    features: u64,
    /// How many pairs the driver uses.
    active: usize,
    link_up: bool,
}

impl Net {
    /// Where the configuration space has the status (§5.1.4).
    const STATUS: usize = 6;
    /// Where it has the MTU, its last field here.
    const MTU: usize = 10;

    /// A device with the address `mac`, and `backend` behind it.
    pub fn new(name: impl Into<String>, backend: Box<dyn Backend>, mac: [u8; 6]) -> Self {
        // Entries of the control queue.
        const CONTROL_QUEUE_SIZE: u16 = 64;
        // The least MTU that a device may offer (§5.1.4.1): every link carries that much.
        const LEAST_MTU: u16 = 68;
        let pairs = backend.pairs();
        let mut config = [0; 12];
        config[..Self::STATUS].copy_from_slice(&mac);
        config[Self::STATUS] = VIRTIO_NET_S_LINK_UP as u8;
        config[8..10].copy_from_slice(&pairs.to_le_bytes());
        let mtu = backend.mtu().filter(|mtu| *mtu >= LEAST_MTU);
        config[Self::MTU..].copy_from_slice(&mtu.unwrap_or(0).to_le_bytes());
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * usize::from(pairs)];
        if pairs > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let receivers = (0..pairs.into()).map(Receiver::new).collect();
        let (name, features, active, link_up) = (name.into(), 0, 1, true);
        Self { name, backend, config, queue_sizes, receivers, features, active, link_up }
    }

    fn accepted(&self, feature: u32) -> bool {
        self.features & bit(feature) != 0
    }

    /// The index of the control queue: behind the pairs that the driver knows of (§5.1.2).
    fn control_queue(&self) -> Option<usize> {
        let pairs = if self.accepted(VIRTIO_NET_F_MQ) { self.receivers.len() } else { 1 };
        self.accepted(VIRTIO_NET_F_CTRL_VQ).then_some(2 * pairs)
    }

    fn receive(&mut self, pair: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if !self.link_up || pair >= self.active {
            return Ok(());
        }
        let Some(receiver) = self.receivers.get_mut(pair) else { return Ok(()) };
        if let Err(error) = receiver.receive(self.backend.as_mut(), queues)? {
            self.take_down(&error, queues);
        }
        Ok(())
    }

    fn transmit(&mut self, pair: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        // How many packets a backend is given at once.
        const BATCH: usize = 32;
        let index = 2 * pair + 1;
        loop {
            let flushed = if self.link_up { self.backend.flush() } else { Ok(true) };
            if !self.up_or(flushed, true, queues) {
                return Ok(());
            }
            let mut batch = Vec::with_capacity(BATCH);
            while batch.len() < BATCH
                && let Some(mut chain) = queues.take(index)?
            {
                if !is_packet(&chain.readable) {
                    chain.readable = Buffers::default(); // Dropped, in its turn.
                }
                batch.push(chain);
            }
            let all = batch.len();
            let sent = if self.link_up { self.backend.send(pair, queues.memory(), &batch) } else { Ok(all) };
            let sent = self.up_or(sent, all, queues);
            let used: Vec<_> = batch.iter().take(sent).map(|chain| (chain.head, 0)).collect();
            queues.complete_all(index, &used)?;
            batch.iter().skip(sent).rev().for_each(|chain| queues.put_back(index, chain));
            if sent < all || all == 0 {
                return Ok(());
            }
        }
    }

    /// The result, or `otherwise` if it is that the link is down.
    fn up_or<T>(&mut self, result: io::Result<T>, otherwise: T, queues: &mut Queues<'_>) -> T {
        result.unwrap_or_else(|error| {
            self.take_down(&error, queues);
            otherwise
        })
    }

    /// Shows the driver that there is no link any more, for good (§5.1.4.2).
    fn take_down(&mut self, error: &io::Error, queues: &mut Queues<'_>) {
        let name = queues.name();
        log::warn!(target: name, "{name}: {error}; its link is down");
        self.set_link(false);
        queues.config_changed();
    }

    fn set_link(&mut self, up: bool) {
        self.link_up = up;
        self.config[Self::STATUS] = if up { VIRTIO_NET_S_LINK_UP as u8 } else { 0 };
    }
}

/// The guest-visible state.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    active_pairs: u16,
    link_up: bool,
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.name
    }

    fn kind(&self) -> Kind {
        KIND
    }

    fn features(&self) -> u64 {
        let mut features = self.backend.features();
        features |= bit(VIRTIO_NET_F_MAC) | bit(VIRTIO_NET_F_STATUS) | bit(VIRTIO_NET_F_MRG_RXBUF);
        if self.config[Self::MTU..] != [0; 2] {
            features |= bit(VIRTIO_NET_F_MTU);
        }
        if self.receivers.len() > 1 {
            features |= bit(VIRTIO_NET_F_CTRL_VQ) | bit(VIRTIO_NET_F_MQ);
        }
        features
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> &[u8] {
        &self.config
    }

    fn sources(&self) -> Vec<Source<'_>> {
        self.backend.sources()
    }

    fn negotiated(&mut self, features: u64) {
        self.features = features;
        self.backend.activate(features);
        self.receivers.iter_mut().for_each(|receiver| receiver.activate(features));
        self.use_pairs(1);
    }

    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if self.control_queue() == Some(index) {
            return self.control(index, queues);
        }
        match index % 2 {
            0 => self.receive(index / 2, queues),
            _ => self.transmit(index / 2, queues),
        }
    }

    fn serve_source(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if self.backend.sources().get(index).is_some_and(|source| source.writable) {
            self.transmit(index, queues)?;
        }
        self.receive(index, queues)
    }

    fn drain(&mut self, queues: &mut Queues<'_>) -> Result<(), Error> {
        self.receivers.iter_mut().for_each(|receiver| receiver.put_back(queues));
        Ok(())
    }

    fn reset(&mut self) {
        self.features = 0;
        self.active = 1;
        self.backend.activate(0);
        self.receivers.iter_mut().for_each(Receiver::reset);
    }

    /// Packets that the host has received and the guest had no room for are lost, as on a wire.
    fn save(&self) -> Result<State, device::Error> {
        Ok(State::of(&Saved { active_pairs: self.active as u16, link_up: self.link_up }))
    }

    /// A link that was down stays down.
    fn load(&mut self, state: State) -> Result<(), device::Error> {
        let Saved { active_pairs, link_up } = state.take()?;
        self.set_link(link_up);
        check(self.use_pairs(active_pairs), "number of queue pairs")
    }
}

/// Whether a driver may send that: a header and a frame (§5.1.6.2).
fn is_packet(buffers: &Buffers) -> bool {
    (HEADER + SHORTEST_FRAME..=LONGEST).contains(&buffers.len()) && buffers.pieces() < vectored::MOST
}

/// Copies `data` to `offset` and on of what `chains` give to write; returns how many bytes had room.
fn scatter(memory: &GuestMemory, chains: &[Chain], mut offset: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for chain in chains {
        if done == data.len() {
            break;
        }
        match offset.checked_sub(chain.writable.len()) {
            Some(rest) => offset = rest,
            None => {
                done += chain.writable.write(memory, offset, &data[done..]);
                offset = 0;
            }
        }
    }
    done
}
