//! kite's commands.

pub mod bench;
pub mod doctor;
pub mod inspect;
pub mod matrix;
pub mod run;
