//! What devices are connected to: disks, tap interfaces, passt, sockets, and the images of containers.

pub mod disk;
pub mod image;
pub mod net;
pub mod passt;
pub mod socket;
pub mod tap;
