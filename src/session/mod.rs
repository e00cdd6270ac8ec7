//! What attends a running machine.

pub mod console;
