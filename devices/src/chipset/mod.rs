//! The devices of a PC's board: serial port, clock, keyboard controller, power registers, and those of unit tests.

pub mod cmos;
pub mod i8042;
pub mod power;
pub mod pvpanic;
pub mod serial;
pub mod testdev;
