//! How a driver and a device reach each other: registers, interrupts and notifications. The registers are a transport's
//! own; the other two are what the core and the thread of a device know of it.

pub mod mmio;
pub mod pci;

use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_queue::Queue;

use super::Virtio;
use crate::device::{Error, State};

/// Why the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Buffers of this queue were used.
    Queue(u16),
    /// The configuration, or the status, changed.
    Config,
}

/// How a transport interrupts the driver: one line over MMIO, a vector a cause over PCI.
pub trait Interrupt: Send + Sync {
    /// Interrupts the driver. Must not wait.
    fn signal(&self, cause: Cause);

    /// Forgets what the driver has not acknowledged: the device is reset.
    fn clear(&self);

    /// What the driver has not acknowledged, and how the transport interrupts it if the driver has a say in that.
    fn save(&self) -> State;

    /// Takes over a state that is not checked; nothing is sent before [`Self::resume`].
    ///
    /// # Errors
    /// It is no state that such a transport can have.
    fn load(&self, state: State) -> Result<(), Error>;

    /// Interrupts the driver again for what it has not acknowledged: an interrupt may be lost while a machine is saved and
    /// loaded.
    fn resume(&self);
}

/// How a transport notifies the thread that serves the device. It is called from vCPU threads: it must not wait.
pub trait Notify: Send + Sync {
    /// The driver kicked queue `index`, which exists.
    fn kick(&self, index: u16);
    /// The driver is up: kicks come, and every queue and source has to be served once.
    fn driver_ok(&self);
}

/// Checked before it is narrowed: 0x1_0000 is not 0.
fn set_size(queue: &mut Queue, value: u32) {
    if let Ok(size) = u16::try_from(value) {
        let _refused = queue.try_set_size(size);
    }
}

/// The address with the half that `register` holds, which is the lower one at a multiple of 8, replaced. A misaligned one
/// is refused in silence; the queue's own setters for halves log each.
fn half(address: u64, register: u32, value: u32) -> u64 {
    let shift = register % 8 * 8;
    address & !(u64::from(u32::MAX) << shift) | u64::from(value) << shift
}

/// A device that panicked under its lock ends the process by the panic hook; in tests it is one device less.
fn lock(virtio: &Mutex<Virtio>) -> MutexGuard<'_, Virtio> {
    virtio.lock().unwrap_or_else(PoisonError::into_inner)
}
