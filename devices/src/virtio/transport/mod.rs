//! How a driver and a device reach each other: registers, interrupts and notifications.

pub mod mmio;

/// Why the driver is interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Buffers of this queue were used.
    Queue(u16),
    /// The configuration, or the status, changed.
    Config,
}

/// How a transport interrupts the driver: one line over MMIO, a vector a queue over PCI.
pub trait Interrupt: Send + Sync {
    /// Tells the driver. Must not wait.
    fn signal(&self, cause: Cause);
    /// Takes back what the driver was told and has not acknowledged: the device is reset.
    fn clear(&self);
}

/// Where a transport leaves word for the thread that serves the device. It is called from vCPU threads: it must not wait.
pub trait Doorbell: Send {
    /// The driver kicked queue `index`, which exists.
    fn kick(&self, index: u16);
    /// The driver is up: from here on kicks come.
    fn activated(&self);
}
