//! kite's commands.

pub mod bench;
pub mod doctor;
pub mod image;
pub mod inspect;
pub mod machines;
pub mod matrix;
pub mod oci;
pub mod run;
