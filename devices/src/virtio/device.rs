//! What makes a virtio device that device, whatever its transport.

use std::os::fd::BorrowedFd;

use super::{Error, Queues};
use crate::device::{self, State};

/// What makes a virtio device that device. It knows no transport, thread, eventfd or epoll.
///
/// Every call is made with the device's lock held, by the thread that serves the device unless another is named. A call
/// takes from a queue at most as many chains as that has entries; the caller sees to it that the rest is served too.
pub trait VirtioDevice: Send {
    /// The name, unique on the board: sections of a snapshot, statistics, threads and lines of the log go by it.
    fn name(&self) -> &str;

    /// What all devices of its kind have in common.
    fn kind(&self) -> Kind;

    /// What the thread that serves the device does.
    fn thread(&self) -> Thread {
        Thread::Own
    }

    /// Whether requests may gather while its driver makes more of them: serving several at once is cheaper than each by
    /// itself, and the driver does not wait for the first.
    fn gathers(&self) -> bool {
        false
    }

    /// The device's own feature bits, 0 to 23 and 50 to 63; those of transport and rings are added by
    /// [`Virtio`](super::Virtio).
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue, a power of two: as many entries as queues.
    fn queue_sizes(&self) -> &[u16];

    /// The configuration space, little endian. Called from vCPU threads.
    fn config(&self) -> &[u8] {
        &[]
    }

    /// The driver wrote `data` at `offset` of the configuration space, which may be anywhere and of any length. Called
    /// from vCPU threads: it must not wait.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Files that the host makes ready when there is work without a kick: a tap, a completion eventfd. They are
    /// watched edge-triggered for the life of the device, so that their number and order must not change.
    fn sources(&self) -> Vec<Source<'_>> {
        Vec::new()
    }

    /// The driver is up and accepted `features`, those of transport and rings among them. Every queue that is ever used
    /// is set up. Called from a vCPU thread: it must not wait. [`Self::serve`] and [`Self::serve_source`] are called for
    /// every queue and source soon after, so that nothing that happened before is missed.
    fn negotiated(&mut self, _features: u64) {}

    /// Serves queue `index`, which the driver kicked. It may have been kicked for nothing.
    ///
    /// # Errors
    /// The driver broke the rules so that the device cannot go on. It needs a reset, and nothing is called before that.
    fn serve(&mut self, index: usize, queues: &mut Queues<'_>) -> Result<(), Error>;

    /// Serves source `index` of [`Self::sources`]. It may have become ready for nothing.
    ///
    /// # Errors
    /// As [`Self::serve`].
    fn serve_source(&mut self, _index: usize, _queues: &mut Queues<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Waits for everything that is in flight and completes it: after this the device touches no guest memory until it
    /// is called again. Called from any thread.
    ///
    /// # Errors
    /// As [`Self::serve`].
    fn drain(&mut self, _queues: &mut Queues<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Goes back to what it was when new, but for what the host has put in. What is in flight is waited for and
    /// forgotten: after this the device touches no guest memory until its driver is up. Called from vCPU threads, and
    /// before the device is dropped.
    fn reset(&mut self) {}

    /// The guest-visible state that is not in the queues, after [`Self::drain`] or a reset.
    ///
    /// # Errors
    /// The device has something that cannot be saved.
    fn save(&self) -> Result<State, device::Error> {
        Ok(State::empty())
    }

    /// Takes over a state that is not checked. The device is new, or its features have just been [negotiated](Self::negotiated) if the driver
    /// was up.
    ///
    /// # Errors
    /// It is no state that such a device can have; the device is reset then.
    fn load(&mut self, state: State) -> Result<(), device::Error> {
        state.take_empty()
    }
}

/// What all devices of one kind have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The device id (virtio 1.2 §5).
    pub id: u32,
    /// The Linux kernel module that drives such a device.
    pub module: &'static str,
}

/// What the thread that serves a device does, for its name and its sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thread {
    /// Little: one thread serves all such devices.
    Shared,
    /// It serves this device alone.
    Own,
    /// It serves this device alone, with the files of a folder.
    Files {
        /// Whether it changes them.
        writable: bool,
    },
}

/// A file that a device waits for.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    /// The file.
    pub fd: BorrowedFd<'a>,
    /// Whether room to write is waited for too, not only something to read.
    pub writable: bool,
}

impl<'a> Source<'a> {
    /// A file that is waited for until it can be read.
    pub fn readable(fd: BorrowedFd<'a>) -> Self {
        Self { fd, writable: false }
    }
}
