//! What a machine and a command are, as plain data: the one description that everything else is built from.

pub mod command;
pub mod container;
pub mod device;
pub mod disk;
pub mod duration;
pub mod frames;
pub mod limits;
pub mod machine;
pub mod net;
pub mod number;
mod run;
pub mod sandbox;
mod text;
pub mod wire;

pub use command::CommandSpec;
pub use machine::MachineSpec;
pub use run::{MeasureSpec, RunSpec, StatsSpec};
