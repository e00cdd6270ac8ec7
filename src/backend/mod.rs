//! What devices are connected to: disks, tap interfaces, passt, sockets.

pub mod disk;
pub mod net;
pub mod passt;
pub mod socket;
pub mod tap;
