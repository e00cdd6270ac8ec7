//! Device models that know no KVM: what a device does with the bytes a guest reads and writes.
//!
//! A device owns no file descriptor, thread or address; what it needs is given to `new`.
#![forbid(unsafe_code)]

pub mod bus;
pub mod cmos;
pub mod i8042;
pub mod interrupt;
pub mod power;
pub mod serial;
#[cfg(test)]
mod testing;
