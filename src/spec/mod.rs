//! What a machine and a command are, as plain data: the one description that everything else is built from.

pub mod command;
pub mod container;
pub mod device;
pub mod disk;
pub mod duration;
pub mod frames;
pub mod id;
pub mod limits;
pub mod machine;
pub mod net;
pub mod number;
mod run;
pub mod sandbox;
pub mod text;
pub mod vnc;
pub mod wire;

pub use command::CommandSpec;
pub use machine::MachineSpec;
pub use run::{MeasureSpec, RunSpec, StatsSpec};

/// Asserts that each of the texts is refused, in one line.
#[cfg(test)]
fn assert_refused_in_one_line<T: std::fmt::Debug>(parse: impl Fn(&str) -> Result<T, String>, texts: &[&str]) {
    for text in texts {
        let error = parse(text).unwrap_err();
        assert!(!error.is_empty() && !error.contains('\n'), "{text}: {error}");
    }
}
