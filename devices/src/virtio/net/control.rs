//! The control queue (virtio 1.2 §5.1.6.5): the driver says how many queue pairs it uses.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::{Net, Queues};
use crate::virtio::{Error, Served};

/// Class and command of the one that is known.
const SET_PAIRS: [u8; 2] = [VIRTIO_NET_CTRL_MQ as u8, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET as u8];

impl Net {
    /// Carries out the commands on queue `index`.
    pub(super) fn control(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error> {
        let before = self.active;
        queues.each(index, |memory, chain| {
            if chain.writable.is_empty() {
                return Served::Used(0); // It has no room for the answer: nothing is done.
            }
            let mut command = [0; 4];
            let len = chain.readable.read(memory, 0, &mut command);
            let [class, number, low, high] = command;
            let done = len == command.len()
                && [class, number] == SET_PAIRS
                && self.use_pairs(u16::from_le_bytes([low, high]));
            let answer = if done { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
            Served::Used(chain.writable.write(memory, 0, &[answer as u8]) as u32)
        })?;
        // What came to a pair before it was used made its file ready when no thread looked.
        (before..self.active).for_each(|pair| queues.serve_again(2 * pair));
        Ok(())
    }

    /// Uses the first `count` pairs; answers whether that can be (§5.1.6.5.5).
    pub(super) fn use_pairs(&mut self, count: u16) -> bool {
        let most = if self.accepted(VIRTIO_NET_F_MQ) { self.receivers.len() } else { 1 };
        if count == 0 || usize::from(count) > most {
            return false;
        }
        match self.backend.set_pairs(count) {
            Ok(()) => self.active = count.into(),
            Err(error) => log::debug!("network device: cannot use {count} queue pairs: {error}"),
        }
        self.active == usize::from(count)
    }
}
