//! The server and the device in the hands of a guest, well-behaved or not.

mod bridge;
mod programs;
