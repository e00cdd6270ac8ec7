//! Received packets on their way into the guest's buffers (virtio 1.2 §5.1.6.3 and §5.1.6.4).

use std::collections::VecDeque;
use std::io;

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF};

use super::{Backend, HEADER, LONGEST, QUEUE_SIZE, Queues, Room, bit, scatter};
use crate::virtio::vectored::MOST;
use crate::virtio::{Chain, Error};

/// Where the header counts the buffers of its packet (`num_buffers`).
const COUNT: usize = 10;
/// The longest packet of an ordinary network, with its header and a VLAN tag.
const ORDINARY: usize = HEADER + 1518;
/// Room for what doesn't fit into the guest's buffers.
const BEYOND: usize = 66 << 10;

/// A packet that was received and for which there are too few buffers yet.
struct Pending {
    len: usize,
    /// How much of it is in the chains that are held; the rest is in `beyond`.
    placed: usize,
}

/// The receiving half of a queue pair.
///
/// A packet's length isn't known before it is there. So chains are taken from the ring ahead of packets, enough for the
/// longest that is likely, and held from one packet to the next. What is too long nevertheless goes beyond them, into
/// memory of the host's own, and from there into more chains, once there are any.
pub(super) struct Receiver {
    index: usize,
    /// At most as many as the ring has entries: no head is held twice.
    held: VecDeque<Chain>,
    /// The bytes that they have room for.
    room: usize,
    /// The bytes to have room for before a packet is received, if the ring gives that much.
    wanted: usize,
    /// Whether a packet may span chains.
    mergeable: bool,
    beyond: Vec<u8>,
    pending: Option<Pending>,
    used: Vec<(u16, u32)>,
}

impl Receiver {
    /// That of `pair`.
    pub fn new(pair: usize) -> Self {
        Self {
            index: 2 * pair,
            held: VecDeque::new(),
            room: 0,
            wanted: 0,
            mergeable: false,
            beyond: vec![0; BEYOND],
            pending: None,
            used: Vec::new(),
        }
    }

    /// The driver accepted `features`.
    pub fn activate(&mut self, features: u64) {
        let long = features & (bit(VIRTIO_NET_F_GUEST_TSO4) | bit(VIRTIO_NET_F_GUEST_TSO6)) != 0;
        self.mergeable = features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0;
        self.wanted = match (self.mergeable, long) {
            (false, _) => 1,
            (true, false) => ORDINARY,
            (true, true) => LONGEST,
        };
    }

    /// Forgets what is held.
    pub fn reset(&mut self) {
        self.held.clear();
        self.room = 0;
        self.pending = None;
    }

    /// Puts back what is held, so that the ring has it all. A packet that waits for more is lost.
    pub fn put_back(&mut self, queues: &mut Queues<'_>) {
        self.held.iter().rev().for_each(|chain| queues.put_back(self.index, chain));
        self.reset();
    }

    /// Receives until the backend has no packet, the guest no buffers, or a ring's worth is done; the inner error is the
    /// backend's.
    pub fn receive(
        &mut self,
        backend: &mut dyn Backend,
        queues: &mut Queues<'_>,
    ) -> Result<io::Result<()>, Error> {
        for _ in 0..QUEUE_SIZE {
            let wanted = self.pending.as_ref().map_or(self.wanted, |packet| packet.len);
            self.hold(wanted, queues)?;
            if self.held.is_empty() {
                return Ok(Ok(())); // A kick announces more.
            }
            let Pending { len, placed } = match self.pending.take() {
                Some(packet) => packet,
                None => match self.receive_one(backend, queues) {
                    Ok(packet) => packet,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Ok(())),
                    Err(error) => return Ok(Err(error)),
                },
            };
            let room = if self.mergeable { self.room } else { placed };
            if len <= room {
                self.deliver(len, placed, queues)?;
                // The guest begins with this one while the next is received.
                queues.signal(self.index);
            } else if self.mergeable && self.held.len() < queues.size(self.index).into() {
                self.pending = Some(Pending { len, placed });
                self.hold(len, queues)?;
                if self.room < len {
                    return Ok(Ok(()));
                }
            }
            // Else it is lost: however long it waited, there would be no room.
        }
        queues.serve_again(self.index);
        Ok(Ok(()))
    }

    /// Takes chains until there is room for `wanted` bytes.
    fn hold(&mut self, wanted: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        while self.room < wanted
            && let Some(chain) = queues.take(self.index)?
        {
            let (len, pieces) = (chain.writable.len(), chain.writable.pieces());
            if len < HEADER || pieces >= MOST {
                queues.complete(self.index, chain.head, 0)?; // Not a buffer for packets (§5.1.6.3.1).
            } else {
                self.room = self.room.saturating_add(len);
                self.held.push_back(chain);
            }
        }
        Ok(())
    }

    /// Receives a packet into the first chains, as many as one call takes.
    fn receive_one(&mut self, backend: &mut dyn Backend, queues: &Queues<'_>) -> io::Result<Pending> {
        let held = self.held.make_contiguous();
        let (mut count, mut pieces, mut placed) = (0, 0, 0);
        let most = if self.mergeable { held.len() } else { 1 };
        for chain in held.iter().take(most) {
            pieces += chain.writable.pieces();
            if pieces >= MOST {
                break;
            }
            count += 1;
            placed += chain.writable.len();
        }
        let room = Room { memory: queues.memory(), chains: &held[..count], beyond: &mut self.beyond };
        let len = backend.receive(self.index / 2, room)?;
        Ok(Pending { len, placed })
    }

    /// Hands the driver a packet of `len` bytes that has room; what is not `placed` comes from beyond.
    fn deliver(&mut self, len: usize, placed: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        if len < HEADER {
            return Ok(()); // No backend of ours does that.
        }
        let memory = queues.memory();
        let held = self.held.make_contiguous();
        let beyond = self.beyond.get(..len.saturating_sub(placed)).unwrap_or_default();
        scatter(memory, held, placed, beyond);
        self.used.clear();
        let mut rest = len;
        for chain in held.iter() {
            let filled = rest.min(chain.writable.len());
            self.used.push((chain.head, filled as u32));
            rest -= filled;
            if rest == 0 {
                break;
            }
        }
        let count = self.used.len() as u16;
        scatter(memory, held, COUNT, &count.to_le_bytes());
        for chain in self.held.drain(..self.used.len()) {
            self.room -= chain.writable.len();
        }
        queues.complete_all(self.index, &self.used)
    }
}
