//! What makes a virtio device that device, whatever its transport.

use std::os::fd::BorrowedFd;

use super::{Error, Queues};

/// What makes a virtio device that device. It knows no transport, thread, eventfd or epoll.
///
/// Every call is made with the device's lock held, by the thread that serves the device unless another is named. A call
/// takes from a queue at most as many chains as that has entries; whoever calls sees to it that the rest is served too.
pub trait VirtioDevice: Send {
    /// The device id (virtio 1.2 §5).
    fn id(&self) -> u32;

    /// The device's own feature bits, 0 to 23 and 50 to 63; those of transport and rings are added by [`Virtio`].
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
    fn activate(&mut self, _features: u64) {}

    /// Serves queue `index`, which the driver kicked. It may have been kicked for nothing.
    ///
    /// # Errors
    /// The driver broke the rules so that the device cannot go on. It is told so, and nothing is called before a reset.
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
    fn settle(&mut self, _queues: &mut Queues<'_>) -> Result<(), Error> {
        Ok(())
    }

    /// Goes back to what it was when new, but for what the host has put in. What is in flight is waited for and
    /// forgotten: after this the device touches no guest memory until it is activated. Called from vCPU threads, and
    /// before the device is dropped.
    fn reset(&mut self) {}
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
