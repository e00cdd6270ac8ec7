//! What a machine and a command are, as plain data.

pub mod duration;
pub mod task;
