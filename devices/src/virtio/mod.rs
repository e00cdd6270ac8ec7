//! Virtio: what a device does ([`VirtioDevice`]), the state that every transport shares ([`Virtio`]) and the registers
//! that a driver uses ([`transport`]).

pub mod balloon;
pub mod block;
pub mod buffers;
pub mod console;
mod copies;
mod core;
mod device;
pub mod fs;
pub mod gpu;
pub mod input;
pub mod net;
pub mod pool;
pub mod queue;
pub mod rng;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod vectored;

use std::io;

pub use buffers::Buffers;
pub use copies::Copies;
pub use core::Virtio;
pub use device::{Kind, Source, Thread, VirtioDevice};
pub use queue::{Chain, Error, Queues, Served};
pub use transport::{Cause, Interrupt, Notify};

/// Makes a system call again as long as signals interrupt it.
pub(crate) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
