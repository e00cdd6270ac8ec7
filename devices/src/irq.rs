//! How a device asks for the CPU's attention.

/// An edge-triggered interrupt line, as ISA devices have.
pub trait Line: Send {
    /// Sends one edge. Called with the device's lock held, so it must neither block nor call back.
    fn pulse(&self);
}
