//! The server and the device in the hands of a guest, well-behaved or not.

mod bounds;
mod bridge;
mod client;
mod device;
mod escape;
mod hostile;
mod message;
mod model;
mod open;
mod programs;
mod rights;
mod semantics;
mod state;
mod unusual;
