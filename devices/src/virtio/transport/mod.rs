//! How a driver and a device reach each other: registers, interrupts and notifications. The registers are a transport's
//! own; the other two are what the core and the thread of a device know of it.

pub mod mmio;

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
